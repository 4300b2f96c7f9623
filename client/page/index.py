"""Every subject of the site's cohorts, as a list that is quick to look at again: only what changed is read anew.

It is the one way from an address to a file: a handle names an entry, an entry names its files.
"""

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from client.ingest.cohort.outcome import QUALITY, Outcome, read_outcome
from client.ingest.cohort.review import Row, listing
from shared.base.vocabulary import Modality
from shared.data.bids import Participant, find_files, read_participants
from shared.data.modalities import in_order
from shared.page.ask import NotFound
from shared.page.handles import handle

Stamp = tuple[int, ...]
MOMENT = 3.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One subject."""

    handle: str
    cohort: Path
    subject: str
    state: str  # as `review` has it
    why: str
    files: Mapping[Modality, Path]
    row: Participant
    outcome: Outcome | None  # what the preparation said; None: the cohort was not made by `ingest`
    remarks: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.cohort / self.subject

    @property
    def decided(self) -> str:
        return self.state.partition(";")[0]

    def figure(self, name: str) -> float | None:
        """The worst of a figure over the images that are used, or the brain's."""
        if self.outcome is None or self.outcome.quality is None:
            return None
        quality = self.outcome.quality
        if name == "brain":
            return None if quality.brain is None else quality.brain.ml
        used = [quality.images[m] for m in self.outcome.files if m in quality.images]
        values = [value for one in used if (value := getattr(one, name)) is not None]
        return min(values, default=None)


@dataclass(slots=True, kw_only=True)
class _Seen:
    stamp: Stamp
    files: Mapping[Modality, Path]
    remarks: tuple[str, ...]


@dataclass(slots=True)
class Index:
    """Of these cohorts; `key` makes the handles."""

    cohorts: Sequence[Path]
    key: bytes
    _seen: dict[Path, _Seen] = field(default_factory=dict)
    _outcomes: dict[Path, tuple[int, Outcome]] = field(default_factory=dict)
    _handles: dict[tuple[Path, str], str] = field(default_factory=dict)
    _last: tuple[float, Mapping[str, Entry]] = field(default_factory=lambda: (0.0, {}))
    _lock: Lock = field(default_factory=Lock)

    def entries(self) -> list[Entry]:
        """Everybody, in the order of cohorts and names."""
        with self._lock:
            found = [entry for cohort in self.cohorts for entry in self._of(cohort)]
            self._last = time.monotonic(), {entry.handle: entry for entry in found}
            return found

    def find(self, name: str) -> Entry:
        """By its handle, as it was a moment ago: a page asks for many files at once."""
        looked, known = self._last
        if name not in known or time.monotonic() - looked > MOMENT:
            self.entries()
            _, known = self._last
        if name not in known:
            raise NotFound
        return known[name]

    def _of(self, cohort: Path) -> Iterable[Entry]:
        outcomes = self._read_outcomes(cohort)
        rows = read_participants(cohort)
        nobody = Participant()
        for row in listing(cohort, list(outcomes.values())):
            seen = self._files(cohort, row)
            yield Entry(
                handle=self._handle(cohort, row.subject),
                cohort=cohort,
                subject=row.subject,
                state=row.state,
                why=row.why,
                files=seen.files,
                row=rows.get(row.subject, nobody),
                outcome=outcomes.get(row.subject),
                remarks=seen.remarks,
            )

    def _handle(self, cohort: Path, subject: str) -> str:
        known = self._handles.get((cohort, subject))
        if known is None:
            known = self._handles[cohort, subject] = handle(self.key, str(cohort.absolute()), subject)
        return known

    def _files(self, cohort: Path, row: Row) -> _Seen:
        folder = cohort / row.subject
        stamp = _stamp(folder)
        known = self._seen.get(folder)
        if known is None or known.stamp != stamp:
            found = find_files(cohort, folder)
            remarks = tuple(f"{one.file or one.subject}: {one.why}" for one in found.remarks)
            known = self._seen[folder] = _Seen(stamp=stamp, files=found.files if stamp else {}, remarks=remarks)
        return known

    def _read_outcomes(self, cohort: Path) -> dict[str, Outcome]:
        found: dict[str, Outcome] = {}
        with suppress(FileNotFoundError), os.scandir(cohort / QUALITY) as folder:
            for one in sorted(folder, key=lambda entry: entry.name):
                if not one.name.startswith("sub-") or not one.name.endswith(".json"):
                    continue
                path, changed = Path(one.path), one.stat().st_mtime_ns
                if self._outcomes.get(path, (0, None))[0] != changed:
                    with suppress(OSError, ValueError, KeyError, TypeError):
                        self._outcomes[path] = (changed, read_outcome(path))
                if path in self._outcomes:
                    outcome = self._outcomes[path][1]
                    found.setdefault(outcome.subject, outcome)
        return found


def patterns(entries: Iterable[Entry]) -> tuple[Modality, ...]:
    """Every modality that somebody has."""
    return in_order(modality for entry in entries for modality in entry.files)


def missing(entries: Iterable[Entry], modalities: Sequence[Modality]) -> Counter[Modality]:
    """How many lack each."""
    return Counter(m for entry in entries for m in modalities if m not in entry.files)


def _stamp(folder: Path) -> Stamp:
    """Changes with what lies in a subject's folder: when it, and each folder in it, changed last."""
    try:
        changed = [os.stat(folder).st_mtime_ns]
        with os.scandir(folder) as inside:
            for one in inside:
                if one.is_dir():
                    changed.append(one.stat().st_mtime_ns)
                    if one.name.startswith("ses-"):
                        with os.scandir(one.path) as deeper:
                            changed += [part.stat().st_mtime_ns for part in deeper if part.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(sorted(changed))
