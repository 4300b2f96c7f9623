"""A privacy ledger forgets nothing, whoever kills or races it, and admits nothing beyond its budget."""

import math
import random
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.privacy.chargers import (
    CHEAP,
    STEP,
    TERMS,
    charge_and_release,
    hold,
    processes,
    six_charges,
    take_turns,
    without_the_lock,
)

from client.privacy.budget import Budget
from client.privacy.budget_files import enrolled
from shared.base.errors import BudgetSpent, ConfigError, DataError
from shared.trust import privacy
from shared.trust.privacy import Query

pytestmark = pytest.mark.slow  # left out of `make fast`

DEAR = Query(noise=4.0, rate=0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "privacy"


@pytest.fixture
def charged(folder: Path) -> Path:
    return six_charges(folder)


# --- killed ---------------------------------------------------------------------------------------------------------


def killed(dice: random.Random, folder: Path, released: Path) -> None:
    """A process that charges and releases, killed while it starts, or so many releases later, at a random moment."""
    process = processes().Process(target=charge_and_release, args=(folder, released))
    process.start()
    more = dice.choice([0, 0, 1, 2, 3])
    enough = size(released) + more
    while size(released) < enough:
        assert process.exitcode is None
        time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.01) if more else dice.uniform(0, 0.06))
    process.kill()
    process.join()
    process.close()


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_200_kills_at_random_moments_never_leave_the_ledger_below_what_was_released(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    dice = random.Random(seed)
    folder, released = tmp_path / "privacy", tmp_path / "released"
    ahead = [0]
    for _ in range(200):
        killed(dice, folder, released)
        if not enrolled(folder):
            assert size(released) == 0, f"seed {seed}"
            continue
        with Budget.look(folder) as ledger:
            ahead.append(sum(ledger.spending().values()) - size(released))
        assert ahead[-1] >= ahead[-2], f"seed {seed}: the ledger fell back"
        assert ahead[-1] <= ahead[-2] + 1, f"seed {seed}: a kill costs at most the one charge that it was in"
    assert size(released) >= 150, f"seed {seed}"
    assert ahead[-1] >= 1, f"seed {seed}: no kill fell between a charge and its release"
    with Budget.open(folder, **TERMS) as ledger:  # and it goes on
        ledger.charge(CHEAP, 1, run="r", phase="p", round=0)


def test_a_kill_during_enrolment_leaves_a_site_that_is_enrolled_or_is_not(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    dice = random.Random(seed)
    for n in range(12):
        folder = tmp_path / str(n) / "privacy"
        killed(dice, folder, tmp_path / f"{n}.released")
        with Budget.open(folder, **TERMS) as ledger:
            assert ledger.budget == 8.0, f"seed {seed}"


# --- raced ----------------------------------------------------------------------------------------------------------


def race(target: Callable[..., None], folder: Path, budget: float) -> list[str]:
    """Four at once; which of them charged, in the order of the rows."""
    Budget.open(folder, **{**TERMS, "epsilon": budget}).close()
    go = folder.parent / "go"
    names = [f"run-{n}" for n in range(4)]
    started = [processes().Process(target=target, args=(folder, name, DEAR, go)) for name in names]
    for process in started:
        process.start()
    while not all(go.with_name(f"{name}.ready").exists() for name in names):
        assert all(process.exitcode is None for process in started)
        time.sleep(0.01)
    go.touch()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    with Budget.open(folder, wait=1) as ledger:
        assert ledger.bound() <= budget
        assert ledger.latched
        fitting = sum(ledger.spending().values())
        assert privacy.bound({DEAR: fitting + 1}, ledger.delta) > budget, "the budget was not used up"
    with closing(sqlite3.connect(folder / "ledger.db")) as file:
        return [run for (run,) in file.execute("SELECT run FROM rows WHERE kind = 'charge' ORDER BY sequence")]


@pytest.mark.parametrize("target", [take_turns, without_the_lock])
def test_four_processes_share_the_budget_and_never_pass_it(target: Callable[..., None], folder: Path) -> None:
    order = race(target, folder, budget=4.0)
    assert set(order) == {"run-0", "run-1", "run-2", "run-3"}, "one of them was never served"
    turns = sum(one != other for one, other in pairwise(order))
    assert turns >= 8, f"they hardly interleaved: {order}"


def test_a_second_writer_waits_and_then_says_so_while_readers_go_on(folder: Path) -> None:
    go = folder.parent / "go"
    folder.parent.mkdir()
    process = processes().Process(target=hold, args=(folder, go))
    process.start()
    while not go.exists():
        assert process.exitcode is None
        time.sleep(0.01)
    try:
        with pytest.raises(DataError, match=r"lock: another process has been writing this privacy ledger for 0\.2 s"):
            Budget.open(folder, **TERMS, wait=0.2)
        with Budget.look(folder) as ledger:
            assert ledger.sequence == 1
            with pytest.raises(DataError, match="opened for reading"):
                ledger.charge(STEP, 1, run="r", phase="p", round=0)
    finally:
        process.kill()
        process.join()
    Budget.open(folder, **TERMS, wait=0.2).close()  # a dead process holds nothing


def test_a_writer_that_was_closed_adds_nothing(charged: Path) -> None:
    ledger = Budget.open(charged)
    ledger.close()
    ledger.close()
    with pytest.raises(DataError, match="closed"):
        ledger.charge(STEP, 1, run="r", phase="p", round=0)


# --- the budget -----------------------------------------------------------------------------------------------------


def fill(ledger: Budget, query: Query) -> int:
    for n in range(10_000):
        fits = ledger.would_fit({query: 1})
        try:
            ledger.charge(query, 1, run="r", phase="p", round=n)
        except BudgetSpent:
            assert not fits
            return n
        assert fits
    raise AssertionError("no end")


def own_epsilon(query: Query, steps: int, delta: float) -> float:
    """From scratch: the likelihood ratio of the Poisson-sampled Gaussian integrated, and turned into epsilon."""
    z = np.linspace(-12 * query.noise, 64 + 12 * query.noise, 40_001)
    density = -(z**2) / (2 * query.noise**2) - math.log(query.noise * math.sqrt(2 * math.pi))
    ratio = np.logaddexp(math.log1p(-query.rate), math.log(query.rate) + (2 * z - 1) / (2 * query.noise**2))
    found = math.inf
    for order in (order for order in privacy.ORDERS if order < 64):
        divergence = math.log(float(np.trapezoid(np.exp(density + order * ratio), z))) / (order - 1)
        slack = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        found = min(found, steps * divergence + slack)
    return found


def test_the_gate_stops_where_an_independent_bisection_says(folder: Path) -> None:
    low, high = 0, 4096
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if own_epsilon(DEAR, middle, 1e-5) <= 2.5 else (low, middle)
    with Budget.open(folder, epsilon=2.5, delta=1e-5, size=200) as ledger:
        assert fill(ledger, DEAR) == low
        assert sum(ledger.spending().values()) == low
        assert ledger.bound() == pytest.approx(own_epsilon(DEAR, low, 1e-5), rel=1e-6)


def test_a_spent_budget_admits_nothing_however_cheap_until_it_is_raised(folder: Path) -> None:
    with Budget.open(folder, epsilon=1.0, delta=1e-5, size=200) as ledger:
        ledger.charge(STEP, 1, run="r", phase="p", round=0)
        with pytest.raises(BudgetSpent, match=r"of the budget of 1 at delta 1e-05 is spent: with 1000 steps") as caught:
            ledger.charge(STEP, 1000, run="r", phase="p", round=1)
        assert caught.value.exit_code == 4
        assert ledger.latched
        assert ledger.left() == 0
    with Budget.open(folder) as ledger:
        rows = ledger.sequence
        assert not ledger.would_fit({CHEAP: 1})
        for _ in range(2):
            with pytest.raises(BudgetSpent, match="an earlier query was refused"):
                ledger.charge(CHEAP, 1, run="r", phase="p", round=2)
        assert ledger.sequence == rows
        for lower in (0.2, 0.9, 1.0):  # raised, but not above where it ended
            ledger.change_budget(lower, why="for a test")
            assert ledger.latched
        ledger.change_budget(1.1, why="the board, 3 March")
        assert not ledger.latched
        ledger.charge(CHEAP, 1, run="r", phase="p", round=2)
        assert ledger.spending() == {STEP: 1, CHEAP: 1}


def test_the_budget_changes_by_an_explicit_word_that_stands_in_the_chain(charged: Path) -> None:
    with pytest.raises(ConfigError, match="epsilon=9: the privacy ledger of this site says 8"):
        Budget.open(charged, epsilon=9.0, delta=1e-5, size=200)
    with pytest.raises(ConfigError, match="size=300: the privacy ledger of this site says 200"):
        Budget.open(charged, size=300)
    with pytest.raises(ConfigError, match=r"delta=1e-06: .* says 1e-05"):
        Budget.open(charged, delta=1e-6)
    with Budget.open(charged) as ledger:
        for terms, match in (
            ({"epsilon": 8.0, "why": "none"}, "nothing to change"),
            ({"epsilon": 9.0, "why": ""}, "why=''"),
            ({"epsilon": math.inf, "why": "all"}, "epsilon=inf"),
            ({"epsilon": -1.0, "why": "less"}, "epsilon=-1.0"),
            ({"epsilon": None, "size": 10**6, "why": "more"}, "delta=1e-05: must be above 0 and below one over"),
        ):
            with pytest.raises(ConfigError, match=match):
                ledger.change_budget(**terms)  # type: ignore[arg-type]
        assert ledger.sequence == 7
        ledger.change_budget(9.0, why="the board, 3 March", size=300)
    with Budget.open(charged, epsilon=9.0, delta=1e-5, size=300) as ledger:
        assert (ledger.budget, ledger.size, ledger.sequence) == (9.0, 300, 8)
        assert [row.why for row in ledger.decisions()] == ["enrolled", "the board, 3 March"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, r"steps=1\.5"),
        ({"steps": math.nan}, "steps=nan"),
        ({"steps": True}, "steps=True"),
        ({"steps": 2**70}, "steps="),
        ({"round": -1}, "round=-1"),
        ({"run": ""}, "run=''"),
        ({"run": "a\x1b[2J"}, "run="),
        ({"phase": "p" * 201}, "phase="),
        ({"phase": "\ud800"}, "phase="),
    ],
)
def test_a_charge_that_makes_no_sense_is_refused_and_leaves_no_row(
    change: dict[str, Any], match: str, charged: Path
) -> None:
    with Budget.open(charged) as ledger:
        with pytest.raises(ConfigError, match=match):
            ledger.charge(STEP, **{"steps": 1, "run": "r", "phase": "p", "round": 0, **change})
        assert ledger.sequence == 7


def test_what_is_spent_is_the_sum_over_runs_and_goes_out_with_each_update(charged: Path) -> None:
    with Budget.open(charged) as ledger:
        runs = ledger.by_run()
        assert [one.run for one in runs] == ["run-0", "run-1", "run-2"]
        assert [sum(one.phases.values()) for one in runs] == [3, 7, 11]
        total: dict[Query, int] = {}
        for one in runs:
            assert one.first <= one.last
            total = privacy.together(total, one.spending)
        assert total == ledger.spending() == {CHEAP: 9, STEP: 12}
        assert ledger.bound() == privacy.bound(total, 1e-5)
        assert 0 < ledger.epsilon() <= ledger.bound()
        word = ledger.spent(others=2)
        assert (word.sequence, word.budget, word.delta, word.size, word.others) == (7, 8.0, 1e-5, 200, 2)
        assert ledger.knows(word.sequence, word.head)
        assert (word.ledger, word.epsilon) == (ledger.id, ledger.epsilon())


def test_a_site_is_enrolled_once_and_only_with_sound_terms(folder: Path) -> None:
    refuses_to_look = pytest.raises(ConfigError, match="has never been enrolled")
    with refuses_to_look:
        Budget.look(folder)
    with pytest.raises(ConfigError, match="to make one name epsilon and size"):
        Budget.open(folder, epsilon=1.0, delta=1e-5)
    for terms, match in (
        ({"epsilon": 0.0, "delta": 1e-5, "size": 10}, r"epsilon=0\.0"),
        ({"epsilon": math.nan, "delta": 1e-5, "size": 10}, "epsilon=nan"),
        ({"epsilon": math.inf, "delta": 1e-5, "size": 10}, "epsilon=inf"),
        ({"epsilon": 1.0, "delta": 0.1, "size": 10}, r"delta=0\.1: must be above 0 and below one over the 10 subjects"),
        ({"epsilon": 1.0, "delta": 1e-5, "size": 0}, "size=0"),
    ):
        with pytest.raises(ConfigError, match=match):
            Budget.open(folder, **terms)  # type: ignore[arg-type]
    assert not folder.exists()
    with Budget.open(folder, **TERMS) as first:
        assert first.sequence == 1
        assert first.epsilon() == first.bound() == 0
    with Budget.open(folder) as again:
        assert again.id == first.id
