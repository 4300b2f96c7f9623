"""What passes between the steps of an ingest. `Acquired` names the patient and never leaves the site's private disk.

A *series* is what one DICOM SeriesInstanceUID (or one BIDS file) holds; a *study* is one visit's series. `state` is the
site's private disk: identity key, staging, provenance. The cohort that comes out of it is de-identified.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.base.vocabulary import Modality

SIDECAR_LIMIT = 4 * 2**20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """One converted series of one patient, on the site's private disk."""

    patient: str  # PatientID as in the PACS; never leaves `state`
    study: str  # StudyInstanceUID
    series: str  # SeriesInstanceUID
    date: str  # of the study, YYYYMMDD, or ""
    modality: Modality
    nifti: Path
    sidecar: Mapping[str, Any]  # raw: dcm2niix's JSON and a few tags; uncleaned
    source: tuple[Path, ...]  # its DICOM files, or the BIDS file
    age: float | None
    sex: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One subject, at one visit, to prepare."""

    subject: str  # "sub-<pseudonym>"
    session: str | None  # "ses-1", ... when a patient has several visits
    inputs: Mapping[Modality, Path]  # NIfTI, as converted
    sidecars: Mapping[Modality, Mapping[str, Any]]  # cleaned
    clinical: Mapping[str, float | str]

    @property
    def name(self) -> str:
        return self.subject if self.session is None else f"{self.subject}_{self.session}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """Something that was not used. `where`, `patient` and `series` stay at the site; `why` names nobody."""

    what: Literal["file", "series", "subject"]
    where: str  # the file, the series or the subject, as the site knows it
    why: str
    patient: str = ""
    series: str = ""


def read_sidecar(path: Path) -> dict[str, Any]:
    """What the JSON file beside an image says; nothing where there is none that can be read."""
    try:
        if path.stat().st_size <= SIDECAR_LIMIT:
            loaded = json.loads(path.read_text(encoding="utf-8", errors="replace"))
            return loaded if isinstance(loaded, dict) else {}
    except (OSError, ValueError, RecursionError):
        pass
    return {}
