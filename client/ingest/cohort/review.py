"""A person's word on a cohort's subjects: decisions.json, which every later step keeps.

A rejected subject stays on disk and is left out of the cache (shared/data/bids.py). An accepted one is prepared again
by the next ingest with the limits of quality set aside: they then warn.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.ingest.cohort.outcome import Outcome, outcomes
from shared.base.errors import ConfigError, DataError
from shared.base.files import write_json
from shared.data.bids import DECISIONS, read_decisions

MOST_WHY = 500  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One subject in the list."""

    subject: str
    state: str  # "in the cohort" | "excluded" | "rejected" | "accepted"
    why: str


def decide(cohort: Path, *, accept: Sequence[str], reject: Sequence[str], why: str, when: str | None = None) -> None:
    """Write the decisions; the latest counts. Every subject must be one that the cohort knows."""
    check(why)
    names = [_subject(name) for name in (*accept, *reject)]
    both = {_subject(name) for name in accept} & {_subject(name) for name in reject}
    if both:
        raise ConfigError(f"accept={sorted(both)[0]}: the same call rejects it")
    known = {row.subject for row in listing(cohort)}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"subject={name}: not in the cohort {cohort.name}; `lacuna-site review {cohort}` lists them"
            )
    decisions = dict(read_decisions(cohort))
    at = when or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for word, subjects in (("accept", accept), ("reject", reject)):
        for name in subjects:
            decisions[_subject(name)] = {"decision": word, "why": " ".join(why.split()), "at": at}
    write_json(cohort / DECISIONS, decisions, sort_keys=True)


def check(why: str) -> None:
    """ConfigError for a reason that is none, or too long."""
    if not why.strip():
        raise ConfigError("why='': must say why, for whoever reads the decision later")
    if len(why) > MOST_WHY:
        raise ConfigError(f"why: {len(why)} characters; must be at most {MOST_WHY}")


def set_aside(cohort: Path, subject: str, why: str) -> None:
    """As `--reject` does, whether the cohort knows them or not: files that come back are not used either."""
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    decisions = {**read_decisions(cohort), _subject(subject): {"decision": "reject", "why": why, "at": at}}
    write_json(cohort / DECISIONS, decisions, sort_keys=True)


def accepted(cohort: Path) -> frozenset[str]:
    """Subjects that a person took though the limits of quality did not."""
    return frozenset(name for name, entry in read_decisions(cohort).items() if entry["decision"] == "accept")


def listing(cohort: Path, prepared: Sequence[Outcome] | None = None) -> list[Row]:
    """Every subject: those in the cohort, those that the preparation excluded, and what a person said.

    `prepared`: the preparation's outcomes, where they were read already.
    """
    if not cohort.is_dir():
        raise DataError(f"cohort {cohort.name}: no such folder")
    rows = {path.name: ("in the cohort", "") for path in sorted(cohort.glob("sub-*")) if path.is_dir()}
    for outcome in outcomes(cohort) if prepared is None else prepared:
        if outcome.excluded is not None and outcome.subject not in rows:
            rows[outcome.subject] = ("excluded", outcome.excluded)
    for name, entry in read_decisions(cohort).items():
        if name in rows:
            state, reason = rows[name]
            done = "rejected" if entry["decision"] == "reject" else "accepted"
            if done == "accepted" and state == "excluded":
                done = "accepted; ingest again to take it in"
            rows[name] = (done, f"{entry['why']}{f' (was: {reason})' if reason else ''}")
    return [Row(subject=name, state=state, why=why) for name, (state, why) in sorted(rows.items())]


def _subject(name: str) -> str:
    return f"sub-{name.removeprefix('sub-')}"
