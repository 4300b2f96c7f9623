"""Whose data a run's weights should not have seen, and from which checkpoint on they have: RUN/withdrawn.json.

    {"north": {"who": "site", "phase": null, "round": 0, "why": "left the study", "at": 1700000000.0}}

Written when a site is revoked with --withdraw, or sends a note that a subject of its own left. What of it is in the
weights is told from rounds.jsonl, round by round; so a run that was trained again without the site is clean. A run that
starts from such a run's weights (`tuning.start`) has all of it from its beginning.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.journal import facts
from server.journal.facts import RoundFacts
from shared.base.errors import ConfigError, DataError
from shared.base.files import write_json
from shared.base.options import build, plain
from shared.base.vocabulary import SiteName

FILE = "withdrawn.json"
MOST_DEEP = 16  # priors of priors


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    who: Literal["site", "subject"]
    phase: str | None = None  # of a subject: since when, by the site's note; None: since the site's first round
    round: int = 0
    why: str = ""
    at: float  # seconds since 1970


@dataclass(frozen=True, slots=True, kw_only=True)
class Affected:
    """One site's withdrawn data in one run's weights."""

    site: SiteName
    mark: Mark
    phase: str  # the first round with it
    round: int
    done: int  # rounds of the run before that
    through: str | None = None  # the run whose weights this one started from

    @property
    def checkpoint(self) -> str:
        """The first that has it, by its name under RUN/checkpoints."""
        return f"{0 if self.through else 2 * (self.done + 1):06d}"

    def line(self) -> str:
        what = self.site if self.mark.who == "site" else f"a subject of {self.site}"
        if self.through is not None:
            return f"has data of {what}, which was withdrawn, from its beginning on: it starts from run {self.through}"
        return (
            f"has data of {what}, which was withdrawn, from {self.phase} round {self.round + 1} on "
            f"(checkpoint {self.checkpoint} and later)"
        )


def first_part(rounds: Sequence[RoundFacts], site: SiteName, since: tuple[str, int] | None = None) -> int | None:
    """The number of the first round that a site's update was folded into, at or after a round of a phase."""
    begin = 0
    if since is not None:
        phase, number = since
        begin = next((i for i, one in enumerate(rounds) if one.phase == phase and one.round >= number), len(rounds))
    parts = (i for i, one in enumerate(rounds) if i >= begin and site in one.sites and one.sites[site].status == "ok")
    return next(parts, None)


def mark(run: Path, site: SiteName, found: Mark) -> None:
    """The earlier beginning counts, and a site more than one of its subjects."""
    marks = read(run)
    before = marks.get(site)
    rounds = facts.read(run / "rounds.jsonl")
    if before is None or _begins(rounds, site, found) <= _begins(rounds, site, before):
        write_json(run / FILE, {name: plain(one) for name, one in sorted({**marks, site: found}.items())})


def read(run: Path) -> dict[SiteName, Mark]:
    try:
        entries = json.loads((run / FILE).read_text(encoding="utf-8"))
        return {str(site): build(Mark, dict(entry), "mark") for site, entry in entries.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(f"{run / FILE}: damaged: {error}; it says whose data was withdrawn") from None


def affected(run: Path, *, deep: int = 0) -> list[Affected]:
    """What of withdrawn data is in a run's weights now."""
    rounds = facts.read(run / "rounds.jsonl")
    found = []
    for site, one in read(run).items():
        first = first_part(rounds, site, None if one.phase is None else (one.phase, one.round))
        if first is not None:
            at = rounds[first]
            found.append(Affected(site=site, mark=one, phase=at.phase, round=at.round, done=first))
    before = _prior(run)
    if before is not None and deep < MOST_DEEP:
        found += [
            Affected(site=one.site, mark=one.mark, phase="", round=0, done=0, through=before)
            for one in affected(run.parent / before, deep=deep + 1)
        ]
    return found


def lines(run: Path) -> list[str]:
    return [f"{run.name} {one.line()}" for one in affected(run)]


def with_part_of(runs: Path, site: SiteName) -> list[Path]:
    """The runs of a folder into which this site's updates were folded."""
    folders = sorted(path.parent for path in runs.glob("*/rounds.jsonl"))
    return [run for run in folders if first_part(facts.read(run / "rounds.jsonl"), site) is not None]


def _begins(rounds: Sequence[RoundFacts], site: SiteName, one: Mark) -> tuple[float, bool]:
    first = first_part(rounds, site, None if one.phase is None else (one.phase, one.round))
    return (float("inf") if first is None else first, one.who == "subject")


def _prior(run: Path) -> str | None:
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    tuning = config.get("tuning") if isinstance(config, Mapping) else None
    start = tuning.get("start") if isinstance(tuning, Mapping) else None
    return start if isinstance(start, str) and start != "none" and (run.parent / start).is_dir() else None
