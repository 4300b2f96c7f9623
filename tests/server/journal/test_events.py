"""Every event has one name, by which it is written and read back; files of older runs stay readable."""

from typing import get_args

import pytest

from server.journal import events
from server.journal.events import CoverageFound, Event, Note, PhaseStarted, RoundFinished, SiteFinished, SiteStarted
from server.journal.facts import RoundFacts, SiteFacts, coverage
from shared.base.records import Inventory

SITE = SiteFacts(status="rejected", reason="delta norm 31 is over the limit 10", loss=0.5, epsilon_spent=1.5)
ROUND = RoundFacts(
    phase="translate", round=1, of=3, ended=1e9, seconds=2.0, loss=None, sites={"north": SITE}, refusals=("north: no",)
)
NORTH = Inventory(site="north", schema="s", subjects=12, patterns={("T1", "FLAIR"): 7, ("T1",): -5})
EXAMPLES: tuple[Event, ...] = (
    events.Began(),
    CoverageFound(found=coverage([NORTH], ["T1", "FLAIR"])),
    PhaseStarted(phase="translate", of=3, first=1),
    SiteStarted(site="north"),
    SiteFinished(site="north", result=SITE),
    RoundFinished(one=ROUND),
    Note(text="going on after 1 finished rounds"),
)


def test_every_event_has_a_name_and_an_example() -> None:
    kinds = set(get_args(Event))
    assert kinds == set(events.EVENTS.values()) == {type(event) for event in EXAMPLES}
    assert len(events.NAMES) == len(events.EVENTS)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: events.NAMES[type(event)])
def test_what_is_written_is_read_back(event: Event) -> None:
    line = events.line(event, 1e9)
    assert line.count(b"\n") == 1
    assert events.parse(line) == event


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (b'{"at": 1.5, "what": "began"}', events.Began()),
        (
            b'{"at": 1.5, "what": "phase_started", "phase": "p", "of": 3, "first": 0}',
            PhaseStarted(phase="p", of=3, first=0),
        ),
        (b'{"at": 1.5, "what": "site_started", "site": "north"}', SiteStarted(site="north")),
        (
            b'{"at": 1.5, "what": "site_finished", "site": "north", "result": {"status": "ok", "samples": 3}}',
            SiteFinished(site="north", result=SiteFacts(status="ok", samples=3)),
        ),
        (b'{"at": 1.5, "what": "note", "text": "t"}', Note(text="t")),
        (b'{"at": 1.5, "what": "of a later version", "more": 1}', None),
    ],
)
def test_lines_of_other_versions_are_read(line: bytes, event: Event | None) -> None:
    assert events.parse(line) == event
