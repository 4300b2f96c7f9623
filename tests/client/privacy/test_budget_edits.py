"""A privacy ledger that was edited, lost or put back is refused; what this disk can't tell, the coordinator can."""

import math
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.privacy.chargers import STEP, TERMS, six_charges

from client.privacy.budget import Budget
from client.privacy.budget_files import INSERT, mark_file, refuse_network
from client.privacy.budget_rows import COLUMNS, Row, link, values
from shared.base.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "privacy"


@pytest.fixture
def charged(folder: Path) -> Path:
    return six_charges(folder)


@contextmanager
def by_hand(folder: Path, *, guarded: bool = False) -> Iterator[sqlite3.Connection]:
    """Someone with SQLite and this disk; unless guarded, the triggers are dropped first."""
    file = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    if not guarded:
        for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            file.execute(f"DROP TRIGGER {name}")
    yield file
    file.close()


def refuses(folder: Path, match: str, error: type[Exception] = DataError) -> None:
    """To write and to read."""
    with pytest.raises(error, match=match):
        Budget.open(folder, **TERMS)
    with pytest.raises(error, match=match):
        Budget.look(folder)


# --- edited ---------------------------------------------------------------------------------------------------------

REST = ", ".join(COLUMNS[1:])
SWAP = [
    f"UPDATE rows SET ({REST}, head) = (SELECT {REST}, head FROM rows WHERE sequence = {here}) WHERE sequence = {there}"
    for here, there in ((3, 99), (4, 3), (99, 4))
]
BROKEN = "the chain is broken, this row or one before it was changed"
EDITS: dict[str, tuple[list[str], str]] = {
    "a row deleted": (["DELETE FROM rows WHERE sequence = 3"], "row 4 follows row 2: rows were taken out or put in"),
    "a row deleted, the rest renumbered": (
        ["DELETE FROM rows WHERE sequence = 3", "UPDATE rows SET sequence = sequence - 1 WHERE sequence > 3"],
        f"row 3: {BROKEN}",
    ),
    "the first row deleted": (["DELETE FROM rows WHERE sequence = 1"], "row 2 follows row 0"),
    "the first charge deleted, the rest renumbered": (
        ["DELETE FROM rows WHERE sequence = 2", "UPDATE rows SET sequence = sequence - 1 WHERE sequence > 2"],
        f"row 2: {BROKEN}",
    ),
    "all rows deleted": (["DELETE FROM rows"], "has no rows"),
    "fewer steps": (["UPDATE rows SET steps = 1, total = total - 3 WHERE sequence = 5"], f"row 5: {BROKEN}"),
    "more noise": (["UPDATE rows SET noise = 9.0 WHERE sequence = 3"], f"row 3: {BROKEN}"),
    "another run": (["UPDATE rows SET run = 'other' WHERE sequence = 7"], f"row 7: {BROKEN}"),
    "another time": (["UPDATE rows SET time = time - 1 WHERE sequence = 7"], f"row 7: {BROKEN}"),
    "a higher budget": (["UPDATE rows SET budget = 100.0 WHERE sequence = 1"], f"row 1: {BROKEN}"),
    "a greater delta": (["UPDATE ledger SET delta = 1e-3"], f"row 1: {BROKEN}"),
    "another id": ([f"UPDATE ledger SET id = '{'0' * 32}'"], f"row 1: {BROKEN}"),
    "two rows swapped": (
        [f"INSERT INTO rows SELECT 99, {REST}, head FROM rows LIMIT 1", *SWAP, "DELETE FROM rows WHERE sequence = 99"],
        f"row 3: {BROKEN}",
    ),
    "a row put in": (
        [f"INSERT INTO rows SELECT 8, {REST}, head FROM rows WHERE sequence = 7"],
        f"row 8: {BROKEN}",
    ),
    "a head of no text": (["UPDATE rows SET head = x'ff00' WHERE sequence = 4"], f"row 4: {BROKEN}"),
    "a noise of no number": (["UPDATE rows SET noise = x'ff00' WHERE sequence = 4"], f"row 4: {BROKEN}"),
    "the tables dropped": (["DROP TABLE rows", "DROP TABLE ledger"], "holds no ledger, but this site is enrolled"),
    "a second ledger": (["INSERT INTO ledger VALUES ('0', 1e-3, 0.0)"], "holds no ledger"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_ledger_is_refused_with_the_row(edit: str, charged: Path) -> None:
    statements, match = EDITS[edit]
    with by_hand(charged) as file:
        for statement in statements:
            file.execute(statement)
    refuses(charged, match)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM rows WHERE sequence = 7",
        "UPDATE rows SET steps = 0",
        "UPDATE ledger SET delta = 1e-3",
        "DELETE FROM ledger",
        "INSERT INTO ledger VALUES ('0', 1e-3, 0.0)",
        f"INSERT OR REPLACE INTO rows SELECT {', '.join(COLUMNS)}, head FROM rows WHERE sequence = 7",
        "INSERT INTO rows (sequence) VALUES (9)",
    ],
)
def test_the_file_itself_takes_no_change(statement: str, charged: Path) -> None:
    with by_hand(charged, guarded=True) as file, pytest.raises(sqlite3.IntegrityError, match="privacy ledger"):
        file.execute(statement)
    with by_hand(charged):
        pass  # drops the triggers
    Budget.open(charged).close()  # and they stand again
    with by_hand(charged, guarded=True) as file, pytest.raises(sqlite3.IntegrityError, match="privacy ledger"):
        file.execute(statement)


PLANTED: dict[str, tuple[dict[str, Any], str]] = {
    "noise nan": ({"noise": math.nan}, "noise=None: must be a number"),  # SQLite keeps NaN as NULL
    "noise inf": ({"noise": math.inf}, "noise=inf"),
    "noise 0": ({"noise": 0.0}, "noise=0.0"),
    "noise below 0": ({"noise": -2.0}, "noise=-2.0"),
    "rate 0": ({"rate": 0.0}, "rate=0.0"),
    "rate 1.5": ({"rate": 1.5}, "rate=1.5"),
    "rate nan": ({"rate": math.nan}, "rate=None"),
    "finer than queries are": ({"noise": 2.00001}, "must be rounded as queries are"),
    "steps 0": ({"steps": 0, "total": 21}, "steps=0: must be 1 or more"),
    "steps below 0": ({"steps": -20, "total": 1}, "steps=-20"),
    "half a step": ({"steps": 0.5, "total": 21.5}, r"steps=0\.5"),
    "a total that falls": ({"steps": 1, "total": 5}, "steps=1, total=5: must be counts, and add up"),
    "a refund": ({"kind": "refund"}, "kind='refund'"),
    "a refused charge with steps": ({"kind": "spent"}, "steps=1"),
    "a budget of nothing": ({"kind": "budget", "budget": math.inf, "size": 9, "steps": 0, "total": 21}, "budget=inf"),
    "a gap": ({"sequence": 9}, "row 9 follows row 7"),
    "time nan": ({"time": math.nan}, "time is not a finite number"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_row_that_no_charge_could_have_made_is_refused_though_the_key_signed_it(what: str, charged: Path) -> None:
    changes, match = PLANTED[what]
    with Budget.look(charged) as ledger:
        head = ledger.head
    row = Row(sequence=8, time=time.time(), kind="charge", run="r", phase="p", noise=2.0, rate=0.1, steps=1, total=22)
    row = replace(row, **changes)
    stored = replace(row, **{n: None for n in ("noise", "rate", "time") if (v := getattr(row, n)) != v})
    with by_hand(charged) as file:
        file.execute(INSERT, (*values(stored), link(head, stored, (charged / "key").read_bytes())))
    refuses(charged, match)


def test_rows_taken_off_an_open_ledger_stop_the_next_charge(charged: Path) -> None:
    with Budget.open(charged) as ledger:
        with by_hand(charged) as file:
            file.execute("DELETE FROM rows WHERE sequence = 7")
        with pytest.raises(DataError, match="row 7: was changed or taken out while the ledger was open"):
            ledger.charge(STEP, 1, run="r", phase="p", round=0)
        assert ledger.sequence == 7


# --- gone, or old ---------------------------------------------------------------------------------------------------


def test_rows_taken_off_the_end_are_refused_here_or_unknown_to_the_coordinator(charged: Path) -> None:
    with Budget.look(charged) as ledger:
        seen = ledger.sequence, ledger.head
        assert ledger.knows(*seen)
        assert not ledger.knows(seen[0], "0" * 64)
        assert not ledger.knows(seen[0] - 1, seen[1])
        assert not ledger.knows(0, seen[1])
    with by_hand(charged) as file:
        file.execute("DELETE FROM rows WHERE sequence > 5")
    refuses(charged, "ends at row 5 and does not hold row 7 as this site last saw it")
    mark_file(charged).unlink()  # someone who knows of the mark
    with Budget.open(charged) as ledger:
        assert not ledger.knows(*seen)
        for n in range(4):
            ledger.charge(STEP, 1, run="r", phase="p", round=n)
        assert ledger.sequence > seen[0]
        assert not ledger.knows(*seen)


def test_a_restored_copy_is_refused_here_or_unknown_to_the_coordinator(charged: Path, tmp_path: Path) -> None:
    shutil.copytree(charged, tmp_path / "copy")
    shutil.copy(mark_file(charged), tmp_path / "mark")
    with Budget.open(charged) as ledger:
        ledger.charge(STEP, 1, run="r", phase="p", round=0)
        seen = ledger.sequence, ledger.head
    newest = mark_file(charged).read_bytes()
    shutil.rmtree(charged)
    shutil.copytree(tmp_path / "copy", charged)
    refuses(charged, "it is an old copy, or rows were taken off its end: put back the newest copy")
    shutil.copy(tmp_path / "mark", mark_file(charged))
    with Budget.look(charged) as ledger:
        assert not ledger.knows(*seen)
    mark_file(charged).write_bytes(newest)
    with pytest.raises(DataError, match="old copy"):
        Budget.look(charged)


def test_what_is_missing_is_refused_and_never_taken_for_a_fresh_start(charged: Path, tmp_path: Path) -> None:
    for name, match in (
        ("ledger.db", "missing or empty, but this site is enrolled: put back"),
        ("key", "key: missing"),
    ):
        (charged / name).rename(tmp_path / name)
        refuses(charged, match)
        (tmp_path / name).rename(charged / name)
    kept = (charged / "ledger.db").read_bytes()
    for content, match in ((b"", "missing or empty"), (b"no database" * 500, "not a database")):
        (charged / "ledger.db").write_bytes(content)
        refuses(charged, match)
    (charged / "ledger.db").write_bytes(kept)
    Budget.open(charged, **TERMS).close()
    shutil.rmtree(charged)
    refuses(charged, "missing or empty, but this site is enrolled")
    assert not charged.exists()


def test_a_fresh_ledger_in_place_of_the_old_one_is_refused(charged: Path) -> None:
    mark = mark_file(charged).read_bytes()
    mark_file(charged).unlink()
    (charged / "ledger.db").unlink()
    Budget.open(charged, **TERMS).close()
    mark_file(charged).write_bytes(mark)
    refuses(charged, "is another ledger than the one that this site was enrolled with")


def test_the_key_must_be_the_sites_own_and_nobody_elses_to_read(charged: Path) -> None:
    key = charged / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert charged.stat().st_mode & 0o777 == 0o700
    assert len(key.read_bytes()) == 32
    for mode in (0o644, 0o640, 0o604):
        key.chmod(mode)
        refuses(charged, f"key: has mode 0{mode:o}, so others may read it; the rule is 0600")
    key.chmod(0o600)
    right = key.read_bytes()
    key.write_bytes(os.urandom(32))
    refuses(charged, "enrolled: was not written with the key beside the ledger")
    mark = mark_file(charged).read_bytes()
    mark_file(charged).unlink()
    refuses(charged, f"row 1: {BROKEN}")
    key.write_bytes(right[:31])
    refuses(charged, "has 31 bytes")
    key.write_bytes(right)
    for damaged in (b"{}", b"\xff\x00", mark.replace(b'"sequence": 7', b'"sequence": 6')):
        mark_file(charged).write_bytes(damaged)
        refuses(charged, r"privacy\.enrolled")
    mark_file(charged).unlink()
    Budget.open(charged, **TERMS).close()
    assert mark_file(charged).read_bytes() == mark, "a whole ledger makes its mark anew"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs"])
def test_a_ledger_on_another_hosts_disk_is_refused(kind: str, tmp_path: Path) -> None:
    there = tmp_path / "on the network"
    mounts = f"/dev/vda / ext4 rw 0 0\nhost:/x {str(there).replace(' ', chr(92) + '040')} {kind} rw 0 0\n"
    with pytest.raises(DataError, match=f"lies on {kind}"):
        refuse_network(there / "state" / "privacy", mounts)
    refuse_network(tmp_path / "beside" / "privacy", mounts)
    refuse_network(there / "privacy", f"{mounts}/dev/vdb {str(there).replace(' ', chr(92) + '040')} ext4 rw 0 0\n")
