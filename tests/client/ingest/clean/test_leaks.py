"""Identifiers are planted wherever a DICOM file or a sidecar can hold one; after de-identification none is found."""

import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, FileDataset, config, dcmread
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from client.ingest.clean.allowed import ALLOWED, IMAGES
from client.ingest.clean.deidentify import clean_sidecar, deidentify
from client.ingest.clean.identity import Identity

HERE = Identity(key=bytes(range(32)))
WHOLE = ("SharedFunctionalGroupsSequence", "RadiopharmaceuticalInformationSequence", "")  # poisoned in turn
NAME, NUMBER, DAY, ROOT = "ZYXWVUT", 87654321, "19431127", "1.2.276.0.87654321.7"
NUMBER_BYTES = tuple(np.array(NUMBER, kind).tobytes() for kind in ("<i4", ">i4", "<f4", "<f8", "<u8"))
PLANTED = (NAME.encode(), NAME.lower().encode(), str(NUMBER).encode(), DAY.encode(), b"1943-11-27", *NUMBER_BYTES)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydicom would comment on each of thousands of values."""
    for mode in ("_reading_validation_mode", "_writing_validation_mode"):
        monkeypatch.setattr(config.settings, mode, config.IGNORE)


def planted(vr: str) -> object:
    """An identifier, as far as this kind of value can hold one."""
    return {
        "AE": NAME,
        "AS": "079Y",
        "CS": NAME,
        "DA": DAY,
        "DS": str(NUMBER),
        "DT": f"{DAY}121212",
        "FD": float(NUMBER),
        "FL": float(NUMBER),
        "IS": str(NUMBER),
        "LO": f"MR {NAME}",
        "LT": f"T1 {NAME}",
        "OB": NAME.encode() + b" ",
        "OD": np.array([NUMBER], "<f8").tobytes(),
        "OF": np.array([NUMBER], "<f4").tobytes(),
        "OL": NAME.encode() + b" ",
        "OV": NAME.encode() + b" ",
        "OW": NAME.encode() + b" ",
        "PN": f"{NAME}^JOHN",
        "SH": NAME,
        "SL": NUMBER,
        "ST": NAME,
        "SV": NUMBER,
        "TM": NAME,
        "UC": NAME,
        "UI": ROOT,
        "UL": NUMBER,
        "UN": NAME.encode() + b" ",
        "UR": f"http://{NAME}",
        "UT": NAME,
        "UV": NUMBER,
        "US": 60606,
        "SS": 30303,
    }[vr]


def poison(dataset: Dataset, depth: int = 0) -> int:
    """Every attribute of the dictionary, whatever it is for, holds an identifier; private ones and items do too."""
    n = 0
    for number, (vr, *_) in DicomDictionary.items():
        tag = number
        if number >> 16 in (0x0000, 0x0002, 0xFFFE) or (number >> 16) & 1:
            continue
        if depth and keyword_for_tag(tag) not in ALLOWED and number % 17:
            continue  # inside items: all that may stay, and some of the others
        kind = vr.split(" or ")[-1]
        if keyword_for_tag(tag) in KEPT_AS_IS and (depth == 0 or vr == "CS"):
            continue
        if kind == "SQ":
            item = Dataset()
            n += poison(item, depth + 1) if keyword_for_tag(tag) == WHOLE[depth] else plain(item)
            dataset.add(DataElement(tag, "SQ", Sequence([item])))
            continue
        if kind == "AT" or kind == "NONE":
            continue
        dataset.add(DataElement(tag, kind, planted(kind)))
        n += 1
    for group, creator in (
        (0x0009, "GEMS_IDEN_01"),
        (0x2005, "Philips MR Imaging DD 001"),
        (0x7053, f"{NAME} INC"),
        (0x0029, "SIEMENS CSA HEADER"),
        (0x0051, NAME),
    ):
        block = dataset.private_block(group, creator, create=True)
        for offset, vr in enumerate(("LO", "UN", "PN", "OB", "DA", "IS", "UI", "SQ", "UT", "FL")):
            block.add_new(offset, vr, Sequence([item_of_names()]) if vr == "SQ" else planted(vr))
            n += 1
        block.add_new(0x0E, "LO", NAME)  # where a safe number is expected
    return n


def plain(item: Dataset) -> int:
    item.PatientName, item.PatientID, item.PatientComments = f"{NAME}^JOHN", str(NUMBER), NAME
    return 3


def item_of_names() -> Dataset:
    item = Dataset()
    plain(item)
    return item


KEPT_AS_IS = (
    "SOPClassUID",
    "PixelData",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "SamplesPerPixel",
    "PixelRepresentation",
    "NumberOfFrames",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PatientID",
    "SpecificCharacterSet",
    "ModalityLUTSequence",
)


def image(syntax: str = ExplicitVRLittleEndian) -> FileDataset:
    dataset = FileDataset("", {}, preamble=NAME.encode().ljust(128), file_meta=FileMetaDataset())
    meta = dataset.file_meta
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = IMAGES[3], ROOT
    meta.TransferSyntaxUID, meta.SourceApplicationEntityTitle = syntax, NAME
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = ROOT, NAME.encode() + b" "
    dataset.SOPClassUID, dataset.PatientID = IMAGES[3], str(NUMBER)
    dataset.SpecificCharacterSet, dataset.SOPInstanceUID = "ISO_IR 192", ROOT
    dataset.Rows = dataset.Columns = 4
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.SamplesPerPixel = 1
    high = np.arange(16, dtype="<u2") | 0xF000  # a picture in the bits above
    dataset.PixelData = high.tobytes() + NAME.encode() + b" "  # and a name after the last pixel
    return dataset


def strings(dataset: Dataset) -> Iterator[str]:
    for element in dataset.iterall():
        yield f"{element.tag}={element.value}"


def content(dataset: Dataset) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_an_identifier_in_every_attribute_and_kind_of_value_is_gone(syntax: str) -> None:
    dataset = image(syntax)
    n = poison(dataset)
    assert n > 4000
    before = content(dataset)
    assert all(needle in before for needle in (NAME.encode(), str(NUMBER).encode(), DAY.encode(), NUMBER_BYTES[0]))
    made = deidentify(dcmread(io.BytesIO(before)), HERE)
    after = content(made)
    found = [needle for needle in PLANTED if needle in after]
    assert not found, [text[:200] for text in strings(made) if any(str(n) in text for n in (NAME, NUMBER, DAY))]
    assert ROOT.encode() not in after
    assert ROOT.encode() in before
    assert made.PatientID == made.PatientName == HERE.subject(str(NUMBER))
    assert made.PatientIdentityRemoved == "YES"
    assert made.PixelData == np.arange(16, dtype="<u2").tobytes()
    assert (dataset.PatientID, dataset.PatientName) == (str(NUMBER), f"{NAME}^JOHN")  # the given one is not changed


@pytest.mark.filterwarnings("ignore")
def test_deep_sequences_do_not_hide_anything_nor_end_the_program() -> None:
    dataset = image()
    inner = dataset
    for _ in range(60):
        item = item_of_names()
        inner.SharedFunctionalGroupsSequence = Sequence([item])
        inner = item
    made = deidentify(dataset, HERE)
    assert not [text for text in strings(made) if NAME in text or str(NUMBER) in text]


def test_a_safe_number_stays_with_its_creator() -> None:
    dataset = image()
    block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0E, "FL", 8.5)
    block.add_new(0x0F, "FL", 1.5)
    dataset.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x00, "DS", "0.0004")
    made = dcmread(io.BytesIO(content(deidentify(dataset, HERE))))
    assert made.private_block(0x2005, "Philips MR Imaging DD 001")[0x0E].value == 8.5
    assert made.private_block(0x7053, "Philips PET Private Group")[0x00].value == 0.0004
    assert len([element for element in made if element.tag.is_private]) == 4  # two creators, two numbers


def test_a_sidecar_keeps_no_identifier_under_any_key() -> None:
    from client.ingest.clean import allowed

    texts = (NAME, f"T1 {NAME}", f"MPRAGE_{NAME}_{DAY}", DAY, str(NUMBER), f"{NAME}\\{NAME}", f"T1w\n{NAME}")
    keys = (
        *allowed.NUMBERS,
        *allowed.TEXTS,
        "PatientName",
        "InstitutionName",
        "BidsGuess",
        "DeidentificationMethod",
        "DeidentificationMethodCodeSequence",
        "SeriesInstanceUID",
        "AcquisitionDateTime",
        "AcquisitionTime",
        "ConversionSoftwareVersion",
        NAME,
        "Global",
    )
    values: list[object] = [
        *texts,
        list(texts),
        NUMBER,
        float(NUMBER),
        [1.0, NUMBER],
        {NAME: NAME},
        [[NUMBER]],
        [{"CodeValue": NAME, "CodingSchemeDesignator": "DCM", "CodeMeaning": NAME}],
        [{"CodeValue": "113100", "CodingSchemeDesignator": "DCM", NAME: NAME}],
        None,
    ]
    for value in values:
        written = json.dumps(clean_sidecar(dict.fromkeys(keys, value), str(NUMBER), HERE))
        for needle in (NAME, str(NUMBER), DAY, "1943-11-27"):
            assert needle not in written, (value, written)


def test_a_cohort_file_name_is_made_of_the_pseudonym_alone(tmp_path: Path) -> None:
    from shared.data.modalities import bids_path

    for patient in (NAME, f"../{NAME}", f"{NAME}^JOHN", "ÄÖ ü", "a/b", "x" * 300):
        name = bids_path(HERE.subject(patient), "FLAIR")
        assert NAME not in name
        assert name.isascii()
        assert len(name) < 80
        assert (tmp_path / name).resolve().is_relative_to(tmp_path)
