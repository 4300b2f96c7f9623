"""The files of a privacy budget: its key, its database, its lock, and the mark that says that it was there.

Each is made whole or not at all, so that a kill during enrolment leaves a site that is not enrolled.
"""

import json
import os
import secrets
import sqlite3
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from client.privacy.budget_rows import COLUMNS, Identity, Row, link, sign, values
from shared.base import chain
from shared.base.disk import locks, system
from shared.base.errors import DataError
from shared.base.files import move, write_once, write_text

KEY_BYTES = 32
BUSY = 30.0  # seconds that SQLite waits for another connection
NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "afs", "ncpfs")  # hosts share no memory there, which WAL needs
RECOVER = (
    "put back the newest copy of the whole folder and of its mark; where there is none, what was spent is not known, "
    "and the site must not train privately until coordinator and data-protection officer agree how to count it"
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (id TEXT NOT NULL, delta REAL NOT NULL, made REAL NOT NULL);
CREATE TABLE IF NOT EXISTS rows (
    sequence INTEGER PRIMARY KEY, time REAL, kind TEXT, run TEXT, phase TEXT, round INTEGER, noise REAL, rate REAL,
    steps INTEGER, total INTEGER, budget REAL, size INTEGER, why TEXT, head TEXT);
CREATE TRIGGER IF NOT EXISTS one_ledger BEFORE INSERT ON ledger WHEN (SELECT count(*) FROM ledger) > 0
    BEGIN SELECT RAISE(ABORT, 'a privacy ledger is made once'); END;
CREATE TRIGGER IF NOT EXISTS rows_follow BEFORE INSERT ON rows
    WHEN NEW.sequence IS NOT (SELECT coalesce(max(sequence), 0) + 1 FROM rows)
    BEGIN SELECT RAISE(ABORT, 'rows of a privacy ledger follow one another'); END;
""" + "".join(
    f"""CREATE TRIGGER IF NOT EXISTS {table}_{act.lower()} BEFORE {act} ON {table}
    BEGIN SELECT RAISE(ABORT, 'a privacy ledger is only ever added to'); END;
"""
    for table in ("ledger", "rows")
    for act in ("UPDATE", "DELETE")
)
INSERT = f"INSERT INTO rows ({', '.join(COLUMNS)}, head) VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How far the budget had come when this site last opened or closed it."""

    ledger: str
    sequence: int
    head: str


def enrolled(folder: Path) -> bool:
    return mark_file(folder).exists() or (folder / "ledger.db").exists()


def must_be_there(folder: Path) -> None:
    """Raise DataError where a site is enrolled and a file of its budget is missing."""
    path = folder / "ledger.db"
    if not path.exists() or path.stat().st_size == 0:
        raise DataError(f"{path}: missing or empty, but this site is enrolled: {RECOVER}")


def enrol(folder: Path, *, epsilon: float, delta: float, size: int) -> None:
    """Make the key and a database with its first row, the budget's terms; the caller holds the lock."""
    if not (folder / "key").exists():
        write_once(folder / "key", secrets.token_bytes(KEY_BYTES))
    key = read_key(folder / "key")
    identity = Identity(id=secrets.token_hex(16), delta=float(delta), made=round(time.time(), 3))
    first = Row(
        sequence=1, time=identity.made, kind="budget", total=0, budget=float(epsilon), size=size, why="enrolled"
    )
    new = folder / "ledger.new"
    for left_over in folder.glob("ledger.new*"):
        left_over.unlink()
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    file = connect(new)
    file.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
    file.execute("INSERT INTO ledger VALUES (?, ?, ?)", (identity.id, identity.delta, identity.made))
    file.execute(INSERT, (*values(first), link(identity.head(key), first, key)))
    file.close()
    move(new, folder / "ledger.db")
    system.sync(folder.parent)


def connect(path: Path) -> sqlite3.Connection:
    """Open a database that exists already, so that each commit is on the disk before it returns."""
    file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY, isolation_level=None)
    try:
        (mode,) = file.execute("PRAGMA journal_mode = WAL").fetchone()
        file.execute("PRAGMA synchronous = FULL")
        if mode != "wal":
            raise DataError(
                f"{path}: this file system does not take SQLite's write-ahead log ({mode}); use a local disk"
            )
    except BaseException:
        file.close()
        raise
    return file


def guard(file: sqlite3.Connection) -> None:
    """Put the triggers back if someone dropped them."""
    file.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")


def read_identity(file: sqlite3.Connection) -> Identity:
    tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    found = file.execute("SELECT id, delta, made FROM ledger").fetchall() if {"ledger", "rows"} <= tables else []
    if len(found) != 1:
        raise DataError(f"holds no ledger, but this site is enrolled: {RECOVER}")
    return Identity(id=found[0][0], delta=found[0][1], made=found[0][2])


def read_key(path: Path) -> bytes:
    if not path.exists():
        raise DataError(f"{path}: missing; without it this site's privacy ledger can't be verified: {RECOVER}")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise DataError(f"{path}: has mode {mode:04o}, so others may read it; the rule is 0600 (chmod 600)")
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise DataError(f"{path}: has {len(key)} bytes; a privacy ledger's key has {KEY_BYTES}: {RECOVER}")
    return key


def mark_file(folder: Path) -> Path:
    """Where the mark is: beside the folder, so that it is still there when the folder is not."""
    return folder.with_name(f"{folder.name}.enrolled")


def read_mark(path: Path, key: bytes) -> Mark | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        mark = Mark(ledger=str(found["ledger"]), sequence=int(found["sequence"]), head=str(found["head"]))
        seal = str(found["seal"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: is not the mark of a privacy ledger: {RECOVER}") from None
    if not chain.fits(seal, _seal(mark, key)):
        raise DataError(f"{path}: was not written with the key beside the ledger; one of the two is not this site's")
    return mark


def write_mark(path: Path, mark: Mark, key: bytes) -> None:
    found = {"ledger": mark.ledger, "sequence": mark.sequence, "head": mark.head, "seal": _seal(mark, key)}
    write_text(path, json.dumps(found, indent=1, sort_keys=True))


def take_lock(path: Path, wait: float) -> int:
    """Wait for the lock and give a handle to free and close; DataError after `wait` seconds."""
    handle = locks.take(path, wait=wait)
    if handle is None:
        raise DataError(f"{path}: another process has been writing this privacy ledger for {wait:g} s; only one may")
    return handle


def refuse_network(folder: Path, mounts: str | None = None) -> None:
    """Raise DataError on a network disk: SQLite's write-ahead log needs memory that all its processes share."""
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(errors="surrogateescape")
        except OSError:  # not Linux
            return
    kind, longest = "", -1
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        if folder.resolve().is_relative_to(point) and len(point.parts) >= longest:
            kind, longest = fields[2], len(point.parts)
    if kind.startswith(NETWORK):
        raise DataError(f"{folder}: lies on {kind}; a privacy ledger must be on a disk of this machine (site's state=)")


def _seal(mark: Mark, key: bytes) -> str:
    return sign([mark.ledger, mark.sequence, mark.head], key)
