"""A prepared cohort to batches of slices and to whole subjects. Files stay memory-mapped: the page cache is the cache.

A slab is a slice and its neighbours: at an end of the volume it is moved inside, in a volume too thin for it filled up
with zeros; such a volume has one place for it, and counts as one slice. What a cohort holds beyond the asked modalities
is not read; what it lacks is zeros with `exists` False.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.base.errors import DataError
from shared.base.records import Batch
from shared.base.vocabulary import Modality
from shared.data.bids import Clinical
from shared.data.cohort import Cohort, Geometry, Subject

OPEN_FILES = 128  # memory maps held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One whole subject on the grid."""

    images_MDHW: Tensor
    exists_M: Tensor
    brain_DHW: Tensor  # bool
    lesion_DHW: Tensor | None  # uint8 labels
    judged_M2: Tensor  # gain and offset from these images to the scale that each is judged on
    geometry: Geometry  # back to the subject's own volumes
    clinical: Clinical
    subject: str  # never leaves


class Slices:
    """The brain slices of a split, in the order of `modalities`, of all subjects that have any of them.

    With a `slab` of 2 or more each comes with its neighbours (BMDHW). `only`: of subjects with such modalities. What is
    `hidden` is to it as if no subject had it.
    """

    def __init__(
        self,
        cohort: Cohort,
        modalities: Sequence[Modality],
        *,
        split: str | None,
        slab: int = 1,
        only: Callable[[frozenset[Modality]], bool] = bool,
        hidden: Collection[Modality] = (),
    ) -> None:
        self.cohort = cohort
        self.modalities = tuple(modalities)
        self.slab = slab
        self._seen = frozenset(modalities) - frozenset(hidden)
        self.subjects: tuple[Subject, ...] = tuple(
            subject
            for subject in cohort.subjects
            if (split is None or subject.split == split) and only(frozenset(subject.modalities) & self._seen)
        )
        numbers = {subject.name: number for number, subject in enumerate(cohort.subjects)}
        self._numbers = tuple(numbers[subject.name] for subject in self.subjects)  # in the whole cohort
        self._places = tuple(self._places_of(subject) for subject in self.subjects)
        self._ends = np.cumsum([len(places) for places in self._places], dtype=np.int64)
        self._maps: OrderedDict[str, NDArray[np.float16]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.subjects else 0

    def count(self, i: int) -> int:
        """How many of them the i-th of `subjects` has."""
        return len(self._places[i])

    def number(self, i: int) -> int:
        """Which of the whole cohort the i-th of `subjects` is: a batch's `subject_B`."""
        return self._numbers[i]

    def batch(self, indices: Iterable[int]) -> Batch:
        """Slices by their index in [0, len): subject after subject, from the neck up."""
        return self._read([self._locate(index) for index in indices])

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Every subject is as likely as any other, then every brain slice of it."""
        if not self.subjects:
            raise DataError(f"no subject of this split has any of {', '.join(self.modalities)}")
        subjects = torch.randint(len(self.subjects), (size,), generator=generator).tolist()
        places = torch.randint(2**62, (size,), generator=generator).tolist()  # cut to the subject's own number below
        pairs = zip(subjects, places, strict=True)
        return self._read([(i, place % len(self._places[i])) for i, place in pairs])

    def some_of(self, i: int, count: int, generator: torch.Generator) -> Batch:
        """So many different slices of the i-th of `subjects`, or all that it has."""
        places = torch.randperm(len(self._places[i]), generator=generator)[:count]
        return self._read([(i, place) for place in places.tolist()])

    def all_of(self, i: int, size: int) -> Iterator[Batch]:
        """Every slice of the i-th of `subjects` once."""
        places = range(len(self._places[i]))
        for start in range(0, len(places), size):
            yield self._read([(i, place) for place in places[start : start + size]])

    def in_order(self, size: int) -> Iterator[Batch]:
        """Every slice once."""
        for start in range(0, len(self), size):
            yield self.batch(range(start, min(start + size, len(self))))

    def volume(self, index: int) -> Stack:
        """The index-th of `subjects`, whole: all slices of the cache, not only those that count as brain."""
        subject = self.subjects[index]
        folder = self.cohort.folder / subject.name
        to, of = self._columns(subject)
        held_DMHW = self._open(subject)
        images_MDHW = torch.zeros(len(self.modalities), subject.depth, *held_DMHW.shape[2:])
        images_MDHW[to] = torch.from_numpy(held_DMHW[:, of].astype(np.float32)).transpose(0, 1)
        exists_M = torch.zeros(len(self.modalities), dtype=torch.bool)
        exists_M[to] = True
        return Stack(
            images_MDHW=images_MDHW,
            exists_M=exists_M,
            brain_DHW=torch.from_numpy(np.load(folder / "brain.npy")).bool(),
            lesion_DHW=torch.from_numpy(np.load(folder / "lesion.npy")) if subject.lesion else None,
            judged_M2=self.judged(index),
            geometry=self.cohort.geometry(subject),
            clinical=subject.clinical,
            subject=subject.name,
        )

    def judged(self, i: int) -> Tensor:
        """Gain and offset of each modality of the i-th of `subjects`, from the cache to the scale it is judged on."""
        geometry = self.cohort.geometry(self.subjects[i])
        lines = [
            geometry.scalings[m].onto(geometry.judged[m]) if m in geometry.scalings else (1.0, 0.0)
            for m in self.modalities
        ]
        return torch.tensor(lines)

    def _locate(self, index: int) -> tuple[int, int]:
        """Slice index -> (subject, place among its brain slices)."""
        if not 0 <= index < len(self):
            raise IndexError(f"slice {index} of {len(self)}")
        i = int(np.searchsorted(self._ends, index, side="right"))
        return i, index - int(self._ends[i - 1] if i else 0)

    def _read(self, places: Sequence[tuple[int, int]]) -> Batch:
        grid = self.cohort.grid
        images_BMDHW = torch.zeros(len(places), len(self.modalities), self.slab, grid.height, grid.width)
        exists_BM = torch.zeros(len(places), len(self.modalities), dtype=torch.bool)
        for b, (i, place) in enumerate(places):
            subject = self.subjects[i]
            to, of = self._columns(subject)
            start = max(0, min(self._places[i][place] - self.slab // 2, subject.depth - self.slab))
            slab_DMHW = self._open(subject)[start : start + self.slab, of]
            images_BMDHW[b, to, : len(slab_DMHW)] = torch.from_numpy(slab_DMHW.astype(np.float32)).transpose(0, 1)
            exists_BM[b, to] = True
        return Batch(
            images_BMHW=images_BMDHW if self.slab > 1 else images_BMDHW[:, :, 0],
            exists_BM=exists_BM,
            shown_BM=exists_BM.clone(),
            subject_B=torch.tensor([self._numbers[i] for i, _ in places], dtype=torch.int64),
            clinical=tuple(self.subjects[i].clinical for i, _ in places),
        )

    def _places_of(self, subject: Subject) -> tuple[int, ...]:
        """The middle slices of the slabs that differ."""
        return subject.brain_slices if self.slab < subject.depth or self.slab == 1 else subject.brain_slices[:1]

    def _columns(self, subject: Subject) -> tuple[list[int], list[int]]:
        """Where the asked modalities that the subject has go to in a batch, and where they stand in its file."""
        held = [m for m in self.modalities if m in subject.modalities and m in self._seen]
        return [self.modalities.index(m) for m in held], [subject.modalities.index(m) for m in held]

    def _open(self, subject: Subject) -> NDArray[np.float16]:
        if subject.name not in self._maps:
            if len(self._maps) >= OPEN_FILES:
                self._maps.popitem(last=False)
            self._maps[subject.name] = np.load(self.cohort.folder / subject.name / "vol.npy", mmap_mode="r")
        self._maps.move_to_end(subject.name)
        return self._maps[subject.name]


class Pool:
    """Several cohorts as one: every subject is as likely as any other.

    A unit is a person: a subject, in all cohorts that know it by the same name.
    """

    def __init__(self, parts: Sequence[Slices]) -> None:
        self.parts = tuple(part for part in parts if part.subjects)
        people: dict[str, list[tuple[int, int]]] = {}
        for number, part in enumerate(self.parts):
            for i, subject in enumerate(part.subjects):
                people.setdefault(subject.name, []).append((number, i))
        self._people = tuple(people.values())
        unit = {place: n for n, places in enumerate(self._people) for place in places}
        self._units = tuple(  # of a part's subjects, by their numbers in its cohort
            {part.number(i): unit[number, i] for i in range(len(part.subjects))}
            for number, part in enumerate(self.parts)
        )

    @property
    def units(self) -> int:
        return len(self._people)

    def size(self, unit: int) -> int:
        """Count the slices of a person."""
        return sum(self.parts[number].count(i) for number, i in self._people[unit])

    def unit(self, unit: int, count: int, generator: torch.Generator) -> Batch:
        """So many different slices of a person, or all that there are."""
        places = self._people[unit]
        chosen = places[int(torch.randint(len(places), (1,), generator=generator))]
        return self.parts[chosen[0]].some_of(chosen[1], count, generator)

    def unit_in_order(self, unit: int, size: int) -> Iterator[Batch]:
        for number, i in self._people[unit]:
            yield from self.parts[number].all_of(i, size)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        if len(self.parts) == 1:
            return self.parts[0].draw(size, generator)
        if not self.parts:
            raise DataError("no subject of any cohort has any of the asked modalities")
        shares = torch.tensor([float(len(part.subjects)) for part in self.parts])
        chosen = torch.multinomial(shares, size, replacement=True, generator=generator).bincount(minlength=len(shares))
        drawn = [
            _renumbered(part.draw(n, generator), units)
            for part, units, n in zip(self.parts, self._units, chosen.tolist(), strict=True)
            if n
        ]
        return _join(drawn)

    def in_order(self, size: int) -> Iterator[Batch]:
        for part in self.parts:
            yield from part.in_order(size)


def _renumbered(batch: Batch, units: Mapping[int, int]) -> Batch:
    """With the number of the person for that of the subject in its own cohort."""
    return replace(batch, subject_B=torch.tensor([units[n] for n in batch.subject_B.tolist()], dtype=torch.int64))


def _join(batches: Sequence[Batch]) -> Batch:
    """One batch of several cohorts."""
    return Batch(
        images_BMHW=torch.cat([batch.images_BMHW for batch in batches]),
        exists_BM=torch.cat([batch.exists_BM for batch in batches]),
        shown_BM=torch.cat([batch.shown_BM for batch in batches]),
        subject_B=torch.cat([batch.subject_B for batch in batches]),
        clinical=tuple(record for batch in batches for record in batch.clinical),
    )


def prefetch(batches: Iterable[Batch], device: torch.device | str, *, ahead: int = 2) -> Generator[Batch, None, None]:
    """Give the same batches in the same order, on the device; for CUDA the next are read and moved meanwhile."""
    if torch.device(device).type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    pinned = (_over_tensors(batch, torch.Tensor.pin_memory) for batch in batches)
    with closing(read_ahead(pinned, ahead)) as read:
        for batch in read:
            yield _over_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def read_ahead(batches: Iterable[Batch], ahead: int) -> Generator[Batch, None, None]:
    """Give the same batches while another thread makes the next; what goes wrong there is raised in its turn.

    It is one thread, so the order of making is the order of the batches, and draws are the same draws.
    """
    source = iter(batches)
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        waiting = deque(reader.submit(next, source, None) for _ in range(ahead))
        try:
            while (batch := waiting.popleft().result()) is not None:
                waiting.append(reader.submit(next, source, None))
                yield batch
        finally:
            for future in waiting:
                future.cancel()


def _over_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return replace(
        batch,
        images_BMHW=change(batch.images_BMHW),
        exists_BM=change(batch.exists_BM),
        shown_BM=change(batch.shown_BM),
        subject_B=change(batch.subject_B),
    )
