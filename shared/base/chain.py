"""An append-only file of JSON lines, each with the hash of the line before: a change shows from there on.

What the chain alone can't show is a file cut off at its end, or written anew from some line on: for that somebody else
must have seen a later link (`Link`s travel with a site's replies, and the coordinator keeps them with its receipts).
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

from shared.base.errors import DataError

GENESIS = "0" * 64
BLOCK = 2**16
Link: TypeAlias = str  # hash of the line before, in hex
Entry: TypeAlias = dict[str, Any]


class Chain:
    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, make: Callable[[Link, Entry | None], Mapping[str, Any]]) -> None:
        """`make` gets the link that its entry will carry, and the entry before. On the disk when this returns.

        The cost does not grow with the file. What a kill left half written is cut off: nothing was done for it yet.
        """
        new = not self._path.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end, line = _last_line(file)
            file.truncate(end)
            last = None if line is None else self._read(line, "its last line")
            before = GENESIS if line is None else _hash(line)
            entry = {**make(before, last), "before": before}
            file.write(json.dumps(entry, sort_keys=True, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            _sync(self._path.parent)

    def last(self) -> Entry | None:
        """The last whole entry, without a look at the others."""
        if not self._path.exists():
            return None
        with self._path.open("rb") as file:
            _, line = _last_line(file)
        return None if line is None else self._read(line, "its last line")

    def entries(self) -> Iterator[Entry]:
        """All whole entries, or DataError at the first broken link."""
        if not self._path.exists():
            return
        before = GENESIS
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return  # half written by something that was killed
                entry = self._read(line[:-1], f"line {number}")
                if entry["before"] != before:
                    raise DataError(f"{self._path} line {number}: the chain is broken, something before it was changed")
                before = _hash(line[:-1])
                yield entry

    def _read(self, line: bytes, where: str) -> Entry:
        try:
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry["before"], str):
                return entry
        except (ValueError, KeyError, RecursionError):
            pass
        raise DataError(f"{self._path} {where}: not an entry of a ledger")


def _hash(line: bytes) -> Link:
    return hashlib.sha256(line).hexdigest()


def _last_line(file: IO[bytes]) -> tuple[int, bytes | None]:
    """Where the whole lines end, and the last of them, read from the end."""
    start, tail = file.seek(0, os.SEEK_END), b""
    while start > 0 and tail[: tail.rfind(b"\n") + 1].count(b"\n") < 2:
        size = min(BLOCK, start)
        start = file.seek(start - size)
        tail = file.read(size) + tail
    whole = tail.rfind(b"\n") + 1
    return start + whole, tail[:whole].split(b"\n")[-2] if whole else None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
