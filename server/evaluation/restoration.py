"""`lacuna restore`: what a prior can do, on one page of tables.

runs/RUN/restoration/scores.csv      task, way, metric, slice, value
                     gains.csv       each task against the one before it, each way against each other: mean and interval
                     summary.json    the means, the cost, and how they were measured
                     <group>.png     truth and every way at every task of a group, one slice
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.evaluation.tasks import (
    MEASURED,
    Held,
    Outcome,
    Restorer,
    Scan,
    Task,
    floors,
    gains,
    lead,
    pick,
    run,
    sampled,
    usual_tasks,
)
from server.evaluation.ways import Asked, find_world, finished
from shared.base import pictures
from shared.base.errors import ConfigError
from shared.base.files import write_json
from shared.base.options import plain
from shared.diffusion.samplers import Sampler
from shared.model import tables
from shared.model.evaluation import HATS, MIXTURE, RIDGE, TABLE
from shared.model.evaluation import floors as pooled_floors
from shared.model.model import Model, read_model
from shared.model.tables import Column, Printable
from shared.plan.settings import load_sampler
from shared.plan.training import find_device

SCORES = ("group", "task", "way", "metric", "slice", "value")
GAINS = ("group", "metric", "what", "against", "mean", "low", "high", "slices")


def restore(
    asked: Asked,
    *,
    samplers: Sequence[str],
    scan: Scan,
    count: int,
    groups: Sequence[str] = (),
    samples: int | None = None,
) -> list[Outcome]:
    """All tasks of a finished run's model with each sampler, and the floors; files beside it."""
    folder = asked.runs / asked.names[0]
    config, model = finished(folder), read_model(folder / "final")
    chosen = {name: _sampler(name, samples) for name in samplers}
    tasks = _tasks(model, groups)
    trained, heldout = find_world(config, "restore", strangers=asked.strangers)
    held = pick(list(heldout.values()), model.modalities, count, asked.seed)
    regressions = pooled_floors(list(trained.values()), model.modalities, (RIDGE, HATS, TABLE, MIXTURE))
    seed, on = asked.seed, find_device(asked.device)
    ways: dict[str, Restorer] = floors(held, model.modalities, scan, regressions, seed=seed)
    ways |= {name: sampled(model, sampler, held, scan, seed=seed, device=on) for name, sampler in chosen.items()}
    outcomes = list(run(ways, tasks, held, model.modalities, progress=asked.progress))
    how = {
        "run": folder.name,
        "slices": count,
        "seed": seed,
        "scan": plain(scan),
        "samplers": {name: plain(sampler) for name, sampler in chosen.items()},
        "device": str(on),
    }
    write(asked.into("restoration"), outcomes, held, model, how)
    return outcomes


def _sampler(name: str, samples: int | None) -> Sampler:
    sampler = load_sampler(name)
    return sampler if samples is None or sampler.kind == "mean" else dataclasses.replace(sampler, samples=samples)


def _tasks(model: Model, groups: Sequence[str]) -> tuple[Task, ...]:
    tasks = usual_tasks(model.modalities)
    known = dict.fromkeys(task.group.split()[0].strip(",") for task in tasks)
    for group in groups:
        if group not in known:
            raise ConfigError(f"--group {group}: must be one of {', '.join(known)}")
    return tuple(task for task in tasks if not groups or task.group.split()[0].strip(",") in groups)


def write(folder: Path, outcomes: Sequence[Outcome], held: Held, model: Model, how: Mapping[str, Any]) -> None:
    scores, found = tables.tidy(_scores(outcomes), SCORES), [row for m in MEASURED for row in _gains(outcomes, m)]
    tables.write_csv(scores, folder / "scores.csv", SCORES)
    tables.write_csv(tables.tidy(found, GAINS), folder / "gains.csv", GAINS)
    means = [
        {
            "group": o.task.group,
            "task": o.task.name,
            "way": o.way,
            "seconds_per_slice": round(o.seconds, 4),
            **{metric: round(o.mean(metric), 5) for metric in MEASURED},
        }
        for o in outcomes
    ]
    write_json(folder / "summary.json", {"means": means, "how": dict(how)})
    for group in dict.fromkeys(o.task.group for o in outcomes):
        _draw(folder, group, [o for o in outcomes if o.task.group == group], held, model)


def printable(outcomes: Sequence[Outcome]) -> Printable:
    """Each way at each task, and what the task before it was short of."""
    over = {(after.way, after.task): found for _, after, found in gains(outcomes)}
    rows = []
    for o in outcomes:
        line = {"task": f"{o.task.group}: {o.task.name}", "way": o.way}
        rows += [{**line, "metric": metric, "mean": o.mean(metric)} for metric in MEASURED]
        rows.append({**line, "metric": "seconds", "mean": o.seconds})
        if (o.way, o.task) in over:
            gain, low, high, _ = over[o.way, o.task]
            rows.append({**line, "metric": "gain", "lead": gain, "low": low, "high": high})
    cells = (
        Column("PSNR", "psnr", tables.mean(2)),
        Column("SSIM", "ssim", tables.mean(3)),
        Column("SW x 1000", "wasserstein", tables.mean(1, times=1000)),
        Column("s / slice", "seconds", tables.mean(2)),
        Column("gain over the task before", "gain", tables.lead(2)),
    )
    return tables.screen(rows, ("task", "way"), "metric", cells)


def _scores(outcomes: Sequence[Outcome]) -> Iterator[tuple[Any, ...]]:
    for o in outcomes:
        for metric, values in o.values.items():
            for number, value in enumerate(values):
                yield o.task.group, o.task.name, o.way, metric, number, value


def _gains(outcomes: Sequence[Outcome], metric: str) -> Iterator[tuple[Any, ...]]:
    for before, after, found in gains(outcomes, metric):
        what = f"{after.way}: {after.task.name}", f"{before.way}: {before.task.name}"
        yield after.task.group, metric, *what, *found
    for _, same in itertools.groupby(outcomes, key=lambda o: o.task):
        for one, other in itertools.permutations(list(same), 2):
            what = f"{one.way}: {one.task.name}", f"{other.way}: {other.task.name}"
            yield one.task.group, metric, *what, *lead(one, other, metric)


def _draw(folder: Path, group: str, outcomes: Sequence[Outcome], held: Held, model: Model) -> None:
    """One slice, the median one by the last way's PSNR."""
    last = outcomes[-1].values["psnr"]
    b = sorted(range(len(held)), key=lambda i: last[i])[len(held) // 2]
    tasks, ways = (list(dict.fromkeys(getattr(o, key) for o in outcomes)) for key in ("task", "way"))
    made = {(o.way, o.task): o.made_BHW[b].clamp(0, 1).numpy() for o in outcomes}
    truth = held.images_BMHW[b, model.modalities.index(tasks[0].target)].numpy()
    rows: list[list[pictures.Plane]] = [[truth] * len(tasks)]
    rows += [[made.get((way, task)) for task in tasks] for way in ways]
    picture = pictures.mosaic(rows, ["truth", *ways], [task.name for task in tasks], group, cell=192)
    pictures.save_png(picture, folder / f"{re.sub(r'[^a-z0-9]+', '-', group.lower())}.png")
