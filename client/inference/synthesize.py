"""`lacuna-site synthesize`: a bundle and a subject's present modalities to the absent ones, as NIfTI beside a sidecar.

A sidecar with the same key (inputs, bundle, sampler, seed) and whole files is a finished target, and is not made again;
finished slices of a stopped job are kept until it is started again. Nothing here leaves the site; messages may name
files.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.inference import outputs
from client.inference.charts import NOTHING, Saying, Told, chart_for
from client.inference.guard import guard
from client.inference.outputs import WARNING, Files, Made
from client.inference.slices import SliceStore
from client.inference.sources import Subject, check_out, check_targets, check_there, find, load_all
from shared.base.display.progress import Progress
from shared.base.errors import DataError
from shared.base.vocabulary import Modality
from shared.data.bids import Sources
from shared.data.intensities import usual_scaling
from shared.data.preparation import Loaded
from shared.diffusion.samplers import Sampler
from shared.model.bundle import Bundle
from shared.model.model import Filled, fill
from shared.model.taught import check_taught, untaught_remarks
from shared.plan.training import find_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesized:
    """What was done for one subject."""

    subject: str
    made: Mapping[Modality, Path]
    kept: Mapping[Modality, Path]  # were there already, from the same inputs, bundle, sampler and seed
    preview: Path | None
    remarks: tuple[str, ...]  # files that were left aside, and why
    unusual: tuple[str, ...]  # what of the input lies outside of what the bundle was trained on
    chart: Told | None  # what the model heard of the chart; None: it reads none


def synthesize(
    bundle: Bundle,
    subject: Subject,
    out: Path,
    *,
    sampler: Sampler | None = None,
    samples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    targets: Sequence[Modality] | None = None,
    without: Sequence[Modality] = (),
    at_once: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    saying: Saying = NOTHING,
) -> Synthesized:
    """Fill in `targets`, by default all that the subject lacks. A target that the subject has is hidden from the model.

    So is what it is to do `without`. `subject` is a BIDS subject folder, a folder of NIfTI files with usual names, or
    each modality's file.
    An input far from what the bundle was trained on is refused, unless `force`. A model that reads the chart is told
    what participants.tsv says of the subject, and what is said here.
    """
    sources = find(subject)
    known = bundle.model.modalities
    makes = bundle.model.method.targets
    wanted = tuple(m for m in makes if m not in sources.files) if targets is None else check_targets(bundle, targets)
    hidden = {*wanted, *without}
    inputs = {m: path for m, path in sources.files.items() if m in known and m not in hidden}
    unknown = [m for m in sources.files if m not in known]
    _check(bundle, sources, subject, inputs, wanted, unknown)
    check_out(subject, out)
    wanted, left = check_taught(bundle.model, tuple(inputs), wanted, asked=targets is not None)
    sampler = sampler or bundle.model.sampler
    sampler = sampler if samples is None else dataclasses.replace(sampler, samples=samples)
    chart = chart_for(bundle.model, subject, sources.subject, saying)
    source = outputs.made_from(bundle, inputs, sampler, seed)
    if chart is not None:
        source["chart"] = chart.digest(out)
    keys = {m: outputs.key_of(source, m) for m in wanted}
    files = {m: Files(out, sources.subject, m) for m in wanted}
    todo = [m for m in wanted if not files[m].are_whole(keys[m])]
    preview = outputs.preview_path(out, sources.subject)
    guarded = None
    if todo:
        loaded = load_all(dataclasses.replace(sources, files=inputs, lesion=None), bundle)
        guarded = guard(bundle, loaded, force=force)
        where = find_device(device)
        parts = {"device": where.type, "at_once": at_once, **({} if chart is None else {"wanted": wanted})}
        store = SliceStore(out, sources.subject, {**source, **parts})
        filled = _fill(bundle, loaded, sampler, seed, where, at_once, store, chart, wanted, progress)
        facts = {"Inputs": outputs.inputs_facts(inputs), **outputs.model_facts(bundle, sampler, seed)}
        facts["Guard"] = guarded.facts
        if chart is not None:
            facts["Chart"] = chart.facts
        made = {m: _made(bundle, filled, m, {**facts, "Key": keys[m]}) for m in wanted}
        partial = store.make()
        given = [(f"{m}, measured", image) for m, image in zip(loaded.scalings, loaded.images_MDHW, strict=True)]
        drawn = {f"{m}, SYNTHETIC": one for m, one in made.items()}
        outputs.draw(loaded, given, drawn, WARNING).save(partial / preview.name)
        for modality in todo:
            outputs.write_volumes(files[modality], partial, loaded, made[modality])
        preview.parent.mkdir(parents=True, exist_ok=True)
        (partial / preview.name).replace(preview)
        outputs.describe(out)
        store.clear()
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
        unusual=() if guarded is None else guarded.remarks,
        chart=chart,
    )


def _check(
    bundle: Bundle,
    sources: Sources,
    subject: Subject,
    inputs: Mapping[Modality, Path],
    wanted: Sequence[Modality],
    unknown: Sequence[Modality],
) -> None:
    known = ", ".join(bundle.model.modalities)
    if not wanted:
        makes = ", ".join(bundle.model.method.targets)
        raise DataError(f"{sources.subject}: has all of {makes}; name targets, to have them hidden and made again")
    if unknown and not isinstance(subject, Path):
        raise DataError(f"{sources.files[unknown[0]].name}: {unknown[0]} is not among the model's modalities: {known}")
    if not inputs:
        raise DataError(f"{sources.subject}: no usable modality; the bundle works from any of {known}")
    check_there(inputs.values())


def _fill(
    bundle: Bundle,
    loaded: Loaded,
    sampler: Sampler,
    seed: int,
    device: torch.device,
    at_once: int | None,
    store: SliceStore,
    chart: Told | None,
    wanted: Sequence[Modality],
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
        device=device,
        at_once=at_once,
        kept=store,
        clinical=None if chart is None else chart.clinical,
        wanted=wanted,
        progress=progress,
    )


def _made(bundle: Bundle, filled: Filled, modality: Modality, facts: Mapping[str, object]) -> Made:
    row = bundle.model.modalities.index(modality)
    sd_DHW = None if filled.sd_MDHW is None else filled.sd_MDHW[row]
    return Made(mean_DHW=filled.mean_MDHW[row], sd_DHW=sd_DHW, scaling=usual_scaling(modality), facts=facts)
