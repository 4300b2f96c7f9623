"""What is remembered so that nothing is given twice: by two processes, over a power cut, under a false clock."""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from client.site import clock, plans
from client.site.policy import Policy
from client.site.site import Site
from client.site.summed import FILE, Person, remember, too_near
from server.rounds.ledgers import Ledgers
from shared.base.disk import locks
from shared.base.errors import PlanRefused, UpdateRejected
from shared.base.records import Spent, Update
from shared.trust.privacy import Query, Spending, epsilon

ROUND: Spending = {Query(noise=1.0, rate=0.1): 2}
FORK = multiprocessing.get_context("fork")


def people(n: int) -> dict[str, Person]:
    return {f"sub-{i:02d}": Person(modalities=("T1",), images=str(i)) for i in range(n)}


# --- of whom sums were sent -------------------------------------------------------------------------------------------


def test_two_runs_at_a_time_are_no_way_around_what_was_summed(tmp_path: Path) -> None:
    """Both looked before either had written: the second's sums, less the first's, are one person."""
    assert too_near(tmp_path, people(10), 5) is None
    assert too_near(tmp_path, people(11), 5) is None
    assert remember(tmp_path, "first", people(10), 5) is None
    assert "run first" in str(remember(tmp_path, "second", people(11), 5))
    assert len((tmp_path / FILE).read_text().splitlines()) == 1
    assert remember(tmp_path, "third", people(10), 5) is None  # the same people again
    assert len((tmp_path / FILE).read_text().splitlines()) == 1


def _remember(state: Path, n: int) -> None:
    raise SystemExit(0 if remember(state, f"run-{n}", people(n), 5) is None else 7)


def test_of_many_processes_with_nearly_the_same_people_one_sums(tmp_path: Path) -> None:
    started = [FORK.Process(target=_remember, args=(tmp_path, n)) for n in range(10, 15)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert sorted(process.exitcode or 0 for process in started) == [0, 7, 7, 7, 7]


# --- the coordinator's memory of ledgers ------------------------------------------------------------------------------


def word(site: str, sequence: int) -> Update:
    spent = Spent(
        ledger="ab" * 16,
        sequence=sequence,
        head=f"{sequence:064x}",
        epsilon=epsilon(ROUND, 1e-5) + sequence,
        budget=1000.0,
        delta=1e-5,
        size=70,
        others=0,
    )
    return Update(
        site=site, run="r", phase="fit", round=0, schema="s", delta={}, counts={}, metrics={}, frozen="", spent=spent
    )


def test_what_one_run_learnt_of_a_ledger_another_run_beside_it_keeps(tmp_path: Path) -> None:
    """The second run's next word would have put back the file as it was when that run began."""
    path = tmp_path / "ledgers.json"
    one, other = Ledgers(path, "on"), Ledgers(path, "on")
    one.accept(word("north", 40), ROUND)
    other.accept(word("south", 9), ROUND)
    assert {site: said["sequence"] for site, said in json.loads(path.read_text()).items()} == {"north": 40, "south": 9}
    assert other.known("north") == (40, f"{40:064x}")


def test_a_ledger_that_went_back_is_seen_by_a_run_that_began_before(tmp_path: Path) -> None:
    path = tmp_path / "ledgers.json"
    one, other = Ledgers(path, "on"), Ledgers(path, "on")
    one.accept(word("north", 40), ROUND)
    with pytest.raises(UpdateRejected, match="stands at 7, before at 40: it was rolled back"):
        other.accept(word("north", 7), ROUND)


def _accept(path: Path, site: str, words: int) -> None:
    mine = Ledgers(path, "on")
    for i in range(1, words + 1):
        mine.accept(word(site, 10 * i), ROUND)


def test_processes_that_write_at_the_same_time_lose_no_word(tmp_path: Path) -> None:
    path, words = tmp_path / "ledgers.json", 12
    _accept(tmp_path / "other.json", "site", words)  # counts each epsilon once, for all that are forked
    started = [FORK.Process(target=_accept, args=(path, f"site-{i}", words)) for i in range(4)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert {process.exitcode for process in started} == {0}
    found = {site: said["sequence"] for site, said in json.loads(path.read_text()).items()}
    assert found == {f"site-{i}": 10 * words for i in range(4)}


def test_a_word_waits_for_the_process_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "ledgers.json"
    with locks.held(tmp_path / ".ledgers.json.lock"):
        late = threading.Thread(target=_accept, args=(path, "north", 1))  # a lock is its handle's, not its process's
        late.start()
        late.join(0.5)
        assert late.is_alive()
        assert not path.exists()
    late.join()
    assert path.exists()


# --- a day's quota ----------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float | str]:
    """A machine that was started an hour ago: what its clock says, how long it ticks, and which start it is."""
    now: dict[str, float | str] = {"clock": 1.8e9, "ticks": 3600.0, "boot": "first"}
    monkeypatch.setattr(time, "time", lambda: now["clock"])
    monkeypatch.setattr(clock, "_ticking", lambda: (now["boot"], now["ticks"]))
    return now


def worked(state: Path, most: int) -> int:
    """How many of `most` rounds the site does before its policy says no."""
    site = Site(name="north", cohorts=(), state=state, policy=Policy(max_rounds_per_day=2))
    done = 0
    for i in range(most):
        try:
            with plans.considered(site, "r", "{}", phase="fit", round=i) as one:
                one.work()
                done += 1
        except PlanRefused:
            pass
    return done


Turn = Callable[[dict[str, float | str]], object]
TURNS: dict[str, tuple[Turn, int]] = {
    "nothing": (lambda now: None, 0),
    "the clock is set a day forward": (lambda now: now.update(clock=1.8e9 + 90_000), 0),
    "the clock is set a year forward": (lambda now: now.update(clock=1.8e9 + 3.2e7), 0),
    "the clock is set a year back": (lambda now: now.update(clock=1.8e9 - 3.2e7), 0),
    "a day has passed": (lambda now: now.update(clock=1.8e9 + 86_401, ticks=90_001.0), 2),
    "a day has passed, and the clock was set back": (lambda now: now.update(clock=1.7e9, ticks=90_001.0), 2),
    "it was started again at once": (lambda now: now.update(clock=1.8e9 + 60, ticks=30.0, boot="second"), 0),
    "it was started again without a clock": (lambda now: now.update(clock=5.0, ticks=4.0, boot="second"), 0),
    "it was off for a day": (lambda now: now.update(clock=1.8e9 + 90_000, ticks=30.0, boot="second"), 2),
}


@pytest.mark.parametrize("turn", TURNS)
def test_only_a_day_that_passed_refills_a_days_quota(
    turn: str, tmp_path: Path, machine: dict[str, float | str]
) -> None:
    assert worked(tmp_path, 3) == 2
    change, more = TURNS[turn]
    change(machine)
    assert worked(tmp_path, 3) == more
    assert plans.used(tmp_path)[0] == 2


def test_a_machine_without_a_clock_has_its_quota_back_after_a_day(
    tmp_path: Path, machine: dict[str, float | str]
) -> None:
    assert worked(tmp_path, 3) == 2
    machine.update(clock=5.0, ticks=4.0, boot="second")
    assert worked(tmp_path, 3) == 0
    machine.update(clock=86_500.0, ticks=86_499.0)
    assert worked(tmp_path, 3) == 2


def test_the_real_machines_ticking_goes_on(tmp_path: Path) -> None:
    (boot, first), (again, second) = clock._ticking(), clock._ticking()
    assert boot == again
    assert len(boot) == 36
    assert 0 < first <= second


def test_what_a_site_was_asked_and_did_is_synced(tmp_path: Path) -> None:
    """A question answered, a round done: a power cut that took it back would have it answered, or done, again."""
    with plans._open(tmp_path, make=True) as file:
        assert file.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: on the disk when a commit returns
