"""Messages that nobody would send, at the coordinator and at a site: a share of the fifty thousand, from a fixed seed.

All of them, or others: `PYTHONPATH=.:tests python tests/support/rounds/fuzz.py --messages 50000 --seed 1`
(support/rounds/fuzz.py).
"""

from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict
from support.rounds.fuzz import SHARES, shoot

from shared.plan import wire

pytestmark = [pytest.mark.usefixtures("probe"), pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MESSAGES, SEED = 1000, 20


def test_no_message_crashes_anything_or_changes_a_file_or_stays_in_memory(tmp_path: Path) -> None:
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
