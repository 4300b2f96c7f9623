"""A run as one HTML page that can be sent round: what was trained, by whom, what came of it, what left the sites.

Made from the run folder alone, finished or not; the same folder gives the same bytes. No subject, no password. What
the page says is in report.html.j2; what it is told is gathered here.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.journal import facts, withdrawn
from server.journal.facts import RoundFacts, SiteFacts
from server.journal.tracking import without_passwords
from server.report.charts import FRAME, Chart, Squares, curves, squares
from server.report.scores import scores
from shared.base.display.figures import duration
from shared.base.display.page import embedded, render
from shared.base.errors import DataError
from shared.base.files import write_text
from shared.trust import claims

TEMPLATE = Path(__file__).with_name("report.html.j2")
CELLS = {"ok": "ok", "refused": "warn", "absent": "none", "rejected": "bad", "timeout": "bad", "error": "bad"}
MOST_PICTURES = 6
MODEL_KEYS = ("method", "modalities", "grid", "schema", "weights", "provenance")


def write_report(run: Path, out: Path | None = None) -> Path:
    """The page of the run in folder `run`, by default at `run`/report.html."""
    if not (run / "config.json").exists() and not (run / "rounds.jsonl").exists():
        raise DataError(f"{run}: no run there; neither config.json nor rounds.jsonl")
    out = out or run / "report.html"
    write_text(out, page_of(run))
    return out


def page_of(run: Path) -> str:
    config, model = without_passwords(_json(run / "config.json")), _json(run / "final" / "model.json")
    rounds = facts.read(run / "rounds.jsonl")
    inventory = run / "inventory.json"
    coverage = facts.load_coverage(inventory) if inventory.exists() else None
    names = sorted({site for one in rounds for site in one.sites} | set(coverage.sites if coverage else ()))
    sites = {name: [one.sites[name] for one in rounds if name in one.sites] for name in names}
    phases: dict[str, list[RoundFacts]] = {}
    for one in rounds:
        phases.setdefault(one.phase, []).append(one)
    return render(
        TEMPLATE,
        name=run.name,
        config=config,
        config_text=json.dumps(config, indent=1),
        method=_group(config, "method").get("name", "a model"),
        min_holders=int(_group(config, "federation").get("min_holders", 1)),
        secure=_group(config, "federation").get("secure") is True,
        finished=bool(model),
        withdrawn=[one.line() for one in withdrawn.affected(run)],
        rounds=rounds,
        last_ended=_utc(rounds[-1].ended) if rounds else "",
        phases=phases,
        sites=sites,
        trained=sum(any(result.status == "ok" for result in results) for results in sites.values()),
        most_up=max((sum(result.bytes_up for result in results) for results in sites.values()), default=0),
        most_down=max((sum(result.bytes_down for result in results) for results in sites.values()), default=0),
        privacy=_privacy(model),
        coverage=coverage,
        most_sites=max(pair.sites for row in coverage.pairs.values() for pair in row.values()) if coverage else 0,
        subjects=facts.subjects,
        cell=facts.cell,
        words=facts.words,
        frame=FRAME,
        charts={phase: list(charts_of(done)) for phase, done in phases.items()},
        scores=scores(run / "evaluation"),
        summary=_values(_json(run / "evaluation" / "summary.json")),
        figures=_figures(run / "evaluation"),
        mosaics=_mosaics(run / "mosaics"),
        mosaic_count=len(list(run.glob("mosaics/*.png"))),
        parts={phase: parts_of(done) for phase, done in phases.items()},
        timeline={phase: timeline_of(done) for phase, done in phases.items()},
        troubles=[(one, site, s) for one in rounds for site, s in one.sites.items() if s.status != "ok"],
        model=_values({key: model[key] for key in MODEL_KEYS if key in model}),
        bundle=_values(_json(run / "bundle" / "bundle.json")),
    )


def _privacy(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """What may be said of the released model and what not, with the certificates; None before there is one."""
    if not model:
        return None
    record = claims.read(model.get("provenance", {}))
    return {"record": record, "statement": claims.statement(record), "not_claimed": claims.not_claimed()}


def charts_of(done: Sequence[RoundFacts]) -> Iterator[Chart | None]:
    """Of one phase: the loss, what the coordinator measured, what the method watches."""

    def course(values: Iterable[float | None]) -> list[tuple[float, float]]:
        return [(one.round + 1, value) for one, value in zip(done, values, strict=True) if value is not None]

    if mean := course(one.loss for one in done):
        sites = sorted({site for one in done for site in one.sites})
        each = {site: course(one.sites[site].loss if site in one.sites else None for one in done) for site in sites}
        yield curves({"all sites": mean}, faint=each, across="round", up="loss")
    checks = [one.validation or {} for one in done]
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in dict.fromkeys(name for check in checks for name in check):  # psnr/FLAIR, psnr/T1, loss
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest or group] = course(check.get(name) for check in checks)
    for group, lines in groups.items():
        yield curves(lines, across="round", up=f"validation {group}")
    for name in dict.fromkeys(name for one in done for name in one.watch):
        yield curves({name: course(one.watch.get(name) for one in done)}, across="round", up=f"{name} (watched)")


def parts_of(done: Sequence[RoundFacts]) -> list[tuple[str, list[int], int]]:
    """The parts of the model, each with the number of sites that trained it in each round, and its samples in all."""
    names = dict.fromkeys(owner for one in done for owner in (*one.holders, *one.counts))
    return [
        (name, [one.holders.get(name, 0) for one in done], sum(one.counts.get(name, 0) for one in done))
        for name in names
    ]


def timeline_of(done: Sequence[RoundFacts]) -> Squares:
    names = sorted({site for one in done for site in one.sites})
    grid = {
        name: {one.round: (CELLS[s.status], _tip(name, one, s)) for one in done if (s := one.sites.get(name))}
        for name in names
    }
    return squares(grid, count=done[-1].of)


def _tip(name: str, one: RoundFacts, result: SiteFacts) -> str:
    said = f": {result.reason}" if result.reason else ""
    return (
        f"{name}, round {one.round + 1}, {result.status}{said} ({duration(result.seconds)}, {result.samples} samples)"
    )


def _figures(folder: Path) -> list[tuple[str, str]]:
    every = sorted(folder.glob("*.png"))[:MOST_PICTURES]
    return [(embedded(path), path.stem.replace("_", " ")) for path in every]


def _mosaics(folder: Path) -> list[tuple[str, str]]:
    """The last, some between and the first, so that one sees it learn."""
    every = sorted(folder.glob("*.png"))
    count = min(MOST_PICTURES // 2, len(every))
    picked = [every[round(i * (len(every) - 1) / max(1, count - 1))] for i in range(count)][::-1]
    return [(embedded(path), _after(path.stem)) for path in picked]


def _after(stem: str) -> str:
    return f"after round {int(stem) + 1}" if stem.isdecimal() else stem


def _values(group: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested values as dotted names with texts."""
    return list(_flat(without_passwords(group)))


def _flat(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            text = ", ".join(map(str, value))
            yield prefix + key, text if len(text) <= 200 else f"{len(value)} entries"
        else:
            yield prefix + key, f"{value:.6g}" if isinstance(value, float) else str(value)


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
