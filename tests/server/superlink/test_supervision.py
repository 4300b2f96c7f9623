"""Who is submitted again, when, and how often: laws of the follower, over a SuperLink that is a small class."""

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.disk.disks import full
from support.rounds.federation import config

from server.flower import FlowerRun, Unreachable
from server.journal import chronicle, facts
from server.journal.chronicle import Outcome
from server.journal.facts import RoundFacts, SiteFacts
from server.superlink import submission, supervision
from server.superlink.submission import Submission
from server.superlink.superlink import SiteState
from server.superlink.supervision import Sight
from shared.base import options
from shared.base.errors import ConfigError, LacunaError, PlanRefused, RunFailed

pytestmark = pytest.mark.slow  # left out of `make fast`

FAILED = Outcome(state="failed", kind="RunFailed", message="no quorum", code=5, at=1.0)
SITES = {"north": SiteFacts(status="ok"), "east": SiteFacts(status="timeout")}
RUNNING, OVER = FlowerRun(status="running"), FlowerRun(status="finished", how="failed", details="No heartbeat")


@pytest.mark.parametrize(
    ("sight", "verdict"),
    [
        (Sight(working=True, outcome=None, began=True, flower=OVER, stop=False), "on"),  # Flower lost it, it lives
        (Sight(working=True, outcome=None, began=True, flower=RUNNING, stop=True), "on"),
        (Sight(working=False, outcome=FAILED, began=True, flower=OVER, stop=False), "over"),
        (Sight(working=False, outcome=FAILED, began=True, flower=RUNNING, stop=True), "over"),
        (Sight(working=False, outcome=None, began=True, flower=RUNNING, stop=False), "dead"),  # before Flower knows
        (Sight(working=False, outcome=None, began=True, flower=None, stop=False), "dead"),
        (Sight(working=False, outcome=None, began=True, flower=OVER, stop=True), "stopped"),
        (Sight(working=False, outcome=None, began=False, flower=RUNNING, stop=False), "on"),  # it imports yet
        (Sight(working=False, outcome=None, began=False, flower=None, stop=False), "on"),
        (Sight(working=False, outcome=None, began=False, flower=OVER, stop=False), "dead"),
    ],
)
def test_what_is_seen_of_a_run_says_what_to_do(sight: Sight, verdict: str) -> None:
    assert sight.verdict() == verdict


class Link:
    """A SuperLink; what a run does when it is submitted is said by the test."""

    address, authorities = "here:1", ""

    def __init__(self, *steps: Callable[[Path], None]) -> None:
        self.steps, self.started, self.stopped, self.asked = list(steps), 0, list[int](), 0

    def start(self, folder: Path) -> int:
        step = self.steps.pop(0)
        if step is unreachable:
            raise Unreachable("superlink=here: can't be reached")
        self.started += 1
        with chronicle.working(folder, self.started):  # takes the run, and ...
            pass
        (folder / "outcome.json").unlink()  # ... dies, unless the test has it say more
        step(folder)
        return self.started

    def run(self, number: int) -> FlowerRun | None:
        return RUNNING

    def sites(self) -> dict[str, SiteState]:
        self.asked += 1
        return {"north": SiteState(online=self.asked > 3), "east": SiteState(online=False)}

    def stop(self, number: int) -> bool:
        self.stopped.append(number)
        return True


def dies(folder: Path) -> None:
    return


def fails(folder: Path) -> None:
    chronicle.write_outcome(folder, FAILED)


def finishes(folder: Path) -> None:
    chronicle.write_outcome(folder, Outcome(state="finished", at=1.0))


def does_a_round_and_dies(folder: Path) -> None:
    done = len(facts.read(folder / "rounds.jsonl"))
    one = RoundFacts(phase="fit", round=done, of=99, ended=1.0, seconds=1.0, loss=0.5, sites=SITES)
    facts.append(folder / "rounds.jsonl", one)


def unreachable(folder: Path) -> None:
    raise AssertionError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Link]:
    """A run that was submitted once, and a follower to its end."""
    monkeypatch.setattr(supervision, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(supervision, "pause", lambda tried: 0.0)
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(options.plain(config(tmp_path))))
    monkeypatch.setattr(supervision.runs, "read_config", lambda folder: config(tmp_path))

    def made(*steps: Callable[[Path], None]) -> Link:
        link = Link(*steps)
        monkeypatch.setattr(Submission, "link", property(lambda self: link))
        submission.submit(folder, link)
        supervision.follow(folder, quiet=True)
        return link

    return made


def test_a_killed_run_is_submitted_again_until_it_has_ended(run: Callable[..., Link]) -> None:
    link = run(dies, dies, finishes)
    assert link.started == 3
    assert link.stopped == [1, 2]  # Flower holds the dead for running


def test_a_run_that_failed_by_its_own_word_is_not_submitted_again(run: Callable[..., Link]) -> None:
    with pytest.raises(RunFailed, match="no quorum"):
        run(dies, fails, finishes)


def test_one_that_dies_again_and_again_without_a_round_is_given_up(tmp_path: Path, run: Callable[..., Link]) -> None:
    with pytest.raises(RunFailed, match=rf"died {supervision.MOST} times in a row before its first round"):
        run(*[dies] * (supervision.MOST + 1))
    assert chronicle.read_outcome(tmp_path / "one") is not None  # `lacuna status` says so too


def test_one_that_gets_on_between_its_deaths_is_not(run: Callable[..., Link]) -> None:
    times = 3 * supervision.MOST
    assert run(*[does_a_round_and_dies] * times, finishes).started == times + 1


def test_one_that_died_of_a_full_disk_is_not_submitted_again_but_said(tmp_path: Path, run: Callable[..., Link]) -> None:
    disk = ExitStack()

    def finds_the_disk_full(folder: Path) -> None:
        disk.enter_context(full())

    with disk, pytest.raises(RunFailed, match=r"can't be written: File too large; .* Make room, then `lacuna resume"):
        run(finds_the_disk_full, finishes)
    before = submission.find(tmp_path / "one")
    assert before is not None
    assert before.times == 1


def test_before_it_is_submitted_again_the_sites_of_its_last_round_are_waited_for(
    run: Callable[..., Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision.time, "sleep", lambda seconds: None)
    assert run(does_a_round_and_dies, finishes).asked == 4  # not for east, which had no part in it


def test_a_superlink_that_is_away_for_a_while_is_waited_for(run: Callable[..., Link]) -> None:
    assert run(dies, unreachable, unreachable, finishes).started == 2


def test_a_stop_that_comes_while_a_run_is_being_submitted_is_not_lost(tmp_path: Path, run: Callable[..., Link]) -> None:
    def meanwhile(folder: Path) -> None:
        sent = submission.find(folder)
        assert sent is not None
        submission.save(folder, dataclasses.replace(sent, stop=True))

    with pytest.raises(RunFailed, match=r"stopped before its first round; `lacuna resume one` goes on"):
        run(dies, meanwhile)
    found = chronicle.read_outcome(tmp_path / "one")
    assert found is not None
    assert found.state == "stopped"


def test_the_pause_grows_and_has_an_end() -> None:
    pauses = [supervision.pause(tried) for tried in range(1, 12)]
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == supervision.LONGEST_PAUSE


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    for verb in (supervision.follow, submission.stop):
        with pytest.raises(ConfigError, match="run=nothing"):
            verb(tmp_path / "nothing")


def test_every_error_of_ours_keeps_its_kind_through_an_outcome() -> None:
    for kind in (RunFailed, ConfigError, PlanRefused):
        found = chronicle.outcome_of(kind("why"))
        assert found is not None
        assert type(found.error()) is kind
    assert isinstance(FAILED.error(), LacunaError)
