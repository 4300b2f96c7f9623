"""The rules over tags, with what scanners of several makers write."""

from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from support.dicom.dicoms import MADE, write_series

from client.ingest.arrive.collect import collect
from client.ingest.recognise.classify import classify, described
from client.ingest.recognise.series import Series, group


def one(folder: Path, modality: str = "T1", **tags: Any) -> Series:
    write_series(folder, modality, tags=tags)
    (found,), _ = group(collect(folder)[0])
    return found


@pytest.mark.parametrize("modality", MADE)
def test_every_modality_is_found_by_its_tags(tmp_path: Path, modality: str) -> None:
    verdict = classify(one(tmp_path, modality))
    assert verdict.modality == modality, verdict.why


@pytest.mark.parametrize("modality", [m for m in MADE if m not in ("CT", "FDG", "AV45")])
def test_no_description_changes_what_tags_say(tmp_path: Path, modality: str) -> None:
    other = "t2_flair" if modality != "FLAIR" else "t1_mprage"
    assert classify(one(tmp_path, modality, SeriesDescription=other)).modality == modality


GE_MPRAGE = {
    "ScanningSequence": ["RM", "IR"],
    "SequenceVariant": "NONE",
    "RepetitionTime": 2217.66,
    "EchoTime": 3.17,
    "InversionTime": 1000,
}
PHILIPS_TFE = {
    "ScanningSequence": "GR",
    "SequenceVariant": "MP",
    "RepetitionTime": 8.1,
    "EchoTime": 3.7,
    "InversionTime": None,
    "FlipAngle": 8,
}
SPACE_T2 = {"ScanningSequence": "SE", "RepetitionTime": 3200, "EchoTime": 408, "InversionTime": None}
SPACE_FLAIR = {"ScanningSequence": ["SE", "IR"], "RepetitionTime": 5000, "EchoTime": 388, "InversionTime": 1800}
T1_FLAIR = {"ScanningSequence": ["SE", "IR"], "RepetitionTime": 2500, "EchoTime": 24, "InversionTime": 780}
FLASH_2D = {
    "ScanningSequence": "GR",
    "SequenceVariant": "SP",
    "RepetitionTime": 250,
    "EchoTime": 2.5,
    "FlipAngle": 70,
    "InversionTime": None,
}


@pytest.mark.parametrize(
    ("tags", "modality"),
    [
        (GE_MPRAGE, "T1"),
        (PHILIPS_TFE, "T1"),
        (SPACE_T2, "T2"),
        (SPACE_FLAIR, "FLAIR"),
        (T1_FLAIR, "T1"),
        (FLASH_2D, "T1"),
    ],
)
def test_sequences_of_other_makers(tmp_path: Path, tags: dict[str, Any], modality: str) -> None:
    verdict = classify(one(tmp_path, "T1", **tags))
    assert verdict.modality == modality, verdict.why


@pytest.mark.parametrize(
    ("modality", "tags", "why"),
    [
        ("T1", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localiser"),
        ("T1", {"SyntheticData": "YES"}, "a synthetic image: never an input again"),
        ("T1", {"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, "a reformat of another series"),
        ("TOF", {"ImageType": ["DERIVED", "PRIMARY", "MIP"]}, "a projection of another series"),
        ("T2", {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "a diffusion image or map"),
        ("T1", {"ImageType": ["DERIVED", "SECONDARY", "OTHER"]}, "derived from another series"),
        ("T2S", {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "a phase, real or imaginary image"),
        ("T2S", {"ImageType": ["ORIGINAL", "PRIMARY", "M", "SWI"]}, "susceptibility-weighted"),
        ("T2S", {"ScanningSequence": ["EP", "GR"]}, "echo-planar"),
        ("T2", {"SequenceName": "ep_b1000t"}, "diffusion-weighted"),
        ("T2", {"EchoTime": 15}, "weighted by proton density"),
        ("FLAIR", {"InversionTime": 160}, "fat is nulled (STIR)"),
        ("FLAIR", {"InversionTime": None}, "without its inversion time"),
        ("T1", {"RepetitionTime": None}, "no repetition or echo time"),
        ("T1", {"ScanningSequence": None, "InversionTime": None}, "neither spin echo nor gradient echo"),
        ("TOF", {"ContrastBolusAgent": "Gadovist"}, "with a contrast agent, not time of flight"),
        ("T2", {"BodyPartExamined": "LSPINE"}, "of another part of the body"),
        ("T1", {"BurnedInAnnotation": "YES"}, "has text burned into"),
        ("T1", {"SeriesDescription": "SYNTHETIC - not for primary diagnosis"}, "a synthetic image"),
        ("CT", {"ConvolutionKernel": "H70h"}, "sharp kernel"),
        ("CT", {"ConvolutionKernel": "BONEPLUS", "Manufacturer": "GE"}, "sharp kernel"),
        ("CT", {"ConvolutionKernel": "FC30", "Manufacturer": "TOSHIBA"}, "sharp kernel"),
        ("CT", {"ContrastBolusAgent": "Imeron 350"}, "with a contrast agent"),
        ("CT", {"RescaleType": "MGML"}, "not in Hounsfield units"),
        ("FDG", {"CorrectedImage": ["DECY"]}, "without attenuation correction"),
        ("FDG", {"RadiopharmaceuticalInformationSequence": None}, "whose tracer is not said"),
    ],
)
def test_what_is_set_aside_says_why(tmp_path: Path, modality: str, tags: dict[str, Any], why: str) -> None:
    verdict = classify(one(tmp_path, modality, **tags))
    assert verdict.modality is None
    assert why in verdict.why


def test_another_tracer_is_named_as_such(tmp_path: Path) -> None:
    def other(_: int, dataset: Dataset) -> None:
        dataset.RadiopharmaceuticalInformationSequence[0].Radiopharmaceutical = "Flutemetamol F^18^"

    write_series(tmp_path, "AV45", change=other)
    (found,), _ = group(collect(tmp_path)[0])
    assert classify(found).why == "PET of a tracer other than FDG and AV45"


@pytest.mark.parametrize(
    ("agent", "description", "modality"),
    [
        ("", "t1_mprage", "T1"),
        ("", "t1_mprage_post_gd", "T1CE"),
        ("", "t1 mprage KM", "T1CE"),
        ("", "t1 posterior fossa", "T1"),
        ("", "t1 post. fossa", "T1"),
        ("", "t1 ohne KM", "T1"),
        ("", "t1 without contrast", "T1"),
        ("", "t1 nativ und KM", None),
        ("NONE", "t1_mprage", "T1"),
        ("Dotarem", "t1_mprage", "T1CE"),
        ("Dotarem", "t1 nativ", None),
    ],
)
def test_before_or_after_contrast(tmp_path: Path, agent: str, description: str, modality: str | None) -> None:
    verdict = classify(one(tmp_path, "T1", ContrastBolusAgent=agent, SeriesDescription=description))
    assert verdict.modality == modality, verdict.why


def test_a_description_alone_is_a_suggestion(tmp_path: Path) -> None:
    bare = dict.fromkeys(("ScanningSequence", "RepetitionTime", "EchoTime", "InversionTime"))
    verdict = classify(one(tmp_path, "FLAIR", **bare))
    assert (verdict.modality, verdict.hint) == (None, "FLAIR")
    assert described(one(tmp_path / "2", "T1", SeriesDescription="REST1 w SMS", ProtocolName="x")) is None


def test_no_reason_repeats_a_text_of_the_file(tmp_path: Path) -> None:
    """A reason may leave the private disk; what the file says may name somebody."""
    for number, modality in enumerate(MADE):
        tags = dict.fromkeys(("SeriesDescription", "ProtocolName", "Manufacturer", "BodyPartExamined"), "ZEBEDEE")
        words = {"ImageType": ["ORIGINAL", "PRIMARY", "ZEBEDEE"], "ScanningSequence": "ZEBEDEE"}
        write_series(tmp_path / str(number), modality, patient=str(number), tags={**tags, **words})
    for found in group(collect(tmp_path)[0])[0]:
        assert "zebedee" not in f"{classify(found).why} {found.fault}".lower()
