"""Writing in pixels: what a header says of it, what writing looks like, and what is no writing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from support.cohort.shared_data import unpacked

from client.ingest.clean.burned_in import lines_of_letters, suspect_text


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


@pytest.mark.parametrize("name", ["xa30_t1", "enhanced_philips_siemens", "ge_t1", "deident"])
def test_real_images_as_their_scanners_made_them_are_not_suspected(name: str) -> None:
    paths: list[Path] = sorted(path for path in unpacked(f"dicom/{name}.tar.xz").rglob("*") if path.is_file())
    for path in paths[::40]:
        assert suspect_text(dcmread(path)) is None
