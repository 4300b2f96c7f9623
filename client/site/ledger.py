"""The site's ledger: what left it, written down before the bytes leave (shared/base/chain.py holds it together).

An entry has when, which run, phase and round it answers, every field in full, every tensor by name, form and norm, the
whole delta's norm, bytes, and one hash of what was sent. Each reply carries the link of its entry, so that the
coordinator's receipts can tell a ledger that was written anew, and one cut off at its end.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from shared.base import chain
from shared.base.chain import Chain, Entry, Link
from shared.base.errors import DataError
from shared.base.files import read_bounded

Key: TypeAlias = tuple[str, str, int]  # run, phase, round
LEDGER = "ledger.jsonl"  # in STATE
MOST_RECEIPTS = 2**28
_RECEIPT = {"site": str, "run": str, "phase": str, "round": int, "sha256": str}
COLUMNS = (
    "time",
    "what",
    "run",
    "phase",
    "round",
    "bytes",
    "tensors",
    "norm",
    "counts",
    "metrics",
    "epsilon",
    "refusal",
    "sha256",
    "before",
)


class Ledger:
    def __init__(self, path: Path) -> None:
        self._path, self._chain = path, Chain(path)

    def release(self, seal: Callable[[Link], Mapping[str, Any]], asked: Mapping[str, str | int]) -> None:
        """Enter a reply, on which `seal` puts the entry's link. Only when this returns may the reply leave."""

        def enter(before: Link, last: Entry | None) -> Mapping[str, Any]:
            facts = seal(before)
            open_ = 0 if last is None else _open_before(last, self.without_privacy)
            return {
                "time": round(time.time(), 3),
                "kind": "reply",
                "run": asked.get("run"),
                "phase": asked.get("phase"),
                "round": asked.get("round"),
                **facts,
                **_numbers_of(facts["fields"]),
                "open": open_ + _is_open(facts["fields"]),
            }

        self._chain.append(enter)

    def entries(self) -> Iterator[Entry]:
        """Read all entries; DataError at the first broken link."""
        return self._chain.entries()

    def without_privacy(self) -> int:
        """Count updates that have left without differential privacy."""
        last = self._chain.last()
        if last is None:
            return 0
        return _open_before(last, lambda: sum(_is_open(entry.get("fields", {})) for entry in self.entries()))


def _open_before(last: Entry, count: Callable[[], int]) -> int:
    """The running number that each entry carries; counted where an older version wrote the last."""
    found = last.get("open")
    return found if isinstance(found, int) else int(count())


def _is_open(fields: Mapping[str, Any]) -> bool:
    return "update.run" in fields and not fields.get("update.spent")


def _numbers_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Take counts, metrics and epsilon out of an update's fields."""
    if "update.run" not in fields:
        return {}
    spent = json.loads(fields["update.spent"] or "null")
    return {
        "counts": json.loads(fields["update.counts"]),
        "metrics": json.loads(fields["update.metrics"]),
        "epsilon": None if spent is None else spent["epsilon"],
    }


# --- for a person ---------------------------------------------------------------------------------------------------


def what(entry: Mapping[str, Any]) -> str:
    fields = entry["fields"]
    for word in ("update", "inventory", "refusal"):
        if f"{word}.site" in fields:
            return word
    return "reply"


def row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Make one entry a line of a table; of its tensors it says only how many."""
    fields, tensors = entry["fields"], entry["tensors"]
    refusal = f"{fields['refusal.kind']}: {fields['refusal.why']}" if "refusal.kind" in fields else None
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["time"])),
        "what": what(entry),
        **{key: entry.get(key) for key in ("run", "phase", "round", "bytes")},
        "tensors": len(tensors) if isinstance(tensors, list) else tensors,  # an older version wrote their number
        "norm": entry.get("norm"),
        "counts": entry.get("counts"),
        "metrics": entry.get("metrics"),
        "epsilon": entry.get("epsilon"),
        "refusal": refusal,
        "sha256": entry["sha256"],
        "before": entry["before"],
    }


def export(entries: Iterable[Entry], path: Path) -> int:
    """Write all entries, to JSON with every tensor, to CSV one line each; give how many."""
    every = list(entries)
    rows = ({key: json.dumps(v) if isinstance(v, dict) else v for key, v in row(entry).items()} for entry in every)
    chain.export(path, every, COLUMNS, rows, sort_keys=True)
    return len(every)


# --- against the coordinator's receipts -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipts:
    """What the coordinator says that it got from this site in one run."""

    run: str
    site: str
    receipts: tuple[Mapping[str, Any], ...]


def read_receipts(path: Path, site: str | None = None) -> Receipts:
    """Read what `lacuna receipts RUN --site SITE --export FILE.json` wrote; DataError for anything else."""
    try:
        found = json.loads(read_bounded(path, "receipts", MOST_RECEIPTS))
        run, receipts = found["run"], found["receipts"]
        whole = isinstance(run, str) and all(
            isinstance(one[key], kind) for one in receipts for key, kind in _RECEIPT.items()
        )
        sites = {one["site"] for one in receipts} | ({found["site"]} if found["site"] else set())
    except (ValueError, TypeError, KeyError, RecursionError):
        whole, sites = False, set()
    if not whole:
        raise DataError(f"receipts {path}: not what `lacuna receipts RUN --site SITE --export FILE.json` writes")
    if site is None and len(sites) != 1:
        raise DataError(f"receipts {path}: of {len(sites)} sites; ask for those of your own, or name it, --site")
    mine = site if site is not None else sites.pop()
    return Receipts(run=run, site=mine, receipts=tuple(one for one in receipts if one["site"] == mine))


def compare(entries: Iterable[Entry], receipts: Receipts) -> Iterator[str]:
    """Give one line for each difference between what left and what the coordinator says that it got in this run."""
    got: dict[Key, list[Mapping[str, Any]]] = {}
    for receipt in receipts.receipts:
        got.setdefault((receipt["run"], receipt["phase"], receipt["round"]), []).append(receipt)
    lost: dict[Key, list[Entry]] = {}
    for entry in entries:
        if entry.get("run") != receipts.run or entry.get("phase") is None:
            continue  # another run, or the handshake before round 1
        key = (receipts.run, str(entry["phase"]), int(entry["round"]))
        same = next((one for one in got.get(key, []) if one["sha256"] == entry["sha256"]), None)
        if same is None:
            lost.setdefault(key, []).append(entry)
            continue
        got[key].remove(same)
        if same.get("link") not in (None, entry["before"]):
            yield (
                f"{_name(key)}: left with the link {str(same['link'])[:12]}, here it is {entry['before'][:12]}: "
                "something before it in this ledger was written anew"
            )
    for key in dict.fromkeys([*lost, *got]):
        here, there = lost.get(key, []), got.get(key, [])
        for entry, receipt in zip(here, there, strict=False):
            hashes = f"sent as {entry['sha256'][:12]}, receipted as {receipt['sha256'][:12]}"
            yield f"{_name(key)}: {hashes}: one of the two was changed"
        for entry in here[len(there) :]:
            yield f"{_name(key)}: sent as {entry['sha256'][:12]}, and never receipted"
        for receipt in there[len(here) :]:
            yield f"{_name(key)}: receipted as {receipt['sha256'][:12]}, and not in this ledger: it lacks an entry"


def _name(key: Key) -> str:
    run, phase, number = key
    return f"{run} {phase} round {number}"
