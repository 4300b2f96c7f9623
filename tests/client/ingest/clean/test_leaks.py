"""Identifiers are planted wherever a DICOM file or a sidecar can hold one; no byte of the cohort shows one."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, config, dcmread
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.sequence import Sequence
from support.cohort.heads import head
from support.dicom.dicoms import write_series

from client.ingest.arrive.headers import SEEN
from client.ingest.arrive.source import Folder
from client.ingest.clean import allowed
from client.ingest.clean.identity import Identity
from client.ingest.clean.sidecar import clean_sidecar
from client.ingest.cohort.pipeline import ingest
from client.ingest.cohort.runner import prepare_all
from client.ingest.image.preparation import Preparation

pytestmark = pytest.mark.slow  # left out of `make fast`

HERE = Identity(key=bytes(range(32)))
NAME, NUMBER, DAY, ROOT = "ZYXWVUT", 87654321, "19431127", "1.2.276.0.87654321.7"
NUMBER_BYTES = tuple(np.array(NUMBER, kind).tobytes() for kind in ("<i4", ">i4", "<f4", "<f8", "<u8"))
PLANTED = (NAME.encode(), NAME.lower().encode(), str(NUMBER).encode(), DAY.encode(), b"1943-11-27", *NUMBER_BYTES)
OWN = {  # of the attributes that an ingest reads: those that may hold anything, and still let the series be a T1
    "PatientName": f"{NAME}^JOHN",
    "PatientBirthDate": DAY,
    "StudyDate": DAY,
    "SeriesDate": DAY,
    "AcquisitionDate": DAY,
    "SeriesDescription": f"t1_mprage {NAME}",
    "ProtocolName": f"T1 {NAME}",
}
AS_MADE = (*SEEN, "SpecificCharacterSet", "ConversionType")  # without these no image, or one that is set aside


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


def poison() -> dict[int, bytes]:
    """Every attribute of the dictionary, whatever it is for, holds an identifier; private ones and items do too."""
    parts = {}
    for tag, (kinds, *_) in DicomDictionary.items():
        kind = kinds.split(" or ")[-1]
        image = tag >> 16 in (0x0000, 0x0002, 0x0028, 0x7FE0, 0xFFFE) or tag >= 0x50000000  # sizes, voxels, overlays
        if image or (tag >> 16) & 1 or kind in ("AT", "NONE") or keyword_for_tag(tag) in AS_MADE:
            continue
        value = Sequence([item_of_names()]) if kind == "SQ" else planted(kind)
        parts[tag] = encoded(DataElement(tag, kind, value))
    for group, creator in (
        (0x0009, "GEMS_IDEN_01"),
        (0x2005, "Philips MR Imaging DD 001"),
        (0x7053, f"{NAME} INC"),
        (0x0029, "SIEMENS CSA HEADER"),
        (0x0051, NAME),
    ):
        private = Dataset()
        block = private.private_block(group, creator, create=True)
        for offset, kind in enumerate(("LO", "UN", "PN", "OB", "DA", "IS", "UI", "SQ", "UT", "FL")):
            block.add_new(offset, kind, Sequence([item_of_names()]) if kind == "SQ" else planted(kind))
        block.add_new(0x0E, "LO", NAME)  # where a scaling factor is expected
        parts |= {int(element.tag): encoded(element) for element in private}
    return parts


def item_of_names() -> Dataset:
    item = Dataset()
    item.PatientName, item.PatientID, item.PatientComments = f"{NAME}^JOHN", str(NUMBER), NAME
    return item


def encoded(element: DataElement) -> bytes:
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    write_data_element(file, element, ["utf8"])
    return file.getvalue()


def rewrite(path: Path, parts: Mapping[int, bytes]) -> None:
    """The file with those attributes beside its own."""
    dataset, content = dcmread(path), path.read_bytes()
    start = 144 + int(dataset.file_meta.FileMetaInformationGroupLength)
    own = {int(element.tag): encoded(element) for element in dataset}
    path.write_bytes(
        NAME.encode().ljust(128) + content[128:start] + b"".join(v for _, v in sorted((parts | own).items()))
    )


@pytest.mark.filterwarnings("ignore")
def test_an_identifier_in_every_attribute_is_in_no_byte_of_the_cohort(site: Any) -> None:
    """The whole way, with the real conversion and preparation; the site's private disk shows what there was to lose."""
    parts = poison()
    assert len(parts) > 4000
    brain = np.ascontiguousarray(head("T1").data_DHW[::2, ::-2, ::-2]).clip(0, 4000).astype(np.uint16)
    for path in write_series(site.source, "T1", data=brain, spacing=(4, 4, 4), patient=str(NUMBER), tags=OWN):
        rewrite(path, parts)
    options = Preparation()

    def prepare(jobs: Any, cohort: Path, progress: Any) -> Any:
        return prepare_all(jobs, cohort, options=options, workers=1, progress=progress)

    done = ingest(Folder(path=site.source), site.cohort, site.state, prepare=prepare, preparation=options.digest)
    assert (done.visits, dict(done.excluded), site.asides) == (1, {}, [])
    (converted,) = site.state.rglob("image.nii")
    assert NAME.encode() in converted.read_bytes()
    raw = json.loads(converted.with_name("image.json").read_text())["sidecar"]
    said = [key for key, value in raw.items() if NAME in str(value) or str(NUMBER)[:6] in str(value)]
    assert len(said) > 30
    files = [path for path in site.cohort.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".gz", ".json", ".png", ".html", ".tsv", ".csv"}
    for path in files:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert not [needle for needle in (*PLANTED, ROOT.encode(), str(NUMBER)[:6].encode()) if needle in content], path
        assert NAME not in str(path.relative_to(site.cohort))


def test_a_sidecar_keeps_no_identifier_under_any_key() -> None:
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


def test_an_entry_nested_without_end_is_dropped() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert "EchoTime" not in clean_sidecar({"EchoTime": deep, "SeriesDescription": deep}, "7", HERE)
