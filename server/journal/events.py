"""All that can happen in a run: the round loop tells it to a view, its file keeps it, a follower reads it back.

A line of events.jsonl is one event: when it was (`at`), its name in EVENTS (`what`), and its fields.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from server.journal.facts import Coverage, RoundFacts, SiteFacts
from shared.base import options
from shared.base.vocabulary import SiteName


@dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """A process has taken the run up: a new one, or one that was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageFound:
    """Before round 1: which site holds what."""

    found: Coverage


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseStarted:
    phase: str
    of: int  # rounds
    first: int  # the round that the phase goes on with: 0, or more after a resume


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStarted:
    """The site is at work; may be told again and again while one waits."""

    site: SiteName


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFinished:
    site: SiteName
    result: SiteFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFinished:
    one: RoundFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A line that stays."""

    text: str


Event: TypeAlias = Began | CoverageFound | PhaseStarted | SiteStarted | SiteFinished | RoundFinished | Note
EVENTS: Mapping[str, type[Event]] = {
    "began": Began,
    "coverage": CoverageFound,
    "phase_started": PhaseStarted,
    "site_started": SiteStarted,
    "site_finished": SiteFinished,
    "round_finished": RoundFinished,
    "note": Note,
}
NAMES = {kind: name for name, kind in EVENTS.items()}


class View:
    """Whoever watches a run; by itself it shows nothing."""

    def tell(self, event: Event) -> None:
        return

    def note(self, text: str) -> None:
        self.tell(Note(text=text))


def line(event: Event, at: float) -> bytes:
    record = {"at": at, "what": NAMES[type(event)], **options.plain(event)}
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def parse(line: bytes) -> Event | None:
    """None: another version wrote it, of something that this one does not know. ValueError, ... where it is damaged."""
    record = dict(json.loads(line))
    float(record.pop("at"))
    kind = EVENTS.get(str(record.pop("what")))
    return None if kind is None else options.build(kind, record, "event")
