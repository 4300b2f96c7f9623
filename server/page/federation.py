"""The federation: who takes part, whose key was compared, what expires; runs side by side; who decided what here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.federation import federation as folder_of
from server.federation import view
from server.journal import facts
from server.page.house import House
from server.report.charts import FRAME, curves
from server.superlink import overview
from shared.base.chain import Entry
from shared.base.errors import DataError
from shared.page.ask import Answer, Ask
from shared.page.look import Look
from shared.trust.keys import spoken

MOST_COMPARED = 8
PICK = "r."  # of a form's field for a run
MOST_LISTED = 200


@dataclass(frozen=True, slots=True)
class Members:
    house: House
    look: Look

    def federation(self, ask: Ask) -> Answer:
        there = (self.house.federation / folder_of.STATE).exists()
        said = view.facts(self.house.federation, datetime.now(UTC)) if there else None
        return self.look.page(ask, "federation.html.j2", said=said, spoken=spoken, folder=self.house.federation)

    def compare(self, ask: Ask) -> Answer:
        """Runs side by side; which ones is in the address."""
        wanted = {key.removeprefix(PICK) for key in ask.query if key.startswith(PICK)}
        chosen = [name for name in self.house.names() if name in wanted][:MOST_COMPARED]
        rounds = {name: facts.read(self.house.runs / name / "rounds.jsonl") for name in chosen}
        phases = list(dict.fromkeys(one.phase for done in rounds.values() for one in done if one.loss is not None))
        charts = []
        for phase in phases:
            lines = {
                name: [(one.round + 1, one.loss) for one in done if one.phase == phase and one.loss is not None]
                for name, done in rounds.items()
            }
            charts.append((phase, curves({n: line for n, line in lines.items() if line}, across="round", up="loss")))
        checks = {name: _last_validation(done) for name, done in rounds.items()}
        return self.look.page(
            ask,
            "compare.html.j2",
            names=list(self.house.names()),
            chosen=chosen,
            standings=[overview.standing(self.house.runs / name) for name in chosen],
            rounds=rounds,
            charts=charts,
            checks=checks,
            measures=list(dict.fromkeys(name for check in checks.values() for name in check)),
            differ=_differences({name: _flat(_config(self.house.runs / name)) for name in chosen}),
            frame=FRAME,
        )

    def decisions(self, ask: Ask) -> Answer:
        found: list[Entry] = []
        broken = ""
        try:
            found.extend(self.house.decided.entries())
        except DataError as error:
            broken = str(error)
        return self.look.page(ask, "decisions.html.j2", entries=found[::-1][:MOST_LISTED], broken=broken)


def _last_validation(done: list[facts.RoundFacts]) -> dict[str, float]:
    for one in reversed(done):
        if one.validation:
            return {name: value for name, value in one.validation.items() if value is not None}
    return {}


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in group.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: json.dumps(value)}
    return found


def _differences(configs: Mapping[str, Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """The keys in which runs differ, but for names and folders."""
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    rows = [(key, [config.get(key, "–") for config in configs.values()]) for key in keys]
    return [(key, cells) for key, cells in rows if len(set(cells)) > 1 and key not in ("run", "runs", "resume")]
