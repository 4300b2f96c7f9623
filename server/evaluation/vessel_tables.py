"""What `lacuna vessels` writes and prints: scores, their means and paired differences, and the projections."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.base import pictures
from shared.base.errors import DataError
from shared.base.files import write_json, writing
from shared.model import tables
from shared.model.angiograms import VIEWS
from shared.model.tables import Column, Frame, Printable

COLUMNS = {  # of the printed table: metric, its heading, digits
    "volume psnr": ("PSNR", 2),
    "volume ssim": ("SSIM", 3),
    "volume rmse": ("RMSE %", 2),
    "axial psnr": ("MIP PSNR", 2),
    "axial ssim": ("SSIM", 3),
    "axial rmse": ("RMSE %", 2),
    "vessels cldice": ("clDice", 3),
    "vessels dice": ("Dice", 3),
    "vessels components": ("parts", 0),
    "vessels largest_covered": ("covered", 3),
    "seconds": ("s", 1),
}
LEADS = {"axial psnr": ("MIP PSNR", 2), "vessels cldice": ("clDice", 3)}  # over the first run


SCORES = ("run", "shown", "subject", "metric", "value", "key")  # key: of all that a score depends on
PLACE = ["run", "shown", "key"]


def read_scores(out: Path) -> Frame:
    """Those of earlier calls; none where there is no file."""
    path = out / "scores.csv"
    if not path.exists():
        return tables.tidy([], SCORES)
    try:
        return tables.read_csv(path)[list(SCORES)].astype({"subject": int, "value": float})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: can't be read ({type(error).__name__}); delete it, and all is scored again") from None


def write_scores(out: Path, scores: Iterable[Any]) -> None:
    tables.write_csv(tables.tidy(scores, SCORES), out / "scores.csv", SCORES, exact=True, blank="nan")


def summarise(scores: Frame, first: str) -> Frame:
    """Means over subjects. `lead`: over the first run, from the same subset; `hiding`: what it costs a run to be shown
    less than the largest of its subsets.
    """
    sources = {shown: shown.count("+") for shown in scores["shown"]}
    against_first = turned(tables.compare(scores, ["shown", "metric"], "run", ["subject"], first))
    lines = []
    for run, own in scores.groupby("run", sort=False):
        most = max(own["shown"].unique(), key=lambda shown: sources[shown])
        hiding = turned(tables.compare(own.drop(columns="run"), ["metric"], "shown", ["subject"], most))
        lines.append(hiding.assign(run=run).rename(columns={n: f"hiding_{n}" for n in ("lead", "low", "high")}))
    line = ["run", "shown", "metric"]
    hidden = tables.stacked(lines)[[*line, "hiding_lead", "hiding_low", "hiding_high"]]
    order = scores[line].drop_duplicates()
    return order.merge(against_first, on=line).merge(hidden, on=line).rename(columns={"n": "subjects"})


def turned(table: Frame) -> Frame:
    """What each is ahead of the first, in place of what the first is ahead of it."""
    return table.assign(lead=-table["lead"], low=-table["high"], high=-table["low"])


def write(out: Path, lines: Frame, how: Mapping[str, Any]) -> None:
    """summary.csv and summary.json."""
    columns = (
        "run",
        "shown",
        "metric",
        "mean",
        "subjects",
        "lead",
        "low",
        "high",
        "hiding",
        "hiding_low",
        "hiding_high",
    )
    tables.write_csv(lines.rename(columns={"hiding_lead": "hiding"}), out / "summary.csv", columns)
    means: dict[str, dict[str, dict[str, float]]] = {}
    for row in tables.records(lines):
        means.setdefault(row["run"], {}).setdefault(row["shown"], {})[row["metric"]] = round(row["mean"], 6)
    write_json(out / "summary.json", {"means": means, "how": dict(how)})


def printable(lines: Frame) -> Printable:
    """One subset after the other."""
    by_subset = tables.stacked(part for _, part in lines.groupby("shown", sort=False))
    cells = [Column(heading, metric, tables.mean(digits)) for metric, (heading, digits) in COLUMNS.items()]
    cells += [
        Column(f"{heading} lead", metric, tables.lead_with_reach(digits)) for metric, (heading, digits) in LEADS.items()
    ]
    return tables.screen(tables.records(by_subset), ("shown", "run"), "metric", cells)


# --- projections ----------------------------------------------------------------------------------------------------

Views = Mapping[str, NDArray[Any]]  # by name, each H W


def keep_views(path: Path, subjects: Sequence[Views]) -> None:
    """Projections of the drawn subjects, whole or not at all."""
    arrays = {
        f"{number} {view}": image.astype(np.float16)
        for number, views in enumerate(subjects)
        for view, image in views.items()
    }
    with writing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_views(path: Path) -> list[Views]:
    with np.load(path) as held:
        count = len(held.files) // len(VIEWS)
        return [{view: held[f"{number} {view}"].astype(np.float32) for view in VIEWS} for number in range(count)]


def draw(path: Path, truth: Sequence[Views], made: Mapping[str, Sequence[Views]], title: str) -> None:
    """The paper's Fig. 3: of each subject the projections of truth and runs, then the errors of the axial ones."""
    rows: list[list[pictures.Plane]] = []
    labels: list[str] = []
    for number, true in enumerate(truth):
        for view in VIEWS:
            rows.append([true[view], *(views[number][view] for views in made.values())])
            labels.append(f"{number}: {view}")
        rows.append([None, *(_error(views[number]["axial"] - true["axial"]) for views in made.values())])
        labels.append("error x 2")
    picture = pictures.mosaic(rows, labels, ["truth", *made], title, cell=192)
    pictures.save_png(picture, path)


def _error(difference_HW: NDArray[Any]) -> NDArray[Any]:
    """Red where it is too bright, blue where it is too dark."""
    return np.stack([2 * difference_HW, np.zeros_like(difference_HW), -2 * difference_HW], axis=-1).clip(0, 1)
