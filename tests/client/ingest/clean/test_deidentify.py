"""What stays of a header and what it becomes; real headers of four vendors; writing in pixels."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from support.shared_data import unpacked

from client.ingest.clean.burned_in import lines_of_letters
from client.ingest.clean.deidentify import (
    METHOD,
    OPTIONS,
    clean_age,
    clean_sidecar,
    clean_text,
    deidentify,
    suspect_text,
)
from client.ingest.clean.identity import Identity
from shared.base.errors import DataError

HERE = Identity(key=bytes(range(32)))


def header(**tags: Any) -> Dataset:
    dataset = Dataset()
    for key, value in {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
        "SOPInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2.3",
        "PatientID": "7",
        "StudyDate": "20200304",
        "EchoTime": 90.5,
        **tags,
    }.items():
        setattr(dataset, key, value)
    return dataset


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("T1 MPRAGE SAG Mrs Smith 1956", "T1 MPRAGE SAG"),
        ("anat-T1w_acq-tfl", "anat-T1w_acq-tfl"),
        ("Accelerated SAG IR-SPGR", "Accelerated SAG IR-SPGR"),
        ("T2* 3mm", "T2* 3mm"),
        ("t2_tirm_tra_dark-fluid Jones", "t2 tirm tra dark fluid"),
        ("19561224", ""),
        ("John", ""),
        ("Ünal FLAIR", "FLAIR"),
        ("", ""),
    ],
)
def test_of_a_description_only_words_about_images_stay(text: str, left: str) -> None:
    assert clean_text(text) == left


def test_ages_above_89_are_one() -> None:
    assert [clean_age(age) for age in (None, -1.0, float("nan"), 0.4, 89.9, 90.0, 104.0)] == [
        None,
        None,
        None,
        0.0,
        89.0,
        90.0,
        90.0,
    ]


def test_references_between_images_stay_whole() -> None:
    first, second = (deidentify(header(SOPInstanceUID=uid), HERE) for uid in ("1.2.3.4", "1.2.3.5"))
    assert first.StudyInstanceUID == second.StudyInstanceUID == HERE.uid("1.2.3")
    assert first.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID == HERE.uid("1.2.3.4")
    assert second.SOPInstanceUID != first.SOPInstanceUID
    assert first.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4"


def test_dates_move_and_times_of_day_stay() -> None:
    made = deidentify(header(AcquisitionDateTime="20200304101112.5", SeriesTime="101112", SeriesDate="20200305"), HERE)
    assert made.StudyDate == HERE.date("20200304", "7") != "20200304"
    assert made.SeriesDate == HERE.date("20200305", "7")
    assert made.AcquisitionDateTime == f"{made.StudyDate}101112.5"
    assert made.SeriesTime == "101112"
    assert made.LongitudinalTemporalInformationModified == "MODIFIED"


def test_what_physics_needs_stays() -> None:
    made = deidentify(
        header(
            RescaleSlope="0.5",
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ScanningSequence=["GR", "IR"],
            ImageType=["ORIGINAL", "PRIMARY", "SMITHJOHN"],
            SequenceVariant="SMITHJOHN",
            FlipAngle=19561224,
            ManufacturerModelName="MAGNETOM Vida 175689",
            BodyPartExamined="BRAIN",
        ),
        HERE,
    )
    assert made.EchoTime == 90.5
    assert made.RescaleSlope == 0.5
    assert made.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    assert made.ScanningSequence == ["GR", "IR"]
    assert made.ImageType == ["ORIGINAL", "PRIMARY", "OTHER"]
    assert made.ManufacturerModelName == "MAGNETOM Vida"
    assert made.BodyPartExamined == "BRAIN"
    assert "SequenceVariant" not in made
    assert "FlipAngle" not in made
    assert made.PatientBirthDate == made.AccessionNumber == ""


@pytest.mark.parametrize(
    ("tags", "line"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "SOPClassUID Secondary Capture.*only MR, CT and PET images"),
        ({"PatientID": ""}, "PatientID: empty"),
        ({"SOPInstanceUID": ""}, "SOPInstanceUID: missing"),
        ({"ModalityLUTSequence": []}, "ModalityLUTSequence"),
    ],
)
def test_what_can_not_be_promised_is_refused(tags: dict[str, Any], line: str) -> None:
    with pytest.raises(DataError, match=line):
        deidentify(header(**tags), HERE)


def test_the_record_names_each_option_once() -> None:
    made = deidentify(header(), HERE)
    again = deidentify(made, HERE)
    for dataset in (made, again):
        assert dataset.PatientIdentityRemoved == "YES"
        assert [code.CodeValue for code in dataset.DeidentificationMethodCodeSequence] == list(OPTIONS)
        assert dataset.DeidentificationMethod == METHOD
    assert clean_sidecar({}, "7", HERE)["DeidentificationMethod"] == [METHOD]


def test_what_no_longer_holds_leaves_the_record() -> None:
    codes = [
        {"CodeValue": v, "CodingSchemeDesignator": "DCM", "CodeMeaning": m}
        for v, m in (("113101", "wrong words"), ("113106", "Full Dates"), ("113109", "Device"))
    ]
    made = clean_sidecar({"DeidentificationMethodCodeSequence": codes}, "7", HERE)
    values = {code["CodeValue"]: code["CodeMeaning"] for code in made["DeidentificationMethodCodeSequence"]}
    assert values == {"113101": "Clean Pixel Data Option", **OPTIONS}


# --- real headers ---------------------------------------------------------------------------------------------------


def test_the_fruits_record_is_kept_and_completed() -> None:
    path = unpacked("dicom/deident.tar.xz") / "deident/In/00067.dcm"
    before = dcmread(path)
    made = deidentify(before, HERE)
    old = [code.CodeValue for code in before.DeidentificationMethodCodeSequence]
    assert old == ["113102", "replace_recognizable", "113100", "113107", "113111"]
    assert [code.CodeValue for code in made.DeidentificationMethodCodeSequence] == [*old, "113105"]
    assert made.DeidentificationMethodCodeSequence[1].CodingSchemeDesignator == "mri_reface"
    assert list(made.DeidentificationMethod) == [*before.DeidentificationMethod, METHOD]
    assert np.array_equal(made.pixel_array, before.pixel_array)
    assert not [e for e in made if e.tag.is_private]
    assert made.RepetitionTime == before.RepetitionTime
    for keyword in ("StationName", "InstitutionName", "DeviceSerialNumber"):
        assert keyword in before
        assert keyword not in made


@pytest.mark.parametrize(
    ("archive", "names"),
    [
        ("dicom/xa30_t1.tar.xz", ("Indiana", "East 10th", "hucheng", "XAtest", "Cheng", "MRC35062", "67093")),
        ("dicom/enhanced_philips_siemens.tar.xz", ("Austin", "Trinity", "ROGERS", "Luci", "175689", "Slice Timing")),
        ("dicom/ge_t1.tar.xz", ("dicom^", "GEHC")),
    ],
)
def test_real_headers_lose_their_names_and_keep_their_pixels(
    archive: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    paths = sorted(path for path in unpacked(archive).rglob("*") if path.is_file())[::40]
    for path in paths:
        before = dcmread(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = deidentify(before, HERE)
            made.save_as(tmp_path / "made.dcm", enforce_file_format=True)
            back = dcmread(tmp_path / "made.dcm")
            assert np.array_equal(back.pixel_array, before.pixel_array)
        content = (tmp_path / "made.dcm").read_bytes()
        assert not [
            name for name in (*names, str(before.PatientID), str(before.StudyInstanceUID)) if name.encode() in content
        ]
        assert suspect_text(before) is None


# --- writing in pixels ----------------------------------------------------------------------------------------------


def brain(rng: np.random.Generator) -> np.ndarray:
    y, x = np.indices((256, 256))
    inside = ((y - 128) / 100) ** 2 + ((x - 128) / 80) ** 2 < 1
    return (
        np.where(inside, rng.normal(600, 120, (256, 256)), rng.rayleigh(15, (256, 256))).clip(0, 4095).astype(np.uint16)
    )


def written(image: np.ndarray, text: str, size: int, value: int, at: tuple[int, int] = (8, 8)) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    mask = Image.new("1", image.shape[::-1])
    ImageDraw.Draw(mask).text(at, text, fill=1, font=ImageFont.load_default(size))
    return np.where(np.array(mask), value, image).astype(image.dtype)


@pytest.mark.parametrize("size", [12, 16, 24])
@pytest.mark.parametrize("value", [4095, 0])
@pytest.mark.parametrize("at", [(8, 8), (60, 128), (20, 225)])
def test_a_name_in_the_pixels_is_suspected(size: int, value: int, at: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = brain(rng) + np.uint16(1)
    dataset = header(
        Rows=256,
        Columns=256,
        BitsAllocated=16,
        BitsStored=12,
        HighBit=11,
        PixelRepresentation=0,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
    )
    dataset.ensure_file_meta()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PixelData = image.tobytes()
    assert suspect_text(dataset) is None
    dataset.PixelData = written(image, "SMITH JOHN 1956", size, value, at).tobytes()
    assert "shapes like letters in a line in frame 1" in str(suspect_text(dataset))


def test_brains_that_saturate_or_are_masked_are_not_suspected() -> None:
    for seed in range(12):
        image = brain(np.random.default_rng(seed))
        assert not lines_of_letters(image)
        assert not lines_of_letters(image.clip(0, 700))
        assert not lines_of_letters(np.where(image > 200, image, 0))
        assert not lines_of_letters((image // 64).astype(np.uint8))


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation is YES"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "captured image"),
        ({"ConversionType": "WSD"}, "not made by a scanner"),
        ({"PhotometricInterpretation": "RGB"}, "a picture in colours"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "ImageType says SCREEN SAVE"),
    ],
)
def test_what_the_header_says_of_text_is_believed(tags: dict[str, str], why: str) -> None:
    assert why in str(suspect_text(header(**tags)))
    assert suspect_text(header()) is None


def test_an_overlay_is_suspected() -> None:
    dataset = header()
    dataset.add_new(0x60003000, "OW", b"\0" * 8)
    assert "overlay" in str(suspect_text(dataset))


def test_a_real_sidecar_keeps_physics_and_no_names() -> None:
    raw = {
        "InstitutionName": "Indiana University",
        "PatientName": "XAtest",
        "ScanningSequence": "GR\\IR",
        "EchoTime": 0.00241,
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "NONE"],
        "AcquisitionDateTime": "2022-07-11T12:05:17.042500",
        "SeriesInstanceUID": "1.3.12.2",
        "AcquisitionTime": "12:05:17",
        "SliceTiming": [0, 0.5],
        "SpoilingState": True,
        "PhaseEncodingDirection": "j-",
        "ConversionSoftwareVersion": "v1.0.20260724",
        "BidsGuess": ["anat", "_T1w"],
        "PulseSequenceDetails": "%CustomerSeq%\\smith",
    }
    made = clean_sidecar(raw, "7", HERE)
    day = HERE.date("20220711", "7")
    record = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")
    assert {key: value for key, value in made.items() if key not in record} == {
        "ScanningSequence": "GR\\IR",
        "EchoTime": 0.00241,
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "NONE"],
        "AcquisitionDateTime": f"{day[:4]}-{day[4:6]}-{day[6:]}",
        "SeriesInstanceUID": HERE.uid("1.3.12.2"),
        "SliceTiming": [0, 0.5],
        "SpoilingState": True,
        "PhaseEncodingDirection": "j-",
        "ConversionSoftwareVersion": "v1.0.20260724",
    }
    assert json.dumps(made)
