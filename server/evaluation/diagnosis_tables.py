"""What `lacuna evaluate RUN... task=diagnosis` writes, draws, prints, and says in plain sentences."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.evaluation.diagnosis import DROP, ORACLE, Cell, Findings, Leak
from shared.base.files import write_json
from shared.model import tables
from shared.model.scorecard import blank_figure, save_figure
from shared.model.tables import Frame, Printable

METRICS = ("acc", "auc", "sen", "spe")
OVER = ("acc", "auc")  # in which ways are compared
LEADS = ("rate", "metric", "first", "over", "lead", "low", "high", "generations")
ALL = -1.0  # in place of a rate: the mean over all of them
MORE, TELLS = 0.1, 0.75  # AUC: so much more than the real image, and so much at all, is called a leak


def compared(findings: Findings) -> Frame:
    """The oracle, then rate after rate, then the mean over rates: means over generations, and the first way's lead."""
    cells = tables.tidy(findings.cells, Cell._fields)
    each = cells.melt(["way", "rate", "generation"], [*METRICS, "trained"], "metric").astype({"value": float})
    over_all = each[each["way"] != ORACLE].assign(rate=ALL)
    first = findings.ways[0].name
    found = tables.compare(tables.stacked([each, over_all]), ["rate", "metric"], "way", ["generation"], first)
    return tables.stacked(part for _, part in found.groupby(["rate", "way"], sort=False))


def write(findings: Findings, out: Path, how: Mapping[str, Any]) -> Frame:
    """All files but cells.jsonl, which the work itself keeps."""
    table = compared(findings)
    for name, rows, columns in (("diagnosis", findings.cells, Cell._fields), ("leaks", findings.leaks, Leak._fields)):
        tables.write_csv(tables.tidy(rows, columns), out / f"{name}.csv", columns, blank="nan")
    leads = table[table["metric"].isin(OVER) & table["lead"].notna()]
    leads = leads.assign(
        rate=["all" if rate == ALL else f"{rate:g}" for rate in leads["rate"]], first=findings.ways[0].name
    ).rename(columns={"way": "over", "pairs": "generations"})
    tables.write_csv(leads, out / "leads.csv", LEADS)
    means = []
    for (rate, way), part in table.groupby(["rate", "way"], sort=False):
        of = {row["metric"]: row for row in tables.records(part)}
        numbers = {metric: _three(of[metric]) for metric in METRICS}
        means.append({"rate": _rate(rate), "way": way, "trained": round(of["trained"]["mean"], 1), **numbers})
    summary = {"means": means, "notes": notes(findings), "how": dict(how)}
    write_json(out / "summary.json", summary)
    _draw(table, findings, out / "accuracy.png")
    return table


def printable(table: Frame) -> Printable:
    cells = [tables.Column(metric.upper(), metric, tables.mean_with_reach(3)) for metric in METRICS]
    cells += [tables.Column("first - this, ACC", "acc", tables.lead(3)), tables.Column("AUC", "auc", tables.lead(3))]
    cells.append(tables.Column("trained on", "trained", tables.mean(0)))
    return tables.screen(
        tables.records(table.assign(missing=table["rate"].map(_rate))), ("missing", "way"), "metric", cells
    )


def _rate(rate: float) -> str:
    return "all rates" if rate == ALL else f"{100 * rate:g} %"


def _three(row: tables.Row) -> dict[str, float | None]:
    numbers = {"mean": row["mean"], "low": row["mean_low"], "high": row["mean_high"]}
    return {name: round(number, 5) if math.isfinite(number) else None for name, number in numbers.items()}


# --- what a reader must know ----------------------------------------------------------------------------------------


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
    cells = tables.tidy(findings.cells, Cell._fields)
    means = cells[cells["rate"] == max(findings.options.rates)].groupby("way", sort=False)["auc_made"].mean().dropna()
    return [f"{way}: AUC {mean:.3f} on test subjects that it completed." for way, mean in means.items()]


def _trend(findings: Findings) -> list[str]:
    """Reported, never asked for: neighbouring rates differ by less than their spread."""
    if len(findings.options.rates) < 2:
        return []
    cells = tables.tidy(findings.cells, Cell._fields)
    steps = cells[cells["way"] != ORACLE].pivot_table("acc", "rate", "way").diff()  # rates rise from row to row
    rising = [way.name for way in findings.ways if bool((steps[way.name] > 1e-9).any())]
    if not rising:
        return ["Mean accuracy never rises with the missing rate, for any way."]
    return [f"Mean accuracy does not fall at every step of the missing rate for {', '.join(rising)}."]


# --- the picture ----------------------------------------------------------------------------------------------------


def _draw(table: Frame, findings: Findings, path: Path) -> None:
    """Accuracy against the rate; ways stand side by side so that their intervals can be told apart."""
    figure, axes = blank_figure(7.6, 4.6)
    accuracy = table[table["metric"] == "acc"]
    oracle = accuracy[accuracy["way"] == ORACLE].iloc[0]
    axes.axhline(oracle["mean"], color="0.4", linestyle="--", linewidth=1, label="oracle: nothing missing")
    if math.isfinite(oracle["mean_low"]):
        axes.axhspan(oracle["mean_low"], oracle["mean_high"], color="0.93", zorder=0)
    shift = 1.6 / max(1, len(findings.ways))
    for number, way in enumerate(findings.ways):
        own = accuracy[(accuracy["way"] == way.name) & (accuracy["rate"] != ALL)]
        x = 100 * own["rate"] + shift * (number - (len(findings.ways) - 1) / 2)
        reach = own["mean_high"] - own["mean"]
        bars = reach if all(map(math.isfinite, reach)) else None
        style: dict[str, Any] = {
            "color": f"C{number}",
            "marker": "x" if way.name == DROP else "o",
            "markersize": 4,
            "linewidth": 1.2,
        }
        axes.errorbar(x, own["mean"], yerr=bars, capsize=2, elinewidth=0.8, label=way.name, **style)
    axes.set_xticks([100 * rate for rate in findings.options.rates])
    axes.set(
        xlabel="training subjects that lost one or two modalities, %",
        ylabel=f"accuracy, {findings.options.ill} against {findings.options.well}",
    )
    low = accuracy["mean"].min()
    axes.set_ylim(max(0.0, min(0.45, low - 0.05)), 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    save_figure(figure, path)
