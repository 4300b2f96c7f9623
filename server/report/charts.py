"""Where a chart's lines and a run's squares lie on the page; parts.html.j2 draws them as SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SERIES = 8  # colours; more series than that are drawn thin and grey
MOST_FAINT = 12
MOST_TALL = 40  # rows of squares; of more, each is low and has no name beside it

FRAME = {"width": 560, "height": 250, "left": 56, "right": 548, "top": 10, "bottom": 216}  # of a chart, in its picture

Points = Sequence[tuple[float, float]]
Mark = tuple[float, str]  # where along an axis, and the text there


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    across: str
    up: str
    log: bool
    rules: Sequence[Mark]
    marks: Sequence[Mark]
    lines: Sequence[tuple[str, str, Points]]  # name, style, places on the picture
    legend: Sequence[tuple[str, str]]  # style, text


def curves(
    series: Mapping[str, Points], *, across: str, up: str, faint: Mapping[str, Points] | None = None
) -> Chart | None:
    """Lines over a common frame; logarithmic where the values span more than a factor of 30. None without a point.

    `faint` lines are of the sites; of many, the lowest and the highest value are drawn.
    """
    each = faint or {}
    faint = _edges(each) if len(each) > MOST_FAINT else each
    points = [point for line in (*series.values(), *faint.values()) for point in line]
    if not points:
        return None
    values = [y for _, y in points]
    log = min(values) > 0 and max(values) / min(values) > 30
    scale = math.log10 if log else float
    low, high = _range(min(map(scale, values)), max(map(scale, values)))
    first, last = _range(min(x for x, _ in points), max(x for x, _ in points), pad=0.0)

    def right(x: float) -> float:
        return round(FRAME["left"] + (x - first) / (last - first) * (FRAME["right"] - FRAME["left"]), 1)

    def down(y: float) -> float:
        return round(FRAME["bottom"] - (scale(y) - low) / (high - low) * (FRAME["bottom"] - FRAME["top"]), 1)

    styles = [f"s{index}" if index < SERIES else "faint" for index in range(len(series))]
    drawn = [(name, "faint", line) for name, line in faint.items()]
    drawn += [(name, style, line) for style, (name, line) in zip(styles, series.items(), strict=True)]
    return Chart(
        across=across,
        up=up,
        log=log,
        rules=[(down(y), f"{y:.4g}") for y in (_log_ticks(low, high) if log else ticks(low, high))],
        marks=[(right(x), f"{x:g}") for x in ticks(first, last) if x == round(x)],
        lines=[(name, style, [(right(x), down(y)) for x, y in line]) for name, style, line in drawn],
        legend=_legend(list(series), len(each)),
    )


def _edges(lines: Mapping[str, Points]) -> dict[str, Points]:
    columns: dict[float, list[float]] = {}
    for line in lines.values():
        for x, y in line:
            columns.setdefault(x, []).append(y)
    ordered = sorted(columns.items())
    return {"lowest": [(x, min(ys)) for x, ys in ordered], "highest": [(x, max(ys)) for x, ys in ordered]}


def _legend(names: Sequence[str], sites: int) -> list[tuple[str, str]]:
    if len(names) < 2 and not sites:
        return []
    entries = [(f"s{i}", name) for i, name in enumerate(names[:SERIES])]
    if sites:
        entries.append(("faint", "each site" if sites <= MOST_FAINT else "lowest and highest site"))
    elif len(names) > SERIES:
        entries.append(("faint", "others"))
    return entries


def _range(low: float, high: float, pad: float = 0.05) -> tuple[float, float]:
    if high <= low:
        return low - 0.5, high + 0.5
    return low - pad * (high - low), high + pad * (high - low)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten; powers alone over a long range."""
    factors = (1,) if high - low > 3 else (1, 2, 5)
    every = [f * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for f in factors]
    return [tick for tick in every if low <= math.log10(tick) <= high]


@dataclass(frozen=True, slots=True, kw_only=True)
class Squares:
    """A row of small squares for each name."""

    width: int
    height: int
    names: Sequence[Mark]
    squares: Sequence[tuple[float, int, str, str]]  # right, down, style, tooltip
    wide: float  # a square
    tall: float


def squares(rows: Mapping[str, Mapping[int, tuple[str, str]]], *, count: int) -> Squares:
    """`rows[name][column] = (style, tooltip)`; `count` columns."""
    label, side = 110, min(16.0, max(3.0, 790 / max(1, count)))
    dense = len(rows) > MOST_TALL
    tall, gap, more = (6, 0.5, " dense") if dense else (16, 2, "")
    return Squares(
        width=math.ceil(label + count * side),
        height=len(rows) * tall,
        names=[] if dense else [(index * tall + 11, name) for index, name in enumerate(rows)],
        squares=[
            (round(label + column * side, 1), index * tall, style + more, tip)
            for index, row in enumerate(rows.values())
            for column, (style, tip) in row.items()
        ],
        wide=round(side - min(gap, side / 4), 1),
        tall=tall - gap,
    )
