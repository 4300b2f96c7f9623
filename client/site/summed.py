"""Of whom this site has sent sums: STATE/summed.jsonl, so that no two runs' sums differ by a person or a few.

A line for each set of people, before the first sum over it leaves: who (as the cohort names them; it stays here), with
which modalities, and a hash of the images. From two sums over nearly the same people anybody can subtract the rest. Two
runs at a time are no way around it: the last look is under the lock of the file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, TypeAlias

from shared.base.chain import Chain, Entry, Link
from shared.base.options import plain
from shared.base.vocabulary import Modality

FILE = "summed.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    modalities: tuple[Modality, ...]  # that are summed
    images: str  # hash of what is summed


People: TypeAlias = Mapping[str, Person]


def too_near(state: Path, people: People, least: int) -> str | None:
    """Say why sums over these people can't leave after what has left; None if they can."""
    for run, before in _remembered(state):
        differing = min((n for n in _differences(before, people) if n), default=least)
        if differing < least:
            return (
                f"its sums would differ by fewer people than its policy asks for (min_subjects={least}) from those of "
                f"run {run}, and a subtraction would show them; it waits for more of them, or for none"
            )
    return None


class _NoMore(Exception):
    """Nothing is to be added."""


def remember(state: Path, run: str, people: People, least: int) -> str | None:
    """Once for each set; it is on the disk when this returns. As `too_near`, if another run was quicker."""
    record = {name: plain(person) for name, person in sorted(people.items())}

    def enter(before: Link, last: Entry | None) -> Mapping[str, Any]:
        refused = too_near(state, people, least)
        if refused is not None or any(dict(people) == known for _, known in _remembered(state)):
            raise _NoMore(refused)
        return {"run": run, "people": record}

    try:
        Chain(state / FILE).append(enter)
    except _NoMore as no:
        return None if no.args[0] is None else str(no.args[0])
    return None


def _differences(before: People, now: People) -> Iterator[int]:
    """How many people a subtraction would be about: all, of each modality, of each pair, and of changed images."""
    modalities = sorted({m for people in (before, now) for person in people.values() for m in person.modalities})
    for one, other in combinations_with_replacement(modalities, 2):
        then, today = (
            {name for name, person in people.items() if {one, other} <= set(person.modalities)}
            for people in (before, now)
        )
        yield len(then ^ today)
    yield len(before.keys() ^ now.keys())
    yield sum(before[name].images != now[name].images for name in before.keys() & now.keys())


def _remembered(state: Path) -> Iterator[tuple[str, dict[str, Person]]]:
    for entry in Chain(state / FILE).entries():
        yield str(entry["run"]), {name: _person(record) for name, record in entry["people"].items()}


def _person(record: Mapping[str, Any]) -> Person:
    return Person(modalities=tuple(record["modalities"]), images=record["images"])
