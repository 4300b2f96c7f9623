"""The rows of a privacy budget: what each may say, how it is tied to the one before, and what all come to.

    budget   the site's budget and the round figure of its subjects, from here on; the first row is one
    charge   `steps` queries, written before the data were looked at
    spent    a charge was refused: from here on nothing is admitted until a budget row raises the budget

A row's head is a MAC over the head before it and the row itself, under the site's key; the first follows from the
budget's id and delta. No row can be changed, swapped, put in or taken out of the middle without the key. That the last
rows are missing can't be seen in what is left: hence the site's mark (client/privacy/budget.py) and the coordinator's
memory.
"""

import json
import math
from dataclasses import dataclass, field, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

from shared.base import chain
from shared.base.errors import ConfigError, DataError
from shared.trust.privacy import Query

LONGEST = 200  # characters of a run, a phase, a reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    sequence: int
    time: float
    kind: str
    run: str = ""
    phase: str = ""
    round: int = 0
    noise: float | None = None  # of the charge, or of the one that was refused
    rate: float | None = None
    steps: int = 0
    total: int  # steps of all charges so far, with this one
    budget: float | None = None
    size: int | None = None
    why: str = ""


COLUMNS = tuple(f.name for f in fields(Row))
values = attrgetter(*COLUMNS)
_as_text = json.JSONEncoder(default=repr).encode


@dataclass(slots=True, kw_only=True)
class RunSpent:
    """What one run has asked of this cohort, and when (seconds since 1970)."""

    run: str
    first: float
    last: float
    phases: dict[str, int] = field(default_factory=dict)  # steps of each
    spending: dict[Query, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a budget is from its first day, and never anything else."""

    id: str
    delta: float
    made: float

    def head(self, key: bytes) -> str:
        return _mac(key, ["lacuna privacy ledger 1", self.id, self.delta, self.made])


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the rows up to `sequence` come to. `add` is the only way forward, and verifies as it goes."""

    head: str
    last: Row | None = None
    sequence: int = 0
    total: int = 0
    budget: float = 0.0
    size: int = 0
    latched_at: float | None = None  # the budget that a charge would have passed
    spending: dict[Query, int] = field(default_factory=dict)
    runs: dict[str, RunSpent] = field(default_factory=dict)
    decisions: list[Row] = field(default_factory=list)

    def add(self, row: Row, head: str, key: bytes) -> None:
        """Add one row, or raise DataError that says which rule it breaks."""
        if row.sequence != self.sequence + 1:
            raise DataError(f"row {row.sequence} follows row {self.sequence}: rows were taken out or put in")
        if not chain.fits(head, link(self.head, row, key)):
            raise DataError(f"row {row.sequence}: the chain is broken, this row or one before it was changed")
        broken = _broken(row, self)
        if broken:
            raise DataError(f"row {row.sequence}: {broken}")
        if row.kind != "charge":
            self.decisions.append(row)
        if row.kind == "budget" and row.budget is not None and row.size is not None:
            self.budget, self.size = row.budget, row.size
            if self.latched_at is not None and row.budget > self.latched_at:
                self.latched_at = None
        elif row.kind == "spent":
            self.latched_at = self.budget
        elif row.noise is not None and row.rate is not None:
            self._charge(row, _query(row.noise, row.rate))
        self.sequence, self.total, self.head, self.last = row.sequence, row.total, head, row

    def _charge(self, row: Row, query: Query) -> None:
        self.spending[query] = self.spending.get(query, 0) + row.steps
        run = self.runs.setdefault(row.run, RunSpent(run=row.run, first=row.time, last=row.time))
        run.last = row.time
        run.phases[row.phase] = run.phases.get(row.phase, 0) + row.steps
        run.spending[query] = run.spending.get(query, 0) + row.steps


def link(before: str, row: Row, key: bytes) -> str:
    return _mac(key, [before, *values(row)])


def sign(words: list[Any], key: bytes) -> str:
    """Sign what else stands beside the rows, with the same key."""
    return _mac(key, ["beside", *words])


def _mac(key: bytes, words: list[Any]) -> str:
    return chain.link(_as_text(words).encode(), key)


def _broken(row: Row, before: Tally) -> str | None:
    """The rule that a row breaks, whoever wrote it; the rules are those of what a budget may hold at all."""
    if not is_number(row.time):
        return "time is not a finite number"
    if not is_count(row.steps) or not is_count(row.total) or row.total != before.total + row.steps:
        return f"steps={row.steps!r}, total={row.total!r}: must be counts, and add up to what was before"
    if row.sequence == 1 and row.kind != "budget":
        return f"kind={row.kind!r}: the first row must be the budget"
    if row.kind == "budget":
        if not is_number(row.budget) or not row.budget > 0 or not is_count(row.size) or row.size < 1 or row.steps:  # type: ignore[operator]
            return f"budget={row.budget!r}, size={row.size!r}: must be above 0, with 1 subject or more"
        return None
    if row.kind not in ("charge", "spent"):
        return f"kind={row.kind!r}: must be budget, charge or spent"
    if (row.steps < 1) if row.kind == "charge" else row.steps:
        return f"steps={row.steps!r}: must be 1 or more in a charge, 0 where it was refused"
    try:
        query = _query(row.noise, row.rate)
    except ConfigError as error:
        return str(error)
    if (query.noise, query.rate) != (row.noise, row.rate):
        return f"noise={row.noise!r}, rate={row.rate!r}: must be rounded as queries are"
    return None


@lru_cache(maxsize=1024)
def _query(noise: Any, rate: Any) -> Query:
    return Query(noise=noise, rate=rate)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
