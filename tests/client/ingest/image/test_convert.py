"""Conversion: values, places and units survive, tilted CT is pushed back, PET becomes uptake; real series of makers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from support.cohort.shared_data import unpacked
from support.dicom.dicoms import volume, write_series

from client.ingest.arrive.collect import collect
from client.ingest.image.convert import convert
from client.ingest.image.suv import uptake
from client.ingest.recognise.classify import classify
from client.ingest.recognise.series import Series, group
from shared.base.errors import DataError
from shared.data.volumes import read


def series_of(folder: Path) -> list[Series]:
    return group(collect(folder)[0])[0]


def only(folder: Path) -> Series:
    (found,) = series_of(folder)
    assert not found.fault
    return found


def test_voxels_are_where_dicom_says_they_are(tmp_path: Path) -> None:
    """Voxel (slice k, row i, column j) of DICOM, LPS, is found at the same place of the NIfTI, RAS."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 1000, (12, 40, 36)).astype(np.uint16)
    paths = write_series(tmp_path / "in", "T1", data=data, spacing=(6.0, 1.5, 1.25))
    made = read(convert(only(tmp_path / "in"), "T1", tmp_path / "out").nifti)
    import pydicom

    for k, i, j in ((0, 0, 0), (3, 7, 11), (11, 39, 35)):
        origin = pydicom.dcmread(paths[k]).ImagePositionPatient
        place = np.array([-(origin[0] + j * 1.25), -(origin[1] + i * 1.5), origin[2], 1])
        x, y, z, _ = np.rint(np.linalg.inv(made.affine) @ place).astype(int)
        assert made.data_DHW[z, y, x] == data[k, i, j]


def test_rescale_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    write_series(tmp_path / "in", "CT")
    made = convert(only(tmp_path / "in"), "CT", tmp_path / "out")
    data = read(made.nifti).data_DHW
    assert made.sidecar["Units"] == "HU"
    assert data.min() == -1000
    assert 30 <= np.median(data[data > 0]) <= 90


def test_a_tilted_ct_is_pushed_back_to_a_box(tmp_path: Path) -> None:
    """A bar along the table lies straight again after a tilt of 20 degrees."""

    def tilted(i: int, dataset: Dataset) -> None:
        a = np.deg2rad(20.0)
        dataset.GantryDetectorTilt = 20
        dataset.ImageOrientationPatient = [1, 0, 0, 0, round(np.cos(a), 6), round(-np.sin(a), 6)]
        dataset.ImagePositionPatient = [-100, -100, 5.0 * i]

    data = np.full((16, 40, 40), 24, np.uint16)
    for i in range(16):  # the bar's row, so that it stays at one place of the room: y = -100 + row * 5 * cos
        data[i, 18:23, 18:23] = 1064
    write_series(tmp_path / "in", "CT", data=data, change=tilted)
    made = convert(only(tmp_path / "in"), "CT", tmp_path / "out")
    assert "tilt corrected" in made.why
    volume = read(made.nifti)
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert np.allclose(directions.T @ directions, np.eye(3), atol=1e-3)
    bright = np.argwhere(volume.data_DHW > -500)
    places = (volume.affine @ np.c_[bright[:, ::-1], np.ones(len(bright))].T)[:3].T
    lowest, highest = places[places[:, 2] < 20], places[places[:, 2] > 40]
    assert abs(lowest[:, 1].mean() - highest[:, 1].mean()) < 5  # one voxel over 60 mm of height


def test_a_conversion_is_done_once_and_anew_for_other_files(tmp_path: Path) -> None:
    write_series(tmp_path / "in", "T1")
    first = convert(only(tmp_path / "in"), "T1", tmp_path / "out")
    written = first.nifti.stat().st_mtime_ns
    assert convert(only(tmp_path / "in"), "T1", tmp_path / "out").nifti.stat().st_mtime_ns == written
    write_series(tmp_path / "in", "T1", tags={"FlipAngle": 12})
    assert convert(only(tmp_path / "in"), "T1", tmp_path / "out").nifti != first.nifti
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "in", "CT", tags={"RescaleIntercept": 0})
    with pytest.raises(DataError, match="not in Hounsfield units"):
        convert(only(tmp_path / "in"), "CT", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


# PET ------------------------------------------------------------------------------------------------------------------


def test_suv_is_uptake_per_dose_and_weight(tmp_path: Path) -> None:
    """370 MBq in 70 kg, one hour before the scan: a voxel with the mean concentration of the body has SUV 1."""
    write_series(tmp_path / "in", "FDG")
    found = only(tmp_path / "in")
    rule = uptake(found.headers)
    mean = 3.7e8 * 2 ** (-3600 / 6586.2) / 70_000  # Bq per gram
    assert rule.unit == "g/mL"
    assert rule.factor * mean == pytest.approx(1.0)
    made = convert(found, "FDG", tmp_path / "out")
    assert made.sidecar["Units"] == "g/mL"
    assert read(made.nifti).data_DHW.max() == pytest.approx(559 * rule.factor, rel=0.01)


def test_each_slice_of_a_pet_has_its_own_slope(tmp_path: Path) -> None:
    data = volume("FDG")

    def steeper(i: int, dataset: Dataset) -> None:
        dataset.RescaleSlope = 1 + i / 2

    write_series(tmp_path / "in", "FDG", data=data, change=steeper)
    found = only(tmp_path / "in")
    made = read(convert(found, "FDG", tmp_path / "out").nifti).data_DHW[:, ::-1, ::-1]
    uptake_DHW = data * (1 + np.arange(16) / 2)[:, None, None] * uptake(found.headers).factor
    assert np.allclose(made, uptake_DHW, rtol=1e-5)


def test_a_dose_of_yesterday_evening_is_before_the_scan(tmp_path: Path) -> None:
    after_midnight = dict.fromkeys(("SeriesTime", "AcquisitionTime"), "003000")

    def late(_: int, dataset: Dataset) -> None:
        dataset.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartTime = "233000"

    write_series(tmp_path / "late", "FDG", tags=after_midnight, change=late)
    write_series(tmp_path / "usual", "FDG")
    assert uptake(only(tmp_path / "late").headers).factor == pytest.approx(
        uptake(only(tmp_path / "usual").headers).factor
    )


@pytest.mark.parametrize(
    ("tags", "unit", "why"),
    [
        ({"PatientWeight": None}, "Bq/mL", "its body weight is not said"),
        ({"PatientWeight": 7000}, "Bq/mL", "7000 kg is not possible"),
        ({"DecayCorrection": "NONE"}, "Bq/mL", "to what time its decay was corrected"),
        ({"SeriesTime": "093000", "AcquisitionTime": "093000"}, "Bq/mL", "h between injection and scan"),
        ({"Units": "GML"}, "g/mL", "stored as SUV"),
        ({"Units": "CNTS"}, "arbitrary", "neither Bq/mL nor SUV"),
        ({"DecayCorrection": "ADMIN"}, "g/mL", "SUV by body weight"),
    ],
)
def test_no_suv_is_made_up(tmp_path: Path, tags: dict[str, Any], unit: str, why: str) -> None:
    write_series(tmp_path, "FDG", tags=tags)
    found = uptake(only(tmp_path).headers)
    assert found.unit == unit
    assert why in found.why


# Real series ----------------------------------------------------------------------------------------------------------


def real(name: str) -> dict[str, tuple[Series, str | None]]:
    return {
        s.first.text("Manufacturer").split()[0].lower(): (s, classify(s).modality) for s in series_of(unpacked(name))
    }


@pytest.mark.parametrize(
    ("name", "maker", "shape"),
    [
        ("dicom/xa30_t1.tar.xz", "siemens", (128, 128, 96)),  # enhanced multi-frame
        ("dicom/ge_t1.tar.xz", "ge", (130, 256, 256)),  # a grid phantom, which the quality control rejects
        ("dicom/deident.tar.xz", "ge", (256, 256, 196)),  # a fruit
    ],
)
def test_real_t1_series_become_volumes(name: str, maker: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    series, modality = real(name)[maker]
    assert (modality, series.fault) == ("T1", "")
    assert read(convert(series, "T1", tmp_path).nifti).data_DHW.shape == shape


def test_real_field_maps_and_epi_are_named_exclusions() -> None:
    found = real("dicom/enhanced_philips_siemens.tar.xz")
    field_map, epi = found["philips"], found["siemens"]
    assert (field_map[1], epi[1]) == (None, None)
    assert "field map" in classify(field_map[0]).why
    assert "echo-planar" in classify(epi[0]).why


@pytest.mark.parametrize(("maker", "tilt"), [("ge", 18.5), ("philips", 16.5), ("philips", -18.5)])
def test_real_tilted_ct_is_pushed_back(maker: str, tilt: float, tmp_path: Path) -> None:
    """dcm_qa_ct is not among the shared images everywhere: then the made one above stands for it."""
    (series,) = (
        s
        for s in series_of(unpacked("dicom/ct_tilt.tar.xz"))
        if s.first.real("GantryDetectorTilt") == tilt and s.first.text("Manufacturer").lower().startswith(maker)
    )
    assert (classify(series).modality, series.fault) == ("CT", "")
    made = convert(series, "CT", tmp_path)
    assert "tilt corrected" in made.why
    assert made.sidecar["Units"] == "HU"
    data = read(made.nifti).data_DHW
    assert np.median(data[(data > -1100) & (data < -900)]) == pytest.approx(-1000, abs=5)  # air, not padding


def test_real_epi_of_two_makers_is_a_named_exclusion() -> None:
    """dcm_qa_nih, likewise: GE slice by slice, Siemens as mosaics."""
    found = {s.first.text("Manufacturer").split()[0]: s for s in series_of(unpacked("dicom/nih_epi.tar.xz"))}
    assert found.keys() == {"GE", "SIEMENS"}
    assert {classify(s).why for s in found.values()} == {"echo-planar, as in functional imaging"}
    assert found["GE"].fault == "4D: 10 images at each of 15 places"
    assert found["SIEMENS"].fault == "2 volumes over time, not one"
