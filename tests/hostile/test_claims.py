"""A site that claims what can not be of its privacy: a word that is stored must be one that can be true."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from server.rounds.ledgers import Ledgers
from shared.base.errors import ConfigError, UpdateRejected
from shared.base.options import plain
from shared.base.records import Spent, Update
from shared.plan import wire
from shared.trust.privacy import Query, epsilon

STEP = Query(noise=3.0, rate=0.3)
ROUND = {STEP: 4}
SPENT = Spent(ledger="ab" * 16, sequence=7, head="cd" * 32, epsilon=4.0, budget=8.0, delta=1e-5, size=70, others=0)


def update(spent: Spent) -> Update:
    return Update(site="north", run="r", phase="p", round=0, schema="s", delta={}, counts={}, spent=spent)


WHOLE, REAL, HEX = "must be a whole number from 0, below 2\\^63", "must be finite numbers from 0, delta", "hex digits"
IMPOSSIBLE = {  # and what is said of it: none is refused for another reason
    "a sequence beyond the database's numbers": ({"sequence": 2**64}, WHOLE),  # stored, it broke every later plan
    "the same by one": ({"sequence": 2**63}, WHOLE),
    "a size beyond them": ({"size": 2**64}, WHOLE),
    "others beyond them": ({"others": 2**200}, WHOLE),
    "a sequence below zero": ({"sequence": -1}, WHOLE),
    "a sequence that is no number": ({"sequence": "7"}, "spent.sequence='7': must be int"),
    "a delta of nothing": ({"delta": 0.0}, REAL),  # it ended the run at its release
    "a delta below zero": ({"delta": -1e-5}, REAL),
    "a delta of one": ({"delta": 1.0}, REAL),
    "a delta that is no number": ({"delta": float("nan")}, REAL),
    "an epsilon without end": ({"epsilon": float("inf")}, REAL),
    "an epsilon below zero": ({"epsilon": -0.5}, REAL),
    "a head that is a path": ({"head": "../../ledgers.json"}, HEX),
    "more than it may say": ({"subjects": 7}, "spent.subjects=7: unknown key"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_word_that_can_not_be_true_is_not_read(what: str) -> None:
    changes, says = IMPOSSIBLE[what]
    text = json.dumps({**plain(SPENT), **changes})
    with pytest.raises((ValueError, ConfigError), match=says):
        wire._unpack_spent(text)
    assert wire._unpack_spent(json.dumps(plain(SPENT))) == SPENT


UNLIKELY: dict[str, tuple[dict[str, Any], str]] = {
    "fewer rows than the round has": (
        {"sequence": 10},
        "went from 7 to 10, and the round has 4 rows: not all was charged",
    ),
    "less than it had spent": ({"sequence": 11, "epsilon": 3.9}, "spent epsilon 3.9, and it was 4: it never falls"),
    "another delta": ({"sequence": 11, "delta": 1e-2}, "its delta is 0.01, before it was 1e-05"),
}


@pytest.mark.parametrize("what", UNLIKELY)
def test_a_word_that_does_not_follow_from_the_one_before_is_rejected_and_not_kept(what: str, tmp_path: Path) -> None:
    changes, says = UNLIKELY[what]
    ledgers = Ledgers(tmp_path / "ledgers.json", "on")
    ledgers.accept(update(SPENT), ROUND)
    with pytest.raises(UpdateRejected, match=f"north: .*{says}"):
        ledgers.accept(update(dataclasses.replace(SPENT, **changes)), ROUND)
    assert ledgers.last("north") == SPENT
    ledgers.accept(update(dataclasses.replace(SPENT, sequence=11, head="11" * 32, epsilon=4.5)), ROUND)


def test_a_site_can_not_have_spent_less_than_it_was_asked(tmp_path: Path) -> None:
    """Steps, noise and rate are the run's own: they give a floor, from the first word on and over rounds."""
    least = epsilon(ROUND, 1e-5)
    ledgers = Ledgers(tmp_path / "ledgers.json", "on")
    with pytest.raises(
        UpdateRejected, match=r"north: it says that it spent epsilon 0\.01; what this run asked of it comes"
    ):
        ledgers.accept(update(dataclasses.replace(SPENT, epsilon=0.01)), ROUND)
    assert ledgers.last("north") is None
    first = dataclasses.replace(SPENT, epsilon=least)
    ledgers.accept(update(first), ROUND)
    again = dataclasses.replace(first, sequence=11, head="11" * 32)
    with pytest.raises(UpdateRejected, match="what this run asked of it comes to"):
        ledgers.accept(update(again), ROUND)
    ledgers.accept(update(dataclasses.replace(again, epsilon=epsilon({STEP: 8}, 1e-5))), ROUND)
