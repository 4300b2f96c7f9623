"""What `lacuna vessels` writes and prints: scores, their means and paired differences, and the projections."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.base import pictures
from shared.base.errors import DataError
from shared.base.files import write_text, writing
from shared.model.angiograms import VIEWS
from shared.model.evaluation import Difference, interval

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


class Score(NamedTuple):
    run: str
    shown: str  # joined by +
    subject: int
    metric: str
    value: float
    key: str  # of all that it depends on


class Line(NamedTuple):
    """The mean over subjects of one metric of one run from one subset."""

    run: str
    shown: str
    metric: str
    mean: float
    subjects: int
    lead: Difference | None  # this minus the first run from the same subset
    hiding: Difference | None  # this minus the same run from its largest subset


def read_scores(out: Path) -> list[Score]:
    """Those of earlier calls; none where there is no file."""
    path = out / "scores.csv"
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                Score(row["run"], row["shown"], int(row["subject"]), row["metric"], float(row["value"]), row["key"])
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: can't be read ({type(error).__name__}); delete it, and all is scored again") from None


def write_scores(out: Path, scores: Iterable[Score]) -> None:
    """Read again they are the same numbers."""
    write_text(out / "scores.csv", _csv(Score._fields, scores))


def summarise(scores: Iterable[Score], first: str) -> list[Line]:
    """In the order in which they were scored."""
    held: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for s in scores:
        if math.isfinite(s.value):
            held.setdefault((s.run, s.shown), {}).setdefault(s.metric, {})[s.subject] = s.value
    most: dict[str, str] = {}
    for run, shown in held:
        most[run] = max(most.get(run, shown), shown, key=lambda name: name.count("+"))

    def against(values: Mapping[int, float], other: tuple[str, str], metric: str) -> Difference | None:
        theirs = held.get(other, {}).get(metric, {})
        found = [value - theirs[subject] for subject, value in values.items() if subject in theirs]
        return interval(found) if found else None

    return [
        Line(
            run=run,
            shown=shown,
            metric=metric,
            mean=sum(values.values()) / len(values),
            subjects=len(values),
            lead=against(values, (first, shown), metric) if run != first else None,
            hiding=against(values, (run, most[run]), metric) if shown != most[run] else None,
        )
        for (run, shown), metrics in held.items()
        for metric, values in metrics.items()
    ]


def write(out: Path, lines: Sequence[Line], how: Mapping[str, Any]) -> None:
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
    table = ((*line[:3], f"{line.mean:.7g}", line.subjects, *_three(line.lead), *_three(line.hiding)) for line in lines)
    write_text(out / "summary.csv", _csv(columns, table))
    means: dict[str, dict[str, dict[str, float]]] = {}
    for line in lines:
        means.setdefault(line.run, {}).setdefault(line.shown, {})[line.metric] = round(line.mean, 6)
    write_text(out / "summary.json", json.dumps({"means": means, "how": dict(how)}, indent=1) + "\n")


def printable(lines: Sequence[Line]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of words, one subset after the other."""
    found = {(line.shown, line.run, line.metric): line for line in lines}
    columns = (
        "shown",
        "run",
        *(heading for heading, _ in COLUMNS.values()),
        *(f"{heading} lead" for heading, _ in LEADS.values()),
    )
    rows: list[tuple[str, ...]] = []
    for shown in dict.fromkeys(line.shown for line in lines):
        for i, run in enumerate(dict.fromkeys(line.run for line in lines if line.shown == shown)):
            words = ["" if i else shown, run]
            for metric, (_, digits) in COLUMNS.items():
                line = found.get((shown, run, metric))
                words.append("–" if line is None else f"{line.mean:.{digits}f}")
            for metric, (_, digits) in LEADS.items():
                line = found.get((shown, run, metric))
                words.append("" if line is None else _words(line.lead, digits))
            rows.append(tuple(words))
    return columns, rows


def _words(lead: Difference | None, digits: int) -> str:
    if lead is None:
        return ""
    reach = f" ± {lead.high - lead.mean:.{digits}f}" if math.isfinite(lead.high) else ""
    return f"{lead.mean:+.{digits}f}{reach}"


def _three(found: Difference | None) -> tuple[str, ...]:
    return ("", "", "") if found is None else tuple(f"{value:.6g}" for value in (found.mean, found.low, found.high))


def _csv(columns: Sequence[str], table: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(table)
    return text.getvalue()


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
