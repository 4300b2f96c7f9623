"""Subjects: who is there, what each lacks, how good its images are; one in three planes, and a person's word."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.ingest.cohort import review
from client.page import filled
from client.page.index import Entry, Index, missing, patterns
from client.page.place import Place
from shared.base.errors import ConfigError
from shared.base.vocabulary import Modality
from shared.data.modalities import in_order
from shared.page.ask import Answer, Ask, see
from shared.page.look import Look

A_PAGE = 100
LARGE = 3_000_000  # bytes, packed
FIGURES = ("registration", "coverage", "snr")
_LAST = float("inf")
ORDERS: Mapping[str, Callable[[Entry], Any]] = {
    "name": lambda one: one.subject,
    "missing": lambda one: (len(one.files), one.subject),
    "registration": lambda one: _or_last(one.figure("registration")),
    "coverage": lambda one: _or_last(one.figure("coverage")),
    "snr": lambda one: _or_last(one.figure("snr")),
}


def _or_last(value: float | None) -> float:
    return _LAST if value is None else value


@dataclass(frozen=True, slots=True)
class Subjects:
    place: Place
    index: Index
    look: Look

    def listing(self, ask: Ask) -> Answer:
        """GET, or POST for a search: what is looked for may be a name, and goes into no address."""
        every = self.index.entries()
        known = in_order({*patterns(every), *self.place.makes()})
        chosen = self._chosen(ask, every, known)
        order = ask.query.get("by", "name")
        chosen.sort(key=ORDERS.get(order, ORDERS["name"]))
        at = int(ask.query.get("page", "1")) if ask.query.get("page", "1").isdecimal() else 1
        pages = max(1, -(-len(chosen) // A_PAGE))
        at = min(max(1, at), pages)
        shown = chosen[(at - 1) * A_PAGE : at * A_PAGE]
        return self.look.page(
            ask,
            "rows.html.j2" if ask.part else "subjects.html.j2",
            every=every,
            chosen=chosen,
            shown=shown,
            made={one.handle: filled.found(self.place.filled, one.subject) for one in shown},
            modalities=known,
            missing=missing(every, known),
            states=Counter(one.decided for one in every),
            figures=FIGURES if any(one.outcome is not None for one in every) else (),
            order=order,
            at=at,
            pages=pages,
            query={key: ask.query[key] for key in ("without", "state", "by") if ask.query.get(key)},
            cohorts=self.place.cohorts,
        )

    def _chosen(self, ask: Ask, every: Sequence[Entry], known: Sequence[Modality]) -> list[Entry]:
        words, without, state = ask.said("q").casefold().split(), ask.query.get("without"), ask.query.get("state")
        return [
            one
            for one in every
            if (without not in known or without not in one.files)
            and (not state or one.decided == state)
            and all(word in _text(one) for word in words)
        ]

    def one(self, ask: Ask) -> Answer:
        every = self.index.entries()
        entry = self.index.find(ask.where["handle"])  # as just read
        at = next(number for number, one in enumerate(every) if one.handle == entry.handle)
        made = filled.found(self.place.filled, entry.subject)
        frames = in_order({*patterns(every), *entry.files, *made, *self.place.makes()})
        return self.look.page(
            ask,
            "subject.html.j2",
            entry=entry,
            frames=frames,
            made=made,
            large=large,
            before=every[at - 1].handle if at else None,
            after=every[at + 1].handle if at + 1 < len(every) else None,
            number=at + 1,
            count=len(every),
            can_fill=bool(self.place.bundles),
            can_send=self.place.push,
        )

    def decide(self, ask: Ask) -> Answer:
        """What `lacuna-site review` writes; first the log, then the decision."""
        entry, word, why = self.index.find(ask.where["handle"]), ask.said("word"), ask.said("why")
        if word not in ("accept", "reject"):
            raise ConfigError(f"word={word[:20]!r}: must be accept or reject")
        accept, reject = ([entry.subject] if word == name else [] for name in ("accept", "reject"))
        review.check(why)
        self.place.decided.enter(ask, word, {"subject": entry.subject, "cohort": entry.cohort.name}, why)
        review.decide(entry.cohort, accept=accept, reject=reject, why=why)
        return see(f"/subjects/{entry.handle}")


def large(path: Path) -> bool:
    """Too much for a browser that draws without a graphics card."""
    return path.stat().st_size > LARGE * (1 if path.name.endswith(".gz") else 4)


def _text(one: Entry) -> str:
    values = " ".join(str(value) for value in one.row.clinical.values())
    return f"{one.subject} {one.state} {one.why} {one.row.split} {values} {' '.join(one.files)}".casefold()
