"""HTML and SVG by hand: escaped by construction, with nothing fetched from anywhere. Its looks are in page.css.

A string put into an element is text and is escaped; only `Html`, which the functions here make, goes in as it is.
"""

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

STYLE = Path(__file__).with_name("page.css")
SERIES = 8  # colours; more series than that are drawn thin and grey
MOST_FAINT = 12
WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 34  # of a chart's frame

Points = Sequence[tuple[float, float]]


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def el(tag: str, *children: object, **attributes: object) -> Html:
    """`el("td", "a < b", class_="n")`; None among children or attributes is left out."""
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    written = "".join(
        f' {names[name]}="{html.escape(str(value))}"' for name, value in attributes.items() if value is not None
    )
    if tag in ("img", "meta", "br"):
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{many(children)}</{tag}>")


def many(children: Iterable[object]) -> Html:
    return Html("".join(c if isinstance(c, Html) else html.escape(str(c)) for c in children if c is not None))


def page(title: str, *body: object) -> Html:
    """A whole document that is allowed, by its own policy, to load nothing."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Html(STYLE.read_text(encoding="utf-8"))),
    )
    return Html("<!doctype html>\n" + el("html", head, el("body", el("main", *body)), lang="en") + "\n")


def table(columns: Sequence[object], rows: Iterable[Sequence[object]], *, numbers: Iterable[int] = ()) -> Html:
    """`numbers` are the columns that are set flush right."""
    right = dict.fromkeys(numbers, "n")
    head = el("tr", *(el("th", column, class_=right.get(i), scope="col") for i, column in enumerate(columns)))
    body = [
        el("tr", *(c if _is_cell(c) else el("td", c, class_=right.get(i)) for i, c in enumerate(row))) for row in rows
    ]
    return el("div", el("table", el("thead", head), el("tbody", *body)), class_="wide")


def _is_cell(value: object) -> bool:
    return isinstance(value, Html) and value.startswith(("<td", "<th"))


def picture(path: Path, caption: str) -> Html:
    """A PNG, carried inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = el("img", src=f"data:image/png;base64,{data}", alt=caption)
    return el("figure", image, el("figcaption", caption))


def curves(series: Mapping[str, Points], *, across: str, up: str, faint: Mapping[str, Points] | None = None) -> Html:
    """Lines over a common frame, a legend below; logarithmic where the values span more than a factor of 30.

    `faint` lines are of the sites; of many, the lowest and the highest value are drawn.
    """
    each = faint or {}
    faint = _edges(each) if len(each) > MOST_FAINT else each
    points = [point for line in (*series.values(), *faint.values()) for point in line]
    if not points:
        return el("p", "Nothing to draw yet.", class_="note")
    values = [y for _, y in points]
    log = min(values) > 0 and max(values) / min(values) > 30
    scale = math.log10 if log else float
    low, high = _range(min(map(scale, values)), max(map(scale, values)))
    first, last = _range(min(x for x, _ in points), max(x for x, _ in points), pad=0.0)

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (scale(y) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return round(right, 1), round(down, 1)

    parts: list[Html] = []
    for tick in _log_ticks(low, high) if log else ticks(low, high):
        _, down = place(first, tick)
        parts += [
            el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=down, y2=down, class_="rule"),
            el("text", f"{tick:.4g}", x=LEFT - 6, y=down + 4, text_anchor="end"),
        ]
    for tick in ticks(first, last):
        if tick == round(tick):
            right, _ = place(tick, 10**low if log else low)
            parts.append(el("text", f"{tick:g}", x=right, y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    parts.append(el("text", across, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 3, text_anchor="middle", class_="axis"))
    parts += [_line(name, [place(*point) for point in line], "faint") for name, line in faint.items()]
    for index, (name, line) in enumerate(series.items()):
        parts.append(_line(name, [place(*point) for point in line], f"s{index}" if index < SERIES else "faint"))
    svg = el("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="chart", role="img", aria_label=up)
    return el("figure", el("figcaption", up + (" (logarithmic)" if log else "")), svg, _legend(list(series), len(each)))


def _line(name: str, places: Sequence[tuple[float, float]], style: str) -> Html:
    if len(places) == 1:
        ((x, y),) = places
        return el("circle", el("title", name), cx=x, cy=y, r=3, class_=f"dot {style}")
    return el("polyline", el("title", name), points=" ".join(f"{x},{y}" for x, y in places), class_=f"line {style}")


def _edges(lines: Mapping[str, Points]) -> dict[str, Points]:
    columns: dict[float, list[float]] = {}
    for line in lines.values():
        for x, y in line:
            columns.setdefault(x, []).append(y)
    ordered = sorted(columns.items())
    return {"lowest": [(x, min(ys)) for x, ys in ordered], "highest": [(x, max(ys)) for x, ys in ordered]}


def _legend(names: Sequence[str], sites: int) -> Html | None:
    if len(names) < 2 and not sites:
        return None
    entries = [el("span", el("i", class_=f"s{i}"), name) for i, name in enumerate(names[:SERIES])]
    if sites:
        entries.append(
            el("span", el("i", class_="faint"), "each site" if sites <= MOST_FAINT else "lowest and highest site")
        )
    elif len(names) > SERIES:
        entries.append(el("span", el("i", class_="faint"), "others"))
    return el("div", *entries, class_="legend")


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


def cells(rows: Mapping[str, Mapping[int, tuple[str, str]]], *, count: int) -> Html:
    """One small square per row and column: `rows[name][column] = (style, tooltip)`."""
    label, side = 110, min(16.0, max(3.0, 790 / max(1, count)))
    dense = len(rows) > 40
    tall, gap, more = (6, 0.5, " dense") if dense else (16, 2, "")
    parts = []
    for index, (name, row) in enumerate(rows.items()):
        if not dense:
            short = name if len(name) <= 16 else name[:15] + "…"
            parts.append(el("text", short, x=label - 8, y=index * tall + 11, text_anchor="end"))
        for column, (style, tip) in row.items():
            box = {"x": round(label + column * side, 1), "y": index * tall, "height": tall - gap}
            wide = round(side - min(gap, side / 4), 1)
            parts.append(el("rect", el("title", tip), **box, width=wide, rx=2, class_=f"cell {style}{more}"))
    wide, high = math.ceil(label + count * side), len(rows) * tall
    return el("svg", *parts, viewBox=f"0 0 {wide} {high}", style=f"max-width:{wide}px", class_="cells", role="img")


def share(value: float, most: float, text: str) -> Html:
    """A table cell with its number and a bar as long as its share of the largest."""
    percent = 80 * value / most if most else 0
    return el("td", el("b", style=f"width:{percent:.1f}%"), el("span", text), class_="n share")
