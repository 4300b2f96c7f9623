"""`lacuna restore`: what a prior can do, on one page of tables.

runs/RUN/restoration/scores.csv      task, way, metric, slice, value
                     gains.csv       each task against the one before it, each way against each other: mean and interval
                     summary.json    the means, the cost, and how they were measured
                     <group>.png     truth and every way at every task of a group, one slice
"""

import csv
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.evaluation.compare import find_cohorts
from server.evaluation.tasks import (
    MEASURED,
    Held,
    Outcome,
    Scan,
    Task,
    Way,
    floors,
    gains,
    lead,
    pick,
    run,
    sampled,
    usual_tasks,
)
from server.runs import runs
from shared.base import pictures
from shared.base.checkpoint import write_text
from shared.base.display.progress import Progress
from shared.base.errors import ConfigError, DataError
from shared.base.options import plain
from shared.diffusion.samplers import Sampler
from shared.model.evaluation import RIDGE, Difference
from shared.model.evaluation import floors as pooled_floors
from shared.model.model import Model, read_model
from shared.plan.config import load_sampler
from shared.plan.training import find_device


def restore(
    folder: Path,
    *,
    samplers: Sequence[str],
    scan: Scan,
    count: int,
    seed: int,
    device: str,
    groups: Sequence[str] = (),
    samples: int | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """All tasks of a finished run's model with each sampler, and the floors; files into `out`."""
    config = runs.read_config(folder)
    if not runs.finished(folder):
        raise DataError(f"{folder.name}: the run is not finished; go on with it by resume={folder.name}")
    model = read_model(folder / "final")
    chosen = {name: _sampler(name, samples) for name in samplers}
    tasks = _tasks(model, groups)
    trained, heldout = find_cohorts(config, "sites"), find_cohorts(config, "heldout")
    if not heldout:
        raise DataError(f"{config.world}/heldout: no held-out subjects to restore")
    held = pick(list(heldout.values()), model.modalities, count, seed)
    ridge = pooled_floors(list(trained.values()), model.modalities)[RIDGE]
    on = find_device(device)
    ways: dict[str, Way] = floors(held, model.modalities, scan, ridge, seed=seed)
    ways |= {name: sampled(model, sampler, held, scan, seed=seed, device=on) for name, sampler in chosen.items()}
    outcomes = list(run(ways, tasks, held, model.modalities, progress=progress))
    how = {
        "run": folder.name,
        "slices": count,
        "seed": seed,
        "scan": plain(scan),
        "samplers": {name: plain(sampler) for name, sampler in chosen.items()},
        "device": str(on),
    }
    write(out or folder / "restoration", outcomes, held, model, how)
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
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "scores.csv", _csv(("group", "task", "way", "metric", "slice", "value"), _scores(outcomes)))
    columns = ("group", "metric", "what", "against", "mean", "low", "high", "slices")
    write_text(folder / "gains.csv", _csv(columns, [line for m in MEASURED for line in _gains(outcomes, m)]))
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
    write_text(folder / "summary.json", json.dumps({"means": means, "how": dict(how)}, indent=1) + "\n")
    for group in dict.fromkeys(o.task.group for o in outcomes):
        _draw(folder, group, [o for o in outcomes if o.task.group == group], held, model)


def printable(outcomes: Sequence[Outcome]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of words: each way at each task, and what the task before it was short of."""
    columns = ("task", "way", "PSNR", "SSIM", "SW x 1000", "s / slice", "gain over the task before")
    over = {(after.way, after.task): difference for _, after, difference in gains(outcomes)}
    rows: list[tuple[str, ...]] = []
    last = ""
    for o in outcomes:
        title = f"{o.task.group}: {o.task.name}"
        gained = over.get((o.way, o.task))
        rows.append(
            (
                "" if title == last else title,
                o.way,
                f"{o.mean('psnr'):.2f}",
                f"{o.mean('ssim'):.3f}",
                f"{1000 * o.mean('wasserstein'):.1f}",
                f"{o.seconds:.2f}",
                "" if gained is None else f"{gained.mean:+.2f} [{gained.low:+.2f}, {gained.high:+.2f}]",
            )
        )
        last = title
    return columns, rows


def _scores(outcomes: Iterable[Outcome]) -> Iterable[tuple[Any, ...]]:
    for o in outcomes:
        for metric, values in o.values.items():
            for number, value in enumerate(values):
                yield o.task.group, o.task.name, o.way, metric, number, f"{value:.6g}"


def _gains(outcomes: Sequence[Outcome], metric: str) -> Iterable[tuple[Any, ...]]:
    for before, after, found in gains(outcomes, metric):
        what = f"{after.way}: {after.task.name}", f"{before.way}: {before.task.name}"
        yield after.task.group, metric, *what, *_numbers(found)
    for _, same in itertools.groupby(outcomes, key=lambda o: o.task):
        for one, other in itertools.permutations(list(same), 2):
            what = f"{one.way}: {one.task.name}", f"{other.way}: {other.task.name}"
            yield one.task.group, metric, *what, *_numbers(lead(one, other, metric))


def _numbers(found: Difference) -> tuple[Any, ...]:
    return f"{found.mean:.5g}", f"{found.low:.5g}", f"{found.high:.5g}", found.subjects


def _csv(columns: Sequence[str], table: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(table)
    return text.getvalue()


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
