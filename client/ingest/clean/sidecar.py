"""A sidecar without who it is of: an allow-list, with the site's own key; and a patient's age as a cohort may say it.

No DICOM header reaches a cohort: `ingest` writes new NIfTI files, and beside each of them the JSON that dcm2niix made
of the header (or that lay in the BIDS source) after it went through `clean_sidecar`. What allowed.py does not name is
dropped; what it names stays only with a value of the right kind. UIDs get those of the site's identity, a date is moved
as all of its patient's are. Age, sex and diagnoses pass by participants.tsv alone.

The record that it leaves names what this comes to in DICOM's own words (PS3.15 Annex E): the Basic Application Level
Confidentiality Profile with Clean Descriptors, Retain Longitudinal Temporal Information with Modified Dates and Retain
Safe Private (scaling factors alone). Text in the voxels is burned_in.py's part, faces are image/brain.py's.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from client.ingest.arrive.source import UID
from client.ingest.clean import allowed
from client.ingest.clean.identity import Identity

METHOD = "Lacuna: PS3.15 Annex E by allow-list"
OPTIONS: Mapping[str, str] = {  # 0012,0064, all of scheme DCM
    "113100": "Basic Application Confidentiality Profile",
    "113105": "Clean Descriptors Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113111": "Retain Safe Private Option",
}
STILL_TRUE: Mapping[str, str] = {  # what another tool did to the pixels and structures before us, and still holds
    "113101": "Clean Pixel Data Option",
    "113102": "Clean Recognizable Visual Features Option",
    "113103": "Clean Graphics Option",
    "113104": "Clean Structured Content Option",
}
OLDEST = 89  # years; above it an age says too much (45 CFR 164.514(b)(2)(i)(C))
_CODE = ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")


def clean_sidecar(sidecar: Mapping[str, Any], patient: str, identity: Identity) -> dict[str, Any]:
    """A BIDS sidecar with what may stay, and the record of what was done."""
    cleaned: dict[str, Any] = {}
    for key, value in sidecar.items():
        kept = _clean(key, value, patient, identity)
        if kept is not None:
            cleaned[key] = kept
    old = sidecar.get("DeidentificationMethod", [])
    cleaned["DeidentificationMethod"] = _methods(old if isinstance(old, list) else [old])
    codes = sidecar.get("DeidentificationMethodCodeSequence", [])
    cleaned["DeidentificationMethodCodeSequence"] = _codes(codes if isinstance(codes, list) else [])
    return cleaned


def clean_text(text: str) -> str:
    """The words of a description that are about images: "T1 MPRAGE SAG Mrs Smith 1956" -> "T1 MPRAGE SAG"."""
    words = re.findall(r"[^\W_]+(?:\.\d+[^\W_]*)?", text)
    known = [word for word in words if _is_known(word)]
    return text.strip() if known == words and text.isascii() else " ".join(known)


def clean_age(age: float | None) -> float | None:
    """An age as it may stand in participants.tsv: whole years, 90 for everybody older than 89."""
    if age is None or not math.isfinite(age) or age < 0:
        return None
    return float(min(int(age), OLDEST + 1))


# --- values ---------------------------------------------------------------------------------------------------------


def _clean(key: str, value: Any, patient: str, identity: Identity) -> Any:
    """One entry's value as it may stay; None where it must go."""
    if key in allowed.NUMBERS:
        try:
            return value if isinstance(value, bool) else _numbers(value, allowed.MOST_OF.get(key, allowed.MOST))
        except (TypeError, ValueError, OverflowError, RecursionError):
            return None
    if key in allowed.TEXTS:
        values = value if isinstance(value, list) else [value]
        texts = [kept for kept in map(_text, values) if kept]
        return None if not texts else texts if isinstance(value, list) else texts[0]
    if key in ("SeriesInstanceUID", "StudyInstanceUID") and isinstance(value, str):
        return identity.uid(value) if UID.fullmatch(value) else None
    if key == "AcquisitionDateTime" and isinstance(value, str):
        day = identity.date(value[:10], patient)
        return f"{day[:4]}-{day[4:6]}-{day[6:]}" if day else None
    if key == "ConversionSoftwareVersion" and isinstance(value, str):
        return value if re.fullmatch(r"v\d\.\d\.\d{8}", value, re.ASCII) else None
    return None


def _numbers(value: Any, most: float) -> Any:
    """One number, or a list of them, none beyond `most`."""
    if isinstance(value, list | tuple):
        made = [_numbers(each, most) for each in value]
        return None if not made or None in made else made
    if isinstance(value, str) or value is None:
        return None
    number = float(value)
    if not math.isfinite(number) or abs(number) > most:
        return None
    if abs(number) > allowed.MOST:  # a dose or a half-life: four digits are enough, and too few for an identifier
        return float(f"{number:.3e}")
    return int(value) if isinstance(value, int) else float(f"{number:.10g}")


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    if value in ("i", "j", "k", "i-", "j-", "k-"):
        return value  # a phase encoding direction
    return "\\".join(filter(None, map(clean_text, value.split("\\")))) or None


def _is_known(word: str) -> bool:
    word = word.casefold()
    return word in allowed.WORDS or bool(allowed.PATTERNS.fullmatch(word))


# --- the record of what was done ------------------------------------------------------------------------------------


def _methods(old: Sequence[Any]) -> list[str]:
    """What other tools said that they did, in words about de-identification alone, then ours."""
    kept = [text for text in map(str, old) if _is_method(text) and text != METHOD]
    return [*kept, METHOD]


def _is_method(text: str) -> bool:
    words = [word.strip(".") for word in re.findall(r"[\w.]+", text.casefold())]
    version = re.compile(r"v?\d{1,2}(\.\d{1,3}){1,3}", re.ASCII)
    known = all(word in allowed.DEIDENTIFIERS or version.fullmatch(word) for word in words)
    return bool(words) and len(text) <= 64 and known


def _codes(old: Sequence[Any]) -> list[dict[str, str]]:
    """Codes that still hold, then ours that are not among them."""
    codes: list[dict[str, str]] = []
    for given in old:
        code = _code(given) if isinstance(given, Mapping) else None
        if code is not None and code not in codes:
            codes.append(code)
    held = {code["CodeValue"] for code in codes if code.get("CodingSchemeDesignator") == "DCM"}
    ours = [
        {"CodeValue": value, "CodingSchemeDesignator": "DCM", "CodeMeaning": meaning}
        for value, meaning in OPTIONS.items()
        if value not in held
    ]
    return [*codes, *ours]


def _code(given: Mapping[str, Any]) -> dict[str, str] | None:
    """Another tool's code, if it still holds and is about de-identification alone."""
    known = {**OPTIONS, **STILL_TRUE}
    code = {str(k): str(v) for k, v in given.items()}
    value = code.get("CodeValue", "")
    if code.get("CodingSchemeDesignator") == "DCM":
        code = {**code, "CodeMeaning": known.get(value, "")}
        code = {k: v for k, v in code.items() if k != "CodingSchemeVersion" or re.fullmatch(r"\d{2,8}", v)}
        fine = value in known
    else:
        fine = bool(value) and all(_is_method(text) for text in code.values())
    return {key: code[key] for key in _CODE if code.get(key)} if fine else None
