"""NIfTI in and out of RAS, and the way onto the grid and back."""

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.base.errors import ConfigError, DataError
from shared.base.options import build, plain
from shared.data.volumes import Grid, Placement, read, shape_and_affine, within, write, write_like

nib: Any = nibabel
AFFINE = np.array([[2.0, 0, 0, -7], [0, 1.5, 0, 3], [0, 0, 3.0, 11], [0, 0, 0, 1]])
RNG = np.random.default_rng(0)
DATA_DHW = RNG.random((5, 8, 6)).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "v.nii.gz"
    write(path, DATA_DHW, AFFINE)
    return path


def stored_as(path: Path, axes: str) -> Path:
    """The same volume with its axes stored in another order and direction."""
    ras = nib.load(path)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(axes))
    )
    turned = path.with_name(f"{axes}.nii.gz")
    nib.save(ras.as_reoriented(turn), turned)
    return turned


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LPI", "PIR", "SAL", "ILP"])
def test_any_storage_order_reads_as_the_same_ras_volume(file: Path, axes: str) -> None:
    turned = stored_as(file, axes)
    volume = read(turned)
    assert np.array_equal(volume.data_DHW, DATA_DHW)
    assert np.allclose(volume.affine, AFFINE)
    shape, affine = shape_and_affine(turned)
    assert shape == DATA_DHW.shape
    assert np.allclose(affine, AFFINE)


@pytest.mark.parametrize("axes", ["RAS", "LPI", "SAL"])
def test_write_like_gives_back_the_inputs_own_storage(file: Path, axes: str) -> None:
    turned = stored_as(file, axes)
    write_like(file.with_name("out.nii.gz"), read(turned).data_DHW, turned)
    out, original = nib.load(file.with_name("out.nii.gz")), nib.load(turned)
    assert np.array_equal(out.get_fdata(), original.get_fdata())
    assert np.allclose(out.affine, original.affine)
    with pytest.raises(DataError, match="differs from the input's"):
        write_like(file.with_name("out.nii.gz"), DATA_DHW[1:], turned)


def test_equal_data_give_equal_bytes_whatever_the_name(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", DATA_DHW, AFFINE)
    write(tmp_path / "b.nii.gz", DATA_DHW, AFFINE)
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "b.nii.gz").read_bytes()
    assert content[4:8] == bytes(4)
    assert b"a.nii" not in content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_integers_are_rounded_and_never_wrap(tmp_path: Path) -> None:
    write(tmp_path / "i.nii", DATA_DHW * 1000, AFFINE, dtype=np.int16)
    assert np.array_equal(read(tmp_path / "i.nii").data_DHW, np.rint(DATA_DHW * 1000))
    with pytest.raises(DataError, match="do not fit uint8"):
        write(tmp_path / "u.nii", DATA_DHW * 1000, AFFINE, dtype=np.uint8)
    assert not list(tmp_path.glob(".*"))


def test_slope_and_a_trailing_axis_of_one_are_understood(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full((4, 4, 4, 1), 3, np.int16), AFFINE)
    image.header.set_slope_inter(2.0, 1.0)
    nib.save(image, tmp_path / "s.nii.gz")
    assert np.array_equal(read(tmp_path / "s.nii.gz").data_DHW, np.full((4, 4, 4), 7, np.float32))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 351), value=st.integers(0, 255), packed=st.booleans())
def test_a_damaged_header_byte_is_a_data_error_or_harmless(file: Path, at: int, value: int, packed: bool) -> None:
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[at] = value
    damaged = file.with_name("d.nii.gz" if packed else "d.nii")
    damaged.write_bytes(gzip.compress(content, 1) if packed else bytes(content))
    try:
        volume = read(damaged)
    except DataError as error:
        message = str(error)
    else:
        message = ""
        assert np.isfinite(volume.data_DHW).all()
    assert "\n" not in message
    assert damaged.name not in message


def ball(shape: tuple[int, int, int], radius: float) -> np.ndarray:
    z, y, x = np.indices(shape)
    d, h, w = shape
    return (z - d / 2) ** 2 + (y - h / 2 + 1) ** 2 + (x - w / 2 - 2) ** 2 < radius**2


@pytest.mark.parametrize("size", [(16, 20), (17, 21), (40, 40)])
def test_native_spacing_is_exact_both_ways(size: tuple[int, int]) -> None:
    brain = ball((20, 30, 26), 7.5)
    data = np.where(brain, RNG.random(brain.shape), 0).astype(np.float32)
    placement = Grid(height=size[0], width=size[1]).place(brain, AFFINE)
    stack = placement.to_grid(data)
    assert stack.shape == (placement.z[1] - placement.z[0], *size)
    assert np.array_equal(placement.from_grid(stack), data)
    assert np.array_equal(placement.to_grid(placement.from_grid(stack)), stack)


@pytest.mark.parametrize("spacing", [1.0, 1.5, 2.0, 3.0])
def test_resampling_goes_and_returns_up_to_interpolation(spacing: float) -> None:
    affine = np.diag([2.0, 1.5, 4.0, 1.0])
    brain = ball((20, 60, 60), 9.0)
    _, y, x = np.indices(brain.shape)
    data = (2 + np.sin(y / 9) + np.cos(x / 8)).astype(np.float32)
    placement = Grid(spacing_mm=spacing, height=64, width=64).place(brain, affine)
    assert placement.step_zyx == (1.0, spacing / 1.5, spacing / 2.0)
    back = placement.from_grid(placement.to_grid(data))
    assert np.abs(back - data)[brain].max() < 0.02
    assert np.array_equal(placement.labels_to_grid(brain), placement.to_grid(brain) > 0.5)


def test_resampling_keeps_a_constant_inside_and_the_sum_of_what_it_averages() -> None:
    brain = ball((8, 40, 40), 12.0)
    placement = Grid(spacing_mm=3.0, height=12, width=12).place(brain, np.eye(4))
    assert np.allclose(placement.to_grid(np.ones(brain.shape))[:, 1:-1, 1:-1], 1, atol=1e-6)
    assert placement.to_grid(brain).sum() * 9 == pytest.approx(brain.sum(), rel=0.02)


def test_the_centre_of_the_brain_is_the_centre_of_the_grid() -> None:
    brain = np.zeros((4, 50, 50), bool)
    brain[1:3, 30:41, 5:14] = True
    stack = Grid(height=33, width=33).place(brain, np.eye(4)).to_grid(brain)
    assert np.argwhere(stack).mean(axis=0).tolist() == [0.5, 16, 16]


def test_a_brain_larger_than_a_native_grid_names_the_size_it_needs() -> None:
    brain = ball((20, 60, 60), 15.0)
    with pytest.raises(DataError, match=r"needs 29 x 29 voxels: more than grid native-24x32"):
        Grid(height=24, width=32).place(brain, np.eye(4))


def test_with_a_spacing_a_large_brain_is_shrunk_a_little_and_never_cut() -> None:
    brain = ball((20, 60, 60), 15.0)
    placement = Grid(spacing_mm=1.0, height=26, width=26).place(brain, np.eye(4))
    assert placement.step_zyx == (1.0, 29 / 26, 29 / 26)  # as coarse in both directions
    assert placement.to_grid(brain).sum() * (29 / 26) ** 2 == pytest.approx(brain.sum(), rel=0.02)
    with pytest.raises(DataError, match=r"29 x 29 mm: far more than grid 1mm-16x16.*spacing_mm of 1\.82"):
        Grid(spacing_mm=1.0, height=16, width=16).place(brain, np.eye(4))


SIZES_MM = (4.0, 1.5, 2.0)  # z, y, x


def smooth(shape: tuple[int, int, int]) -> np.ndarray:
    z, y, x = (i * mm for i, mm in zip(np.indices(shape), SIZES_MM, strict=True))
    return (2 + np.sin(y / 14) + np.cos(x / 16) + np.sin(z / 20)).astype(np.float32)


@pytest.mark.parametrize("slice_mm", [2.0, 4.0, 6.0, 12.0])
def test_slices_go_to_the_distance_of_the_grid_and_come_back_up_to_interpolation(slice_mm: float) -> None:
    brain, affine = ball((24, 60, 60), 11.0), np.diag([2.0, 1.5, 4.0, 1.0])
    data = smooth(brain.shape)
    placement = Grid(spacing_mm=2.0, slice_mm=slice_mm, height=64, width=64).place(brain, affine)
    assert placement.grid_DHW[0] * slice_mm == pytest.approx(21 * 4.0, abs=slice_mm)  # as far as the brain reaches
    stack = placement.to_grid(data)
    assert stack.shape == placement.grid_DHW
    inner = ball(brain.shape, 11.0 - 2 * max(1.0, slice_mm / 4))
    assert np.abs(placement.from_grid(stack) - data)[inner].max() < 0.04 * max(1.0, slice_mm / 4)
    several = np.stack([data, 2 * data])
    assert np.allclose(placement.from_grid(placement.to_grid(several))[1], 2 * placement.from_grid(stack), atol=1e-5)
    assert [placement.slice_at(z) for z in (0, placement.grid_DHW[0] - 1)] == pytest.approx([2, 22], abs=slice_mm / 8)


def test_a_slice_of_the_grid_is_the_mean_of_those_that_it_covers() -> None:
    data = np.zeros((30, 8, 8), np.float32)
    data[12:15] = 3.0
    placement = Grid(slice_mm=3.0, height=8, width=8).place(np.ones(data.shape, bool), np.eye(4))
    assert placement.grid_DHW == (10, 8, 8)
    stack = placement.to_grid(data)
    assert stack.sum() * 3 == pytest.approx(data.sum(), rel=1e-5)
    assert int(stack[:, 4, 4].argmax()) == 4
    assert np.array_equal(stack[:, 0, 0] > 0, [z in (3, 4, 5) for z in range(10)])


@pytest.mark.parametrize("rounding", [1.0, 1 + 2e-4, 1 - 5e-4])
def test_a_grid_of_the_volumes_own_sizes_changes_no_bit(rounding: float) -> None:
    """Nor does a header that says 0.9995 mm for 1 mm: 3 mm phantoms are what they were on a grid of voxels."""
    brain, affine = ball((20, 30, 26), 7.5), np.diag([3.0 * rounding, 3.0 * rounding, 3.0 * rounding, 1.0])
    data = np.where(brain, RNG.random(brain.shape), 0).astype(np.float32)
    own, mm = (
        Grid(height=32, width=30, **sizes).place(brain, affine) for sizes in ({}, {"spacing_mm": 3.0, "slice_mm": 3.0})
    )
    assert mm == own
    assert np.array_equal(mm.from_grid(mm.to_grid(data)), data)


def test_a_brain_of_190_mm_in_voxels_of_1_mm_fits_64_pixels_of_3_mm() -> None:
    brain = np.zeros((170, 230, 200), bool)
    brain[5:165, 20:210, 30:180] = True
    placement = Grid(spacing_mm=3.0, slice_mm=3.0, height=64, width=64).place(brain, np.diag([-1.0, 1.0, 1.0, 1.0]))
    assert placement.step_zyx == (3.0, 3.0, 3.0)
    assert placement.grid_DHW == (54, 64, 64)
    assert placement.to_grid(brain).sum() * 27 == pytest.approx(brain.sum(), rel=0.02)  # all of it is there


def test_means_over_the_brain_alone_are_not_darker_at_its_rim() -> None:
    brain = ball((40, 60, 60), 17.3)
    placement = Grid(spacing_mm=3.0, slice_mm=3.0, height=14, width=14).place(brain, np.eye(4))
    share = placement.to_grid(brain)
    flat = within(placement.to_grid(np.where(brain, 0.7, 0)), share)
    assert np.allclose(flat[share >= 0.5], 0.7, atol=1e-5)
    assert placement.to_grid(np.where(brain, 0.7, 0))[share >= 0.5].min() < 0.4


def test_labels_take_what_covers_most_of_a_pixel() -> None:
    labels = np.zeros((2, 12, 12), np.float32)
    labels[:, :6, :], labels[:, 6:, :] = 1, 4
    labels[:, 6:8, 6:8] = 2
    placement = Grid(spacing_mm=2.0, height=6, width=6).place(labels > 0, np.eye(4))
    assert set(np.unique(placement.labels_to_grid(labels))) <= {0, 1, 2, 4}
    assert placement.labels_to_grid(labels)[0, 1, 2] == 1
    assert placement.labels_to_grid(labels)[0, 5, 1] == 4


def test_grid_has_a_name_for_its_folder_and_checks_its_values() -> None:
    assert Grid(height=64, width=48).name == "native-64x48"
    assert Grid(spacing_mm=1.5, height=64, width=48).name == "1.5mm-64x48"
    assert Grid(spacing_mm=1.5, slice_mm=3.0, height=64, width=48).name == "1.5mm-64x48-slices-3mm"
    for key, grid in {
        "height": {"height": 0, "width": 4},
        "spacing_mm": {"spacing_mm": 0.0, "height": 4, "width": 4},
        "slice_mm": {"slice_mm": 50.0, "height": 4, "width": 4},
    }.items():
        with pytest.raises(ConfigError, match=rf"grid\.{key}="):
            build(Grid, grid, "grid")


def test_a_placement_survives_json() -> None:
    placement = Grid(spacing_mm=1.1, slice_mm=2.2, height=30, width=30).place(ball((20, 30, 26), 7.5), AFFINE)
    assert build(Placement, plain(placement), "placement") == placement
