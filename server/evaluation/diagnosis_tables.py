"""What `lacuna evaluate RUN... task=diagnosis` writes, draws, prints, and says in plain sentences."""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from server.evaluation.diagnosis import DROP, ORACLE, Cell, Findings, Leak
from shared.base.files import write_text, writing
from shared.model.evaluation import Difference, interval

METRICS = ("acc", "auc", "sen", "spe")
OVER = ("acc", "auc")  # in which ways are compared
ALL = -1.0  # in place of a rate: the mean over all of them
MORE, TELLS = 0.1, 0.75  # AUC: so much more than the real image, and so much at all, is called a leak


class Line(NamedTuple):
    """A way at a rate: means over generations with their intervals; what the first way is ahead of it, paired."""

    rate: float
    way: str
    values: Mapping[str, Difference]
    leads: Mapping[str, Difference | None]
    trained: float


def lines(findings: Findings) -> list[Line]:
    """The oracle, then rate after rate, then the mean over rates."""
    cells = {(c.rate, c.way, c.generation): c for c in findings.cells}
    turns = range(findings.options.generations)
    names = [way.name for way in findings.ways]
    found = [_line(0.0, ORACLE, [[cells[0.0, ORACLE, g]] for g in turns], None)]
    for rate in (*findings.options.rates, ALL):
        rates = findings.options.rates if rate == ALL else (rate,)
        held = {name: [[cells[r, name, g] for r in rates] for g in turns] for name in names}
        found += [_line(rate, name, held[name], held[names[0]] if name != names[0] else None) for name in names]
    return found


def _line(rate: float, way: str, own: Sequence[Sequence[Cell]], first: Sequence[Sequence[Cell]] | None) -> Line:
    def of(cells: Sequence[Cell], metric: str) -> float:
        return sum(float(getattr(c, metric)) for c in cells) / len(cells)

    leads = {
        metric: None
        if first is None
        else interval([of(a, metric) - of(b, metric) for a, b in zip(first, own, strict=True)])
        for metric in OVER
    }
    every = [c for cells in own for c in cells]
    return Line(
        rate=rate,
        way=way,
        values={metric: interval([of(cells, metric) for cells in own]) for metric in METRICS},
        leads=leads,
        trained=sum(c.trained for c in every) / len(every),
    )


def write(findings: Findings, out: Path, how: Mapping[str, Any]) -> list[Line]:
    """All files but cells.jsonl, which the work itself keeps."""
    table = lines(findings)
    write_text(out / "diagnosis.csv", _csv(Cell._fields, findings.cells))
    columns = ("rate", "metric", "first", "over", "lead", "low", "high", "generations")
    write_text(out / "leads.csv", _csv(columns, _leads(table, findings.ways[0].name)))
    write_text(out / "leaks.csv", _csv(Leak._fields, findings.leaks))
    summary = {
        "means": [
            {
                "rate": _rate(line.rate),
                "way": line.way,
                "trained": round(line.trained, 1),
                **{metric: _three(value) for metric, value in line.values.items()},
            }
            for line in table
        ],
        "notes": notes(findings),
        "how": dict(how),
    }
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    _draw(table, findings, out / "accuracy.png")
    return table


def printable(table: Sequence[Line]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of words."""
    columns = ("missing", "way", "ACC", "AUC", "SEN", "SPE", "first - this, ACC", "AUC", "trained on")
    rows = []
    last = math.nan
    for line in table:
        words = [_with_reach(line.values[metric]) for metric in METRICS]
        words += [_signed(line.leads[metric]) for metric in OVER]
        rows.append(("" if line.rate == last else _rate(line.rate), line.way, *words, f"{line.trained:.0f}"))
        last = line.rate
    return columns, rows


def notes(findings: Findings) -> list[str]:
    """What a reader of the table must know."""
    said = []
    heard = {way.name: way.told for way in findings.ways if way.told}
    for name, told in heard.items():
        if "diagnosis" in told:
            said.append(
                f"{name} was told the diagnosis of those that it filled in ({', '.join(told)}): its images may carry "
                "the label itself into the classifier, which no image of a new patient can. Its row does not say how "
                "good its images are; a row that was not told the diagnosis does."
            )
        else:
            said.append(f"{name} was told {', '.join(told)}, not the diagnosis; but such scores go along with it.")
    said += _leaking(findings)
    if findings.options.test_loses:
        said.append("Validation and test subjects lose modalities too, and are completed in the same way.")
        said += _made_only(findings)
    else:
        said.append("Validation and test subjects are complete: only training subjects were completed.")
    said.append("ACC, SEN and SPE are at one threshold, chosen on the validation subjects; ACC lies between them.")
    said += _trend(findings)
    if findings.options.generations > 1:
        said.append(
            f"Intervals: 95 %, Student's t over {findings.options.generations} generations (split, noise and "
            "classifier drawn anew). Their test subjects overlap, so that they are rather too narrow than too wide."
        )
    return said


def _leaking(findings: Findings) -> list[str]:
    said = []
    for name in dict.fromkeys(leak.way for leak in findings.leaks):
        own = [leak for leak in findings.leaks if leak.way == name]
        if not all(math.isfinite(leak.made) and math.isfinite(leak.real) for leak in own):
            continue
        total = sum(leak.subjects for leak in own)
        made, real = (sum(getattr(k, which) * k.subjects for k in own) / total for which in ("made", "real"))
        if made > max(real + MORE, TELLS):
            said.append(
                f"LEAK: a linear rule finds the diagnosis in images made by {name} with an AUC of {made:.2f}, and in "
                f"the real ones of the same subjects with {real:.2f}: they carry what no scanner saw."
            )
    return said


def _made_only(findings: Findings) -> list[str]:
    """Of the highest rate."""
    most = max(findings.options.rates)
    said = []
    for way in findings.ways:
        values = [c.auc_made for c in findings.cells if (c.way, c.rate) == (way.name, most)]
        values = [value for value in values if math.isfinite(value)]
        if values:
            said.append(f"{way.name}: AUC {sum(values) / len(values):.3f} on test subjects that it completed.")
    return said


def _trend(findings: Findings) -> list[str]:
    """Reported, never asked for: neighbouring rates differ by less than their spread."""
    rising = []
    for way in findings.ways:
        means = []
        for rate in findings.options.rates:
            own = [c.acc for c in findings.cells if (c.way, c.rate) == (way.name, rate)]
            means.append(sum(own) / len(own))
        if any(later > earlier + 1e-9 for earlier, later in itertools.pairwise(means)):
            rising.append(way.name)
    if len(findings.options.rates) < 2:
        return []
    if not rising:
        return ["Mean accuracy never rises with the missing rate, for any way."]
    return [f"Mean accuracy does not fall at every step of the missing rate for {', '.join(rising)}."]


# --- words and files ------------------------------------------------------------------------------------------------


def _rate(rate: float) -> str:
    return "all rates" if rate == ALL else f"{100 * rate:g} %"


def _with_reach(value: Difference) -> str:
    reach = value.high - value.mean
    return f"{value.mean:.3f}" + (f" ± {reach:.3f}" if math.isfinite(reach) else "")


def _signed(lead: Difference | None) -> str:
    if lead is None:
        return ""
    return f"{lead.mean:+.3f}" + (f" [{lead.low:+.3f}, {lead.high:+.3f}]" if math.isfinite(lead.low) else "")


def _three(value: Difference) -> dict[str, float | None]:
    return {
        name: round(number, 5) if math.isfinite(number) else None
        for name, number in (("mean", value.mean), ("low", value.low), ("high", value.high))
    }


def _leads(table: Iterable[Line], first: str) -> Iterable[tuple[Any, ...]]:
    for line in table:
        for metric, lead in line.leads.items():
            if lead is not None:
                rate = "all" if line.rate == ALL else f"{line.rate:g}"
                yield rate, metric, first, line.way, lead.mean, lead.low, lead.high, lead.subjects


def _csv(columns: Sequence[str], table: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{v:.7g}" if isinstance(v, float) else v for v in row] for row in table)
    return text.getvalue()


def _draw(table: Sequence[Line], findings: Findings, path: Path) -> None:
    """Accuracy against the rate; ways stand side by side so that their intervals can be told apart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    oracle = table[0].values["acc"]
    axes.axhline(oracle.mean, color="0.4", linestyle="--", linewidth=1, label="oracle: nothing missing")
    if math.isfinite(oracle.low):
        axes.axhspan(oracle.low, oracle.high, color="0.93", zorder=0)
    shift = 1.6 / max(1, len(findings.ways))
    for number, way in enumerate(findings.ways):
        own = [line for line in table if line.way == way.name and line.rate != ALL]
        x = [100 * line.rate + shift * (number - (len(findings.ways) - 1) / 2) for line in own]
        y = [line.values["acc"].mean for line in own]
        reach = [line.values["acc"].high - line.values["acc"].mean for line in own]
        bars = reach if all(map(math.isfinite, reach)) else None
        style: dict[str, Any] = {
            "color": f"C{number}",
            "marker": "x" if way.name == DROP else "o",
            "markersize": 4,
            "linewidth": 1.2,
        }
        axes.errorbar(x, y, yerr=bars, capsize=2, elinewidth=0.8, label=way.name, **style)
    axes.set_xticks([100 * rate for rate in findings.options.rates])
    axes.set(
        xlabel="training subjects that lost one or two modalities, %",
        ylabel=f"accuracy, {findings.options.ill} against {findings.options.well}",
    )
    low = min(line.values["acc"].mean for line in table)
    axes.set_ylim(max(0.0, min(0.45, low - 0.05)), 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    with writing(path) as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
