"""Who was trained on, and who has taken it back: two lists of this site's own, which never leave.

    STATE/trained.jsonl         a line for each set of people, before the first update over it leaves: run, phase, round
    STATE/withdrawn.jsonl       a line for each person who left; from then on nobody here trains on them
    STATE/withdrawn/NNNN.note   what the coordinator is told of it (shared/trust/leaving.py)

What really left is in the ledger. Of rounds before there was a list, everybody is taken to have been in them.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.site import summed
from client.site.keys import own_key
from client.site.ledger import LEDGER, Ledger, what
from client.site.site import Site
from shared.base.chain import Chain, Entry
from shared.base.errors import PlanRefused
from shared.base.files import private_folder, write_bytes
from shared.base.vocabulary import SiteName
from shared.data.cohort import Cohort
from shared.data.slices import Pool
from shared.trust.leaving import Note, Since, write_note

TRAINED, WITHDRAWN, NOTES = "trained.jsonl", "withdrawn.jsonl", "withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What of a run a person was in."""

    run: str
    first: Since
    phases: Mapping[str, tuple[int, int, int]]  # phase -> first round, last round, updates that left
    summed: bool  # sums over them left
    known: bool  # who was trained on is written down; else it is taken to be everybody

    def line(self) -> str:
        said = ", ".join(f"{phase} rounds {a} to {b} ({n} updates)" for phase, (a, b, n) in self.phases.items())
        sure = "" if self.known else "; who was trained on was not written down then"
        return f"run {self.run}: since {self.first.phase} round {self.first.round}: {said}{sure}"


# --- while the site trains ------------------------------------------------------------------------------------------


def names(state: Path) -> frozenset[str]:
    """Everybody who has taken it back."""
    return frozenset(str(entry["subject"]) for entry in Chain(state / WITHDRAWN).entries())


def without_them(cohorts: Iterable[Cohort], state: Path) -> list[Cohort]:
    """The same cohorts, as if who left had never been prepared."""
    gone = names(state)
    return [
        replace(cohort, subjects=tuple(one for one in cohort.subjects if one.name not in gone)) if gone else cohort
        for cohort in cohorts
    ]


def remember(site: Site, run: str, phase: str, round: int, pool: Pool) -> list[str]:
    """Whom a round is trained on, which is written down where it differs from the one before."""
    people = sorted({subject.name for part in pool.parts for subject in part.subjects})
    chain = Chain(site.state / TRAINED)
    last = chain.last()
    if last is None or (last["run"], last["phase"], last["people"]) != (run, phase, people):
        now = int(1000 * time.time()) / 1000  # no later than what the ledger says of the update
        entry = {"time": now, "run": run, "phase": phase, "round": round, "people": people}
        chain.append(lambda before, _: entry)
    return people


def check_all_stayed(site: Site, people: Iterable[str]) -> None:
    """PlanRefused, so that nothing leaves, where one of them left while the round was under way."""
    if names(site.state).intersection(people):
        raise PlanRefused(f"{site.name}: somebody whom this round was trained on has left meanwhile: it is given up")


def withdraw(state: Path, subject: str, why: str) -> tuple[int, float]:
    """From now on nobody here trains on them. Gives which of those who left they are, and since when; once for each."""
    chain = Chain(state / WITHDRAWN)
    if subject not in names(state):
        said = {"time": round(time.time(), 3), "subject": subject, "why": why}
        chain.append(lambda before, _: said)
    for number, entry in enumerate(chain.entries(), start=1):
        if entry["subject"] == subject:
            return number, float(entry["time"])
    raise AssertionError("it was just written")


def note(state: Path, site: SiteName, number: int, at: float, parts: Sequence[Part]) -> Path:
    """What the coordinator is to be told, signed by this site."""
    path = state / NOTES / f"{number:04d}.note"
    told = Note(site=site, at=int(at), runs={part.run: part.first for part in parts})
    private_folder(path.parent)
    write_bytes(path, write_note(told, own_key(state)))
    return path


# --- when a person asks ---------------------------------------------------------------------------------------------


def is_known(state: Path, subject: str) -> bool:
    """Was anything ever done with somebody of this name?"""
    trained = any(subject in entry["people"] for entry in Chain(state / TRAINED).entries())
    sums = any(subject in entry["people"] for entry in Chain(state / summed.FILE).entries())
    return trained or sums or subject in names(state)


def parts_of(state: Path, subject: str) -> list[Part]:
    """Every run in which something was sent that this person was in, in the order in which it was."""
    trained = list(Chain(state / TRAINED).entries())
    sums = {str(entry["run"]) for entry in Chain(state / summed.FILE).entries() if subject in entry["people"]}
    mine: dict[str, list[Since]] = {}
    guessed = set()
    for entry in Ledger(state / LEDGER).entries():
        if what(entry) == "update" and entry["run"] is not None and entry["phase"] is not None:
            run, since = str(entry["run"]), Since(phase=entry["phase"], round=int(entry["round"]))
            people = _people(trained, entry)
            if people is None:
                guessed.add(run)
            if people is None or subject in people:
                mine.setdefault(run, []).append(since)
    return [
        Part(
            run=run,
            first=rounds[0],
            phases=dict(_by_phase(rounds)),
            summed=run in sums,
            known=run not in guessed,
        )
        for run, rounds in mine.items()
    ]


def _people(trained: Sequence[Entry], update: Entry) -> Sequence[str] | None:
    """Whom an update was trained on: by the last line of its phase before it; None where there is none."""
    for entry in reversed(trained):
        if (entry["run"], entry["phase"]) == (update["run"], update["phase"]) and entry["time"] <= update["time"]:
            return list(entry["people"])
    return None


def _by_phase(mine: Sequence[Since]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for phase in dict.fromkeys(one.phase for one in mine):
        rounds = [one.round for one in mine if one.phase == phase]
        yield phase, (min(rounds), max(rounds), len(rounds))
