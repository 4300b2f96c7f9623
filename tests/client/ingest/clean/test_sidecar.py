"""What stays of a sidecar and what it becomes: words, numbers, dates, records of others; real headers of makers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cohort.shared_data import unpacked

from client.ingest.arrive.collect import collect
from client.ingest.clean.identity import Identity
from client.ingest.clean.sidecar import METHOD, OPTIONS, clean_age, clean_sidecar, clean_text
from client.ingest.image.convert import convert
from client.ingest.recognise.series import Series, group
from shared.data.volumes import read, write

HERE = Identity(key=bytes(range(32)))
RECORD = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")


def cleaned(**entries: Any) -> dict[str, Any]:
    """Without the record of what was done, which is added to each."""
    made = clean_sidecar(entries, "7", HERE)
    return {key: value for key, value in made.items() if key not in RECORD}


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
    first, second = (cleaned(StudyInstanceUID="1.2.3", SeriesInstanceUID=uid) for uid in ("1.2.3.4", "1.2.3.5"))
    assert first["StudyInstanceUID"] == second["StudyInstanceUID"] == HERE.uid("1.2.3")
    assert first["SeriesInstanceUID"] == HERE.uid("1.2.3.4") != second["SeriesInstanceUID"]
    assert cleaned(SeriesInstanceUID="ward 7", StudyInstanceUID=7) == {}


def test_dates_move_and_times_of_day_go() -> None:
    day = HERE.date("20200304", "7")
    assert day != "20200304"
    made = cleaned(AcquisitionDateTime="2020-03-04T10:11:12.5", AcquisitionTime="10:11:12.5", StudyDate="20200304")
    assert made == {"AcquisitionDateTime": f"{day[:4]}-{day[4:6]}-{day[6:]}"}
    assert cleaned(AcquisitionDateTime="of yesterday") == {}


def test_what_physics_needs_stays() -> None:
    made = cleaned(
        EchoTime=0.0905,
        PhilipsRescaleSlope=0.5,
        ImageOrientationPatientDICOM=[1, 0, 0, 0, 1, 0],
        ScanningSequence="GR\\IR",
        ImageType=["ORIGINAL", "PRIMARY", "SMITHJOHN"],
        SequenceVariant="SMITHJOHN",
        FlipAngle=19561224,
        SliceTiming=[0.5, 19561224],
        ManufacturersModelName="MAGNETOM Vida 175689",
        BodyPart="BRAIN",
        InjectedRadioactivity=370123456.0,
    )
    assert made == {
        "EchoTime": 0.0905,
        "PhilipsRescaleSlope": 0.5,
        "ImageOrientationPatientDICOM": [1, 0, 0, 0, 1, 0],
        "ScanningSequence": "GR\\IR",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "ManufacturersModelName": "MAGNETOM Vida",
        "BodyPart": "BRAIN",
        "InjectedRadioactivity": 370100000.0,  # four digits: enough for a dose, too few for an identifier
    }


def test_the_record_names_each_option_once() -> None:
    made = clean_sidecar({}, "7", HERE)
    assert made["DeidentificationMethod"] == [METHOD]
    assert {code["CodeValue"]: code["CodeMeaning"] for code in made[RECORD[1]]} == dict(OPTIONS)
    assert clean_sidecar(made, "7", HERE) == made


def test_what_no_longer_holds_leaves_the_record() -> None:
    codes = [
        {"CodeValue": v, "CodingSchemeDesignator": "DCM", "CodeMeaning": m}
        for v, m in (("113101", "wrong words"), ("113106", "Full Dates"), ("113109", "Device"))
    ]
    made = clean_sidecar({"DeidentificationMethodCodeSequence": codes}, "7", HERE)
    values = {code["CodeValue"]: code["CodeMeaning"] for code in made["DeidentificationMethodCodeSequence"]}
    assert values == {"113101": "Clean Pixel Data Option", **OPTIONS}


def test_a_code_without_a_scheme_stops_nothing() -> None:
    made = clean_sidecar({"DeidentificationMethodCodeSequence": [{"CodeValue": "deface"}, "deface", 7]}, "7", HERE)
    assert made["DeidentificationMethodCodeSequence"][0] == {"CodeValue": "deface"}
    assert len(made["DeidentificationMethodCodeSequence"]) == 1 + len(OPTIONS)


# --- real headers, converted by dcm2niix and cleaned as `ingest` does -------------------------------------------------


def real(archive: str) -> list[Series]:
    return group(collect(unpacked(f"dicom/{archive}.tar.xz"))[0])[0]


def test_the_fruits_record_is_kept_and_completed(tmp_path: Path) -> None:
    (series,) = real("deident")
    raw = convert(series, "T1", tmp_path).sidecar
    made = clean_sidecar(raw, "7", HERE)
    old = [code["CodeValue"] for code in raw[RECORD[1]]]
    assert old == ["113102", "replace_recognizable", "113100", "113107", "113111"]
    assert [code["CodeValue"] for code in made[RECORD[1]]] == [*old, "113105"]
    assert made[RECORD[1]][1] == raw[RECORD[1]][1]
    assert made[RECORD[1]][1]["CodingSchemeDesignator"] == "mri_reface"
    assert made[RECORD[0]] == [*raw[RECORD[0]], METHOD]
    assert made["RepetitionTime"] == raw["RepetitionTime"]
    for key in ("StationName", "InstitutionName", "DeviceSerialNumber"):
        assert key in raw
        assert key not in made


@pytest.mark.parametrize(
    ("archive", "names"),
    [
        ("deident", ("1177879318455840", "3282424594434339", "1164948383980763")),
        ("xa30_t1", ("Indiana", "East 10th", "hucheng", "XAtest", "Cheng", "MRC35062", "67093")),
        ("enhanced_philips_siemens", ("Vanderbilt", "21st", "ROGERS", "mr3tb", "17240", "WIP", "Slice Timing")),
        ("ge_t1", ("orange", "00090004", "dicom")),
    ],
)
def test_real_headers_lose_their_names_and_keep_their_voxels(
    archive: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    """As they lie in a cohort: the sidecar, and the volume that was written anew."""
    series = real(archive)[-1]  # of two makers the second: the first one's echo-planar series is several volumes
    made = convert(series, "T1", tmp_path)
    assert [name for name in names if name in str(made.sidecar)]
    volume = read(made.nifti)
    write(tmp_path / "made.nii", volume.data_DHW, volume.affine)
    written = (tmp_path / "made.nii").read_bytes() + json.dumps(clean_sidecar(made.sidecar, "7", HERE)).encode()
    known = (*names, *(series.first.text(tag) for tag in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")))
    assert not [name for name in known if name.encode() in written]
    assert np.array_equal(read(tmp_path / "made.nii").data_DHW, volume.data_DHW)


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
