"""A run as one HTML page that can be sent round: what was trained, by whom, what came of it, what left the sites.

Made from the run folder alone, finished or not; the same folder gives the same bytes. No subject, no password.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.journal import facts
from server.journal.facts import Coverage, RoundFacts, SiteFacts
from server.journal.progress import duration, number, size
from server.journal.tracking import without_passwords
from server.report.page import Html, cells, curves, el, many, page, picture, share, table
from server.report.privacy import privacy_section
from shared.base.errors import DataError
from shared.base.files import write_text

CELLS = {"ok": "ok", "refused": "warn", "absent": "none", "rejected": "bad", "timeout": "bad", "error": "bad"}
MOST_LINES = 100  # of the list of refusals
MOST_PICTURES = 6
MOST_VALUES = 60  # of provenance
LOWER_IS_BETTER = ("mse", "mae", "lpips", "fid")
TIDY = {"model", "shown", "target", "region", "metric", "per", "value", "n"}  # columns of the evaluation's table
MODEL_KEYS = ("method", "modalities", "grid", "schema", "weights", "provenance")


def write_report(run: Path, out: Path | None = None) -> Path:
    """The page of the run in folder `run`, by default at `run`/report.html."""
    if not (run / "config.json").exists() and not (run / "rounds.jsonl").exists():
        raise DataError(f"{run}: no run there; neither config.json nor rounds.jsonl")
    out = out or run / "report.html"
    write_text(out, render(run))
    return out


def render(run: Path) -> Html:
    config, model = without_passwords(_json(run / "config.json")), _json(run / "final" / "model.json")
    rounds = facts.read(run / "rounds.jsonl")
    inventory = run / "inventory.json"
    coverage = facts.load_coverage(inventory) if inventory.exists() else None
    sections = [
        heading(run.name, config, rounds, finished=bool(model)),
        sites_section(rounds, coverage),
        privacy_section(model),
        coverage_section(coverage, _min_holders(config)),
        training_section(rounds),
        evaluation_section(run / "evaluation"),
        mosaic_section(run / "mosaics"),
        owners_section(rounds, _min_holders(config)),
        timeline_section(rounds),
        refusals_section(rounds),
        provenance_section(run, model, config),
        el("footer", "Made by Lacuna from the run folder. Nothing on this page is fetched from anywhere."),
    ]
    return page(f"{run.name} · Lacuna", *sections)


def heading(name: str, config: Mapping[str, Any], rounds: Sequence[RoundFacts], *, finished: bool) -> Html:
    phases = _by_phase(rounds)
    sites = sorted({site for one in rounds for site, result in one.sites.items() if result.status == "ok"})
    method = _group(config, "method").get("name", "a model")
    tiles = {
        "sites that trained": str(len(sites)),
        "rounds": str(len(rounds)),
        "training time": duration(sum(one.seconds for one in rounds)),
        "from the sites": size(sum(one.bytes_up for one in rounds)),
        "to the sites": size(sum(one.bytes_down for one in rounds)),
        "refusals": str(sum(len(one.refusals) for one in rounds)),
    }
    course = ", then ".join(f"{phase} ({len(done)} of {done[-1].of} rounds)" for phase, done in phases.items())
    what = f"{method}, size {config.get('size', 'unknown')}, trained by {len(sites)} sites that kept their images"
    when = f"Last round {_utc(rounds[-1].ended)}." if rounds else ""
    state = "The run is finished." if finished else "The run is not finished."
    return many(
        [
            el("div", _mark(), "Lacuna · federated run", class_="mark"),
            el("h1", name),
            el("p", f"{what}: {course}." if rounds else f"{method}: no round has finished yet.", class_="lead"),
            el("p", f"{state} {when}", class_="note"),
            el("div", *(el("div", el("strong", v), el("span", k)) for k, v in tiles.items()), class_="tiles"),
        ]
    )


def sites_section(rounds: Sequence[RoundFacts], coverage: Coverage | None) -> Html:
    names = sorted({site for one in rounds for site in one.sites} | set(coverage.sites if coverage else ()))
    taken = {name: [one.sites[name] for one in rounds if name in one.sites] for name in names}
    most_up = max((sum(s.bytes_up for s in results) for results in taken.values()), default=0)
    most_down = max((sum(s.bytes_down for s in results) for results in taken.values()), default=0)
    rows = []
    for name in names:
        results, holds = taken[name], coverage.sites.get(name) if coverage else None
        ok = [result for result in results if result.status == "ok"]
        up, down = sum(r.bytes_up for r in results), sum(r.bytes_down for r in results)
        spent = [r.epsilon_spent for r in results if r.epsilon_spent is not None]
        rows.append(
            [
                el("th", name, scope="row"),
                str(holds.subjects) if holds else "–",
                f"{len(ok)} of {len(results)}",
                f"{sum(result.samples for result in ok):,}",
                duration(sum(result.seconds for result in ok) / len(ok)) if ok else "–",
                share(up, most_up, size(up)),
                share(down, most_down, size(down)),
                number(max(spent)) if spent else "not private",
            ]
        )
    columns = ["site", "subjects", "rounds folded in", "samples", "time per round", "sent", "received", "epsilon"]
    says = (
        "Samples: slices that were trained on, counted again each time. Sent and received: all bytes on the wire. "
        "Epsilon: what the site's own ledger says that differential privacy has spent."
    )
    return many([el("h2", "The sites"), _note(says), table(columns, rows, numbers=range(1, 8))])


def coverage_section(coverage: Coverage | None, min_holders: int) -> Html | None:
    if coverage is None:
        return None
    most = max(pair.sites for pairs in coverage.pairs.values() for pair in pairs.values())
    rows = []
    for source in coverage.modalities:
        row = [el("th", source, scope="row")]
        for target in coverage.modalities:
            pair = coverage.pairs[source][target]
            held_back = source == target and pair.sites < min_holders
            style = "heat" + (" nobody" if not pair.sites else " warned" if held_back else "")
            text = many([str(pair.sites), el("small", facts.subjects(pair))]) if pair.sites else "nobody"
            shade = f"background:color-mix(in srgb, var(--s2) {60 * pair.sites / max(1, most):.0f}%, transparent)"
            row.append(el("td", text, class_=style, style=shade if pair.sites and not held_back else None))
        rows.append(row)
    held = [
        [el("th", site, scope="row"), pattern.replace("+", " + "), facts.cell(count)]
        for site, holds in coverage.sites.items()
        for pattern, count in holds.patterns.items()
    ]
    declined = [
        [el("th", site, scope="row"), phase, el("td", facts.words(reason), class_="break")]
        for site, holds in coverage.sites.items()
        for phase, reason in holds.refused.items()
    ]
    says = (
        "Rows are what is shown, columns what is to be made from it; on the diagonal, who has the modality at all. "
        "Large: sites that can teach the pair; small: subjects, as a range where sites keep small numbers to "
        f"themselves. Amber on the diagonal: fewer than {min_holders} sites (min_holders) have it, so what only it "
        "trains in the model is not released."
    )
    patterns = "What each site's subjects have; <5 means 1 to 4, and the site did not say which."
    return many(
        [
            el("h2", "Who can teach what"),
            _note(says),
            el("div", table(["", *coverage.modalities], rows), class_="matrix"),
            el(
                "details",
                el("summary", "What each site holds"),
                _note(patterns),
                table(["site", "present", "subjects"], held, numbers=[2]),
            ),
            table(["site", "phase", "takes no part because"], declined) if declined else None,
        ]
    )


def training_section(rounds: Sequence[RoundFacts]) -> Html | None:
    if not rounds:
        return None
    parts: list[object] = [
        el("h2", "Training"),
        _note(
            "Loss: mean over the sites folded in, each weighted by its samples. Validation: the averaged model on the "
            "coordinator's own cohort. Hover over a line for its name."
        ),
    ]
    for phase, done in _by_phase(rounds).items():
        sites = sorted({site for one in done for site in one.sites})
        each = {
            site: _points(done, [one.sites[site].loss if site in one.sites else None for one in done]) for site in sites
        }
        mean = {"all sites": _points(done, [one.loss for one in done])}
        drawn = [curves(mean, faint=each, across="round", up="loss")] if mean["all sites"] else []
        checks = [one.validation or {} for one in done]
        for group, names in _groups(name for check in checks for name in check).items():
            lines = {label: _points(done, [check.get(name) for check in checks]) for name, label in names.items()}
            drawn.append(curves(lines, across="round", up=f"validation {group}"))
        for name in dict.fromkeys(name for one in done for name in one.watch):
            watched = {name: _points(done, [one.watch.get(name) for one in done])}
            drawn.append(curves(watched, across="round", up=f"{name} (watched)"))
        nothing = _note("Sums over all sites' data, added up once: there is no loss to follow.")
        parts += [el("h3", f"Phase {phase}"), el("div", *drawn, class_="pair") if drawn else nothing]
    return many(parts)


def evaluation_section(folder: Path) -> Html | None:
    """Means over sites and shown subsets of the tidy table, one table per metric and region; then the figures."""
    if not folder.is_dir():
        return None
    means = {what: block for path in sorted(folder.glob("*.csv")) for what, block in _means(path).items()}
    parts: list[object] = [el("h2", "How good it is")]
    if means:
        parts.append(
            _note(
                "On subjects that no site trained on. Each number is the mean over all sites and all shown subsets "
                "that lack the target, weighted by their number of volumes or slices. The best of a column is bold."
            )
        )
    blocks = [el("div", el("h3", " · ".join(what)), _ranking(what[0], block)) for what, block in means.items()]
    parts += [el("div", *blocks[:2], class_="pair")] if blocks else []
    if len(blocks) > 2:
        rest = el("div", *blocks[2:], class_="pair")
        parts.append(el("details", el("summary", f"{len(blocks) - 2} more measures"), rest))
    parts.append(_values(_json(folder / "summary.json")))
    parts += [picture(path, path.stem.replace("_", " ")) for path in sorted(folder.glob("*.png"))[:MOST_PICTURES]]
    return many(parts) if len(parts) > 1 else None


def _ranking(metric: str, block: Mapping[str, Mapping[str, float]]) -> Html:
    targets = sorted({target for row in block.values() for target in row})
    pick = min if metric in LOWER_IS_BETTER else max
    best = {target: pick(row[target] for row in block.values() if target in row) for target in targets}
    rows = [
        [
            el("th", model, scope="row"),
            *(_score(row[t], best=row[t] == best[t]) if t in row else el("td", "–", class_="n") for t in targets),
        ]
        for model, row in block.items()
    ]
    return table(["model", *targets], rows, numbers=range(1, len(targets) + 1))


def _score(value: float, *, best: bool) -> Html:
    text = f"{value:.2f}" if abs(value) >= 2 else f"{value:.4f}"
    return el("td", text, class_="n best" if best else "n")


def _means(path: Path) -> dict[tuple[str, str, str], dict[str, dict[str, float]]]:
    """(metric, region, per) -> model -> target -> mean, over rows whose target was not shown."""
    sums: dict[tuple[str, str, str], dict[str, dict[str, list[float]]]] = {}
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


def mosaic_section(folder: Path) -> Html | None:
    """The first, the last and some between, so that one sees it learn."""
    every = sorted(folder.glob("*.png"))
    if not every:
        return None
    count = min(MOST_PICTURES // 2, len(every))
    picked = [every[round(i * (len(every) - 1) / max(1, count - 1))] for i in range(count)][::-1]
    says = (
        f"From the coordinator's own validation cohort, never from a site; {count} of {len(every)}, the latest first."
    )
    latest, *earlier = (picture(path, _after(path.stem)) for path in picked)
    return many([el("h2", "Samples"), _note(says), latest, el("div", *earlier, class_="pair")])


def _after(stem: str) -> str:
    return f"after round {int(stem) + 1}" if stem.isdecimal() else stem


def owners_section(rounds: Sequence[RoundFacts], min_holders: int) -> Html | None:
    parts: list[object] = []
    for phase, done in _by_phase(rounds).items():
        rows = []
        owners = list(dict.fromkeys(owner for one in done for owner in (*one.holders, *one.counts)))
        most = max((sum(one.counts.get(owner, 0) for one in done) for owner in owners), default=0)
        for owner in owners:
            held, samples = [one.holders.get(owner, 0) for one in done], sum(one.counts.get(owner, 0) for one in done)
            spread = str(held[0]) if min(held) == max(held) else f"{min(held)} to {max(held)}"
            short = sum(count < min_holders for count in held)
            rows.append(
                [
                    el("th", owner, scope="row"),
                    spread,
                    el("td", f"{short} of {len(done)}", class_="n warned" if short else "n"),
                    share(samples, most, f"{samples:,}"),
                ]
            )
        columns = ["part of the model", "sites per round", f"rounds with fewer than {min_holders}", "samples"]
        parts += [el("h3", f"Phase {phase}"), table(columns, rows, numbers=[1, 2, 3])] if rows else []
    says = (
        "from:X is trained only by samples that show X, to:X only by samples whose truth has X, shared by all. A part "
        "is averaged over the sites that trained it, and keeps its value in a round in which too few did."
    )
    return many([el("h2", "Who trained which part"), _note(says), *parts]) if parts else None


def timeline_section(rounds: Sequence[RoundFacts]) -> Html | None:
    if not rounds:
        return None
    legend = {
        "folded in": "ok",
        "refused by the site": "warn",
        "rejected, failed or too late": "bad",
        "not reached": "none",
    }
    entries = [el("span", el("i", class_=f"cell {style}"), text) for text, style in legend.items()]
    parts: list[object] = [el("h2", "Round by round"), el("div", *entries, class_="legend")]
    for phase, done in _by_phase(rounds).items():
        names = sorted({site for one in done for site in one.sites})
        grid = {
            name: {one.round: (CELLS[s.status], _tip(name, one, s)) for one in done if (s := one.sites.get(name))}
            for name in names
        }
        parts += [el("h3", f"Phase {phase}"), cells(grid, count=done[-1].of)]
    return many(parts)


def _tip(name: str, one: RoundFacts, result: SiteFacts) -> str:
    said = f": {result.reason}" if result.reason else ""
    return (
        f"{name}, round {one.round + 1}, {result.status}{said} ({duration(result.seconds)}, {result.samples} samples)"
    )


def refusals_section(rounds: Sequence[RoundFacts]) -> Html | None:
    if not rounds:
        return None
    every = [(one, site, result) for one in rounds for site, result in one.sites.items() if result.status != "ok"]
    if not every:
        return many([el("h2", "What was not folded in"), el("p", "Nothing: each site that was asked gave its update.")])
    rows = [
        [
            one.phase,
            str(one.round + 1),
            el("th", site, scope="row"),
            s.status,
            el("td", s.reason or "–", class_="break"),
        ]
        for one, site, s in every[-MOST_LINES:]
    ]
    says = (
        "Refused: the site's own policy or budget said no. Rejected: the server did not admit the update. Timeout: "
        f"past the deadline. Error: the work or the wire failed. {len(every)} in all, the latest {len(rows)} listed."
    )
    columns = ["phase", "round", "site", "status", "reason"]
    return many([el("h2", "What was not folded in"), _note(says), table(columns, rows, numbers=[1])])


def provenance_section(run: Path, model: Mapping[str, Any], config: Mapping[str, Any]) -> Html:
    bundle = _json(run / "bundle" / "bundle.json")
    released = {key: model[key] for key in MODEL_KEYS if key in model}
    says = "The weights' hash names the very bits that were trained; the bundle's signature says who exported them."
    return many(
        [
            el("h2", "Where it comes from"),
            _note(says),
            many([el("h3", "Model"), _values(released)]) if model else el("p", "No model has been released yet."),
            many([el("h3", "Bundle"), _values(bundle)]) if bundle else None,
            el("details", el("summary", "The whole config"), el("pre", json.dumps(config, indent=1)))
            if config
            else None,
        ]
    )


def _values(group: Mapping[str, Any]) -> Html | None:
    """Nested values as a table of dotted names."""
    rows = [
        [el("th", key, scope="row"), el("td", value, class_="break")] for key, value in _flat(without_passwords(group))
    ]
    if not rows:
        return None
    more = [["…", f"{len(rows) - MOST_VALUES} more"]] if len(rows) > MOST_VALUES else []
    return table(["", ""], [*rows[:MOST_VALUES], *more])


def _flat(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            text = ", ".join(map(str, value))
            yield prefix + key, text if len(text) <= 200 else f"{len(value)} entries"
        else:
            yield prefix + key, f"{value:.6g}" if isinstance(value, float) else str(value)


def _by_phase(rounds: Sequence[RoundFacts]) -> dict[str, list[RoundFacts]]:
    phases: dict[str, list[RoundFacts]] = {}
    for one in rounds:
        phases.setdefault(one.phase, []).append(one)
    return phases


def _points(done: Sequence[RoundFacts], values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(one.round + 1, value) for one, value in zip(done, values, strict=True) if value is not None]


def _groups(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """`psnr/FLAIR`, `psnr/T1`, `loss` -> {"psnr": {"psnr/FLAIR": "FLAIR", ...}, "loss": {"loss": "loss"}}"""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[name] = rest or group
    return groups


def _min_holders(config: Mapping[str, Any]) -> int:
    return int(_group(config, "federation").get("min_holders", 1))


def _group(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file (yet)."""
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path.name}: {error}; it must be a JSON object") from None


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _note(text: str) -> Html:
    return el("p", text, class_="note")


def _mark() -> Html:
    """Three squares and a gap."""
    gap = el("rect", x=9.5, y=0.5, width=6.5, height=6.5, class_="gap")
    full = [el("rect", x=x, y=y, width=7, height=7) for x, y in ((1, 0), (1, 9), (9, 9))]
    return el("svg", *full, gap, viewBox="0 0 17 17", aria_hidden="true")
