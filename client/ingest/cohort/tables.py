"""What an ingest writes down: for the site, everything; in the cohort, only what names nobody.

STATE/ingest/left_aside/<source>.csv   every file, series and subject not used, by its own name, and why
STATE/provenance.json                  which series and files a subject's images came from
COHORT/exclusions.csv                  the same reasons under pseudonyms; files that belong to nobody as counts
COHORT/participants.tsv, dataset_description.json, .bidsignore, README, cohort.json
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from client.ingest.arrive.records import Aside, Job
from client.ingest.clean.identity import Identity
from client.ingest.cohort.outcome import Outcome
from shared.base.files import write_json, write_text
from shared.data.bids import NUMBERS, WORDS
from shared.data.modalities import in_order

ASIDES = "left_aside"
BIDS_VERSION = "1.10.0"
NOT_BIDS = (  # our own files; CT; and PET, which as a ratio is no longer the raw PET that BIDS describes
    "exclusions.csv",
    "cohort.json",
    "preparation.json",
    "quality.html",
    "decisions.json",
    "quality",
    "quality/**",
    "**/ct",
    "**/ct/**",
    "**/pet",
    "**/pet/**",
)
README = """A cohort made by `lacuna-site ingest`: de-identified, registered within each subject, brains only.

It is patient data all the same. exclusions.csv says what was left out and why, preparation.json how the images were
prepared, quality.html shows them. Pseudonyms can be undone with the site's key alone, which is not in here.
"""


def write_asides(folder: Path, source: str, asides: Sequence[Aside]) -> Path:
    """The site's own list for one source; it is written anew each time that the source is ingested."""
    name = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    path = folder / ASIDES / f"{name}.csv"
    rows = sorted(asides, key=lambda aside: (aside.what, aside.where))
    columns = ("what", "where", "why", "patient", "series")
    write_csv(path, columns, ([getattr(aside, column) for column in columns] for aside in rows))
    return path


def read_asides(folder: Path) -> list[Aside]:
    """What every ingest into this state left aside, source by source."""
    found = []
    for path in sorted((folder / ASIDES).glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            found += [Aside(**row) for row in csv.DictReader(file)]  # type: ignore[arg-type]
    return found


def write_exclusions(cohort: Path, asides: Iterable[Aside], outcomes: Sequence[Outcome], identity: Identity) -> None:
    """Under pseudonyms: what the ingest left aside, and what the preparation did."""
    counts = Counter(
        (
            identity.subject(aside.patient) if aside.patient else "",
            "",
            aside.what,
            identity.uid(aside.series) if aside.series and aside.what == "series" else "",
            aside.why,
        )
        for aside in asides
    )
    rows: list[tuple[str, ...]] = [(*key, str(count)) for key, count in counts.items()]
    for outcome in outcomes:
        subject, session = outcome.subject, outcome.session or ""
        if outcome.excluded:
            rows.append((subject, session, "subject", "", outcome.excluded, "1"))
        rows += [(subject, session, "modality", "", f"{m}: {why}", "1") for m, why in outcome.left.items()]
    write_csv(cohort / "exclusions.csv", ("subject", "session", "what", "series", "why", "count"), sorted(rows))


def write_participants(cohort: Path, jobs: Sequence[Job]) -> None:
    """One row per subject that has images, from its first visit."""
    clinical: dict[str, Mapping[str, float | str]] = {}
    for job in jobs:
        if (cohort / job.subject).is_dir():
            clinical.setdefault(job.subject, job.clinical)
    columns = [name for name in (*NUMBERS, *WORDS) if any(name in row for row in clinical.values())]
    rows = [[subject, *(_cell(row.get(name)) for name in columns)] for subject, row in sorted(clinical.items())]
    write_csv(cohort / "participants.tsv", ("participant_id", *columns), rows, separator="\t")


def _cell(value: float | str | None) -> str:
    return "n/a" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def write_description(cohort: Path) -> None:
    write_json(
        cohort / "dataset_description.json",
        {
            "Name": "Lacuna cohort",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "raw",
            "GeneratedBy": [{"Name": "lacuna-site ingest"}],
        },
    )
    write_text(cohort / ".bidsignore", "\n".join(NOT_BIDS) + "\n")
    write_text(cohort / "README", README)


def write_cohort(cohort: Path, outcomes: Sequence[Outcome], preparation: str) -> None:
    """cohort.json: who has what, as a missing pattern, and how it was prepared."""
    present = [(o, in_order(o.files)) for o in outcomes if o.files and o.excluded is None]
    everything = in_order(modality for _, modalities in present for modality in modalities)
    patterns = Counter("".join("1" if m in modalities else "0" for m in everything) for _, modalities in present)
    content = {
        "made_by": "lacuna-site ingest",
        "preparation": preparation,
        "modalities": list(everything),
        "patterns": dict(sorted(patterns.items())),
        "subjects": [{"subject": o.subject, "session": o.session, "modalities": list(m)} for o, m in present],
    }
    write_json(cohort / "cohort.json", content)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]], *, separator: str = ",") -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n", delimiter=separator)
    table.writerow(columns)
    table.writerows(rows)
    write_text(path, text.getvalue())
