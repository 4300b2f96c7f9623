"""`lacuna calibrate`: what interval of a model's samples holds nine truths in ten, by the coordinator's own subjects.

runs/RUN/calibration.json    half widths by modality, number shown and spread (shared/model/calibration.py)

Nobody trained on these subjects, and none of them is a site's; nor are they those that `lacuna evaluate` scores, which
then says how well the intervals hold. `lacuna export` puts them into the bundle.
"""

import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor

from server.evaluation.ways import Asked, finished, prepared
from shared.base.errors import ConfigError, DataError
from shared.base.files import write_json
from shared.data.slices import Slices
from shared.diffusion.samplers import Sampler
from shared.model import calibration
from shared.model.calibration import Calibration
from shared.model.evaluation import Scoring, filled_by, spread_over, tasks_of
from shared.model.model import Model, read_model
from shared.plan.settings import load_sampler
from shared.plan.training import find_device

FILE = "calibration.json"
SAMPLES = 8


def calibrate(asked: Asked, *, sampler: Sampler | None, cohort: Path | None, every: int) -> Calibration:
    """Of a finished run: every shown subset and hidden target of the cohort, by default the world's coordinator's."""
    folder = asked.runs / asked.names[0]
    config, model = finished(folder), read_model(folder / "final")
    own = cohort or Path(str(config.world)) / "coordinator"
    if not own.is_dir():
        raise DataError(f"{own}: no subjects of the coordinator's own to calibrate on; name a cohort by --cohort")
    slices = Slices(prepared([own], config.grid)[own.name], model.modalities, split=None)
    drawn = sampler or usual_sampler(model)
    if drawn.samples < 2:
        raise ConfigError(f"sampler={drawn.kind}: draws one sample; an interval is told from how far several differ")
    scoring = dataclasses.replace(Scoring.of(model, every=1), every=1 if model.method.slab > 1 else every)
    fill = filled_by(model, sampler=drawn, seed=asked.seed, device=find_device(asked.device))
    counts: dict[str, Tensor] = {}
    for i, subject in enumerate(slices.subjects):
        stack, chosen = slices.volume(i), spread_over(subject.brain_slices, scoring.every)
        brain_DHW, truth_MDHW = stack.brain_DHW[chosen], stack.images_MDHW[:, chosen]
        for task in tasks_of(stack, chosen, model.modalities, scoring):
            keys = ("calibrate", i, "+".join(task.shown))
            filled = fill(task.visible_MDHW, task.shown_M, keys, stack.clinical)
            made = filled.slices(chosen) if scoring.whole else filled
            assert made.sd_MDHW is not None, "a sampler of several samples"
            for m in task.targets:
                k, row = model.modalities.index(m), calibration.row(m, len(task.shown))
                parts = (x[k][brain_DHW] for x in (truth_MDHW, made.mean_MDHW, made.sd_MDHW))
                counts[row] = counts.get(row, 0) + calibration.count(*parts)
        asked.progress(i + 1, len(slices.subjects))
    if not counts:
        raise DataError(f"{own}: no subject has two of {', '.join(model.modalities)}: there is nothing to hide")
    found = Calibration(
        sampler=drawn,
        widths={row: calibration.widths_of(counts[row]) for row in sorted(counts)},
        source=f"{len(slices.subjects)} subjects of the coordinator's own",
    )
    write_json(folder / FILE, found.record())
    return found


def usual_sampler(model: Model) -> Sampler:
    """The run's own where it draws several samples; else the usual one that does."""
    if model.sampler.samples > 1:
        return model.sampler
    kind = next((kind for kind in ("multistep", "bridge") if kind in model.method.samplers), None)
    if kind is None:
        raise ConfigError(f"model {model.name}: draws no samples, so it has no spread to calibrate")
    return dataclasses.replace(load_sampler(kind), samples=SAMPLES)


def read(folder: Path) -> Calibration | None:
    """A run's; None where it was not calibrated."""
    path = folder / FILE
    return calibration.read(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def intervals(found: Calibration) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """How wide they are, in hundredths of the range, where samples differ little and much."""
    at = (0.005, 0.02, 0.05, 0.1)
    rows = []
    for row in found.widths:
        modality, _, shown = row.rpartition(" from ")
        widths = found.half_width(modality, int(shown), torch.tensor(at))
        rows.append((row, *(f"{100 * width:.1f}" for width in widths.tolist())))
    return ("modality", *(f"sd {100 * sd:g}" for sd in at)), rows
