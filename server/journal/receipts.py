"""What the coordinator keeps of every reply in a run's rounds: RUN/receipts.jsonl, a chain that a resumed run goes on.

A receipt has what the site's own ledger has of the same reply (`sealed.Received`): its hash, its bytes, and the link by
which the site's ledger stood then. So either side's books can be held against the other's.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from server.journal.facts import SiteFacts
from shared.base import chain
from shared.base.chain import Chain, Entry
from shared.base.errors import ConfigError, DataError
from shared.base.vocabulary import SiteName
from shared.plan.sealed import Received

FILE = "receipts.jsonl"
COLUMNS = ("time", "site", "run", "phase", "round", "verdict", "reason", "bytes", "sha256", "link", "before")


class Asked(Protocol):
    """Of which round a reply is: a plan, or a circle."""

    @property
    def run(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def round(self) -> int: ...


class Receipts:
    def __init__(self, folder: Path) -> None:
        self._chain = Chain(folder / FILE)

    def keep(self, site: SiteName, plan: Asked, came: Received, found: SiteFacts, *, after: bool = False) -> None:
        """Append the receipt of one reply; it is on the disk when this returns. `after`: another word on the same."""
        receipt = {
            "time": round(time.time(), 3),
            "site": site,
            "run": plan.run,
            "phase": plan.phase,
            "round": plan.round,
            "verdict": found.status,
            "reason": found.reason,
            "sha256": came.sha256,
            "bytes": came.bytes,
            "link": came.link,
            **({"after": True} if after else {}),
        }
        self._chain.append(lambda before, last: receipt)

    def entries(self) -> Iterator[Entry]:
        """All receipts, from the first on. DataError at the first broken link."""
        return self._chain.entries()


def read(folder: Path, site: SiteName | None) -> list[Entry]:
    """A run's receipts, or one site's."""
    if not (folder / FILE).exists():
        raise DataError(f"{folder}: has no receipts, {FILE} is missing")
    every: list[Entry] = []
    for entry in Receipts(folder).entries():
        if entry.get("after"):
            first = next(n for n in reversed(range(len(every))) if _same(every[n], entry))
            every[first] = {**every[first], "verdict": entry["verdict"], "reason": entry["reason"]}
        else:
            every.append(entry)
    found = [entry for entry in every if site in (None, entry["site"])]
    if site is not None and not found:
        known = ", ".join(sorted({entry["site"] for entry in every})) or "nobody"
        raise ConfigError(f"--site {site}: has no receipt in this run; {known} has")
    return found


def _same(one: Entry, other: Entry) -> bool:
    return all(one[key] == other[key] for key in ("site", "phase", "round", "sha256", "link"))


def export(entries: Iterable[Entry], path: Path, *, run: str, site: SiteName | None) -> None:
    """Write receipts for a site: as JSON, which `lacuna-site ledger verify --receipts` reads, or as CSV."""
    every = list(entries)
    chain.export(path, {"run": run, "site": site, "receipts": every}, COLUMNS, every)
