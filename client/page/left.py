"""What left this site: every reply by day and run, what each held, whether the chain is whole, what receipts say."""

import itertools
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.page.place import Place
from client.site import ledger
from client.site.ledger import LEDGER, Ledger
from shared.base.chain import Entry
from shared.base.errors import DataError
from shared.page.ask import Answer, Ask, NotFound
from shared.page.look import Look

A_PAGE = 200
MOST_RECEIPTS = 2**25


@dataclass(frozen=True, slots=True)
class Left:
    place: Place
    look: Look

    def ledger(self, ask: Ask) -> Answer:
        entries, broken = self._entries()
        run, day = ask.query.get("run"), ask.query.get("day")
        chosen = [
            (number, one)
            for number, one in enumerate(entries)
            if (not run or one.get("run") == run) and (not day or _day(one) == day)
        ]
        shown = [(number, ledger.row(one)) for number, one in chosen[-A_PAGE:][::-1]]
        return self.look.page(
            ask,
            "left.html.j2",
            broken=broken,
            count=len(entries),
            chosen=len(chosen),
            bytes=sum(int(one["bytes"]) for one in entries),
            days=[(day, list(rows)) for day, rows in itertools.groupby(shown, lambda row: str(row[1]["time"])[:10])],
            runs=_sums(entries),
            run=run,
            day=day,
            file=self.place.state / LEDGER,
        )

    def message(self, ask: Ask) -> Answer:
        """One reply with all that it held."""
        entries, _ = self._entries()
        number = ask.where["number"]
        if not (number.isascii() and number.isdecimal() and int(number) < len(entries)):
            raise NotFound
        entry = entries[int(number)]
        tensors = entry["tensors"] if isinstance(entry["tensors"], list) else []
        columns = list(tensors[0]) if tensors and isinstance(tensors[0], dict) else []
        return self.look.page(
            ask,
            "message.html.j2",
            number=int(number),
            row=ledger.row(entry),
            fields=[(str(k), str(v)) for k, v in sorted(entry["fields"].items())],
            tensors=[[_cell(one.get(name)) for name in columns] for one in tensors],
            columns=columns,
        )

    def compare(self, ask: Ask) -> Answer:
        """The coordinator's receipts, sent as they are, beside this ledger."""
        entries, broken = self._entries()
        handle, name = tempfile.mkstemp(suffix=".json")
        path = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(ask.body)
            receipts = ledger.read_receipts(path)
        except DataError:
            said = "That file is not what `lacuna receipts RUN --site SITE --export FILE.json` writes."
            return self.look.page(ask, "compared.html.j2", receipts=None, lines=[], wrong=said)
        finally:
            path.unlink(missing_ok=True)
        lines = [] if broken else list(ledger.compare(entries, receipts))
        return self.look.page(ask, "compared.html.j2", receipts=receipts, lines=lines, wrong=broken)

    def _entries(self) -> tuple[list[Entry], str]:
        """All up to a broken link, and what is broken."""
        found: list[Entry] = []
        try:
            found.extend(Ledger(self.place.state / LEDGER).entries())
        except DataError as error:
            return found, str(error).replace(str(self.place.state), "STATE")
        return found, ""


def _day(entry: Entry) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(entry["time"]))


def _sums(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """By run: how much left, from when to when."""
    found: dict[str, dict[str, Any]] = {}
    for one in entries:
        name = str(one.get("run") or "")
        row = found.setdefault(name, {"run": name, "replies": 0, "bytes": 0, "first": one["time"], "last": 0.0})
        row["replies"] += 1
        row["bytes"] += one["bytes"]
        row["last"] = one["time"]
    return list(found.values())[::-1]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
