"""What a BIDS cohort folder holds: each subject's files by modality, and what participants.tsv says of them.

Nothing here opens an image. Whatever is left aside gets a `Remark`; remarks name subjects and stay at the site.
"""

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.base.errors import DataError
from shared.base.vocabulary import Modality
from shared.clinical.chart import SCORES, unfit
from shared.data.modalities import entity, in_order, is_lesion, modality_of

Done = Literal["used", "incomplete", "skipped modality", "excluded"]
Clinical = Mapping[str, float | str]

SPLITS = ("train", "val", "test")
NUMBERS = ("age", "mmse", "adas13", "cdrsb")  # clinical columns that hold numbers
WORDS = ("sex", "diagnosis")
_COLUMNS: Mapping[str, str] = {
    **{name: name for name in ("participantid", "split", *NUMBERS, *WORDS)},
    "dx": "diagnosis",
    "gender": "sex",
    "cdrsumofboxes": "cdrsb",
    "adascog13": "adas13",
}
PREPARATION = "preparation.json"  # how the images were prepared, written by `lacuna-site ingest`
DECISIONS = "decisions.json"  # a person's word, written by `lacuna-site review`
_UNKNOWN = ("", "n/a", "na", "nan", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One line of the exclusion report."""

    subject: str
    file: str  # relative to the cohort's folder; "" for the subject as a whole
    done: Done
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The files of one subject that may be used."""

    subject: str
    files: Mapping[Modality, Path]
    lesion: Path | None
    remarks: tuple[Remark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A row of participants.tsv."""

    split: str = "train"
    clinical: Clinical = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()


def find_subjects(bids: Path) -> list[Sources]:
    """Every sub-* folder, in the order of their names."""
    if not bids.is_dir():
        raise DataError(f"cohort {bids.name}: no such folder")
    folders = sorted(path for path in bids.iterdir() if path.name.startswith("sub-"))
    if not folders:
        raise DataError(f"cohort {bids.name}: holds no sub-* folder, so it is not a BIDS folder")
    decisions = read_decisions(bids)
    return [_decided(find_files(bids, folder), decisions) for folder in folders]


def read_decisions(bids: Path) -> dict[str, Mapping[str, str]]:
    """By subject: `decision` (accept or reject), `why`, `at`. No file, no decisions; a damaged one is a DataError."""
    try:
        found = json.loads((bids / DECISIONS).read_text(encoding="utf-8"))
        return {
            str(name): {"decision": entry["decision"], "why": str(entry["why"]), "at": str(entry.get("at", ""))}
            for name, entry in found.items()
            if entry["decision"] in ("accept", "reject")
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{DECISIONS}: can't be read ({type(error).__name__}); mend it, or delete it and review again"
        ) from None


def read_preparation(bids: Path) -> str:
    """The digest of how `lacuna-site ingest` prepared the images; "" for a cohort that it did not make as a whole."""
    try:
        digest = json.loads((bids / PREPARATION).read_text(encoding="utf-8"))["digest"]
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError("digest")
        return digest
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{PREPARATION}: can't be read ({type(error).__name__}); run `lacuna-site ingest` again"
        ) from None


def _decided(sources: Sources, decisions: Mapping[str, Mapping[str, str]]) -> Sources:
    """Rejected by a person: its files stay, and are not used."""
    entry = decisions.get(sources.subject)
    if entry is None or entry["decision"] != "reject":
        return sources
    remark = Remark(subject=sources.subject, file="", done="excluded", why=f"rejected by a person: {entry['why']}")
    return Sources(subject=sources.subject, files={}, lesion=None, remarks=(remark,))


def read_participants(bids: Path) -> dict[str, Participant]:
    """Rows of participants.tsv by subject; no file, no rows. A table that can't be trusted is a DataError."""
    path = bids / "participants.tsv"
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file, delimiter="\t") if row] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"participants.tsv: can't be read as tab-separated UTF-8 text ({error})") from None
    columns = [_COLUMNS.get(re.sub(r"[^a-z0-9]", "", name.casefold())) for name in header]
    if "participantid" not in columns:
        raise DataError(
            f"participants.tsv: must be tab-separated with a column participant_id; its first line is {header[:6]}"
        )
    for name in columns:
        if name is not None and columns.count(name) > 1:
            raise DataError(f"participants.tsv: {columns.count(name)} columns mean {name}")
    found: dict[str, Participant] = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"participants.tsv row {number}: {len(row)} entries under {len(header)} columns")
        values = {name: value.strip() for name, value in zip(columns, row, strict=True) if name is not None}
        subject = f"sub-{values.pop('participantid').removeprefix('sub-')}"
        if subject in found:
            raise DataError(f"participants.tsv row {number}: this participant has a row already")
        found[subject] = _participant(subject, values)
    return found


def _participant(subject: str, values: Mapping[str, str]) -> Participant:
    known = {name: value for name, value in values.items() if value.casefold() not in _UNKNOWN}
    clinical: dict[str, float | str] = {}
    remarks = []
    for name in (*NUMBERS, *WORDS):
        if name not in known:
            continue
        value = _number(known[name]) if name in NUMBERS else known[name]
        if value is None:
            why = f"{name}={known[name]!r}: must be a number; left out"
            remarks.append(Remark(subject=subject, file="participants.tsv", done="used", why=why))
        else:
            clinical[name] = value
    for name, rule in unfit(clinical, SCORES).items():
        why = f"{name}={clinical[name]}: must be {rule}; models that read the chart leave it out"
        remarks.append(Remark(subject=subject, file="participants.tsv", done="used", why=why))
    return Participant(split=known.get("split", "train").casefold(), clinical=clinical, remarks=tuple(remarks))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def find_files(bids: Path, folder: Path) -> Sources:
    """One file per modality, all of one session: the one with most modalities, and of these the first."""
    subject = folder.name
    if not re.fullmatch(r"sub-[A-Za-z0-9]+", subject) or not folder.is_dir():
        why = "not a folder" if not folder.is_dir() else "its name is not sub- and letters or digits"
        return Sources(
            subject=subject,
            files={},
            lesion=None,
            remarks=(Remark(subject=subject, file="", done="excluded", why=why),),
        )
    remarks = []

    def leave(path: Path, why: str) -> None:
        file = path.relative_to(bids).as_posix()
        remarks.append(Remark(subject=subject, file=file, done="skipped modality", why=why))

    candidates: dict[str, dict[Modality, list[Path]]] = defaultdict(lambda: defaultdict(list))
    lesions: dict[str, list[Path]] = defaultdict(list)
    for path in sorted([*folder.glob("*/*.nii*"), *folder.glob("ses-*/*/*.nii*")]):
        inside = path.relative_to(folder).parts
        session = entity(path, "ses") or (inside[0][4:] if inside[0].startswith("ses-") else "")
        modality = modality_of(path)
        if entity(path, "sub") != subject[4:]:
            leave(path, "its name is not this subject's")
        elif is_lesion(path):
            lesions[session].append(path)
        elif modality is None:
            leave(path, "no modality that Lacuna knows")
        else:
            candidates[session][modality].append(path)
    if not candidates:
        return Sources(subject=subject, files={}, lesion=None, remarks=tuple(remarks))

    chosen = max(sorted(candidates), key=lambda session: len(candidates[session]))  # the first of the fullest
    for session in sorted(candidates.keys() | lesions.keys()):
        if session != chosen:
            others = [path for paths in candidates[session].values() for path in paths] + lesions[session]
            for path in others:
                leave(path, f"session {chosen or '(none)'} was used")
    files = {}
    for modality in in_order(candidates[chosen]):
        files[modality] = _first(candidates[chosen][modality])
        for path in candidates[chosen][modality]:
            if path != files[modality]:
                leave(path, f"another {modality} file was used")
    lesion = _first(lesions[chosen]) if lesions[chosen] else None
    for path in lesions[chosen]:
        if lesion is not None and path != lesion:
            leave(path, "another lesion map was used")
    return Sources(subject=subject, files=files, lesion=lesion, remarks=tuple(remarks))


def _first(paths: Sequence[Path]) -> Path:
    """The plainest name: no run number or the lowest, then the shortest."""
    return min(paths, key=lambda path: (entity(path, "run").rjust(4, "0"), len(path.name), path.name))
