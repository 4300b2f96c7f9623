"""`lacuna evaluate RUN... task=images`: how good made volumes are, direction by direction, as in ACADiff's Fig. 2.

OUT/scores.csv      every subset, target and site: means over subjects, per volume and per slice
    images.csv      direction, model: PSNR, SSIM, NMI and MAE in the brain; the first model's lead with its interval
    summary.json    the means over directions, and how they were measured
    images.png      one subject, made from the other two: truth, every model, their errors, and the spread of samples

Models are the runs by name (RUN:scores and so on as in task=diagnosis), each site's own of the first run, and floors.
All are given whole volumes and scored on the brain's slices of the same held-out subjects, with noise from one seed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from server.evaluation.ways import (
    Asked,
    Person,
    complete,
    find_world,
    read_runs,
    run_of,
    told_by,
    visible,
)
from server.runs import runs
from shared.base import pictures
from shared.base.errors import ConfigError
from shared.base.files import write_json
from shared.base.options import plain
from shared.base.vocabulary import Modality
from shared.data.cohort import Cohort
from shared.data.missing import all_patterns
from shared.diffusion.samplers import Sampler
from shared.methods.baselines.voxelwise import floors_3d
from shared.model import tables
from shared.model.evaluation import (
    ALONE,
    FLOORS,
    MEAN,
    Fill,
    Filler,
    Scoring,
    evaluate,
    filled_by,
    floors,
    mean_of,
)
from shared.model.model import Model, read_model
from shared.model.scorecard import SCORES, by_site
from shared.model.tables import Column, Frame, Printable
from shared.plan.training import find_device

METRICS = {"psnr": ("PSNR", 2), "ssim": ("SSIM", 3), "nmi": ("NMI", 3), "mae": ("MAE", 4)}
EVERY = "mean"  # in place of a direction: over all that make a target, or all there are
LINE = ["target", "shown", "model"]
ERROR = 4.0  # how much brighter errors and spreads are drawn


def compare_images(asked: Asked, *, sampler: Sampler | None = None, subjects: int | None = None) -> Frame:
    """The table of the runs asked for; files beside it. `subjects`: the first few of each site."""
    config, models = read_runs(asked)
    first, on = run_of(asked.names[0]), find_device(asked.device)
    modalities = models[first].modalities
    for name, model in models.items():
        if model.modalities != modalities:
            raise ConfigError(f"run {name}: modalities={list(model.modalities)}: {first} has {list(modalities)}")
    trained, heldout = find_world(config, strangers=asked.strangers)
    heldout = {site: dataclasses.replace(c, subjects=c.subjects[:subjects]) for site, c in heldout.items()}
    chosen = {name: sampler or model.sampler for name, model in models.items()}
    told = {name: told_by(name, models[run_of(name)]) for name in asked.names}

    def fill_by(name: str, model: Model) -> Fill:
        return filled_by(model, sampler=chosen[run_of(name)], seed=asked.seed, device=on, told=told_by(name, model))

    fillers = {name: fill_by(name, models[run_of(name)]) for name in asked.names}
    others = _floors(list(trained.values()), list(heldout.values()), modalities)
    alone = {site: asked.runs / first / "alone" / site for site in trained}
    own = {
        site: mean_of(fill_by(first, read_model(folder / "final")))
        for site, folder in alone.items()
        if runs.finished(folder)
    }
    made = {name: mean_of(one) for name, one in fillers.items()} | others
    scores = evaluate(made, heldout, modalities, Scoring(whole=True), alone=own, progress=asked.progress)
    into, table = asked.into("images"), directions(scores, modalities)
    tables.write_csv(by_site(scores), into / "scores.csv", SCORES)
    flat = flattened(table)
    tables.write_csv(flat, into / "images.csv", [*LINE, *METRICS, "subjects", "lead", "low", "high"])
    whole = flat[flat["target"] == EVERY].set_index("model")[[*METRICS, "subjects"]]
    how = {
        "world": config.world,
        "subjects": sum(len(cohort.subjects) for cohort in heldout.values()),
        "samplers": plain(chosen),
        "told": {name: list(fields) for name, fields in told.items()},
        "seed": asked.seed,
        "device": str(on),
    }
    summary = {"means": {model: row.dropna().to_dict() for model, row in whole.iterrows()}, "how": how}
    write_json(into / "summary.json", summary)
    site, cohort = next(iter(heldout.items()))
    for person in complete({site: cohort}, modalities)[:1]:
        _draw(person, modalities, fillers, others, into / "images.png")
    return table


def _floors(trained: Sequence[Cohort], heldout: Sequence[Cohort], modalities: Sequence[Modality]) -> dict[str, Filler]:
    """The voxelwise ones, and those of slices, which need no brain to lie as another's."""
    depth = max(subject.depth for cohort in (*trained, *heldout) for subject in cohort.subjects)
    return {
        **floors_3d(trained, modalities, depth),
        **floors(trained, modalities, [name for name in FLOORS if name != MEAN]),
    }


# --- what the scores say --------------------------------------------------------------------------------------------


def directions(scores: Frame, modalities: Sequence[Modality]) -> Frame:
    """Target by target the directions with fewer sources first, their mean, and at the end the mean over all: of each
    metric and model the mean over subjects, and what the first model is ahead of it.
    """
    one = scores[(scores["region"] == "brain") & scores["metric"].isin(list(METRICS))].assign(value=scores["volume"])
    into = one.assign(shown=EVERY)
    asked = tables.stacked([one, into, into.assign(target=EVERY)])
    names = list(dict.fromkeys(scores["model"]))
    table = tables.compare(asked, ["target", "shown", "metric"], "model", ["site", "subject"], names[0])
    patterns = sorted(all_patterns(modalities), key=lambda p: (len(p), [modalities.index(m) for m in p]))
    order = {
        "target": [*modalities, EVERY],
        "shown": [*map("+".join, patterns), EVERY],
        "model": [*(name for name in names if name != ALONE), ALONE],
    }
    return table.sort_values(LINE, key=lambda column: column.map(order[column.name].index), ignore_index=True)


def flattened(table: Frame) -> Frame:
    """A row for each direction and model: its metrics, and the lead in the first of them."""
    main = table[table["metric"] == "psnr"].set_index(LINE)
    means = table.pivot(index=LINE, columns="metric", values="mean").reindex(main.index)
    return means.join(main[["n", "lead", "low", "high"]]).rename(columns={"n": "subjects"}).reset_index()


def printable(table: Frame) -> Printable:
    titles = [
        "all directions"
        if target == EVERY
        else f"{target} from {'any' if shown == EVERY else shown.replace('+', ' + ')}"
        for target, shown in table[["target", "shown"]].itertuples(index=False)
    ]
    cells = [Column(heading, metric, tables.mean(digits)) for metric, (heading, digits) in METRICS.items()]
    cells.append(Column("first - this, PSNR", "psnr", tables.lead(2)))
    return tables.screen(tables.records(table.assign(**{"made from": titles})), ("made from", "model"), "metric", cells)


# --- the picture ----------------------------------------------------------------------------------------------------


def _draw(
    person: Person, modalities: Sequence[Modality], models: Mapping[str, Fill], others: Mapping[str, Filler], path: Path
) -> None:
    """The first subject that has all modalities, at the middle of its brain."""
    stack, brain = person.stack, person.slices.subjects[person.number].brain_slices
    z = brain[len(brain) // 2]

    def plane(image_DHW: Tensor) -> pictures.Plane:
        return np.asarray(torch.where(stack.brain_DHW[z], image_DHW[z], 0.0).clamp(0, 1).numpy())

    drawn: list[list[pictures.Plane]] = []
    labels: list[str] = []
    for row, target in enumerate(modalities):
        shown_M = torch.tensor([m != target for m in modalities])
        visible_MDHW, keys = visible(stack.images_MDHW, shown_M), ("picture", person.site, 0)
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
