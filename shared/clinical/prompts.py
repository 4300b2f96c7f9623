"""The words that a language model is given, one short prompt for each piece of the chart."""

from collections.abc import Mapping

from shared.base.vocabulary import Modality
from shared.clinical.chart import SCORES

SPOKEN: Mapping[Modality, str] = {
    "T1": "T1-weighted MRI",
    "T1CE": "contrast-enhanced T1-weighted MRI",
    "T2": "T2-weighted MRI",
    "FLAIR": "FLAIR MRI",
    "T2S": "T2*-weighted MRI",
    "CT": "CT",
    "FDG": "FDG PET",
    "AV45": "AV45 PET",
    "TOF": "time-of-flight MR angiography",
}


def prompt(piece: str, value: object) -> str:
    """ "Generate FDG PET", "from T1-weighted MRI and AV45 PET", "AD patient", "MMSE=22"."""
    if piece in SCORES:
        return f"{SCORES[piece].label}={value:g}"
    if piece == "diagnosis":
        return "healthy control" if value == "HC" else f"{value} patient"
    if piece == "target":
        return f"Generate {_spoken(str(value))}"
    assert isinstance(value, tuple)
    return f"from {' and '.join(_spoken(name) for name in value)}"


def _spoken(modality: Modality) -> str:
    return SPOKEN.get(modality, modality)
