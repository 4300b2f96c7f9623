"""A BIDS folder as a source: its volumes are taken as they are, and go straight to preparation."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.ingest.arrive.records import Acquired, Aside, read_sidecar
from client.ingest.recognise.visits import Taken, Visit
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import DataError
from shared.base.files import copy
from shared.data.bids import Participant, find_subjects, read_participants
from shared.data.modalities import MODALITIES
from shared.data.volumes import shape_and_affine

FOLDER = "bids:"  # begins the names of what came from a BIDS folder


def take(source: Path, folder: Path, progress: Progress = unwatched) -> tuple[list[Taken], list[Aside]]:
    """Each subject's volumes, linked (or copied) into `folder`, so that the source may go; and what was left aside."""
    whole = str(source.resolve())
    participants = read_participants(source)
    asides, taken = [], []
    subjects = find_subjects(source)
    for done, subject in enumerate(subjects, start=1):
        name = subject.subject.removeprefix("sub-")
        who = participants.get(subject.subject, Participant())
        for remark in (*subject.remarks, *who.remarks):
            asides.append(_aside(remark.file or subject.subject, _unquoted(remark.why), name))
        if subject.lesion is not None:
            why = "a lesion map: an ingest carries none, as it would have to be registered too"
            asides.append(_aside(subject.lesion.name, why, name))
        for modality, path in subject.files.items():
            try:
                shape_and_affine(path)
                nifti = _link(path, folder / name / f"{modality}{''.join(path.suffixes[-2:])}")
            except DataError as error:
                asides.append(_aside(path.name, str(error), name))
                continue
            age = who.clinical.get("age")
            taken.append(
                Taken(
                    acquired=Acquired(
                        patient=name,
                        study=f"{FOLDER}{whole}/{name}",
                        series=f"{FOLDER}{whole}/{path.name}",
                        date="",
                        modality=modality,
                        nifti=nifti,
                        sidecar={**_sidecar(path), **_unit(modality)},
                        source=(path,),
                        age=age if isinstance(age, float) else None,
                        sex=str(who.clinical.get("sex", "")),
                    ),
                    rank=(0.0,),
                )
            )
        progress(done, len(subjects))
    return taken, asides


def of_one_folder(taken: Sequence[Taken], visits: Sequence[Visit]) -> tuple[list[Taken], list[Aside]]:
    """Without the subjects whose name another BIDS folder used before: nobody knows whether they are one person."""
    before = {one.patient: study for one in visits for study in one.studies if study.startswith(FOLDER)}
    kept, asides = [], {}
    for one in taken:
        who = one.acquired.patient
        if before.get(who, one.acquired.study) == one.acquired.study:
            kept.append(one)
        else:
            why = "another BIDS folder had a subject of this name: give it another one, or ingest with another state"
            asides[who] = Aside(what="subject", where=f"sub-{who}", why=why, patient=who)
    return kept, list(asides.values())


def _unquoted(why: str) -> str:
    """Without the source's own words: a session's label, or what stands in place of an age, may be a date."""
    why = re.sub(r"^session .* was used$", "another session was used", why)
    return re.sub(r"^(\w+)=.*: must be", r"\1: must be", why)


def _aside(where: str, why: str, patient: str) -> Aside:
    return Aside(what="file", where=where, why=why, patient=patient)


def _unit(modality: str) -> dict[str, str]:
    return {"Units": "HU"} if MODALITIES[modality].kind == "ct" else {}


def _sidecar(path: Path) -> dict[str, Any]:
    return read_sidecar(path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json"))


def _link(path: Path, target: Path) -> Path:
    """A second name for the file; where the disk allows none, a copy."""
    copy(path, target, linked=True, durable=False)  # the source is still there
    return target
