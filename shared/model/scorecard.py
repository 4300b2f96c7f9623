"""Scores as files: a tidy table, a summary, what the federation bought, and two figures.

scores.csv      model, site, shown, target, region, metric, per (volume | slice), value, n
bought.csv      task, region, model, psnr, the same after one gain and offset a volume (in the brain), lead of the first
                model over it with its 95 % interval, subjects
summary.json    the headlines, and how they were measured
heat_map.png    PSNR of the first model by shown subset and target
bought.png      the first model beside the others
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.base.files import write_json, writing
from shared.base.vocabulary import Modality, SiteName
from shared.data.missing import all_patterns
from shared.model import tables
from shared.model.calibration import CALIBRATED, COVERED
from shared.model.evaluation import TEXTURE, Never
from shared.model.tables import Column, Frame, Printable, compare, records, screen, stacked, write_csv

SCORES = ("model", "site", "shown", "target", "region", "metric", "per", "value", "n")
BOUGHT = ("task", "region", "model", "psnr", "fitted", "lead", "low", "high", "subjects")
FIGURES = (
    "PSNR in dB (after one gain and offset a volume); below: how far the first is ahead, 95 % intervals over subjects"
)
MOST_BY_SITE = 8  # groups of bars


def write_scorecard(
    scores: Frame, folder: Path, modalities: Sequence[Modality], never: Never, *, how: Mapping[str, Any]
) -> Frame:
    """All files into `folder`, and what was bought; `how` (sampler, seed, slices ...) is kept beside the headlines."""
    table, lines = by_site(scores), bought(scores, modalities, never)
    write_csv(table, folder / "scores.csv", SCORES)
    write_csv(lines.rename(columns={"mean": "psnr", "pairs": "subjects"}), folder / "bought.csv", BOUGHT)
    summary = {
        "headlines": headlines(lines),
        "how": dict(how),
        "never_acquired": {s: list(m) for s, m in never.items()},
    }
    write_json(folder / "summary.json", summary)
    _heat_map(table, modalities, folder / "heat_map.png")
    _bars(lines, folder / "bought.png")
    return lines


# --- what the scores say --------------------------------------------------------------------------------------------


def by_site(scores: Frame) -> Frame:
    """Means over each site's subjects (`per` volume), and over all their slices (`per` slice)."""
    cell = ["model", "site", "shown", "target", "region", "metric", "per"]
    volumes = scores.assign(per="volume", value=scores["volume"], n=1)
    slices = scores.assign(per="slice", value=scores["slice"], n=scores["slices"])
    both = stacked([volumes, slices]).iloc[np.arange(2 * len(scores)).reshape(2, -1).T.ravel()]  # one beside the other
    finite = np.isfinite(both["value"])
    both = both.assign(value=(both["value"] * both["n"]).where(finite, 0.0), n=both["n"].where(finite, 0))
    sums = both.groupby(cell, sort=False)[["value", "n"]].sum().reset_index()
    return sums.assign(value=sums["value"] / sums["n"])[sums["n"] > 0]


def one_hidden(scores: Frame, modalities: Sequence[Modality]) -> Frame:
    """Those with all other modalities shown."""
    return scores[scores["shown"].str.count(r"\+") == len(modalities) - 2]


def untrainable(scores: Frame, never: Never, site: SiteName | None = None) -> Frame:
    """Targets that a site never acquires, from what it does acquire; at one site, or each site's own at all sites."""

    def is_task(at: SiteName, shown: str, target: Modality) -> bool:
        lacking = never.get(at, ())
        return site in (None, at) and target in lacking and not set(shown.split("+")) & set(lacking)

    asked = [is_task(*row) for row in scores[["site", "shown", "target"]].itertuples(index=False)]
    return scores[np.array(asked, bool)]


def bought(scores: Frame, modalities: Sequence[Modality], never: Never) -> Frame:
    """The first model against all others, in dB of PSNR per volume: one hidden modality, and what each site can't train
    by itself. `only` is the site that a task is of, "" for all; `fitted` is the PSNR after one gain and offset.
    """
    models = list(dict.fromkeys(scores["model"]))
    line = ["task", "only", "region"]
    found, fitted = (
        compare(_of_tasks(scores, metric, modalities, never), line, "model", ["site", "subject"], models[0])
        for metric in ("psnr", "psnr_fitted")
    )
    every = found[line].drop_duplicates().merge(tables.tidy([(m,) for m in models], ["model"]), how="cross")
    after = fitted[[*line, "model", "mean"]].rename(columns={"mean": "fitted"})
    return every.merge(found, how="left").merge(after, how="left")


def _of_tasks(scores: Frame, metric: str, modalities: Sequence[Modality], never: Never) -> Frame:
    psnr = scores[scores["metric"] == metric].assign(value=scores["volume"])
    tasks = [("one hidden, all others shown", "", one_hidden(psnr, modalities))]
    for site, lacking in never.items():
        if lacking:
            tasks.append((f"{site}: never acquires {', '.join(lacking)}", site, untrainable(psnr, never, site)))
    tasks.append(("what a site never acquires", "", untrainable(psnr, never)))
    return stacked(part.assign(task=name, only=site) for name, site, part in tasks)


def headlines(lines: Frame) -> dict[str, float]:
    """`<region> PSNR, <task>, <model>` -> dB: what a bundle and a tracker are told. No site is named."""
    return {
        f"{line['region']} PSNR, {line['task']}, {line['model']}": round(line["mean"], 3)
        for line in records(lines)
        if not line["only"] and math.isfinite(line["mean"])
    }


def printable(lines: Frame) -> Printable:
    models = list(dict.fromkeys(lines["model"]))
    cells = [Column(models[0], models[0], _with_fitted)]
    cells += [Column(model, model, lambda row: f"{_with_fitted(row)}\n{tables.lead(2)(row)}") for model in models[1:]]
    return screen(records(lines), ("task", "region"), "model", cells)


def _with_fitted(row: Mapping[str, Any]) -> str:
    """The mean, and in brackets what it would be after one gain and offset."""
    fitted = row.get("fitted", math.nan)
    return tables.mean(2)(row) + ("" if math.isnan(fitted) else f" ({fitted:.2f})")


# --- samples ---------------------------------------------------------------------------------------------------------

SAMPLED = (
    "model",
    "target",
    "psnr",
    "lesion psnr",
    "wasserstein",
    "covered",
    "lesion covered",
    "calibrated",
    "lesion calibrated",
)
ALL = "all"


def worth_of_samples(scores: Frame, models: Sequence[str]) -> Frame:
    """Of some models, by target and over all: PSNR of one hidden modality and its texture, and how many truths lie in
    nine-in-ten intervals, over every task; means over subjects.
    """
    own = scores[scores["model"].isin(models)].assign(value=scores["volume"])
    widest = own["shown"].str.count(r"\+").groupby([own["site"], own["subject"]]).transform("max")
    alone = own["shown"].str.count(r"\+") == widest
    own = own[alone | own["metric"].isin([COVERED, CALIBRATED])]
    own = own.assign(what=np.where(own["region"] == "lesion", "lesion ", "") + own["metric"])
    every = stacked([own, own.assign(target=ALL)])
    means = every.groupby(["model", "target", "site", "subject", "what"], sort=False)["value"].mean()
    table = means.groupby(["model", "target", "what"], sort=False).mean().unstack("what").reset_index()
    order = {model: i for i, model in enumerate(models)}
    table = table.sort_values("model", key=lambda names: names.map(order), kind="stable")
    return table.reindex(columns=list(SAMPLED)).reset_index(drop=True)


def printable_samples(table: Frame) -> Printable:
    """A line for each model and target: decibels, texture in thousandths, and per cent of the truths."""

    def words(row: Mapping[str, Any], name: str) -> str:
        value = row[name]
        if not math.isfinite(value):
            return ""
        if name.endswith((COVERED, CALIBRATED)):
            return f"{100 * value:.1f} %"
        return f"{1000 * value:.1f}" if name == TEXTURE else f"{value:.2f}"

    shown = [name for name in SAMPLED[2:] if table[name].notna().any()]
    titles = {TEXTURE: "SW x 1000", COVERED: "in 90 %", f"lesion {COVERED}": "in 90 %, lesion"}
    titles |= {CALIBRATED: "calibrated", f"lesion {CALIBRATED}": "calibrated, lesion"}
    titles |= {"psnr": "PSNR", "lesion psnr": "PSNR, lesion"}
    lines = [(str(row["model"]), str(row["target"]), *(words(row, name) for name in shown)) for row in records(table)]
    return ("model", "target", *(titles[name] for name in shown)), lines


# --- figures --------------------------------------------------------------------------------------------------------


def _heat_map(table: Frame, modalities: Sequence[Modality], path: Path) -> None:
    """Brain PSNR per volume of the first model, mean over sites weighted by their subjects."""
    first = table["model"].iloc[0]
    own = table[(table[["model", "region", "metric", "per"]] == [first, "brain", "psnr", "volume"]).all(axis=1)]
    sums = own.assign(total=own["value"] * own["n"]).groupby(["shown", "target"])[["total", "n"]].sum()
    means = (sums["total"] / sums["n"]).unstack("target")
    shown = [name for name in map("+".join, all_patterns(modalities)) if name in means.index]
    values = means.reindex(index=shown, columns=list(modalities)).to_numpy().tolist()

    figure, axes = blank_figure(2.6 + 0.9 * len(modalities), 1.3 + 0.34 * len(shown))
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
    save_figure(figure, path)


def _bars(lines: Frame, path: Path) -> None:
    """One group of bars per task and region, one bar per model; of many sites only the first few by themselves."""
    places = list(dict.fromkeys(lines[["task", "only", "region"]].itertuples(index=False, name=None)))
    by_site = [place for place in places if place[1]][:MOST_BY_SITE]
    places = [place for place in places if not place[1] or place in by_site]
    if not places:
        return
    models = list(dict.fromkeys(lines["model"]))
    means = lines.pivot(index=["task", "only", "region"], columns="model", values="mean")
    across = max(2.5 + 1.3 * len(places), 1.9 * len(models))
    figure, axes = blank_figure(across, 4.2)
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        values = means.loc[places, model].fillna(0.0).tolist()
        bars = axes.bar(
            [g - 0.4 + width * (i + 0.5) for g in range(len(places))], values, width * 0.92, label=model, color=f"C{i}"
        )
        axes.bar_label(bars, [f"{v:.1f}" if v else "" for v in values], fontsize=7)
    axes.set_xticks(range(len(places)), [f"{_wrapped(task)}\n{region}" for task, _, region in places], fontsize=7)
    axes.set(ylabel="PSNR per volume, dB", title="What the federation bought")
    axes.margins(x=0.01, y=0.18)  # room for the legend
    columns = max(1, min(len(models), int(across / (0.6 + 0.07 * max(map(len, models))))))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        fontsize=8,
        ncols=columns,
        loc="upper left",
        frameon=False,
    )
    save_figure(figure, path)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 22))


def blank_figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_figure(figure: Any, path: Path) -> None:
    with writing(path) as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
