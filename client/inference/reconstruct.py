"""`lacuna-site reconstruct`: raw measurements, clean volumes and absent modalities of a subject, by one bundle's prior.

    OUT/sub-X/anat/sub-X_desc-reconstructed_FLAIR.nii.gz              of a measured modality, in the scan's own values
                   sub-X_desc-reconstructionuncertainty_FLAIR.nii.gz  its spread over several samples
                   sub-X_desc-reconstructed_FLAIR.json                from what, and what of it is left unexplained
                   sub-X_desc-synthetic_T1w.nii.gz ...                what was neither measured nor there

Clean volumes come in as they are. `simulate` measures volumes of the subject, hides them, and
scores what comes back. Arrays run as everywhere in the house: rows of k-space are the anterior-posterior index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.inference import outputs
from client.inference.cases import Case, Raw, load_case
from client.inference.guard import guard
from client.inference.job import DEFAULT, Asked, Done, Job, remarks_of
from client.inference.measurements import FAR, explain
from client.inference.outputs import WARNING, Files, Made, Planes
from client.inference.sources import check_out, check_targets, check_there, find
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import ConfigError, DataError
from shared.base.files import hash_file
from shared.base.options import plain
from shared.base.vocabulary import Modality
from shared.data.bids import Sources
from shared.data.intensities import RULES, Scaling, find_brain, judged_scaling, usual_scaling
from shared.data.modalities import MODALITIES, parse
from shared.data.volumes import within
from shared.diffusion.samplers import GUIDED, Sampler
from shared.methods import TAKE_RAW, Restores
from shared.model.bundle import Bundle
from shared.model.metrics import METRICS, WINDOW
from shared.model.taught import check_taught, untaught_remarks

RECONSTRUCTED = (
    "Reconstructed from undersampled k-space with a learned prior, which may put in or take away detail. "
    "Not for primary diagnosis."
)
# configs/sampler/told.yaml: where the bundle's own takes images only
USUAL = Sampler(kind="mds", steps=15, eta=1.0, told=True, gamma=None, cg=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstructed(Done):
    flags: Mapping[Modality, str]  # measurements that the image does not explain
    scores: Mapping[Modality, Mapping[str, float]]  # of what was simulated


def reconstruct(
    bundle: Bundle, subject: Path, raw: Raw, out: Path, asked: Asked = DEFAULT, *, progress: Progress = unwatched
) -> Reconstructed:
    """Make what is asked, by default all that was measured or simulated, and all that the subject lacks.

    Clean volumes far from what the bundle was trained on are refused, unless it is asked to go on.
    """
    known = bundle.model.modalities
    sources = find(subject)
    _check_raw(bundle, sources, raw)
    sampler = _sampler(bundle, asked)
    scanned = raw.modalities
    wanted = (
        tuple(m for m in known if m in scanned or m not in sources.files)
        if asked.targets is None
        else check_targets(bundle, asked.targets)
    )
    hidden = {*wanted, *scanned, *asked.without}
    inputs = {m: p for m, p in sources.files.items() if m in known and m not in hidden}
    check_out(subject, out)
    check_there([*inputs.values(), *raw.measured.values(), *raw.maps.values()])
    wanted, left = check_taught(bundle.model, (*inputs, *scanned), wanted, asked=asked.targets is not None)
    made_from = {**outputs.made_from(bundle, inputs, sampler, asked.seed), **_raw_key(sources, raw)}
    job = Job(bundle, asked, sampler, {m: _files(out, sources.subject, m, scanned) for m in wanted}, made_from)
    preview = outputs.preview_path(out, sources.subject)
    guarded = None
    if job.todo:
        case = load_case(bundle, sources, raw, inputs, asked.seed)
        guarded = guard(bundle, case.loaded, force=asked.force) if inputs else None  # a scan has no scale to compare
        store = job.store(out, sources.subject)
        filled = job.fill(case.loaded, store, "reconstruct", measured=case.scans, progress=progress)
        facts = {
            "Inputs": {**outputs.inputs_facts(inputs), **_raw_facts(sources, raw)},
            **outputs.model_facts(bundle, sampler, asked.seed),
            "Geometry": case.geometry,
            "Brain": case.brain,
            "Guard": None if guarded is None else guarded.facts,
        }
        made = {m: _made(case, m, *job.row(filled, m), {**facts, "Key": job.keys[m]}) for m in wanted}
        given, named = _drawn(case, made)
        warning = RECONSTRUCTED.partition(",")[0] + ". " + WARNING
        job.write(store, preview, case.loaded, made, given=given, named=named, warning=warning)
    made_now, kept = job.means()
    sidecars = {m: job.files[m].read_sidecar() for m in wanted if m in scanned}
    return Reconstructed(
        subject=sources.subject,
        made=made_now,
        kept=kept,
        preview=preview if preview.exists() else None,
        flags={m: s["DataConsistency"]["Flag"] for m, s in sidecars.items() if s["DataConsistency"]["Flag"]},
        scores={m: s["Score"] for m, s in sidecars.items() if s["Score"]},
        remarks=(
            *remarks_of(sources),
            *(f"{p.name}: {m} is not among the model's modalities" for m, p in sources.files.items() if m not in known),
            *(f"{sources.files[m].name}: not used: raw data stand for {m}" for m in raw.measured if m in sources.files),
            *left,
            *untaught_remarks(bundle.model, (*inputs, *scanned), wanted),
        ),
        unusual=None if guarded is None else guarded.remark,
    )


# --- what there is --------------------------------------------------------------------------------------------------


def _check_raw(bundle: Bundle, sources: Sources, raw: Raw) -> None:
    known = ", ".join(bundle.model.modalities)
    for modality in raw.modalities:
        if modality not in bundle.model.modalities:
            raise DataError(f"raw data of {modality}: the bundle knows {known}")
        if MODALITIES[modality].kind != "mr":
            raise DataError(f"raw data of {modality}: k-space is of MR; give {modality} as a volume")
    for modality in raw.simulate:
        if modality not in sources.files:
            raise DataError(f"simulate {modality}: {sources.subject} has no volume of it to measure")
    if not raw.modalities:
        has = any(m in bundle.model.modalities for m in sources.files)
        remedy = (
            "`lacuna-site synthesize` fills in from volumes alone" if has else f"the bundle works from any of {known}"
        )
        raise DataError(f"{sources.subject}: nothing measured: name raw data, or a volume to simulate from; {remedy}")
    if not isinstance(bundle.model.method, Restores):
        raise DataError(f"bundle: {bundle.model.name} works from images only; raw data need {TAKE_RAW}")


def _sampler(bundle: Bundle, asked: Asked) -> Sampler:
    own = bundle.model.sampler
    sampler = asked.sampler or (own if own.kind in GUIDED else USUAL)
    if sampler.kind not in GUIDED:
        raise ConfigError(f"sampler={sampler.kind}: takes clean images only; for raw data take {', '.join(GUIDED)}")
    return asked.with_samples(sampler)


# --- the work -------------------------------------------------------------------------------------------------------


def _made(
    case: Case, modality: Modality, mean_DHW: torch.Tensor, sd_DHW: torch.Tensor | None, facts: Mapping[str, Any]
) -> Made:
    if modality not in case.scans:
        return Made(mean_DHW=mean_DHW, sd_DHW=sd_DHW, scaling=usual_scaling(modality), facts=facts)
    placed = case.scans[modality]
    reached = outputs.reached(case.loaded)
    found = placed.residuals(mean_DHW, reached)
    first = case.loaded.placement.z[0]
    own = {
        "Synthetic": False,
        "Reconstructed": True,
        "Description": RECONSTRUCTED,
        "IntensityFrom": f"{RULES[modality]} in the brain of a CG-SENSE image of the same data",
        "Measurement": dict(placed.scan.facts),
        "DataConsistency": {
            "Slices": [first + z for z in reached],
            "Residual": [round(share, 6) for share, _ in found],
            "ResidualOverNoise": [None if ratio is None else round(ratio, 4) for _, ratio in found],
            "FarAbove": FAR,
            "Flag": explain(found),
        },
        "Score": _score(case, modality, mean_DHW) if modality in case.truths else None,
    }
    return Made(mean_DHW=mean_DHW, sd_DHW=sd_DHW, scaling=placed.scaling, facts={**own, **facts})


def _score(case: Case, modality: Modality, mean_DHW: torch.Tensor) -> dict[str, float]:
    """Against the hidden volume, on its own scale and in its brain; of the image without prior too."""
    truth, loaded, placed = case.truths[modality], case.loaded, case.scans[modality]
    scaling = judged_scaling(modality, truth.data_DHW)
    brain_DHW = find_brain({modality: truth.data_DHW})
    share = loaded.placement.to_grid(brain_DHW)
    inside = torch.from_numpy(share >= 0.5)
    wanted = torch.from_numpy(within(loaded.placement.to_grid(scaling.apply(truth.data_DHW, brain_DHW)), share))
    phys_DHW = placed.scaling.invert(mean_DHW.numpy(), loaded.brain_DHW)
    scores = {}
    for name, found_DHW in (("", phys_DHW), ("CGSENSE", loaded.placement.to_grid(case.sense[modality]))):
        image = torch.from_numpy(_unit(found_DHW, scaling))
        scores[f"{name}PSNR"] = round(METRICS["psnr"](image, wanted, inside).volume, 3)
        if min(image.shape[1:]) >= WINDOW:
            scores[f"{name}SSIM"] = round(METRICS["ssim"](image, wanted, inside).volume, 4)
    return scores


def _unit(data_DHW: NDArray[np.float32], scaling: Scaling) -> NDArray[np.float32]:
    return scaling.apply(data_DHW, np.ones(data_DHW.shape, bool))


# --- what is written ------------------------------------------------------------------------------------------------


def _files(out: Path, subject: str, modality: Modality, scanned: Sequence[Modality]) -> Files:
    if modality in scanned:
        return Files(out, subject, modality, "reconstructed", "reconstructionuncertainty")
    return Files(out, subject, modality)


def _raw_key(sources: Sources, raw: Raw) -> dict[str, Any]:
    return {
        "measured": {m: hash_file(path) for m, path in raw.measured.items()},
        "maps": {m: hash_file(path) for m, path in raw.maps.items()},
        "simulate": {m: hash_file(sources.files[m]) for m in raw.simulate},
        "simulation": plain(raw.simulation) if raw.simulate else None,
        "spacing": plain(raw.spacing_mm),
    }


def _raw_facts(sources: Sources, raw: Raw) -> dict[str, Any]:
    facts = {m: {"File": path.name, "SHA256": hash_file(path), "As": "k-space"} for m, path in raw.measured.items()}
    for m, path in raw.maps.items():
        facts[m] |= {"Maps": path.name, "MapsSHA256": hash_file(path)}
    for m in raw.simulate:
        path = sources.files[m]
        facts[m] = {"File": path.name, "SHA256": hash_file(path), "As": "simulated k-space"}
    return facts


def _drawn(case: Case, made: Mapping[Modality, Made]) -> tuple[Planes, Mapping[str, Made]]:
    """What the contact sheet shows as given and as made, by label."""
    loaded = case.loaded
    given = [(f"{m}, measured", image) for m, image in zip(loaded.scalings, loaded.images_MDHW, strict=True)]
    labels = {}
    for m, one in made.items():
        if m in case.scans:
            sense_DHW = _unit(loaded.placement.to_grid(case.sense[m]), one.scaling)
            given.append((f"{m}, k-space (CG-SENSE)", sense_DHW))
        labels[f"{m}, RECONSTRUCTED" if m in case.scans else f"{m}, SYNTHETIC"] = one
    return given, labels


def parse_pairs(option: str, pairs: Sequence[str]) -> dict[Modality, Path]:
    """MODALITY=FILE, each modality once."""
    found: dict[Modality, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise ConfigError(f"{option}={pair!r}: must be MODALITY=FILE, such as FLAIR=raw.h5")
        if parse(name) in found:
            raise ConfigError(f"{option}={pair!r}: {parse(name)} is named twice")
        found[parse(name)] = Path(path)
    return found


def parse_spacing(text: str) -> tuple[float, float, float]:
    """X,Y,Z in mm."""
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"spacing={text!r}: must be X,Y,Z in mm, such as 1,1,5") from None
    return x, y, z
