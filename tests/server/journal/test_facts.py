"""What a run remembers survives a kill, and small cells stay small."""

from pathlib import Path

import pytest

from server.journal import facts
from server.journal.facts import Pair, RoundFacts, SiteFacts
from shared.base.errors import DataError
from shared.base.records import Inventory


def one(number: int, *, phase: str = "translate", loss: float | None = 0.5) -> RoundFacts:
    return RoundFacts(
        phase=phase,
        round=number,
        of=3,
        ended=1e9 + number,
        seconds=2.5,
        loss=loss,
        sites={"north": SiteFacts(status="ok", loss=0.5, samples=64), "süd": SiteFacts(status="refused", reason="no")},
        watch={"spread": 0.3},
        holders={"from:T1": 1},
        refusals=("süd: no",),
        validation={"psnr/FLAIR": 20.0},
    )


def test_facts_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "run" / "rounds.jsonl"
    assert facts.read(path) == []
    for number in range(3):
        facts.append(path, one(number))
    assert facts.read(path) == [one(0), one(1), one(2)]


@pytest.mark.parametrize("torn", [b'{"phase":"tra', b"\xc3", b"{"])
def test_a_line_cut_off_by_a_kill_is_forgotten(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "rounds.jsonl"
    facts.append(path, one(0))
    with path.open("ab") as file:
        file.write(torn)
    assert facts.read(path) == [one(0)]
    facts.append(path, one(1))
    assert facts.read(path) == [one(0), one(1)]


def test_a_file_that_is_only_a_torn_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(b'{"phase"')
    assert facts.read(path) == []
    facts.append(path, one(0))
    assert facts.read(path) == [one(0)]


def test_a_round_that_was_run_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    for each in (one(0), one(1, loss=9.0), one(1, loss=0.25), one(0, phase="pretext")):
        facts.append(path, each)
    assert facts.read(path) == [one(0), one(1, loss=0.25), one(0, phase="pretext")]


@pytest.mark.parametrize("line", ["[]", "{}", "3", "null", '{"phase": 3}', "not json"])
def test_a_whole_line_that_is_no_round_is_an_error_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rounds.jsonl"
    facts.append(path, one(0))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"rounds\.jsonl line 2"):
        facts.read(path)


def test_a_number_that_is_none_is_the_same_in_memory_and_on_disk(tmp_path: Path) -> None:
    written = one(0, loss=float("nan"))
    facts.append(tmp_path / "rounds.jsonl", written)
    assert written.loss is None
    assert facts.read(tmp_path / "rounds.jsonl") == [written]


def test_a_reason_from_a_site_is_one_printable_line_of_bounded_length() -> None:
    reason = SiteFacts(status="error", reason="\x1b[2Jboo\n\x07" + "x" * 9000).reason
    assert reason.isprintable()
    assert reason.startswith("[2Jboo x")
    assert len(reason) == facts.REASON_CHARS


def test_coverage_counts_who_can_teach_what(tmp_path: Path) -> None:
    north = Inventory(site="north", schema="s", subjects=12, patterns={("T1", "FLAIR"): 7, ("T1",): -5})
    south = Inventory(site="south", schema="s", subjects=4, patterns={("FLAIR", "T1"): -5, ("T2",): 9})
    found = facts.coverage([south, north], ["T1", "FLAIR", "T2"])
    assert found.pairs["T1"]["FLAIR"] == found.pairs["FLAIR"]["T1"] == Pair(sites=2, at_least=8, at_most=11)
    assert found.pairs["T2"]["T1"] == Pair(sites=0, at_least=0, at_most=0)
    assert found.holders("T1") == 2
    assert facts.subjects(found.pairs["T1"]["FLAIR"]) == "8-11"
    assert [facts.cell(count) for count in (9, 0, -5)] == ["9", "0", "<5"]
    facts.save_coverage(tmp_path / "inventory.json", found)
    assert facts.load_coverage(tmp_path / "inventory.json") == found
