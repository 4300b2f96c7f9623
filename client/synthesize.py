"""`lacuna-site synthesize`: a bundle and a subject's present modalities to the absent ones, as NIfTI beside a sidecar.

    OUT/sub-X/anat/sub-X_desc-synthetic_FLAIR.nii.gz     mean of the samples, in the inputs' grid and affine
                   sub-X_desc-uncertainty_FLAIR.nii.gz   their standard deviation, where there are several
                   sub-X_desc-synthetic_FLAIR.json       says that it is synthetic, from what, by which model
        sub-X_desc-preview.png

A sidecar with the same key (inputs, bundle, sampler, seed) and whole files is a finished target, and is not made again.
Nothing here leaves the site; messages may name files.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.bundle import Bundle
from shared.checkpoint import sha256, write_text
from shared.data.bids import Sources, find_files
from shared.data.intensities import RULES, Window, usual_scaling
from shared.data.modalities import MODALITIES, entity, in_order, modality_of, parse
from shared.data.preparation import PIPELINE, Loaded, load
from shared.data.volumes import write_like
from shared.diffusion.samplers import Sampler
from shared.errors import DataError
from shared.model import Filled, Progress, fill
from shared.options import plain
from shared.taught import check_taught, untaught_remarks
from shared.training import find_device
from shared.vocabulary import Modality

WARNING = "Synthetic image. Not a measurement of this subject, and not for primary diagnosis."
PREVIEW_SLICES, PREVIEW_SD = 5, 0.2  # columns; the spread that is drawn white


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesized:
    """What was done for one subject."""

    subject: str
    made: Mapping[Modality, Path]
    kept: Mapping[Modality, Path]  # were there already, from the same inputs, bundle, sampler and seed
    preview: Path | None
    remarks: tuple[str, ...]  # files that were left aside, and why


def synthesize(
    bundle: Bundle,
    subject: Path | Mapping[Modality, Path],
    out: Path,
    *,
    sampler: Sampler | None = None,
    samples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    targets: Sequence[Modality] | None = None,
    at_once: int | None = None,
    progress: Progress | None = None,
) -> Synthesized:
    """Fill in `targets`, by default all that the subject lacks. A target that the subject has is hidden from the model.

    `subject` is a BIDS subject folder, a folder of NIfTI files with usual names, or each modality's file.
    """
    sources = _find(subject)
    wanted = _targets(bundle, sources, targets)
    inputs = {m: path for m, path in sources.files.items() if m in bundle.model.modalities and m not in wanted}
    unknown = [m for m in sources.files if m not in bundle.model.modalities]
    _check(bundle, sources, subject, inputs, wanted, unknown, out)
    wanted, left = check_taught(bundle.model, tuple(inputs), wanted, asked=targets is not None)
    sampler = sampler or bundle.model.sampler
    sampler = sampler if samples is None else dataclasses.replace(sampler, samples=samples)
    keys = {m: _key(bundle, inputs, m, sampler, seed) for m in wanted}
    files = {m: _Files(out, sources.subject, m) for m in wanted}
    todo = [m for m in wanted if not files[m].are_whole(keys[m])]
    preview = out / sources.subject / f"{sources.subject}_desc-preview.png"
    if todo:
        loaded = _load(dataclasses.replace(sources, files=inputs, lesion=None), bundle)
        filled = _fill(bundle, loaded, sampler, seed, device, at_once, progress)
        facts = _facts(bundle, inputs, sampler, seed)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as partial:
            _draw(bundle, loaded, filled, wanted).save(Path(partial) / preview.name)
            for modality in todo:
                _write(files[modality], Path(partial), bundle, loaded, filled, {**facts, "Key": keys[modality]})
            preview.parent.mkdir(parents=True, exist_ok=True)
            (Path(partial) / preview.name).replace(preview)
        _describe(out)
    return Synthesized(
        subject=sources.subject,
        made={m: files[m].mean for m in todo},
        kept={m: files[m].mean for m in wanted if m not in todo},
        preview=preview if preview.exists() else None,
        remarks=(
            *(f"{r.file or r.subject}: {r.why}" for r in sources.remarks),
            *(f"{sources.files[m].name}: {m} is not among the model's modalities" for m in unknown),
            *left,
            *untaught_remarks(bundle.model, tuple(inputs), wanted),
        ),
    )


# --- what there is, and what is wanted ------------------------------------------------------------------------------


def _find(subject: Path | Mapping[Modality, Path]) -> Sources:
    if not isinstance(subject, Path):
        files = {parse(name): path for name, path in subject.items()}
        return _sources({m: files[m] for m in in_order(files)}, "unnamed")
    if not subject.is_dir():
        raise DataError(f"subject {subject}: no such folder")
    flat = sorted(subject.glob("*.nii*"))
    if not flat:
        found = find_files(subject.parent, subject)
        excluded = [remark.why for remark in found.remarks if remark.done == "excluded"]
        if excluded:
            raise DataError(f"subject {subject}: {excluded[0]}")
        return found
    held: dict[Modality, Path] = {}
    for path in flat:
        modality = modality_of(path)
        if modality in held:
            raise DataError(f"subject {subject}: {held[modality].name} and {path.name} are both {modality}; name one")
        if modality is not None:
            held[modality] = path
    return _sources({m: held[m] for m in in_order(held)}, subject.name)


def _sources(files: Mapping[Modality, Path], otherwise: str) -> Sources:
    """The subject's name is the one that the files bear."""
    named = {entity(path, "sub") for path in files.values()} - {""}
    name = named.pop() if len(named) == 1 else "".join(c for c in otherwise if c.isalnum() and c.isascii()) or "unnamed"
    return Sources(subject=f"sub-{name}", files=files, lesion=None, remarks=())


def _targets(bundle: Bundle, sources: Sources, asked: Sequence[Modality] | None) -> tuple[Modality, ...]:
    known = bundle.model.modalities
    if asked is None:
        return tuple(m for m in known if m not in sources.files)
    wanted = {parse(name) for name in asked}
    for modality in in_order(wanted):
        if modality not in known:
            raise DataError(f"target {modality}: the bundle makes {', '.join(known)}")
    return tuple(m for m in known if m in wanted)


def _check(
    bundle: Bundle,
    sources: Sources,
    subject: Path | Mapping[Modality, Path],
    inputs: Mapping[Modality, Path],
    wanted: Sequence[Modality],
    unknown: Sequence[Modality],
    out: Path,
) -> None:
    known = ", ".join(bundle.model.modalities)
    if not wanted:
        raise DataError(f"{sources.subject}: has all of {known}; name targets, to have them hidden and made again")
    if unknown and not isinstance(subject, Path):
        raise DataError(f"{sources.files[unknown[0]].name}: {unknown[0]} is not among the model's modalities: {known}")
    if not inputs:
        raise DataError(f"{sources.subject}: no usable modality; the bundle works from any of {known}")
    if isinstance(subject, Path) and out.resolve().is_relative_to(subject.resolve()):
        raise DataError(f"out={out}: lies in the subject's own folder; keep synthetic volumes away from measured ones")
    for path in inputs.values():
        if not path.is_file():
            raise DataError(f"{path}: no such file")


def _load(sources: Sources, bundle: Bundle) -> Loaded:
    """Stricter than a cohort: an input that can't be used is not left out behind the reader's back."""

    def refuse(path: Path, why: str) -> None:
        raise DataError(f"{path.name}: {why}; mend it or leave it out")

    return load(sources, bundle.model.grid, refuse)


def _fill(
    bundle: Bundle,
    loaded: Loaded,
    sampler: Sampler,
    seed: int,
    device: str,
    at_once: int | None,
    progress: Progress | None,
) -> Filled:
    modalities = bundle.model.modalities
    images_MDHW = torch.zeros(len(modalities), *loaded.brain_DHW.shape)
    shown_M = torch.zeros(len(modalities), dtype=torch.bool)
    for image_DHW, modality in zip(loaded.images_MDHW, loaded.scalings, strict=True):
        images_MDHW[modalities.index(modality)] = torch.from_numpy(image_DHW)
        shown_M[modalities.index(modality)] = True
    reached = np.flatnonzero(loaded.brain_DHW.any(axis=(1, 2))).tolist()
    return fill(
        bundle.model,
        images_MDHW,
        shown_M,
        slices=reached,
        sampler=sampler,
        keys=(seed, "synthesize"),
        device=find_device(device),
        at_once=at_once,
        progress=progress,
    )


# --- what is written ------------------------------------------------------------------------------------------------


class _Files:
    """Where a target's files belong; the sidecar is what says that they are whole."""

    def __init__(self, out: Path, subject: str, modality: Modality) -> None:
        form = MODALITIES[modality]
        *entities, suffix = form.ending.split("_")
        folder, stem = out / subject / form.folder, "_".join([subject, *entities])
        self.modality = modality
        self.mean = folder / f"{stem}_desc-synthetic_{suffix}.nii.gz"
        self.sd = folder / f"{stem}_desc-uncertainty_{suffix}.nii.gz"
        self.sidecar = folder / f"{stem}_desc-synthetic_{suffix}.json"

    def are_whole(self, key: str) -> bool:
        try:
            sidecar = json.loads(self.sidecar.read_text(encoding="utf-8"))
            return bool(sidecar["Key"] == key) and all(
                sha256(self.mean.parent / name) == digest for name, digest in sidecar["Files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # made anew


def _write(
    files: _Files, partial: Path, bundle: Bundle, loaded: Loaded, filled: Filled, facts: Mapping[str, Any]
) -> None:
    """Volumes into `partial`, then each to its place; the old sidecar goes first and the new one comes last."""
    row = bundle.model.modalities.index(files.modality)
    scaling = usual_scaling(files.modality)
    brain_DHW = loaded.placement.from_grid(loaded.brain_DHW) >= 0.5
    volumes = {files.mean: scaling.invert(loaded.placement.from_grid(filled.mean_MDHW[row].numpy()), brain_DHW)}
    if filled.sd_MDHW is not None:
        sd_DHW = loaded.placement.from_grid(filled.sd_MDHW[row].numpy()) * (scaling.high - scaling.low)
        volumes[files.sd] = np.where(brain_DHW, sd_DHW, 0).astype(np.float32)
    for path, data_DHW in volumes.items():
        write_like(partial / path.name, data_DHW, loaded.reference)
    digests = {path.name: sha256(partial / path.name) for path in volumes}
    files.mean.parent.mkdir(parents=True, exist_ok=True)
    for path in (files.sidecar, files.sd):
        path.unlink(missing_ok=True)
    for path in volumes:
        (partial / path.name).replace(path)
    rule = RULES[files.modality]
    sidecar = {
        "Synthetic": True,
        "Description": WARNING,
        "Modality": files.modality,
        "Units": rule.unit if isinstance(rule, Window) else "arbitrary",
        "IntensityRange": [scaling.low, scaling.high],
        "OutsideTheBrain": 0,
        "Uncertainty": "standard deviation over samples, in the same units" if files.sd in volumes else None,
        **facts,
        "Files": digests,
    }
    write_text(files.sidecar, json.dumps(sidecar, indent=1) + "\n")


def _key(bundle: Bundle, inputs: Mapping[Modality, Path], target: Modality, sampler: Sampler, seed: int) -> str:
    made_from = {
        "bundle": bundle.digest,
        "inputs": {m: sha256(path) for m, path in inputs.items()},
        "target": target,
        "sampler": plain(sampler),
        "seed": seed,
        "pipeline": PIPELINE,
        "lacuna": version("lacuna"),
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _facts(bundle: Bundle, inputs: Mapping[Modality, Path], sampler: Sampler, seed: int) -> dict[str, Any]:
    return {
        "Inputs": {m: {"File": path.name, "SHA256": sha256(path)} for m, path in inputs.items()},
        "Model": bundle.model.name,
        "Bundle": {
            "SHA256": bundle.digest,
            "Run": bundle.record["provenance"].get("run"),
            "SignedBy": bundle.signer,
            "SignerTrusted": bundle.trusted,
        },
        "Sampler": plain(sampler),
        "Samples": sampler.samples,
        "Seed": seed,
        "LacunaVersion": version("lacuna"),
    }


def _draw(bundle: Bundle, loaded: Loaded, filled: Filled, wanted: Sequence[Modality]) -> Any:
    from shared import pictures  # draws with libraries that only this needs

    reached = np.flatnonzero(loaded.brain_DHW.any(axis=(1, 2)))
    shares = np.linspace(0.2, 0.8, PREVIEW_SLICES) * (len(reached) - 1)
    chosen = reached[shares.round().astype(int)].tolist()
    rows: list[list[NDArray[Any]]] = [[image[z] for z in chosen] for image in loaded.images_MDHW]
    labels = [f"{m}, measured" for m in loaded.scalings]
    for modality in wanted:
        row = bundle.model.modalities.index(modality)
        brain = loaded.brain_DHW
        rows.append([np.where(brain[z], filled.mean_MDHW[row, z].numpy(), 0) for z in chosen])
        labels.append(f"{modality}, SYNTHETIC")
        if filled.sd_MDHW is not None:
            sd_DHW = filled.sd_MDHW[row].numpy() / PREVIEW_SD
            rows.append([np.where(brain[z], sd_DHW[z].clip(0, 1), 0) for z in chosen])
            labels.append(f"{modality}, spread")
    columns = [f"slice {loaded.placement.z[0] + z}" for z in chosen]
    return pictures.mosaic(rows, labels, columns, WARNING)


def _describe(out: Path) -> None:
    """What BIDS wants of a folder of derived data."""
    described = {
        "Name": "Synthetic volumes made by Lacuna",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "lacuna", "Version": version("lacuna")}],
    }
    write_text(out / "dataset_description.json", json.dumps(described, indent=1) + "\n")
