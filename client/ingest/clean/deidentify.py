"""A DICOM header or a sidecar without who it is of: an allow-list after PS3.15 Annex E, with the site's own key.

Basic Application Level Confidentiality Profile (113100) with Clean Descriptors (113105), Retain Longitudinal Temporal
Information with Modified Dates (113107) and Retain Safe Private (113111, scaling factors alone). What client/ingest/
allowed.py does not name is dropped, in every nested item; what it names stays only with a value of the right kind.
Patient and UIDs get those of the site's identity, dates are moved. Ages, sex and weight go too: what a cohort needs of
them passes by `participants.tsv`. Pixels are not changed: text in them is `suspect_text`'s, faces are brain.py's part.
"""

import copy
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pydicom import Dataset, FileDataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, ImplicitVRLittleEndian

from client.ingest.clean import allowed
from client.ingest.clean.burned_in import suspect_text as suspect_text
from client.ingest.clean.identity import Identity
from shared.base.errors import DataError

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
_DEEPEST = 8  # sequences within sequences
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_RECORD = ("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence")


def deidentify(dataset: Dataset, identity: Identity) -> FileDataset:
    """A new dataset with what may stay; the given one is not changed. DataError where that can't be promised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foreign values: each is taken or dropped below
        kind = str(dataset.get("SOPClassUID", ""))
        if kind not in allowed.IMAGES:
            raise DataError(
                f"SOPClassUID {UID(kind).name or '(none)'}: only MR, CT and PET images can be de-identified"
            )
        if not dataset.get("SOPInstanceUID"):
            raise DataError("SOPInstanceUID: missing; without it, this is no DICOM image")
        if "ModalityLUTSequence" in dataset:
            raise DataError(
                "ModalityLUTSequence: a table of values is not carried over, and its pixels mean nothing alone"
            )
        patient = str(dataset.get("PatientID", "") or "")
        subject = identity.subject(patient)
        cleaned = _clean(dataset, patient, identity, 0)
        for keyword in allowed.EMPTIED:
            setattr(cleaned, keyword, "")
        cleaned.PatientName = cleaned.PatientID = subject
        cleaned.PatientIdentityRemoved = "YES"
        cleaned.LongitudinalTemporalInformationModified = "MODIFIED"
        cleaned.DeidentificationMethod = _methods(_strings(dataset, "DeidentificationMethod"))
        cleaned.DeidentificationMethodCodeSequence = [_coded(code) for code in _codes(_old_codes(dataset))]
        _cut_pixels(cleaned, dataset)
        return _with_meta(cleaned, dataset)


def clean_sidecar(sidecar: Mapping[str, Any], patient: str, identity: Identity) -> dict[str, Any]:
    """A BIDS sidecar with what may stay, and the record of what was done."""
    cleaned: dict[str, Any] = {}
    for key, value in sidecar.items():
        kept = _of_sidecar(key, value, patient, identity)
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


# --- a dataset ------------------------------------------------------------------------------------------------------


def _clean(dataset: Dataset, patient: str, identity: Identity, depth: int) -> Dataset:
    cleaned = Dataset()
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            kept = _element(element, dataset, patient, identity, depth)
        except Exception:  # foreign bytes can lead pydicom anywhere
            continue  # a value that can't be read can't be judged
        if kept is not None:
            cleaned[kept.tag] = kept
            if kept.tag.is_private:
                creator = (kept.tag.group, kept.tag.element >> 8)
                cleaned[creator] = DataElement(creator, "LO", str(element.private_creator))
    return cleaned


def _element(element: DataElement, within: Dataset, patient: str, identity: Identity, depth: int) -> DataElement | None:
    if element.tag.is_private:
        vr = allowed.SAFE_PRIVATE.get((str(element.private_creator), element.tag.group, element.tag.element & 0xFF))
        value = _numbers(element.value, allowed.MOST) if vr is not None and element.VR in (vr, "UN") else None
        return DataElement(element.tag, vr, value) if vr is not None and isinstance(value, float | int) else None
    keyword = keyword_for_tag(element.tag)
    if keyword not in allowed.ALLOWED or element.VR not in dictionary_VR(element.tag).split(" or "):
        return None
    if element.VR == "SQ":
        if depth >= _DEEPEST:
            return None
        coded = keyword.endswith("CodeSequence") or keyword == "AnatomicRegionSequence"
        items = [_code(item) if coded else _clean(item, patient, identity, depth + 1) for item in element.value]
        items = [item for item in items if len(item)]
        return DataElement(element.tag, "SQ", items) if items else None
    if element.VR in ("OB", "OW", "OF", "OD"):
        return copy.copy(element) if keyword in _PIXELS and depth == 0 else None
    cleaner = _CLEANERS.get(element.VR)
    value = cleaner(element.value, keyword, patient, identity) if cleaner is not None else None
    return None if value is None else DataElement(element.tag, element.VR, value)


def _number_element(value: Any, keyword: str, patient: str, identity: Identity) -> Any:
    return _numbers(value, allowed.MOST_OF.get(keyword, allowed.MOST))


def _numbers(value: Any, most: float) -> Any:
    """One number, or a list of them, none beyond `most`."""
    if isinstance(value, list | tuple | MultiValue):
        made = [_numbers(each, most) for each in value]
        return None if not made or None in made else made
    if isinstance(value, str | bytes) or value is None:
        return None
    number = float(value)
    if not math.isfinite(number) or abs(number) > most:
        return None
    if (
        abs(number) > allowed.MOST
    ):  # a dose or a half-life: four digits are enough for it, and too few for an identifier
        return float(f"{number:.3e}")
    return int(value) if isinstance(value, int) else float(f"{number:.10g}")  # fits into a decimal string


def _word_element(value: Any, keyword: str, patient: str, identity: Identity) -> Any:
    """A code string: each value whole or not at all; an unknown part of an ImageType becomes OTHER."""
    values = [str(each) for each in (value if isinstance(value, MultiValue) else [value])]
    known = [all(_is_known(word) for word in re.findall(r"[^\W_]+", each) or [""]) for each in values]
    if keyword in ("ImageType", "FrameType"):
        values = [each if fine else "OTHER" for each, fine in zip(values, known, strict=True)]
    elif not all(known):
        return None
    return values if len(values) > 1 else values[0]


def _text_element(value: Any, keyword: str, patient: str, identity: Identity) -> Any:
    values = [str(each) for each in (value if isinstance(value, MultiValue) else [value])]
    if keyword == "StackID":
        return values[0] if re.fullmatch(r"\d{1,3}", values[0], re.ASCII) else None
    words = [word for word in map(clean_text, values) if word]
    return (words if len(words) > 1 else words[0]) if words else None


def _uid_element(value: Any, keyword: str, patient: str, identity: Identity) -> Any:
    values = [identity.uid(str(each)) for each in (value if isinstance(value, MultiValue) else [value])]
    return values if len(values) > 1 else values[0]


def _date_element(value: Any, keyword: str, patient: str, identity: Identity) -> Any:
    return identity.date(str(value), patient) or None


def _datetime_element(value: Any, keyword: str, patient: str, identity: Identity) -> Any:
    text = str(value)
    day, time = identity.date(text[:8], patient), _time(re.sub(r"[+-]\d{4}$", "", text[8:]))
    return day + (time or "") if day else None


def _time_element(value: Any, keyword: str, patient: str, identity: Identity) -> Any:
    return _time(str(value))


def _time(text: str) -> str | None:
    found = re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", text.strip("\0 "), re.ASCII)
    return found.group() if found else None


def _tag_element(value: Any, keyword: str, patient: str, identity: Identity) -> Any:
    return value if keyword_for_tag(value) in allowed.ALLOWED else None


_CLEANERS: Mapping[str, Callable[[Any, str, str, Identity], Any]] = {
    **dict.fromkeys(("DS", "IS", "FL", "FD", "US", "SS", "UL", "SL"), _number_element),
    **dict.fromkeys(("LO", "SH", "ST"), _text_element),
    "CS": _word_element,
    "UI": _uid_element,
    "DA": _date_element,
    "DT": _datetime_element,
    "TM": _time_element,
    "AT": _tag_element,
}


def _code(item: Dataset) -> Dataset:
    """A coded word of a public scheme, made anew; empty for any other."""
    value, scheme, meaning = (str(item.get(key, "")) for key in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))
    form = {"UCUM": r"[A-Za-z0-9/*.{}%-]{1,8}", "SRT": r"[A-Z]-[0-9A-F]{4,5}", "SNM3": r"[A-Z]-[0-9A-F]{4,5}"}
    form |= {"DCM": r"1[0-9]{5}", "SCT": r"[0-9]{6,9}"}
    if not re.fullmatch(form.get(scheme, "(?!)"), value, re.ASCII):
        return Dataset()
    words = clean_text(meaning)
    if not words or (scheme == "UCUM" and not clean_text(value)):
        return Dataset()  # a code whose meaning has nothing to do with images
    return _coded({"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": words})


def _cut_pixels(cleaned: Dataset, dataset: Dataset) -> None:
    """No byte after the last pixel, and none in the bits above the stored ones."""
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if "PixelData" not in cleaned or (syntax is not None and syntax.is_compressed):
        return
    try:
        bits, stored = int(cleaned.BitsAllocated), int(cleaned.BitsStored)
        n = int(cleaned.Rows) * int(cleaned.Columns) * int(cleaned.SamplesPerPixel)
        n *= int(cleaned.get("NumberOfFrames", 1) or 1) * bits // 8
    except (AttributeError, ValueError, TypeError):
        raise DataError("its pixels can't be measured: Rows, Columns or Bits are missing or no numbers") from None
    content = bytes(cleaned.PixelData[:n])
    if bits == 16 and stored == int(cleaned.HighBit) + 1 < 16 and not int(cleaned.PixelRepresentation):
        order = ">u2" if syntax is not None and not syntax.is_little_endian else "<u2"
        whole = len(content) // 2 * 2
        content = (np.frombuffer(content[:whole], order) & np.array((1 << stored) - 1, order)).astype(order).tobytes()
    cleaned.PixelData = content + b"\0" * (len(content) % 2)


def _with_meta(cleaned: Dataset, dataset: Dataset) -> FileDataset:
    """A file's own header made anew: no preamble, no sender, no private information."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = cleaned.SOPClassUID
    meta.MediaStorageSOPInstanceUID = cleaned.SOPInstanceUID
    old = getattr(dataset, "file_meta", None)
    meta.TransferSyntaxUID = getattr(old, "TransferSyntaxUID", ImplicitVRLittleEndian)
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    return FileDataset("", cleaned, preamble=b"\0" * 128, file_meta=meta)


# --- the record of what was done ------------------------------------------------------------------------------------


def _strings(dataset: Dataset, keyword: str) -> list[str]:
    value = dataset.get(keyword)
    return [str(each) for each in (value if isinstance(value, MultiValue) else [value] if value else [])]


def _old_codes(dataset: Dataset) -> list[dict[str, str]]:
    items = dataset.get("DeidentificationMethodCodeSequence") or []
    return [
        {
            key: str(item[key].value)
            for key in ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")
            if key in item
        }
        for item in items
    ]


def _methods(old: Sequence[Any]) -> list[str]:
    """What other tools said that they did, in words about de-identification alone, then ours."""
    kept = [text for text in (str(each) for each in old) if _is_method(text) and text != METHOD]
    return [*kept, METHOD]


def _is_method(text: str) -> bool:
    words = [word.strip(".") for word in re.findall(r"[\w.]+", text.casefold())]
    version = re.compile(r"v?\d{1,2}(\.\d{1,3}){1,3}", re.ASCII)
    known = all(word in allowed.DEIDENTIFIERS or version.fullmatch(word) for word in words)
    return bool(words) and len(text) <= 64 and known


def _codes(old: Sequence[Any]) -> list[dict[str, str]]:
    """Codes that still hold, then ours that are not among them."""
    codes: list[dict[str, str]] = []
    known = {**OPTIONS, **STILL_TRUE}
    for given in old:
        code = {str(k): str(v) for k, v in given.items()} if isinstance(given, Mapping) else {}
        value, scheme = code.get("CodeValue", ""), code.get("CodingSchemeDesignator", "")
        if scheme == "DCM":
            code = {**code, "CodeMeaning": known.get(value, "")}
            code = {k: v for k, v in code.items() if k != "CodingSchemeVersion" or re.fullmatch(r"\d{2,8}", v)}
            fine = value in known
        else:
            fine = bool(value) and all(_is_method(text) for text in code.values())
        fields = ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")
        code = {key: code[key] for key in fields if code.get(key)}
        if fine and code not in codes:
            codes.append(code)
    held = {code["CodeValue"] for code in codes if code["CodingSchemeDesignator"] == "DCM"}
    ours = [
        {"CodeValue": value, "CodingSchemeDesignator": "DCM", "CodeMeaning": meaning}
        for value, meaning in OPTIONS.items()
        if value not in held
    ]
    return [*codes, *ours]


def _coded(code: Mapping[str, str]) -> Dataset:
    item = Dataset()
    for key, value in code.items():
        setattr(item, key, value)
    return item


# --- a sidecar, and words -------------------------------------------------------------------------------------------


def _of_sidecar(key: str, value: Any, patient: str, identity: Identity) -> Any:
    if key in allowed.NUMBERS:
        try:
            return value if isinstance(value, bool) else _numbers(value, allowed.MOST_OF.get(key, allowed.MOST))
        except (TypeError, ValueError, OverflowError):
            return None
    if key in allowed.TEXTS:
        values = value if isinstance(value, list) else [value]
        texts = [kept for kept in (_sidecar_text(each) for each in values) if kept]
        return None if not texts else texts if isinstance(value, list) else texts[0]
    if key in ("SeriesInstanceUID", "StudyInstanceUID") and isinstance(value, str):
        return identity.uid(value) if re.fullmatch(r"[0-9.]{1,64}", value, re.ASCII) else None
    if key == "AcquisitionDateTime" and isinstance(value, str):
        day = identity.date(value[:10], patient)
        return f"{day[:4]}-{day[4:6]}-{day[6:]}" if day else None
    if key == "ConversionSoftwareVersion" and isinstance(value, str):
        return value if re.fullmatch(r"v\d\.\d\.\d{8}", value, re.ASCII) else None
    return None


def _sidecar_text(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    if value in ("i", "j", "k", "i-", "j-", "k-"):
        return value  # a phase encoding direction
    return "\\".join(filter(None, map(clean_text, value.split("\\")))) or None


def _is_known(word: str) -> bool:
    word = word.casefold()
    return word in allowed.WORDS or bool(allowed.PATTERNS.fullmatch(word))
