"""Who decided what on a page, when and why: an append-only file in which a change shows (shared/base/chain.py)."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from shared.base.chain import Chain, Entry
from shared.page.ask import Ask

FILE = "decisions.jsonl"


class Decided:
    """`folder`/decisions.jsonl."""

    def __init__(self, folder: Path) -> None:
        self._chain = Chain(folder / FILE)

    def enter(self, ask: Ask, what: str, about: Mapping[str, str], why: str = "") -> None:
        """On the disk when this returns; the decision itself comes after."""
        entry = {"time": round(time.time(), 3), "who": ask.person.name, "what": what, "about": dict(about), "why": why}
        self._chain.append(lambda before, last: entry)

    def entries(self) -> Iterator[Entry]:
        """From the first on. DataError at the first broken link."""
        return self._chain.entries()
