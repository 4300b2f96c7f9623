"""The site's egress record: append-only, hash-chained, on the disk before the bytes leave."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shared.errors import DataError

GENESIS = "0" * 64


class Ledger:
    """One JSON line per release; each line carries the hash of the line before."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Durable when this returns; only then may the reply be handed over."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            last = _last_line(file)
            entry = {"time": round(time.time(), 3), "kind": kind, **facts, "before": _hash(last) if last else GENESIS}
            file.write(json.dumps(entry, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, or DataError at the first broken link."""
        if not self._path.exists():
            return
        before = GENESIS
        for number, line in enumerate(self._path.read_bytes().splitlines(), start=1):
            try:
                entry: dict[str, Any] = json.loads(line)
                linked = entry["before"] == before
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{self._path} line {number}: not an entry of a ledger") from None
            if not linked:
                raise DataError(f"{self._path} line {number}: the chain is broken, something before it was changed")
            before = _hash(line)
            yield entry

    def without_privacy(self) -> int:
        """Updates that have left without differential privacy."""
        return sum("update.run" in e.get("fields", {}) and not e["fields"].get("update.spent") for e in self.entries())


def lines(entries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """For a person: when, what, how much, which hash, and every field that is no tensor."""
    count = total = 0
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["time"]))
        yield f"{when}  {entry['bytes']:>10} bytes  {entry['tensors']:>4} tensors  sha256 {entry['sha256'][:16]}"
        for name, value in sorted(entry["fields"].items()):
            yield f"{'':21}{name} = {value}"
        count, total = count + 1, total + int(entry["bytes"])
    yield f"{count} replies, {total / 1e6:.2f} MB in all; the chain is whole"


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _last_line(file: Any) -> bytes | None:
    """The last whole line; a torn one, from a kill in mid-write, is cut off: nothing had left for it yet."""
    file.seek(0)
    content: bytes = file.read()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        file.truncate(whole)
        file.seek(whole)
    lines = content[:whole].splitlines()
    return lines[-1] if lines else None
