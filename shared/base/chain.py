"""An append-only file of JSON lines, each with the hash of the line before: a change shows from there on.

What the chain alone can't show is a file cut off at its end, or written anew from some line on: for that somebody else
must have seen a later link (`Link`s travel with a site's replies, and the coordinator keeps them with its receipts).
"""

import csv
import hashlib
import hmac
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

from shared.base.errors import ConfigError, DataError
from shared.base.files import adding, write_json, write_text

GENESIS = "0" * 64
BLOCK = 2**16
Link: TypeAlias = str  # hash of the line before, in hex
Entry: TypeAlias = dict[str, Any]


def link(content: bytes, key: bytes | None = None) -> Link:
    """What is kept of an entry with the next one; under a key nobody without it can make another that fits."""
    return (hashlib.sha256(content).digest() if key is None else hmac.digest(key, content, "sha256")).hex()


def fits(found: object, expected: Link) -> bool:
    """Is this the link? Says nothing, by the time it takes, of how much of it is right."""
    return hmac.compare_digest(str(found).encode("utf-8", "surrogatepass"), expected.encode("utf-8", "surrogatepass"))


class Chain:
    """The file at `path`; each entry has the link of the line before it under "before"."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, make: Callable[[Link, Entry | None], Mapping[str, Any]]) -> None:
        """`make` gets the link that its entry will carry, and the entry before. On the disk when this returns.

        The cost does not grow with the file. What a kill left half written is cut off: nothing was done for it yet.
        """
        with adding(self._path) as file:
            end, line = _last_line(file)
            file.truncate(end)
            last = None if line is None else self._read(line, "its last line")
            before = GENESIS if line is None else link(line)
            entry = {**make(before, last), "before": before}
            file.write(json.dumps(entry, sort_keys=True, allow_nan=False).encode() + b"\n")

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
                before = link(line[:-1])
                yield entry

    def _read(self, line: bytes, where: str) -> Entry:
        try:
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry["before"], str):
                return entry
        except (ValueError, KeyError, RecursionError):
            pass
        raise DataError(f"{self._path} {where}: not an entry of a ledger")


def export(path: Path, record: Any, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], **how: Any) -> None:
    """Entries for a person or for the other side: `record` where `path` ends in .json, a table where in .csv."""
    if path.suffix == ".json":
        write_json(path, record, **how)
    elif path.suffix == ".csv":
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(rows)
        write_text(path, text.getvalue())
    else:
        raise ConfigError(f"--export {path}: must end in .csv or .json")


def _last_line(file: IO[bytes]) -> tuple[int, bytes | None]:
    """Where the whole lines end, and the last of them, read from the end."""
    start, tail = file.seek(0, os.SEEK_END), b""
    while start > 0 and tail[: tail.rfind(b"\n") + 1].count(b"\n") < 2:
        size = min(BLOCK, start)
        start = file.seek(start - size)
        tail = file.read(size) + tail
    whole = tail.rfind(b"\n") + 1
    return start + whole, tail[:whole].split(b"\n")[-2] if whole else None
