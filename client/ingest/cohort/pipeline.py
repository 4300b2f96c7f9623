"""The whole way, from a source to a cohort, resumable at every step and done again without change.

    collect -> group -> classify -> [a person's review] -> convert -> de-identify -> prepare -> tables

    STATE/identity.key               the key to the pseudonyms                     (the site's private disk, mode 0700)
    STATE/provenance.json            where each subject's images came from
    STATE/participants.tsv           optional: participant_id = PatientID, and clinical columns
    STATE/ingest/series.csv          every series and what it was taken for: a person may edit it
    STATE/ingest/aliases.csv         the site's own names for modalities
    STATE/ingest/left_aside/*.csv    what was not used, and why
    STATE/ingest/incoming/           what came over the network
    STATE/ingest/converted/          one folder per converted series
    COHORT/                          de-identified BIDS, what `lacuna-site prepare` reads

Whatever is wrong with one file, series or subject costs that one alone.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from client.ingest.arrive.collect import collect, is_bids
from client.ingest.arrive.headers import whole
from client.ingest.arrive.records import Acquired, Job
from client.ingest.arrive.source import Folder, Source
from client.ingest.arrive.source import place as own_folder
from client.ingest.clean.burned_in import suspect_text
from client.ingest.clean.identity import Identity
from client.ingest.clean.sidecar import clean_age, clean_sidecar
from client.ingest.cohort import tables
from client.ingest.cohort.outcome import Outcome
from client.ingest.cohort.take import Found, aside, take
from client.ingest.image.convert import decode
from client.ingest.recognise import bids, listing
from client.ingest.recognise.listing import Listed
from client.ingest.recognise.series import group
from client.ingest.recognise.visits import Record
from client.site import withdrawn
from shared.base.disk import locks
from shared.base.display.progress import Bar, Progress, unwatched
from shared.base.errors import ConfigError
from shared.base.files import make_folder, private_folder, write_json, write_text
from shared.data.bids import Participant, read_participants
from shared.data.modalities import in_order, parse

MARK = ".lacuna-ingest"  # in a cohort: by whose key its subjects are named


Prepare = Callable[[Sequence[Job], Path, Progress], Sequence[Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What of a source is wanted, and how far to go."""

    modalities: Sequence[str] | None = None  # None: all that are found
    review: bool = False  # stop after the list of series is written
    visit_days: int = 0  # a patient's studies within so many days are one visit
    workers: int | None = None  # conversions at a time; None: one per core


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What an ingest did, in numbers that name nobody, and where its lists are."""

    cohort: Path
    series_file: Path | None  # None for a BIDS source
    asides_file: Path
    files: int
    series: int
    mapped: int
    asides: int
    visits: int | None = None  # in the cohort; None when it stopped for a review
    excluded: Mapping[str, str] = field(default_factory=dict)  # subject, or subject/session, and why

    @property
    def summary(self) -> tuple[tuple[str, str], ...]:
        rows = [("files read", str(self.files))]
        if self.series_file is not None:
            rows.append(("series", f"{self.series}; {self.mapped} of them are a modality of Lacuna"))
        rows.append(("left aside", f"{self.asides} files and series"))
        if self.visits is not None:
            rows.append(("in the cohort", f"{self.visits} subjects (each visit counts); {len(self.excluded)} excluded"))
        return tuple(rows)


def ingest(
    source: Source,
    cohort: Path,
    state: Path,
    *,
    prepare: Prepare,
    preparation: str,
    options: Options | None = None,
    bar: Bar = lambda title: nullcontext(unwatched),
) -> Ingested:
    """Bring a source into a cohort.

    `prepare` turns jobs into subjects' folders (runner.py); `preparation` is the hash of how it does.
    """
    options = options or Options()
    wanted = None if options.modalities is None else in_order(parse(name) for name in options.modalities)
    _check_apart(source, cohort, state)
    folder = state / "ingest"
    with _alone(state):
        identity = Identity.open(state)
        _claim(cohort, identity)
        found = _look(source, folder, bar)
        done = Ingested(
            cohort=cohort,
            series_file=folder / listing.SERIES_FILE if found.listed else None,
            asides_file=tables.write_asides(folder, source.name, found.asides),
            files=found.files,
            series=len(found.listed),
            mapped=sum(one.modality is not None for one in found.listed),
            asides=len(found.asides),
        )
        if options.review:
            return done
        record, more = take(found, wanted, folder, days=options.visit_days, workers=options.workers, bar=bar)
        record.write(folder)
        tables.write_asides(folder, source.name, [*found.asides, *more])
        gone = withdrawn.names(state)
        jobs = [job for job in _jobs(record, state, identity) if job.subject not in gone]
        write_json(state / "provenance.json", _provenance(record, identity))
        with bar("preparing") as advance:
            outcomes = prepare(jobs, cohort, advance)
        excluded = {_name(o.subject, o.session): o.excluded for o in outcomes if o.excluded}
        _sweep(cohort, jobs, excluded)
        tables.write_participants(cohort, jobs)
        tables.write_exclusions(cohort, tables.read_asides(folder), outcomes, identity)
        tables.write_cohort(cohort, outcomes, preparation)
        return replace(done, asides=len(found.asides) + len(more), visits=len(jobs) - len(excluded), excluded=excluded)


# Collect, group, classify ---------------------------------------------------------------------------------------------


def _look(source: Source, folder: Path, bar: Bar) -> Found:
    place, asides = source.bring(folder / "incoming", bar)
    if is_bids(place):
        with bar("taking volumes") as advance:
            ready, more = bids.take(place, own_folder(folder / "bids", str(place.resolve())), advance)
        return Found(files=len(ready) + len(more), listed=(), ready=tuple(ready), asides=(*asides, *more))
    with bar("reading headers") as advance:
        headers, others = collect(place, progress=advance)
    series, left = group(headers)
    with bar("classifying") as advance:
        listed = _look_for_text(listing.decide(series, folder), folder / "converted", advance)
    listing.write(listed, folder)
    unmapped = [aside(one.series, one.why) for one in listed if one.modality is None]
    files = len(headers) + len(others)
    return Found(files=files, listed=tuple(listed), ready=(), asides=(*asides, *others, *left, *unmapped))


def _look_for_text(listed: Sequence[Listed], folder: Path, advance: Progress) -> list[Listed]:
    """A series with what looks like text in its voxels is set aside, until a person maps it."""
    checked = []
    for done, one in enumerate(listed, start=1):
        if one.modality is not None and one.by != "person":
            path = one.series.paths[len(one.series.paths) // 2]
            middle = whole(path)
            if middle is not None and suspect_text(middle, decode=partial(decode, path, folder)):
                why = "text may be written into its voxels: look at it, and map it in series.csv if there is none"
                one = replace(one, modality=None, found=None, said=None, suggestion=one.modality, why=why)
        checked.append(one)
        advance(done, len(listed))
    return checked


# De-identify ----------------------------------------------------------------------------------------------------------


def _jobs(record: Record, state: Path, identity: Identity) -> list[Job]:
    """Everything in the record under pseudonyms: one job per visit, a session only for who has several."""
    clinical = read_participants(state)
    known = record.numbers
    visits: dict[str, dict[int, list[Acquired]]] = defaultdict(lambda: defaultdict(list))
    for one in record.taken:
        if one.acquired.nifti.exists():
            visits[one.acquired.patient][known[one.acquired.patient, one.acquired.study]].append(one.acquired)
    jobs = []
    for patient, numbers in visits.items():
        for number, acquired in sorted(numbers.items()):
            said = clinical.get(f"sub-{patient.removeprefix('sub-')}", Participant()).clinical
            files = {one.modality: one for one in acquired}
            order = in_order(files)
            jobs.append(
                Job(
                    subject=identity.subject(patient),
                    session=f"ses-{number}" if len(numbers) > 1 else None,
                    inputs={modality: files[modality].nifti for modality in order},
                    sidecars={m: clean_sidecar(files[m].sidecar, patient, identity) for m in order},
                    clinical={**_person(acquired), **said},
                )
            )
    return sorted(jobs, key=lambda job: (job.subject, job.session or ""))


def _person(acquired: Sequence[Acquired]) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for one in acquired:
        age = clean_age(one.age)
        if age is not None:
            found.setdefault("age", age)
        if one.sex in ("M", "F", "O"):
            found.setdefault("sex", one.sex)
    return found


def _provenance(record: Record, identity: Identity) -> list[dict[str, object]]:
    """For the site alone: from a pseudonym back to the series, so that a result can go where its images came from."""
    numbers = record.numbers
    return [
        {
            "subject": identity.subject(one.acquired.patient),
            "visit": numbers[one.acquired.patient, one.acquired.study],
            "modality": one.acquired.modality,
            "patient": one.acquired.patient,
            "study": one.acquired.study,
            "series": one.acquired.series,
            "nifti": str(one.acquired.nifti),
            "files": [str(path) for path in one.acquired.source],
        }
        for one in record.taken
    ]


# The cohort's folder --------------------------------------------------------------------------------------------------


def _name(subject: str, session: str | None) -> str:
    return f"{subject}/{session}" if session else subject


def _claim(cohort: Path, identity: Identity) -> None:
    """A cohort has one key: another one's subjects, or a folder of the user's own, are never touched."""
    mark = cohort / MARK
    ours = identity.uid("1.2.826.0.1.3680043.10.1.cohort")
    if mark.exists():
        if mark.read_text(encoding="utf-8").strip() != ours:
            raise ConfigError(f"out={cohort}: was made with another identity.key; name its own state, or a new folder")
        return
    if cohort.exists() and (not cohort.is_dir() or any(cohort.iterdir())):
        raise ConfigError(f"out={cohort}: must be a new or empty folder, or a cohort of an earlier ingest")
    make_folder(cohort)
    write_text(mark, ours + "\n")
    tables.write_description(cohort)


def _sweep(cohort: Path, jobs: Sequence[Job], excluded: Mapping[str, str]) -> None:
    """Folders of subjects and visits that are no longer part of the cohort go."""
    names = {name for job in jobs if (name := _name(job.subject, job.session)) not in excluded}
    for folder in sorted(cohort.glob("sub-*")):
        if folder.is_dir() and folder.name not in names:
            for inside in sorted(folder.iterdir()):
                if f"{folder.name}/{inside.name}" not in names:
                    shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
            if not any(folder.iterdir()):
                folder.rmdir()


def _check_apart(source: Source, cohort: Path, state: Path) -> None:
    """The private disk, the cohort and the source never lie in one another."""
    places = {"out": cohort.resolve(), "state": state.resolve()}
    if isinstance(source, Folder):
        places["source"] = source.path.resolve()
    for name, one in places.items():
        for other, two in places.items():
            if name != other and one.is_relative_to(two):
                raise ConfigError(f"{name}={one}: must not lie in {other}={two}")


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """One ingest at a time on a site's private disk."""
    private_folder(state)
    private_folder(state / "ingest")
    busy = ConfigError(f"state={state}: another ingest is at work there")
    with locks.held(state / "ingest" / ".lock", busy=busy):
        yield
