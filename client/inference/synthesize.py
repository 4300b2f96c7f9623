"""`lacuna-site synthesize`: from a bundle and a subject's present modalities to the absent ones."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from client.inference import outputs
from client.inference.charts import ChartUsed, chart_for
from client.inference.guard import guard
from client.inference.job import DEFAULT, Asked, Done, Job, remarks_of
from client.inference.outputs import WARNING, Files, Made
from client.inference.sources import Subject, check_out, check_targets, check_there, find, load_all
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import DataError
from shared.base.vocabulary import Modality
from shared.data.bids import Sources
from shared.data.intensities import usual_scaling
from shared.model.bundle import Bundle
from shared.model.taught import check_taught, untaught_remarks


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesized(Done):
    chart: ChartUsed | None  # what the model heard of the chart; None: it reads none


def synthesize(
    bundle: Bundle, subject: Subject, out: Path, asked: Asked = DEFAULT, *, progress: Progress = unwatched
) -> Synthesized:
    """Fill in what is asked, by default all that the subject lacks.

    `subject` is a BIDS subject folder, a folder of NIfTI files with usual names, or each modality's file. An input far
    from what the bundle was trained on is refused, unless it is asked to go on. A model that reads the chart is told
    what participants.tsv says of the subject, and what is said here.
    """
    sources = find(subject)
    known = bundle.model.modalities
    wanted = (
        tuple(m for m in bundle.model.method.targets if m not in sources.files)
        if asked.targets is None
        else check_targets(bundle, asked.targets)
    )
    hidden = {*wanted, *asked.without}
    inputs = {m: path for m, path in sources.files.items() if m in known and m not in hidden}
    unknown = [m for m in sources.files if m not in known]
    _check(bundle, sources, subject, inputs, wanted, unknown)
    check_out(subject, out)
    wanted, left = check_taught(bundle.model, tuple(inputs), wanted, asked=asked.targets is not None)
    sampler = asked.with_samples(asked.sampler or bundle.model.sampler)
    chart = chart_for(bundle.model, subject, sources.subject, asked.saying)
    made_from = outputs.made_from(bundle, inputs, sampler, asked.seed)
    if chart is not None:
        made_from["chart"] = chart.digest(out)
    job = Job(bundle, asked, sampler, {m: Files(out, sources.subject, m) for m in wanted}, made_from)
    preview = outputs.preview_path(out, sources.subject)
    guarded = None
    if job.todo:
        loaded = load_all(dataclasses.replace(sources, files=inputs, lesion=None), bundle)
        guarded = guard(bundle, loaded, force=asked.force)
        store = job.store(out, sources.subject, **({} if chart is None else {"wanted": wanted}))
        clinical = None if chart is None else chart.clinical
        filled = job.fill(loaded, store, "synthesize", clinical=clinical, wanted=wanted, progress=progress)
        facts = {"Inputs": outputs.inputs_facts(inputs), **outputs.model_facts(bundle, sampler, asked.seed)}
        facts |= {"Guard": guarded.facts, **({} if chart is None else {"Chart": chart.facts})}
        made = {m: _made(job, m, *job.row(filled, m), facts, shown=len(inputs)) for m in wanted}
        given = [(f"{m}, measured", image) for m, image in zip(loaded.scalings, loaded.images_MDHW, strict=True)]
        drawn = {f"{m}, SYNTHETIC": one for m, one in made.items()}
        job.write(store, preview, loaded, made, given=given, named=drawn, warning=WARNING)
    made_now, kept = job.means()
    return Synthesized(
        subject=sources.subject,
        made=made_now,
        kept=kept,
        preview=preview if preview.exists() else None,
        remarks=(
            *remarks_of(sources),
            *(f"{sources.files[m].name}: {m} is not among the model's modalities" for m in unknown),
            *left,
            *untaught_remarks(bundle.model, tuple(inputs), wanted),
        ),
        unusual=None if guarded is None else guarded.remark,
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


def _made(
    job: Job, m: Modality, mean_DHW: Tensor, spread_DHW: Tensor | None, facts: Mapping[str, object], *, shown: int
) -> Made:
    sd_DHW, said = job.calibrated(m, spread_DHW, shown=shown)
    facts = {**facts, **said, "Key": job.keys[m]}
    return Made(mean_DHW=mean_DHW, sd_DHW=sd_DHW, scaling=usual_scaling(m), facts=facts)
