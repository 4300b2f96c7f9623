"""Scores as files: a tidy table, a summary, what the federation bought, and two figures.

scores.csv      model, site, shown, target, region, metric, per (volume | slice), value, n
bought.csv      task, region, model, psnr, lead of the first model over it with its 95 % interval, subjects
summary.json    the headlines, and how they were measured
heat_map.png    PSNR of the first model by shown subset and target
bought.png      the first model beside the others
"""

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.base.files import write_json, write_text, writing
from shared.base.vocabulary import Modality
from shared.data.missing import all_patterns
from shared.model.evaluation import Bought, Difference, Row, Score, bought, rows

BOUGHT = ("task", "region", "model", "psnr", "lead", "low", "high", "subjects")
MOST_BY_SITE = 8  # groups of bars


def write_scorecard(
    scores: Sequence[Score],
    folder: Path,
    modalities: Sequence[Modality],
    never: Mapping[str, tuple[Modality, ...]],
    *,
    how: Mapping[str, Any],
) -> list[Bought]:
    """All files into `folder`; `how` (sampler, seed, slices ...) is kept beside the headlines."""
    table, lines = rows(scores), bought(scores, modalities, never)
    write_text(folder / "scores.csv", _csv(Row._fields, table))
    write_text(folder / "bought.csv", _csv(BOUGHT, _flat(lines)))
    summary = {
        "headlines": headlines(lines),
        "how": dict(how),
        "never_acquired": {s: list(m) for s, m in never.items()},
    }
    write_json(folder / "summary.json", summary)
    _heat_map(table, modalities, folder / "heat_map.png")
    _bars(lines, folder / "bought.png")
    return lines


def headlines(lines: Iterable[Bought]) -> dict[str, float]:
    """`<region> PSNR, <task>, <model>` -> dB: what a bundle and a tracker are told. No site is named."""
    return {
        f"{line.region} PSNR, {line.task}, {model}": round(value, 3)
        for line in lines
        if not line.site
        for model, value in line.values.items()
        if value is not None
    }


def printable(lines: Sequence[Bought]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of words, ready for a table on a screen."""
    models = list(lines[0].values) if lines else []
    columns = ("task", "region", *models, *(f"{models[0]} - {m}" for m in models[1:]))
    table = []
    for line in lines:
        values = [f"{v:.2f}" if v is not None else "–" for v in line.values.values()]
        table.append((line.task, line.region, *values, *(_words(line.over.get(m)) for m in models[1:])))
    return columns, table


def _words(lead: Difference | None) -> str:
    if lead is None:
        return "–"
    return f"{lead.mean:+.2f}" + (f" [{lead.low:+.2f}, {lead.high:+.2f}]" if math.isfinite(lead.low) else "")


def _flat(lines: Iterable[Bought]) -> Iterable[tuple[Any, ...]]:
    for line in lines:
        for model, value in line.values.items():
            lead = line.over.get(model)
            numbers = (lead.mean, lead.low, lead.high, lead.subjects) if lead is not None else ("", "", "", "")
            yield (line.task, line.region, model, "" if value is None else value, *numbers)


def _csv(columns: Sequence[str], table: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{v:.7g}" if isinstance(v, float) else v for v in row] for row in table)
    return text.getvalue()


# --- figures --------------------------------------------------------------------------------------------------------


def _heat_map(table: Sequence[Row], modalities: Sequence[Modality], path: Path) -> None:
    """Brain PSNR per volume of the first model, mean over sites weighted by their subjects."""
    first = table[0].model
    sums: dict[tuple[str, Modality], tuple[float, int]] = {}
    for r in table:
        if (r.model, r.region, r.metric, r.per) == (first, "brain", "psnr", "volume"):
            total, n = sums.get((r.shown, r.target), (0.0, 0))
            sums[r.shown, r.target] = total + r.value * r.n, n + r.n
    shown = [name for name in map("+".join, all_patterns(modalities)) if any(name == s for s, _ in sums)]
    values = [[sums[s, t][0] / sums[s, t][1] if (s, t) in sums else math.nan for t in modalities] for s in shown]

    figure, axes = _figure(2.6 + 0.9 * len(modalities), 1.3 + 0.34 * len(shown))
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    middle = sum(image.get_clim()) / 2
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if not math.isnan(value):
                axes.text(
                    x, y, f"{value:.1f}", ha="center", va="center", color="w" if value < middle else "k", fontsize=8
                )
    axes.set_xticks(range(len(modalities)), modalities)
    axes.set_yticks(range(len(shown)), [s.replace("+", " + ") for s in shown], fontsize=8)
    axes.set(xlabel="target", ylabel="shown", title=f"{first}: PSNR in the brain, dB")
    _save(figure, path)


def _bars(lines: Sequence[Bought], path: Path) -> None:
    """One group of bars per task and region, one bar per model; of many sites only the first few by themselves."""
    by_site = [line for line in lines if line.site][:MOST_BY_SITE]
    lines = [line for line in lines if not line.site or line in by_site]
    if not lines:
        return
    models = list(lines[0].values)
    figure, axes = _figure(2.5 + 1.3 * len(lines), 4.2)
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        places = [g - 0.4 + width * (i + 0.5) for g in range(len(lines))]
        values = [line.values[model] or 0.0 for line in lines]
        bars = axes.bar(places, values, width * 0.92, label=model, color=f"C{i}")
        axes.bar_label(bars, [f"{v:.1f}" if v else "" for v in values], fontsize=7)
    axes.set_xticks(range(len(lines)), [f"{_wrapped(line.task)}\n{line.region}" for line in lines], fontsize=7)
    axes.set(ylabel="PSNR per volume, dB", title="What the federation bought")
    axes.margins(x=0.01, y=0.18)  # room for the legend
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=len(models), loc="upper left", frameon=False)
    _save(figure, path)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 22))


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    with writing(path) as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
