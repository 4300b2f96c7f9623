"""Messages that nobody would send, at the coordinator and at a site: a share of the fifty thousand, from a fixed seed.

All of them, or others: `PYTHONPATH=.:tests python tests/support/rounds/fuzz.py --messages 50000 --seed 1`
(support/rounds/fuzz.py).
"""

import json
import logging
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, RecordDict
from support.rounds.fuzz import SHARES, shoot

from shared.base.errors import PlanRefused, UpdateRejected
from shared.base.files import sha256
from shared.base.records import Inventory
from shared.plan import wire
from shared.plan.tensors import record_of
from shared.trust.warrant import Leader, Question, Reader, Warrant, issue

pytestmark = [pytest.mark.usefixtures("probe"), pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MESSAGES, SEED = 1000, 20


def test_no_message_crashes_anything_or_changes_a_file_or_stays_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="lacuna.site")  # a line for each would be memory, too
    found = shoot(tmp_path, MESSAGES, SEED)
    assert {kind for kind, _ in found.endings} == set(SHARES)
    refused = sum(n for (_, how), n in found.endings.items() if how != "taken")
    assert refused > 0.7 * MESSAGES, "\n".join(found.lines())


@pytest.mark.parametrize("text", [2**40, "text", [256, -1], 1.5, True])
def test_a_message_without_a_text_of_bytes_is_no_question(text: object) -> None:
    """Found by the fuzzing: of a number so many bytes were made, before anything was known of the message."""
    assert wire.question(RecordDict({"query": ConfigRecord({"text": text})})) == ""  # type: ignore[dict-item]
    assert wire.question(RecordDict({"query": ConfigRecord()})) == ""


@pytest.mark.parametrize("why", ["", " ", "\0\n", "\u202e"])
def test_a_no_without_a_word_is_a_line_all_the_same(why: str) -> None:
    said = wire.refusal_in(RecordDict({"refusal": ConfigRecord({"kind": "PlanRefused", "why": why})}))
    assert str(said) == "it gave no reason"


@pytest.mark.parametrize("known", ["", [], [7], "ab", {}, [-1, "x"], [2**64, "x"], [7, "x" * 300]])
def test_a_plan_whose_word_on_a_budget_is_no_pair_is_malformed(known: object) -> None:
    """Signed by the key of the run: an empty one was an unknown error of the site's work."""
    signing, key, now = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), time.time()
    public, settings = key.public_key().public_bytes_raw().hex(), sha256(b"{}")
    warrant = Warrant(federation="f", run="r", settings=settings, key=public, until=int(now) + 60)
    packed = wire.pack_weights({})
    head = {"run": "r", "phase": "fit", "round": 0, "config": "{}", "schema": "s", "hidden": [], "known": known}
    head |= {"what": "plan", "to": "north", "until": now + 60, "weights": packed.sha256}
    asked = Question.make(Leader(warrant=issue(warrant, signing), key=key), head)
    content = RecordDict({"plan": wire._pack_question(asked), "weights": record_of(packed.array)})
    with pytest.raises(PlanRefused, match="north: the message is malformed: "):
        wire.unpack_plan(content, Reader(site="north", trusted=signing.public_key(), now=now))


@pytest.mark.parametrize(
    "changes",
    [
        {"subjects": -1},
        {"patterns": json.dumps([[["T1"], 10**400]])},
        {"patterns": json.dumps([[["T1"], -(2**64)]])},
        {"patterns": json.dumps([[["T1"], True]])},
        {"patterns": json.dumps([[["x" * 300], 5]])},
        {"patterns": json.dumps([[[5], 5]])},
    ],
)
def test_an_inventory_counts_in_numbers_that_there_are(changes: dict[str, object]) -> None:
    good = wire.pack_inventory(Inventory(site="east", schema="s", subjects=5, patterns={("T1",): -5, ("T2",): 7}))
    assert wire.unpack_inventory(good).patterns == {("T1",): -5, ("T2",): 7}
    good.config_records["inventory"].update(changes)  # type: ignore[arg-type]
    with pytest.raises(UpdateRejected, match="malformed inventory: ValueError"):
        wire.unpack_inventory(good)
