"""The modalities Lacuna knows, how each is spelled, and where BIDS keeps it (one table, read by everything else)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from shared.base.errors import ConfigError
from shared.base.vocabulary import Modality

Kind = Literal["mr", "ct", "pet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of a volume's own voxels that are not background."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"percentiles {self.low:g} and {self.high:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Standard deviations from the mean, both of the middle four fifths of a volume's own voxels.

    A lesion, a vessel that lights up, fluid at the rim of a mask: all lie outside of the middle, and move nothing.
    """

    below: float
    above: float

    def __str__(self) -> str:
        return f"{self.below:g} standard deviations below and {self.above:g} above the mean, of the middle four fifths"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Fixed physical values."""

    low: float
    high: float
    unit: str


Rule = Percentiles | Spread | Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """All that the house knows of a modality: how it is called and kept, and how its images are dealt with."""

    kind: Kind
    folder: str  # of BIDS
    ending: str  # what follows `sub-XXX_` in the file name
    aliases: tuple[str, ...]  # other names in use for it, in the form that `_plain` gives
    values: Rule  # what becomes 0 and 1 (intensities.py)
    reference: int  # onto what a subject's others are registered: the lowest number that is there
    shading: bool = True  # MR: the coils' shading is taken out
    tracer: tuple[str, str, str] | None = None  # PET: its code, scheme and meaning in DICOM's CID 4021


_SUVR = Window(low=0.0, high=3.0, unit="SUVR")
MODALITIES: Mapping[Modality, Form] = {  # the canonical order; a row more changes nothing for those that don't use it
    "T1": Form(
        kind="mr",
        folder="anat",
        ending="T1w",
        aliases=("t1w", "t1weighted", "t1n", "t1native", "mprage"),
        values=Spread(below=3.0, above=3.0),
        reference=1,
    ),
    "T1CE": Form(
        kind="mr",
        folder="anat",
        ending="ce-gd_T1w",
        aliases=("t1c", "t1gd", "t1wce", "t1wgd", "cet1", "cet1w", "gdt1", "t1post", "t1postcontrast", "t1contrast"),
        values=Spread(below=3.5, above=5.0),
        reference=2,
    ),
    "T2": Form(
        kind="mr",
        folder="anat",
        ending="T2w",
        aliases=("t2w", "t2weighted"),
        values=Spread(below=2.0, above=6.0),
        reference=3,
    ),
    "FLAIR": Form(
        kind="mr",
        folder="anat",
        ending="FLAIR",
        aliases=("flairw", "t2flair", "t2f", "t2wflair"),
        values=Spread(below=5.0, above=5.0),
        reference=4,
    ),
    "T2S": Form(
        kind="mr",
        folder="anat",
        ending="T2starw",
        aliases=("t2star", "t2starw", "t2starweighted", "t2sw"),
        values=Spread(below=3.0, above=5.0),
        reference=5,
    ),
    "CT": Form(
        kind="ct",
        folder="ct",
        ending="ct",
        aliases=("ctscan", "ncct"),
        values=Window(low=-20.0, high=100.0, unit="HU"),  # brain window; noise in CSF below, calcification at the top
        reference=7,
    ),
    "FDG": Form(
        kind="pet",
        folder="pet",
        ending="trc-FDG_pet",
        aliases=("fdgpet", "petfdg", "18ffdg", "f18fdg"),
        values=_SUVR,
        reference=9,
        tracer=("35321007", "SCT", "Fluorodeoxyglucose F^18^"),
    ),
    "AV45": Form(
        kind="pet",
        folder="pet",
        ending="trc-AV45_pet",
        aliases=("av45pet", "petav45", "18fav45", "f18av45", "florbetapir", "18fflorbetapir"),
        values=_SUVR,
        reference=8,
        tracer=("456995000", "SCT", "Florbetapir F^18^"),
    ),
    "TOF": Form(
        kind="mr",
        folder="anat",
        ending="acq-tof_angio",
        aliases=("tofmra", "mratof", "tofangio", "mra"),
        values=Percentiles(low=0.5, high=99.9),  # vessels are few and bright (docs/methods/mmdm.md, "The data")
        reference=6,
        shading=False,  # N4 would take inflow for it
    ),
}

# desc-<one of these> marks what Lacuna made: never an input again
SYNTHETIC = ("synthetic", "uncertainty", "reconstructed", "reconstructionuncertainty")
LESION_ENDINGS = ("label-lesion_mask", "label-tumour_dseg", "label-tumor_dseg")  # lesion 1, or tumour parts 1 to 4
LESION_LABELS: Mapping[int, str] = {1: "necrosis", 2: "oedema", 3: "non-enhancing", 4: "enhancing"}
_CONTRAST = ("ce", "gd", "postgd", "post", "postcontrast", "contrast")  # acq-<one of these>_T1w is T1CE too


def _plain(name: str) -> str:
    """ "T1-weighted" -> "t1weighted", "T2*" -> "t2star"."""
    return re.sub(r"[^a-z0-9]", "", name.casefold().replace("*", "star"))


_NAMES: Mapping[str, Modality] = {
    spelling: name for name, form in MODALITIES.items() for spelling in (_plain(name), *form.aliases)
}


def parse(name: str) -> Modality:
    """The canonical name of a modality spelled in any usual way."""
    found = _NAMES.get(_plain(name))
    if found is None:
        raise ConfigError(f"modality={name!r}: must be one of {', '.join(MODALITIES)}, or a usual name for one of them")
    return found


def in_order(modalities: Iterable[Modality]) -> tuple[Modality, ...]:
    """Each once, in the canonical order."""
    wanted = set(modalities)
    return tuple(name for name in MODALITIES if name in wanted)


def bids_path(subject: str, modality: Modality) -> str:
    """Where a cohort keeps a subject's volume of a modality, relative to the cohort's folder."""
    subject = f"sub-{subject.removeprefix('sub-')}"
    form = MODALITIES[modality]
    return f"{subject}/{form.folder}/{subject}_{form.ending}.nii.gz"


def lesion_path(subject: str, *, tumour: bool = False) -> str:
    """Where a cohort keeps a subject's lesion mask, or its tumour label map."""
    subject = f"sub-{subject.removeprefix('sub-')}"
    return f"{subject}/anat/{subject}_{LESION_ENDINGS[1 if tumour else 0]}.nii.gz"


def modality_of(path: PurePath | str) -> Modality | None:
    """What a BIDS file holds, by its name: None for masks, phase images, synthetic and unknown ones."""
    words = _words(path)
    if words is None:
        return None
    entities, suffix = words
    if "label" in entities or entities.get("part", "mag") != "mag":
        return None
    if entities.get("desc") in SYNTHETIC:
        return None
    if suffix == "pet":
        tracer = _NAMES.get(_plain(entities.get("trc", "")))
        return tracer if tracer is not None and MODALITIES[tracer].kind == "pet" else None
    if suffix == "angio":
        return "TOF" if "tof" in entities.get("acq", "tof").casefold() else None
    modality = _NAMES.get(suffix)
    contrast = "ce" in entities or _plain(entities.get("acq", "")) in _CONTRAST
    return "T1CE" if modality == "T1" and contrast else modality


def is_lesion(path: PurePath | str) -> bool:
    """Is this a lesion mask or a tumour label map?"""
    words = _words(path)
    if words is None:
        return False
    entities, suffix = words
    return f"label-{entities.get('label', '').casefold()}_{suffix}" in LESION_ENDINGS


def entity(path: PurePath | str, key: str) -> str:
    """The value of `key-value` in a BIDS file name, such as `ses` or `run`; "" where there is none."""
    words = _words(path)
    return words[0].get(key, "") if words is not None else ""


def _words(path: PurePath | str) -> tuple[Mapping[str, str], str] | None:
    """A BIDS file name as its key-value entities and its suffix; None for what is no NIfTI."""
    name = PurePath(path).name
    stem = name.removesuffix(".gz").removesuffix(".nii")
    if stem == name.removesuffix(".gz"):
        return None
    *pairs, suffix = stem.split("_")
    entities = {key: value for key, dash, value in (pair.partition("-") for pair in pairs) if dash}
    return entities, _plain(suffix)
