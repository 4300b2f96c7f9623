"""Synthesised volumes as DICOM: each voxel where it was, marked beyond doubt, without an error of dciodvfy or dcmtk."""

import itertools
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from support.dicom.studies import NOW, SHAPE, turned, volumes, world_of, write_study
from support.dicom.validators import errors_of

from client.inference.dicom.out import LABEL, Series, write_series
from client.inference.dicom.source import read_study
from shared.base.errors import DataError
from shared.data.volumes import read

pytestmark = pytest.mark.slow  # left out of `make fast`


def study_at(folder: Path, affine: np.ndarray, shape: tuple[int, ...] = SHAPE, **options: object) -> Path:
    data = [np.full(shape, 100 * (n + 1), np.uint16) for n in range(2)]
    return write_study(folder, affine, data, names=("T1 MPRAGE", "T2 TSE"), **options)  # type: ignore[arg-type]


def values_at(series: Series, slope: float, intercept: float) -> dict[tuple[float, ...], float]:
    """Every voxel's world coordinate, in RAS, and value."""
    found = {}
    for path in series.files:
        image = dcmread(path)
        world, pixels = world_of(image), image.pixel_array
        for row, column in itertools.product(range(image.Rows), range(image.Columns)):
            place = (world @ [column, row, 0, 1])[:3]
            found[tuple(np.round(place, 3) + 0.0)] = float(pixels[row, column]) * slope + intercept
    return found


@pytest.mark.parametrize(
    "degrees", [(0, 0, 0), (20, 0, 0), (10, -15, 25), (0, 90, 0), (90, 0, 5), (0, 0, 180), (180, 10, 0)]
)
@pytest.mark.parametrize("stored_as", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("reverse", [False, True])
def test_each_voxel_lies_where_it_was(
    degrees: tuple[float, float, float], stored_as: tuple[int, int, int], reverse: bool, tmp_path: Path
) -> None:
    """The source at any angle; the volume on the same grid, its axes in any order and one of them reversed."""
    affine, shape = turned(degrees), (5, 6, 4)
    study_at(tmp_path / "study", affine, shape, reverse=reverse)
    other = affine[:, [*stored_as, 3]].copy()
    n = [shape[axis] for axis in stored_as]
    other[:3, 3] += (n[1] - 1) * other[:3, 1]
    other[:3, 1] *= -1
    mean, data = volumes(tmp_path / "nifti", "FLAIR", other, tuple(n))
    series = write_series({"FLAIR": mean}, read_study(tmp_path / "study"), tmp_path / "out", now=NOW)
    found = values_at(series[0], 0.1, 0)
    assert len(found) == data.size
    for index in np.ndindex(*data.shape):
        place = tuple(np.round((other @ [*index, 1])[:3], 3) + 0.0)
        near = found.get(place) or min(found.items(), key=lambda item: np.abs(np.subtract(item[0], place)).max())[1]
        assert near == pytest.approx(data[index], abs=0.0501)
    positions = {tuple(dcmread(p).ImagePositionPatient) for p in (tmp_path / "study").rglob("IM*")}
    assert (
        np.abs(
            np.sort(np.array(list(positions), float), 0)
            - np.sort([dcmread(p).ImagePositionPatient for p in series[0].files], 0)
        ).max()
        < 1e-4
    )


@pytest.mark.parametrize(
    ("modality", "slope", "intercept"), [("FLAIR", 0.1, 0), ("CT", 0.1, -1024), ("FDG", 0.001, 0), ("AV45", 0.001, 0)]
)
@pytest.mark.parametrize("burn_in", [False, True])
def test_every_kind_is_valid_and_keeps_its_values(
    modality: str, slope: float, intercept: float, burn_in: bool, tmp_path: Path
) -> None:
    shape, affine = (96, 80, 3), turned((10, 0, 0))
    study_at(tmp_path / "study", affine, shape)
    mean, data = volumes(tmp_path / "nifti", modality, affine, shape)
    made = write_series({modality: mean}, read_study(tmp_path / "study"), tmp_path / "out", now=NOW, burn_in=burn_in)
    assert [one.uncertainty for one in made] == [False, True]
    kept = [np.stack([dcmread(p).pixel_array for p in one.files]).transpose(2, 1, 0) for one in made]
    inside = np.ones(shape, bool)
    inside[:, : shape[1] // 2] = not burn_in  # the text is in the upper half
    inside[0] = False
    assert np.abs(kept[0] * slope + intercept - data)[inside].max() <= slope * 0.51
    assert np.abs(kept[1] * slope - np.abs(data) / 9)[inside].max() <= slope * 0.51
    assert (kept[0][0][40:] == 0).all()  # outside of the brain: the lowest there is
    for one in made:
        for path in one.files:
            assert not errors_of(path), path


@pytest.mark.parametrize("modality", ["FLAIR", "CT", "FDG"])
def test_a_study_that_says_little_gets_a_valid_series_too(modality: str, tmp_path: Path) -> None:
    affine = turned((0, 0, 0))
    study_at(tmp_path / "study", affine)
    for path in (tmp_path / "study").rglob("IM*"):
        image = dcmread(path)
        for keyword in (
            "PatientPosition",
            "PatientBirthDate",
            "AccessionNumber",
            "StudyID",
            "StudyDescription",
            "StudyTime",
            "ReferringPhysicianName",
            "PatientSex",
            "Manufacturer",
        ):
            del image[keyword]
        image.save_as(path)
    mean, _ = volumes(tmp_path / "nifti", modality, affine)
    for one in write_series({modality: mean}, read_study(tmp_path / "study"), tmp_path / "out", now=NOW):
        assert not errors_of(one.files[0])


def test_it_says_what_it_is_and_whose(tmp_path: Path) -> None:
    affine = turned((5, 0, 0))
    study_at(tmp_path / "study", affine)
    mean, _ = volumes(tmp_path / "nifti", "FLAIR", affine)
    study = read_study(tmp_path / "study")
    made = write_series({"FLAIR": mean}, study, tmp_path / "out", now=NOW)
    image, spread = (dcmread(one.files[4]) for one in made)
    source = dcmread(tmp_path / "study/S1/IM0004")
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "AccessionNumber",
        "StudyDescription",
        "FrameOfReferenceUID",
        "PatientPosition",
    ):
        assert image[keyword].value == source[keyword].value
    assert str(image.PatientName) == "Müller^Änne"
    assert image.SeriesDescription == f"{LABEL}: FLAIR"
    assert spread.SeriesDescription == f"{LABEL}: FLAIR uncertainty"
    assert image.ImageType == ["DERIVED", "PRIMARY", "OTHER", "SYNTHETIC"]
    assert spread.ImageType == [*image.ImageType, "STDDEV"]
    assert image.SyntheticData == spread.SyntheticData == "YES"
    assert image.ImageComments.startswith(LABEL)
    assert "computed by a generative model from T1, T2; not measured" in image.DerivationDescription
    assert image.DerivationCodeSequence[0].CodeValue == "SYNTH"
    model, scanner = image.ContributingEquipmentSequence
    assert model.DeviceSerialNumber == "d" * 64
    assert "T1 sha256 aaaaaaaaaaaaaaaa; T2 sha256 bbbbbbbbbbbbbbbb" in model.ContributionDescription
    assert scanner.ManufacturerModelName == "Scanner 3T"
    assert (image.SeriesDate, image.SeriesTime) == ("20260304", "050607")
    sources = {dcmread(p).SOPInstanceUID for p in (tmp_path / "study").rglob("IM0004")}
    assert {one.ReferencedSOPInstanceUID for one in image.SourceImageSequence} == sources
    assert {one.SeriesInstanceUID for one in image.ReferencedSeriesSequence} == {one.uid for one in study}
    uids = [dcmread(p).SOPInstanceUID for one in made for p in one.files]
    assert len(set(uids)) == len(uids) == 18
    assert all(int(uid.removeprefix("2.25.")) < 2**128 for uid in (*uids, made[0].uid))  # UUIDs, as 2.25 wants
    assert not set(uids) & {dcmread(p).SOPInstanceUID for p in (tmp_path / "study").rglob("IM*")}
    assert made[0].uid != made[1].uid
    assert made[0].uid not in {one.uid for one in study}
    assert (made[0].folder.parent.stat().st_mode & 0o777) == 0o700


def test_what_is_whole_keeps_its_uids_and_what_changed_gets_new_ones(tmp_path: Path) -> None:
    affine = turned((0, 0, 0))
    study_at(tmp_path / "study", affine)
    mean, _ = volumes(tmp_path / "nifti", "FLAIR", affine)
    study = read_study(tmp_path / "study")
    first = write_series({"FLAIR": mean}, study, tmp_path / "out", now=NOW)
    assert write_series({"FLAIR": mean}, study, tmp_path / "out", now=datetime(2027, 1, 1)) == first
    first[0].files[0].write_bytes(b"damaged")
    second = write_series({"FLAIR": mean}, study, tmp_path / "out", now=NOW)
    assert second[0].uid != first[0].uid
    assert second[1].uid == first[1].uid


def test_a_volume_in_another_space_is_refused(tmp_path: Path) -> None:
    study_at(tmp_path / "study", turned((0, 0, 0)))
    far = turned((0, 0, 0))
    far[:3, 3] += 100
    mean, _ = volumes(tmp_path / "nifti", "FLAIR", far)
    with pytest.raises(DataError, match="lies outside of the source study: a series shows at best 0 % of it"):
        write_series({"FLAIR": mean}, read_study(tmp_path / "study"), tmp_path / "out", now=NOW)
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_a_grid_of_its_own_keeps_its_voxels(tmp_path: Path) -> None:
    """Resampled by the preparation: in the source's frame of reference, at its own positions."""
    study_at(tmp_path / "study", turned((0, 0, 0)))
    mean, data = volumes(tmp_path / "nifti", "FLAIR", turned((0, 0, 0), (0.9, 0.9, 0.9)))
    series = write_series({"FLAIR": mean}, read_study(tmp_path / "study"), tmp_path / "out", now=NOW)[0]
    image = dcmread(series.files[0])
    assert [float(x) for x in image.PixelSpacing] == pytest.approx([0.9, 0.9])
    assert np.isclose(np.sort(list(values_at(series, 0.1, 0).values())), np.sort(data.ravel()), atol=0.051).all()
    assert read(mean).data_DHW.shape == (9, 24, 20)


def spoil_two_patients(folder: Path) -> None:
    study_at(folder / "more", turned((0, 0, 0)), patient="P-2")


def spoil_two_studies(folder: Path) -> None:
    study_at(folder / "more", turned((0, 0, 0)), study="1.2.3")


def spoil_all(folder: Path) -> None:
    for path in folder.rglob("IM*"):
        path.write_bytes(b"no DICOM")


def spoil_geometry(folder: Path) -> None:
    for path in folder.rglob("IM*"):
        image = dcmread(path)
        del image.ImagePositionPatient
        image.save_as(path)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (spoil_two_patients, "holds images of 2 patients; name the folder of one"),
        (spoil_two_studies, "holds images of 2 studies; name the folder of one"),
        (spoil_all, "no MR, CT or PET image among its 18 files"),
        (spoil_geometry, "no series says where its slices lie"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_a_source_that_can_not_be_used_is_named(spoil, line: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = study_at(tmp_path / "study", turned((0, 0, 0)))
    spoil(folder)
    with pytest.raises(DataError, match=line):
        read_study(folder)


def test_small_slices_can_not_bear_the_text(tmp_path: Path) -> None:
    affine = turned((0, 0, 0))
    study_at(tmp_path / "study", affine)
    mean, _ = volumes(tmp_path / "nifti", "FLAIR", affine)
    with pytest.raises(DataError, match="--burn-in: slices of 24 x 20 pixels are too small"):
        write_series({"FLAIR": mean}, read_study(tmp_path / "study"), tmp_path / "out", now=NOW, burn_in=True)
