"""Whoever looks at a run's folder from another process sees what its own view saw, and whether it lives."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from support.disk.disks import full

from server.journal import chronicle, facts
from server.journal.chronicle import Outcome, Tail
from server.journal.events import (
    Began,
    CoverageFound,
    Event,
    Note,
    PhaseStarted,
    RoundFinished,
    SiteFinished,
    SiteStarted,
    View,
)
from server.journal.facts import RoundFacts, SiteFacts
from shared.base.errors import BudgetSpent, ConfigError, LacunaError, PlanRefused, RunFailed
from shared.base.records import Inventory

GOOD = SiteFacts(status="ok", loss=0.25, samples=64, seconds=1.5, bytes_up=1_500_000, bytes_down=2_000)
BAD = SiteFacts(status="rejected", reason="delta norm 31 is over the limit 10")


def play(view: View, rounds: int) -> None:
    north = Inventory(site="north", schema="s", subjects=12, patterns={("T1", "FLAIR"): 7, ("T1",): -5})
    view.tell(CoverageFound(found=facts.coverage([north], ["T1", "FLAIR", "T2"])))
    view.tell(PhaseStarted(phase="translate", of=3, first=0))
    for number in range(rounds):
        sites = {"north": GOOD, "south": BAD}
        for site, result in sites.items():
            view.tell(SiteStarted(site=site))
            view.tell(SiteFinished(site=site, result=result))
        one = RoundFacts(
            phase="translate",
            round=number,
            of=3,
            ended=1e9,
            seconds=2.0,
            loss=float("nan"),
            sites=sites,
            holders={"shared": 1},
            counts={"shared": 64},
            watch={"std": 0.1},
            validation={"psnr/FLAIR": 20.125, "loss": None},
        )
        view.tell(RoundFinished(one=one))


class Seen(View):
    """A view that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Event] = []

    def tell(self, event: Event) -> None:
        self.told.append(event)


def written(folder: Path, rounds: int = 3) -> Seen:
    own = Seen()
    with chronicle.recorded(own, folder) as view:
        play(view, rounds)
        view.note("that was all")
    return own


def test_a_follower_is_told_what_the_runs_own_view_was(tmp_path: Path) -> None:
    own, other = written(tmp_path), Seen()
    for event in Tail(tmp_path).new():
        other.tell(event)
    assert other.told == own.told


def test_a_site_at_work_is_written_once_however_often_it_is_told(tmp_path: Path) -> None:
    with chronicle.recorded(View(), tmp_path) as view:
        for _ in range(5):
            view.tell(SiteStarted(site="north"))
    assert [type(event) for event in Tail(tmp_path).new()] == [Began, SiteStarted]


def test_a_tail_gives_every_event_once_and_no_half_a_line(tmp_path: Path) -> None:
    written(tmp_path, rounds=1)
    tail = Tail(tmp_path)
    first = tail.new()
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"at": 1.0, "what": "no')
    assert tail.new() == []
    with chronicle.recorded(View(), tmp_path) as view:  # whoever takes the run up cuts it off
        view.note("again")
    assert [type(event) for event in tail.new()] == [Began, Note]
    assert first[0] == Began()


def test_who_comes_late_hears_of_all_rounds_and_of_the_sites_at_work_now(tmp_path: Path) -> None:
    written(tmp_path)  # an attempt that was killed
    with chronicle.recorded(View(), tmp_path) as view:
        play(view, rounds=2)
        view.tell(SiteStarted(site="north"))
    kinds = [type(event) for event in chronicle.latest(Tail(tmp_path).new())]
    assert kinds == [Began, CoverageFound, PhaseStarted, RoundFinished, RoundFinished, SiteStarted]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (RunFailed("no quorum"), "RunFailed", 5),
        (ConfigError("size=huge"), "ConfigError", 2),
        (PlanRefused("nobody holds T2"), "PlanRefused", 4),
        (BudgetSpent("north: spent"), "BudgetSpent", 4),
        (OSError(28, "No space left on device"), "RunFailed", 5),
        (ZeroDivisionError("our own mistake"), "ZeroDivisionError", 1),
    ],
)
def test_a_run_that_fails_leaves_its_own_word_and_exit_code(
    tmp_path: Path, error: Exception, kind: str, code: int
) -> None:
    with pytest.raises(type(error)), chronicle.working(tmp_path):
        raise error
    found = chronicle.read_outcome(tmp_path)
    assert found is not None
    assert (found.state, found.kind, found.code) == ("failed", kind, code)
    raised = found.error()
    assert isinstance(raised, LacunaError)
    assert raised.exit_code == code
    with chronicle.working(tmp_path):
        assert chronicle.read_outcome(tmp_path) is None  # taken up again, its word is out of date
    found = chronicle.read_outcome(tmp_path)
    assert found is not None
    assert found.state == "finished"
    assert found.error() is None


@pytest.mark.parametrize("ended", [httpx.ConnectError("gone"), KeyboardInterrupt(), SystemExit(0)])
def test_a_run_that_was_ended_from_outside_says_nothing(tmp_path: Path, ended: BaseException) -> None:
    with pytest.raises(type(ended)), chronicle.working(tmp_path):
        raise ended
    assert chronicle.read_outcome(tmp_path) is None


def test_on_a_full_disk_the_error_is_still_the_one_that_it_was(tmp_path: Path) -> None:
    disk = ExitStack()

    def saves() -> None:
        disk.enter_context(full(0))
        raise OSError("no room for a checkpoint")

    with disk, pytest.raises(OSError, match="no room for a checkpoint"), chronicle.working(tmp_path):
        saves()
    assert chronicle.read_outcome(tmp_path) is None


def test_a_killed_process_lets_go_of_its_run_and_nobody_else_gets_in_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not chronicle.at_work(tmp_path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with chronicle.working(tmp_path, 7):
            os.write(writing, b"in")
            time.sleep(600)
        os._exit(0)
    assert os.read(reading, 2) == b"in"
    assert chronicle.at_work(tmp_path)
    worker = chronicle.worker(tmp_path)
    assert worker is not None
    assert (worker.pid, worker.flower_run) == (child, 7)
    monkeypatch.setattr(chronicle, "PATIENCE", 0.3)
    refused = pytest.raises(RunFailed, match=f"another process works on this run, process {child}")
    with refused, chronicle.working(tmp_path):
        pass
    assert chronicle.read_outcome(tmp_path) is None  # and has not spoken for the run
    monkeypatch.setattr(chronicle, "PATIENCE", 30.0)
    os.kill(child, signal.SIGKILL)
    began = time.monotonic()
    with chronicle.working(tmp_path):
        assert time.monotonic() - began < 30
    os.waitpid(child, 0)
    for end in (reading, writing):
        os.close(end)


def test_an_outcome_that_was_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text('{"state": "splendid", "at": 1.0}')
    with pytest.raises(LacunaError, match=r"outcome\.json: damaged"):
        chronicle.read_outcome(tmp_path)
    chronicle.write_outcome(tmp_path, Outcome(state="finished", at=1.0))
    assert chronicle.read_outcome(tmp_path) == Outcome(state="finished", at=1.0)
