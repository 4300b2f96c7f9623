"""A site's privacy budget: all that its cohort was ever asked, in every run, on the disk before the data are looked at.

Messages and files call what is kept of it the privacy ledger; the ledger of what left is client/site/ledger.py.

    STATE/privacy/key            32 random bytes, mode 0600; without it no row can be written or verified
    STATE/privacy/ledger.db      SQLite: the rows (client/privacy/budget_rows.py), only ever added to
    STATE/privacy/lock           held by the one process that writes
    STATE/privacy.enrolled       the mark: this site has a budget, and it had come at least so far

The mark makes a budget that is missing, emptied or older than it was a refusal instead of a fresh start. If mark and
budget were rolled back together this disk can't tell; the coordinator can, by the (sequence, head) that it saw last.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from client.privacy import budget_files as files
from client.privacy.budget_files import RECOVER, Mark
from client.privacy.budget_rows import COLUMNS, LONGEST, Row, RunSpent, Tally, is_count, is_number, link, values
from shared.base import chain
from shared.base.errors import BudgetSpent, ConfigError, DataError
from shared.base.files import private_folder
from shared.base.options import require
from shared.base.records import Spent
from shared.trust import privacy
from shared.trust.privacy import Query, Spending

WAIT = 30.0  # seconds, for the process that writes
MOST_STEPS = 10**9  # in one charge

_SELECT = f"SELECT {', '.join(COLUMNS)}, head FROM rows WHERE sequence >= ? ORDER BY sequence"


class Budget:
    """What a site's cohort has been asked, in all runs together, under its budget.

    Made by `open`, which holds the lock until `close`, or by `look`, which can't charge. Not to be carried over a fork.
    """

    @staticmethod
    def open(
        folder: Path,
        *,
        epsilon: float | None = None,
        delta: float | None = None,
        size: int | None = None,
        wait: float = WAIT,
    ) -> "Budget":
        """Open the budget to charge it; enrol the site at first use, later verify every row before this returns.

        Later, terms that are not given are those of the first use; others are a ConfigError.
        """
        if files.enrolled(folder):
            files.must_be_there(folder)
        elif epsilon is None or delta is None or size is None:
            raise ConfigError(
                f"{folder}: no privacy budget yet; to make one name epsilon and size: `lacuna-site budget STATE "
                "--set-epsilon E --set-size N`"
            )
        else:
            _check_terms(epsilon, delta, size)
            private_folder(folder)
        files.refuse_network(folder)
        lock = files.take_lock(folder / "lock", wait)
        try:
            if epsilon is not None and delta is not None and size is not None and not files.enrolled(folder):
                files.enrol(folder, epsilon=epsilon, delta=delta, size=size)
            budget = Budget(folder, lock)
        except BaseException:
            os.close(lock)
            raise
        try:
            budget._same("epsilon", epsilon, budget.budget, "`lacuna-site budget STATE --set-epsilon` changes it")
            budget._same("size", size, budget.size, "`lacuna-site budget STATE --set-size` changes it")
            budget._same("delta", delta, budget.delta, "it can't be changed")
            budget._mark()
        except BaseException:
            budget.close()
            raise
        return budget

    @staticmethod
    def look(folder: Path) -> "Budget":
        """Open the budget to read it, also while a run is charging: as it is at this moment, every row verified."""
        if not files.enrolled(folder):
            raise ConfigError(f"{folder}: no privacy ledger; this site has never been enrolled for private training")
        return Budget(folder, None)

    def __init__(self, folder: Path, lock: int | None) -> None:
        self._folder, self._lock, self._process = folder, lock, os.getpid()
        files.must_be_there(folder)
        path = folder / "ledger.db"
        self._key = files.read_key(folder / "key")
        seen = files.read_mark(files.mark_file(folder), self._key)
        with self._named():
            self._file = files.connect(path)
        try:
            with self._named():
                if lock is not None:
                    files.guard(self._file)
                self._identity = files.read_identity(self._file)
                self._tally = Tally(head=self._identity.head(self._key))
                self._read_on()
            if self._tally.sequence == 0:
                raise DataError(f"{path}: has no rows: {RECOVER}")
            self._must_know(seen)
        except BaseException:
            self._file.close()
            raise

    # --- asking -------------------------------------------------------------------------------------------------------

    def charge(self, query: Query, steps: int, *, run: str, phase: str, round: int) -> None:
        """Write a query down; durable when this returns: only then may the data be looked at. Never given back.

        BudgetSpent where it would pass the budget; from then on nothing is admitted, however cheap, until the budget is
        raised.
        """
        require(is_count(steps) and 1 <= steps <= MOST_STEPS, "steps", steps, f"a whole number, 1 to {MOST_STEPS:g}")
        require(is_count(round), "round", round, "a whole number, 0 or more")
        _check_word("run", run)
        _check_word("phase", phase)
        privacy.bound({query: steps}, self.delta)  # what this query costs is worked out before the file is held
        about = {"run": run, "phase": phase, "round": round, "noise": query.noise, "rate": query.rate}
        with self._adding() as add:
            would_be = privacy.bound(privacy.together(self._tally.spending, {query: steps}), self.delta)
            asked = f"{steps} step{'s' * (steps > 1)} at noise {query.noise:g}, rate {query.rate:g}"
            if self.latched:
                refused = "an earlier query was refused for it, and nothing is admitted since"
            elif would_be <= self.budget:
                add(kind="charge", steps=steps, **about)
                return
            else:
                refused = f"with {asked} it would come to {would_be:.4g}"
                add(kind="spent", why=f"{asked} would come to {would_be:.6g}", **about)
        raise BudgetSpent(
            f"epsilon {self.bound():.4g} of the budget of {self.budget:g} at delta {self.delta:g} is spent: {refused}; "
            "only a higher budget opens it again (`lacuna-site budget STATE --set-epsilon`)"
        )

    def change_budget(self, epsilon: float | None, *, why: str, size: int | None = None) -> None:
        """Write down another budget, a decision of the site's; below it charges are admitted again."""
        _check_word("why", why)
        with self._adding() as add:
            epsilon, size = self.budget if epsilon is None else epsilon, self.size if size is None else size
            _check_terms(epsilon, self.delta, size)
            if (epsilon, size) == (self.budget, self.size):
                raise ConfigError(f"epsilon={epsilon:g}, size={size}: are what they are already; nothing to change")
            add(kind="budget", budget=float(epsilon), size=size, why=why)
        self._mark()

    # --- what it comes to ---------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return self._identity.id

    @property
    def delta(self) -> float:
        return self._identity.delta

    @property
    def made(self) -> float:
        return self._identity.made

    @property
    def sequence(self) -> int:
        return self._tally.sequence

    @property
    def head(self) -> str:
        return self._tally.head

    @property
    def budget(self) -> float:
        return self._tally.budget

    @property
    def size(self) -> int:
        return self._tally.size

    @property
    def latched(self) -> bool:
        return self._tally.latched_at is not None

    def spending(self) -> dict[Query, int]:
        return dict(self._tally.spending)

    def by_run(self) -> tuple[RunSpent, ...]:
        return tuple(self._tally.runs.values())

    def decisions(self) -> tuple[Row, ...]:
        """List budgets as they were set, and charges that were refused."""
        return tuple(self._tally.decisions)

    def bound(self) -> float:
        """Epsilon so far by RDP: what charges are admitted by."""
        return privacy.bound(self._tally.spending, self.delta)

    def epsilon(self) -> float:
        """Epsilon so far as reported: by PRV, or by RDP where that is smaller."""
        return privacy.epsilon(self._tally.spending, self.delta)

    def left(self) -> float:
        """How much more epsilon a run may add, by the bound that charges are admitted by."""
        return 0.0 if self.latched else max(self.budget - self.bound(), 0.0)

    def would_fit(self, more: Spending) -> bool:
        if self.latched:
            return not any(more.values())
        return privacy.fits(self._tally.spending, more, budget=self.budget, delta=self.delta)

    def spent(self, *, others: int) -> Spent:
        """Say what goes out with an update; `others` are the updates that left this cohort without privacy."""
        return Spent(
            ledger=self.id,
            sequence=self.sequence,
            head=self.head,
            epsilon=self.epsilon(),
            budget=self.budget,
            delta=self.delta,
            size=self.size,
            others=others,
        )

    def knows(self, sequence: int, head: str) -> bool:
        """Is this row on the chain? Not if rows were lost since, even if others were added in their place."""
        if not 1 <= sequence <= self.sequence:
            return False
        with self._named():
            found = self._file.execute("SELECT head FROM rows WHERE sequence = ?", (sequence,)).fetchone()
        return found is not None and chain.fits(head, str(found[0]))

    # --- the file -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file and free the lock; closing twice does nothing."""
        lock, self._lock = self._lock, None
        if os.getpid() != self._process:
            return  # the file and the lock are the parent's
        try:
            if lock is not None:
                self._mark()
        finally:
            self._file.close()
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_UN)  # also for a child that was forked meanwhile and lives on
                os.close(lock)

    def __enter__(self) -> "Budget":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _adding(self) -> Iterator[Callable[..., None]]:
        """Open one transaction on what the file holds now; what is added in it counts when it is on the disk."""
        if self._lock is None or os.getpid() != self._process:
            raise DataError(f"{self._folder}: opened for reading, closed, or by another process; nothing can be added")
        added: list[tuple[Row, str]] = []

        def add(**facts: Any) -> None:
            total = self._tally.total + facts.get("steps", 0)
            row = Row(sequence=self.sequence + 1, time=round(time.time(), 3), total=total, **facts)
            head = link(self.head, row, self._key)
            self._file.execute(files.INSERT, (*values(row), head))
            added.append((row, head))

        with self._named():
            self._file.execute("BEGIN IMMEDIATE")
            try:
                self._read_on()
                yield add
                self._file.execute("COMMIT")
            except BaseException:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")
                raise
            for row, head in added:
                self._tally.add(row, head, self._key)

    def _read_on(self) -> None:
        """Verify what the file holds beyond what was verified; the row where we stood must be there unchanged."""
        last = self._tally.last
        rows = self._file.execute(_SELECT, (self._tally.sequence,))
        if last is not None:
            here = rows.fetchone()
            if here is None or (*values(last), self.head) != here:
                raise DataError(f"row {last.sequence}: was changed or taken out while the ledger was open")
        for *facts, head in rows:
            self._tally.add(Row(**dict(zip(COLUMNS, facts, strict=True))), head, self._key)

    def _mark(self) -> None:
        """Writes beside the budget how far it has come."""
        mark = Mark(ledger=self.id, sequence=self.sequence, head=self.head)
        files.write_mark(files.mark_file(self._folder), mark, self._key)

    def _must_know(self, seen: Mark | None) -> None:
        if seen is None:  # a kill during enrolment, or a hand; the budget itself is whole
            return
        if seen.ledger != self.id:
            raise DataError(
                f"{self._folder}: is another ledger than the one that this site was enrolled with: {RECOVER}"
            )
        if not self.knows(seen.sequence, seen.head):
            raise DataError(
                f"{self._folder}: ends at row {self.sequence} and does not hold row {seen.sequence} as this site "
                f"last saw it: it is an old copy, or rows were taken off its end: {RECOVER}"
            )

    def _same(self, key: str, wanted: float | None, stored: float, otherwise: str) -> None:
        if wanted is not None and wanted != stored:
            raise ConfigError(f"{key}={wanted:g}: the privacy ledger of this site says {stored:g}; {otherwise}")

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Put the name of the file into errors in it or about it."""
        try:
            yield
        except (DataError, sqlite3.OperationalError) as error:
            raise DataError(f"{self._folder / 'ledger.db'}: {error}") from None
        except sqlite3.Error as error:
            raise DataError(f"{self._folder / 'ledger.db'}: {error}: {RECOVER}") from None


def _check_terms(epsilon: float, delta: float, size: int) -> None:
    require(is_number(epsilon) and epsilon > 0, "epsilon", epsilon, "a finite number above 0")
    require(is_count(size) and size >= 1, "size", size, "a whole number, 1 or more")
    require(
        is_number(delta) and 0 < delta < 1 / size, "delta", delta, f"above 0 and below one over the {size} subjects"
    )


def _check_word(key: str, text: str) -> None:
    ok = isinstance(text, str) and 1 <= len(text) <= LONGEST and text.isprintable()
    require(ok, key, text, f"1 to {LONGEST} printable characters")
