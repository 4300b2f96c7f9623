"""`lacuna evaluate RUN... task=images`: how good made volumes are, direction by direction, as in ACADiff's Fig. 2.

OUT/scores.csv      every subset, target and site: means over subjects, per volume and per slice
    images.csv      direction, model: PSNR, SSIM, NMI and MAE in the brain; the first model's lead with its interval
    summary.json    the means over directions, and how they were measured
    images.png      one subject, made from the other two: truth, every model, their errors, and the spread of samples

Models are the runs by name (RUN:scores and so on as in task=diagnosis), each site's own of the first run, and floors.
All are given whole volumes and scored on the brain's slices of the same held-out subjects, with noise from one seed.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from server.evaluation.compare import find_cohorts
from server.evaluation.diagnosis_runs import filled_by, mean_of, read_configs, told_by
from server.runs import runs
from shared.base import pictures
from shared.base.checkpoint import write_text
from shared.base.display.progress import Progress
from shared.base.errors import ConfigError, DataError
from shared.base.options import plain
from shared.base.vocabulary import Modality, SiteName
from shared.data.bids import Clinical
from shared.data.cohort import Cohort
from shared.data.slices import Slices
from shared.diffusion.samplers import Sampler
from shared.methods.baselines.voxelwise import floors_3d
from shared.model.evaluation import (
    ALONE,
    RIDGE,
    Difference,
    Filler,
    Keys,
    Row,
    Score,
    Task,
    by_subject,
    difference,
    evaluate,
    floors,
    rows,
)
from shared.model.model import Filled, read_model
from shared.plan.training import find_device

METRICS = {"psnr": ("PSNR", 2), "ssim": ("SSIM", 3), "nmi": ("NMI", 3), "mae": ("MAE", 4)}
EVERY = "mean"  # in place of a direction: over all that make a target, or all there are
ERROR = 4.0  # how much brighter errors and spreads are drawn

Fill: TypeAlias = Callable[[Tensor, Tensor, Keys, Clinical], Filled]


class Line(NamedTuple):
    """A model in a direction: means over subjects, and what the first model is ahead of it in dB."""

    target: Modality
    shown: str  # joined by +
    model: str
    means: Mapping[str, float]
    subjects: int
    lead: Difference | None


def compare_images(
    names: Sequence[str],
    folder: Path,
    *,
    sampler: Sampler | None = None,
    subjects: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[Line]:
    """The table of the runs `names` in `folder`; files into `out`. `subjects`: the first few of each site."""
    if len(set(names)) != len(names):
        raise ConfigError(f"runs {', '.join(names)}: must be named once each")
    configs = read_configs([name.partition(":")[0] for name in names], folder)
    first_name, first = next(iter(configs.items()))
    models = {name: read_model(folder / name / "final") for name in configs}
    modalities, on = models[first_name].modalities, find_device(device)
    for name, model in models.items():
        if model.modalities != modalities:
            raise ConfigError(f"run {name}: modalities={list(model.modalities)}: {first_name} has {list(modalities)}")
    trained, heldout = find_cohorts(first, "sites"), _few(find_cohorts(first, "heldout"), subjects)
    if not heldout:
        raise DataError(f"{first.world}/heldout: no held-out subjects to score on")
    chosen = {name: sampler or model.sampler for name, model in models.items()}
    fillers: dict[str, Fill] = {}
    for name in names:
        model = models[name.partition(":")[0]]
        told = told_by(name, model)
        fillers[name] = filled_by(model, chosen[name.partition(":")[0]], seed, on, told)
    made: dict[str, Filler] = {name: mean_of(one) for name, one in fillers.items()}
    made |= _floors(list(trained.values()), list(heldout.values()), modalities)
    own = {}
    for site in trained:
        if runs.finished(folder / first_name / "alone" / site):
            model = read_model(folder / first_name / "alone" / site / "final")
            own[site] = mean_of(filled_by(model, chosen[first_name], seed, on, told_by(first_name, model)))
    scores = evaluate(made, heldout, modalities, alone=own, whole=True, progress=progress)
    table = directions(scores, modalities)
    into = out or folder / first_name / "images"
    write_text(into / "scores.csv", _csv(Row._fields, rows(scores)))
    write_text(into / "images.csv", _csv(_COLUMNS, [_flat(line) for line in table]))
    how = {
        "world": first.world,
        "subjects": sum(len(cohort.subjects) for cohort in heldout.values()),
        "samplers": plain(chosen),
        "told": {name: list(told_by(name, models[name.partition(":")[0]])) for name in names},
        "seed": seed,
        "device": str(on),
    }
    means = {line.model: {**line.means, "subjects": line.subjects} for line in table if line.target == EVERY}
    write_text(into / "summary.json", json.dumps({"means": means, "how": how}, indent=1) + "\n")
    site, cohort = next(iter(heldout.items()))
    _draw(cohort, site, modalities, fillers, {m: f for m, f in made.items() if m not in fillers}, into / "images.png")
    return table


def _few(cohorts: Mapping[SiteName, Cohort], subjects: int | None) -> dict[SiteName, Cohort]:
    return {site: dataclasses.replace(c, subjects=c.subjects[:subjects]) for site, c in cohorts.items()}


def _floors(trained: Sequence[Cohort], heldout: Sequence[Cohort], modalities: Sequence[Modality]) -> dict[str, Filler]:
    """The voxelwise ones, and the patch ridge, which goes slice by slice and needs no brain to lie as another's."""
    depth = max(subject.depth for cohort in (*trained, *heldout) for subject in cohort.subjects)
    return {**floors_3d(trained, modalities, depth), RIDGE: floors(trained, modalities)[RIDGE]}


# --- what the scores say --------------------------------------------------------------------------------------------


def directions(scores: Sequence[Score], modalities: Sequence[Modality]) -> list[Line]:
    """Target by target the directions with fewer sources first, their mean, and at the end the mean over all."""
    names = list(dict.fromkeys(s.model for s in scores))
    names = [*(name for name in names if name != ALONE), *([ALONE] if ALONE in names else [])]
    pairs = sorted(
        {(s.target, s.shown) for s in scores if s.target not in s.shown},
        key=lambda p: (modalities.index(p[0]), len(p[1]), [modalities.index(m) for m in p[1]]),
    )
    asked: list[tuple[str, str, Task]] = []
    for target in dict.fromkeys(target for target, _ in pairs):
        asked += [(t, "+".join(shown), _direction(t, shown)) for t, shown in pairs if t == target]
        asked.append((target, EVERY, _into(target)))
    asked.append((EVERY, EVERY, lambda s: s.target not in s.shown))
    table = []
    for target, shown_, task in asked:
        for name in names:
            found = {m: list(by_subject(scores, name, task, metric=m).values()) for m in METRICS}
            if found["psnr"]:
                means = {m: sum(values) / len(values) for m, values in found.items() if values}
                lead = difference(scores, names[0], name, task) if name != names[0] else None
                table.append(Line(target, shown_, name, means, len(found["psnr"]), lead))
    return table


def _direction(target: Modality, shown: tuple[Modality, ...]) -> Task:
    return lambda s: s.target == target and s.shown == shown


def _into(target: Modality) -> Task:
    return lambda s: s.target == target and target not in s.shown


def printable(table: Sequence[Line]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of words."""
    columns = ("made from", "model", *(heading for heading, _ in METRICS.values()), "first - this, PSNR")
    lines, last = [], ""
    for line in table:
        title = "all directions" if line.target == EVERY else f"{line.target} from {line.shown.replace('+', ' + ')}"
        title = title.replace(f"from {EVERY}", "from any")
        values = [f"{line.means[m]:.{digits}f}" if m in line.means else "–" for m, (_, digits) in METRICS.items()]
        lines.append(("" if title == last else title, line.model, *values, _words(line.lead)))
        last = title
    return columns, lines


def _words(lead: Difference | None) -> str:
    if lead is None:
        return ""
    return f"{lead.mean:+.2f}" + (f" [{lead.low:+.2f}, {lead.high:+.2f}]" if math.isfinite(lead.low) else "")


_COLUMNS = ("target", "shown", "model", *METRICS, "subjects", "lead", "low", "high")


def _flat(line: Line) -> tuple[Any, ...]:
    lead = ("", "", "") if line.lead is None else (line.lead.mean, line.lead.low, line.lead.high)
    return line.target, line.shown, line.model, *(line.means.get(m, "") for m in METRICS), line.subjects, *lead


def _csv(columns: Sequence[str], table: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{v:.7g}" if isinstance(v, float) else v for v in row] for row in table)
    return text.getvalue()


# --- the picture ----------------------------------------------------------------------------------------------------


def _draw(
    cohort: Cohort,
    site: SiteName,
    modalities: Sequence[Modality],
    models: Mapping[str, Fill],
    others: Mapping[str, Filler],
    path: Path,
) -> None:
    """The first subject that has all modalities, at the middle of its brain."""
    held = Slices(cohort, modalities, split=None, only=lambda has: has >= set(modalities))
    if not held.subjects:
        return
    stack = held.volume(0)
    brain = held.subjects[0].brain_slices
    z = brain[len(brain) // 2]

    def plane(image_DHW: Tensor) -> pictures.Plane:
        return np.asarray(torch.where(stack.brain_DHW[z], image_DHW[z], 0.0).clamp(0, 1).numpy())

    drawn: list[list[pictures.Plane]] = []
    labels: list[str] = []
    for row, target in enumerate(modalities):
        shown_M = torch.tensor([m != target for m in modalities])
        visible_MDHW = torch.where(shown_M[:, None, None, None], stack.images_MDHW, torch.nan)
        keys: Keys = ("picture", site, 0)
        filled = {name: one(visible_MDHW, shown_M, keys, stack.clinical) for name, one in models.items()}
        images = {name: one.mean_MDHW[row] for name, one in filled.items()}
        images |= {name: one(visible_MDHW, shown_M, keys, stack.clinical)[row] for name, one in others.items()}
        truth = stack.images_MDHW[row]
        drawn.append([plane(truth), *(plane(image) for image in images.values())])
        drawn.append([None, *(plane(ERROR * (image - truth).abs()) for image in images.values())])
        spreads = {name: one.sd_MDHW for name, one in filled.items() if one.sd_MDHW is not None}
        drawn.append([None, *(plane(ERROR * spreads[n][row]) if n in spreads else None for n in images)])
        labels += [target, f"error x {ERROR:g}", f"spread x {ERROR:g}"]
        if not spreads:
            del drawn[-1], labels[-1]
    title = "each from the other two; spread: standard deviation of samples"
    pictures.save_png(pictures.mosaic(drawn, labels, ["truth", *models, *others], title, cell=144), path)
