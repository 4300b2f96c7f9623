"""A volume onto another grid: once, as a spline says, with its own bits where nothing moves."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage
from support.cohort.heads import head, moved, random_pose

from client.ingest.image.resample import (
    binned,
    box_of,
    covered,
    cut,
    grid_with_spacing,
    percentiles,
    resample,
    to_pose,
    to_sitk,
    to_transform,
)
from shared.data.volumes import Volume


@pytest.fixture
def volume() -> Volume:
    data = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((31, 40, 37)), 1.0)
    affine = np.diag([1.1, 0.9, 2.0, 1.0])
    affine[:3, 3] = (-20, -15, -30)
    return Volume(data_DHW=(100 + 50 * data).astype(np.float32), affine=affine)


@pytest.mark.parametrize("sharp", [True, False])
def test_it_is_the_spline_of_simpleitk(volume: Volume, sharp: bool) -> None:
    pose, shape = random_pose(np.random.default_rng(8), mm=6, degrees=12), (25, 33, 30)
    affine = volume.affine @ np.diag([1.2, 1.1, 1.05, 1.0])
    made = resample(volume, shape, affine, pose, sharp=sharp)
    like = to_sitk(np.zeros(shape, np.float32), affine)
    how = sitk.sitkBSpline if sharp else sitk.sitkLinear
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(to_sitk(volume.data_DHW, volume.affine), like, to_transform(pose), how, 0.0)
    )
    theirs = np.where(theirs == 0, 0, np.clip(theirs, volume.data_DHW.min(), volume.data_DHW.max()))
    assert ((made == 0) == (theirs == 0)).mean() > 0.999  # but for voxels on the very edge of the field
    assert 0.1 < (made == 0).mean() < 0.9
    inner = covered(
        cut(volume, (slice(1, 30), slice(1, 39), slice(1, 36))), shape, affine, pose
    )  # beyond its last voxels they differ
    assert np.abs(made - theirs)[inner].max() < 0.01


def test_a_part_is_a_part_of_the_whole(volume: Volume) -> None:
    pose = random_pose(np.random.default_rng(9), mm=3, degrees=5)
    within = np.zeros(volume.data_DHW.shape, np.bool_)
    within[8:14, 10:20, 11:30] = True
    whole, part = (
        resample(volume, volume.data_DHW.shape, volume.affine, pose, sharp=True, within_DHW=w) for w in (None, within)
    )
    assert np.allclose(part[within], whole[within], atol=1e-3)
    assert (part[~within] == 0).all()
    nothing = resample(volume, within.shape, volume.affine, pose, sharp=True, within_DHW=np.zeros_like(within))
    assert (nothing == 0).all()


def test_bins_are_means_at_their_middles(volume: Volume) -> None:
    small = binned(volume, 2.2)
    assert small.data_DHW.shape == (31, 20, 18)  # 2 of 0.9 mm, 2 of 1.1 mm, 1 of 2 mm
    assert np.allclose(small.data_DHW, volume.data_DHW[:, :, :36].reshape(31, 20, 2, 18, 2).mean(axis=(2, 4)))
    middle = (volume.affine @ [0.5, 0.5, 0, 1])[:3]
    assert np.allclose(small.affine[:3, 3], middle)
    assert binned(volume, 1.0) is volume


def test_a_cut_stays_where_it_is(volume: Volume) -> None:
    mask = np.zeros(volume.data_DHW.shape, np.bool_)
    mask[5:9, 20, 3:30] = True
    assert box_of(mask) == (slice(5, 9), slice(20, 21), slice(3, 30))
    assert box_of(mask, 4) == (slice(1, 13), slice(16, 25), slice(0, 34))
    assert box_of(np.zeros_like(mask)) == (slice(0, 0),) * 3
    part = cut(volume, box_of(mask, 2))
    back = resample(part, volume.data_DHW.shape, volume.affine, np.eye(4), sharp=False)
    assert np.allclose(back[5:9, 20, 3:30], volume.data_DHW[5:9, 20, 3:30])


def test_robust_limits_need_not_see_every_voxel() -> None:
    many = np.random.default_rng(1).standard_normal((200, 200, 100)).astype(np.float32)
    assert np.allclose(percentiles(many, (2.0, 98.0)), np.percentile(many, (2, 98)), atol=0.02)
    few = many[:10]
    assert np.allclose(percentiles(few, (2.0, 98.0)), np.percentile(few, (2, 98)))


def test_a_pose_survives_simpleitk() -> None:
    pose = random_pose(np.random.default_rng(2))
    assert np.allclose(to_pose(to_transform(pose)), pose)


def test_an_unmoved_volume_on_its_own_grid_keeps_its_bits() -> None:
    volume = head("T1")
    again = resample(volume, volume.data_DHW.shape, volume.affine, np.eye(4), sharp=True)
    assert (again == volume.data_DHW).all()


def test_a_pose_and_its_inverse_leave_a_smooth_volume(tmp_path: Path) -> None:
    z, y, x = np.indices((40, 44, 36)) / 6.0
    smooth = Volume(data_DHW=(100 + 20 * np.sin(z) * np.cos(y + x)).astype(np.float32), affine=np.diag([2.0, 2, 2, 1]))
    pose = random_pose(np.random.default_rng(4), mm=4, degrees=4)
    there = moved(smooth, pose)
    back = resample(there, smooth.data_DHW.shape, smooth.affine, pose, sharp=True)
    inside = (slice(8, -8),) * 3
    assert np.abs(back - smooth.data_DHW)[inside].max() < 0.5
    assert covered(there, smooth.data_DHW.shape, smooth.affine, pose)[inside].all()


def test_a_grid_with_another_spacing_covers_the_same_field() -> None:
    volume = head("T1")
    (depth, height, width), affine = grid_with_spacing(volume, 3.0)
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), 3.0)
    middle = affine[:3, :3] @ (np.array([width, height, depth]) - 1) / 2 + affine[:3, 3]
    own = volume.affine[:3, :3] @ (np.array(volume.data_DHW.shape[::-1]) - 1) / 2 + volume.affine[:3, 3]
    assert np.abs(middle - own).max() < 1.6
