"""Runs: where each stands, and one of them while it goes on, from what it writes into its own folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.journal import chronicle, facts
from server.journal.chronicle import Tail
from server.journal.events import Event, Note, SiteFinished, SiteStarted
from server.journal.facts import Coverage, RoundFacts, SiteFacts
from server.journal.tracking import without_passwords
from server.journal.views import Pace
from server.page.house import House
from server.report.charts import FRAME
from server.report.report import charts_of, parts_of, timeline_of
from server.superlink import overview, submission
from shared.base.errors import DataError
from shared.page.ask import Answer, Ask, NotFound, see
from shared.page.look import Look

NOTES, TROUBLES, STEPS = 8, 60, 4


@dataclass(frozen=True, slots=True)
class Runs:
    house: House
    look: Look

    def listing(self, ask: Ask) -> Answer:
        runs = overview.standings(self.house.runs)
        return self.look.page(ask, "runs.html.j2", runs=runs, folder=self.house.runs)

    def one(self, ask: Ask) -> Answer:
        folder = self.house.find(ask.where["name"])
        told = chronicle.latest(Tail(folder).new())
        done = facts.read(folder / "rounds.jsonl")
        phases: dict[str, list[RoundFacts]] = {}
        for one in done:
            phases.setdefault(one.phase, []).append(one)
        config = without_passwords(_config(folder))
        return self.look.page(
            ask,
            "progress.html.j2" if ask.part else "run.html.j2",
            run=overview.standing(folder),
            done=done,
            left=_left(done),
            phases=phases,
            charts={phase: [c for c in charts_of(rounds) if c is not None] for phase, rounds in phases.items()},
            parts={phase: parts_of(rounds) for phase, rounds in phases.items()},
            timeline={phase: timeline_of(rounds) for phase, rounds in phases.items()},
            frame=FRAME,
            min_holders=int(_group(config, "federation").get("min_holders", 1)),
            now=_now(told),
            notes=[event.text for event in told if isinstance(event, Note)][-NOTES:],
            troubles=[(one, site, s) for one in done for site, s in one.sites.items() if s.status != "ok"][-TROUBLES:],
            refusals=sum(len(one.refusals) for one in done),
            coverage=_coverage(folder),
            steps=STEPS,
            subjects=facts.subjects,
            mosaics=[(path.name, _after(path)) for path in sorted((folder / "mosaics").glob("*.png"))[-3:][::-1]],
            mlflow=_mlflow(config, self.house.runs),
            config_text=json.dumps(config, indent=1, sort_keys=True),
            submitted=submission.find(folder) is not None,
            runs_folder=self.house.runs,
        )

    def mosaic(self, ask: Ask) -> Answer:
        folder = self.house.find(ask.where["name"]) / "mosaics"
        found = {path.name: path for path in folder.glob("*.png")}.get(ask.where["file"])
        if found is None:
            raise NotFound
        return Answer(body=found, kind="image/png")

    def who(self, ask: Ask) -> Answer:
        """Who is online, as the SuperLink says: asked for only when somebody looks."""
        return self.look.page(ask, "who.html.j2", said=overview.details(self.house.find(ask.where["name"])))

    def stop(self, ask: Ask) -> Answer:
        folder = self.house.find(ask.where["name"])
        self.house.decided.enter(ask, "stop", {"run": folder.name}, ask.said("why"))
        submission.stop(folder)
        return see(f"/runs/{folder.name}")


def _now(told: Sequence[Event]) -> dict[str, SiteFacts | None]:
    """The sites of the round that goes on; None: at work."""
    found: dict[str, SiteFacts | None] = {}
    for event in told:
        if isinstance(event, SiteStarted):
            found[event.site] = None
        elif isinstance(event, SiteFinished):
            found[event.site] = event.result
    return dict(sorted(found.items()))


def _left(done: Sequence[RoundFacts]) -> float | None:
    """Seconds until the phase's end, by the latest rounds."""
    if not done or done[-1].round + 1 >= done[-1].of:
        return None
    pace = Pace()
    for one in done[-5:]:
        pace.took(one.seconds)
    return pace.left(done[-1])


def _after(path: Path) -> str:
    return str(int(path.stem) + 1) if path.stem.isdecimal() else path.stem


def _coverage(folder: Path) -> Coverage | None:
    path = folder / "inventory.json"
    return facts.load_coverage(path) if path.exists() else None


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder.name}: config.json can't be read: {error}") from None


def _mlflow(config: Mapping[str, Any], runs: Path) -> tuple[str, str]:
    """Where MLflow is: an address to go to, or a command that makes one."""
    uri = str(_group(config, "tracking").get("uri") or "none")
    if uri.startswith(("https://", "http://")):
        return uri, ""
    return "", "" if uri == "none" else f"mlflow ui --backend-store-uri {uri}"


def _group(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}
