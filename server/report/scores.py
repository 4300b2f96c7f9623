"""The evaluation's tidy tables as means over sites and shown subsets: one ranking for each metric and region."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.base.errors import DataError

LOWER_IS_BETTER = ("mse", "mae", "lpips", "fid")
TIDY = {"model", "shown", "target", "region", "metric", "per", "value", "n"}  # columns of the evaluation's table

What = tuple[str, str, str]  # metric, region, per
Means = dict[str, dict[str, float]]  # model -> target -> mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Models against targets in one measure."""

    what: What
    targets: Sequence[str]
    means: Mapping[str, Mapping[str, float]]
    best: Mapping[str, float]  # target -> the best of its column


def scores(folder: Path) -> list[Ranking]:
    means = {what: block for path in sorted(folder.glob("*.csv")) for what, block in _means(path).items()}
    return [_ranking(what, block) for what, block in means.items()]


def _ranking(what: What, means: Means) -> Ranking:
    targets = sorted({target for row in means.values() for target in row})
    pick = min if what[0] in LOWER_IS_BETTER else max
    best = {target: pick(row[target] for row in means.values() if target in row) for target in targets}
    return Ranking(what=what, targets=targets, means=means, best=best)


def _means(path: Path) -> dict[What, Means]:
    """Over rows whose target was not shown."""
    sums: dict[What, dict[str, dict[str, list[float]]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not set(reader.fieldnames or ()) >= TIDY:
            return {}  # some other table
        for row in reader:
            try:
                value, weight, shown = float(row["value"]), float(row["n"]), row["shown"].split("+")
                what, model, target = (row["metric"], row["region"], f"per {row['per']}"), row["model"], row["target"]
            except (TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{path.name} line {reader.line_num}: {error}; value and n must be numbers") from None
            if target in shown or not math.isfinite(value) or weight <= 0:
                continue
            total = sums.setdefault(what, {}).setdefault(model, {}).setdefault(target, [0.0, 0.0])
            total[0] += value * weight
            total[1] += weight
    order = sorted(sums, key=lambda what: (what[2] != "per volume", what[0] != "psnr", what[0], what[1]))
    return {w: {m: {t: a / b for t, (a, b) in row.items()} for m, row in sums[w].items()} for w in order}
