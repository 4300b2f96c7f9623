"""Somebody takes it back: cohort and caches forget them, nobody here trains on them, and it is said where they were.

First the site's own list, which holds whatever a cache says; then the files; last the note for the coordinator. Done
again it does what is left to do.

Of a cohort that `lacuna-site ingest` made their images go, of any other folder only the caches: what else is in it are
the hospital's own files, which decisions.json sets aside. What the PACS sent (STATE/ingest) is the hospital's too.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.ingest.cohort import page, tables
from client.ingest.cohort.outcome import QUALITY, outcomes
from client.ingest.cohort.pipeline import MARK
from client.ingest.cohort.review import MOST_WHY, set_aside
from client.ingest.cohort.runner import PAGE
from client.site import withdrawn
from client.site.withdrawn import Part
from shared.base.errors import ConfigError
from shared.base.files import write_text
from shared.data.bids import read_preparation
from shared.data.cohort import forget, forget_rows
from shared.trust.certificates import utc_of

CACHES = "derivatives/lacuna"


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    parts: tuple[Part, ...]
    forgotten: tuple[Path, ...]  # what was deleted, or would be
    kept: tuple[Path, ...]  # the hospital's own files, which are set aside
    note: Path | None  # None: nothing of theirs left, or this was a rehearsal


def withdraw(
    state: Path, cohorts: Sequence[Path], site: str | None, subject: str, *, why: str, rehearsal: bool
) -> Withdrawn:
    """`site` None: of a state without an enrolment, from which nothing can have left."""
    if not why.strip() or len(why) > MOST_WHY:
        raise ConfigError(
            f"why={why[:40]!r}: must say why in at most {MOST_WHY} characters, for whoever reads it later"
        )
    name = f"sub-{subject.removeprefix('sub-')}"
    if not re.fullmatch(r"sub-[A-Za-z0-9]+", name):
        raise ConfigError(f"subject={subject[:80]!r}: must be sub- and letters or digits, as the cohort names it")
    for cohort in cohorts:
        if not cohort.is_dir():
            raise ConfigError(f"--cohort {cohort}: no folder there")
    places = [place for cohort in cohorts for place in _places(cohort, name)]
    rows = [cohort for cohort in cohorts if _has_row(cohort, name)]
    if not places and not rows and not withdrawn.is_known(state, name):
        raise ConfigError(f"subject={subject}: in no cohort of this site, and nothing was ever trained on them")
    own = {cohort: (cohort / MARK).exists() for cohort in cohorts}
    kept = tuple(cohort / name for cohort in cohorts if (cohort / name).exists() and not own[cohort])
    gone = tuple(place for place in places if place not in kept)
    if rehearsal:
        return Withdrawn(parts=tuple(withdrawn.parts_of(state, name)), forgotten=gone, kept=kept, note=None)
    number, at = withdrawn.withdraw(state, name, " ".join(why.split()))
    for cohort in cohorts:
        set_aside(cohort, name, f"withdrawn at {utc_of(at)}")
        _forget(cohort, name, ours=own[cohort])
    parts = tuple(withdrawn.parts_of(state, name))
    note = withdrawn.note(state, site, number, at, parts) if parts and site is not None else None
    return Withdrawn(parts=parts, forgotten=gone, kept=kept, note=note)


def _places(cohort: Path, name: str) -> list[Path]:
    found = [
        cohort / name,
        *sorted((cohort / QUALITY).glob(f"{name}.*")),
        *sorted((cohort / QUALITY).glob(f"{name}_*")),
    ]
    found += [cache / name for cache in _caches(cohort)]
    return [path for path in found if path.exists()]


def _has_row(cohort: Path, name: str) -> bool:
    path = cohort / "participants.tsv"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    cells = (line.split("\t")[0].strip('"') for line in lines)
    return any(f"sub-{cell.removeprefix('sub-')}" == name for cell in cells)


def _caches(cohort: Path) -> list[Path]:
    return [path.parent for path in sorted((cohort / CACHES).glob("*/cohort.json"))]


def _forget(cohort: Path, name: str, *, ours: bool) -> None:
    for cache in _caches(cohort):
        forget(cache, name)
    if not ours:
        return
    for path in _places(cohort, name):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for table in ("participants.tsv", "exclusions.csv"):
        forget_rows(cohort / table, name)
    left = outcomes(cohort)
    tables.write_cohort(cohort, left, read_preparation(cohort))
    write_text(cohort / PAGE, page.render(cohort, left, read_preparation(cohort)))
