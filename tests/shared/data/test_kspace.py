"""Raw k-space from both layouts: the same images whatever way the scanner held them, and every fault in one line."""

import itertools
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest
from numpy.typing import NDArray
from support.cohort.raw import (
    SQUARE,
    acquisition,
    back,
    header,
    images,
    plain_scan,
    transform,
    write_fastmri,
    write_ismrmrd,
)

from shared.data import kspace as door
from shared.data.encoding import calibration_width, centred, parse_header, reduction_of
from shared.data.kspace import KSpace, read

RAS = np.diag([-1.0, -1.0, 1.0])  # patient coordinates of the header (left, posterior, superior) to ours


def all_slices(raw: KSpace) -> NDArray[Any]:
    return np.stack([raw.samples(z) for z in range(raw.slices)])


# --- fastMRI --------------------------------------------------------------------------------------------------------


def test_fastmri_comes_back_as_it_was_measured(tmp_path: Path, rng: np.random.Generator) -> None:
    y, maps = transform(images(rng, 3, 4, 12, 11)), images(rng, 3, 4, 12, 11)
    mask = np.zeros(11, bool)
    mask[[0, 3, 4, 5, 6, 9]] = True
    raw = read(write_fastmri(tmp_path / "a.h5", y, mask=mask, sensitivity_maps=maps))
    assert (raw.layout, raw.slices, raw.coils, raw.matrix_HW, raw.image_HW) == ("fastMRI", 3, 4, (12, 11), (12, 11))
    assert np.array_equal(all_slices(raw), y * mask)
    assert np.array_equal(np.stack([raw.maps(z) for z in range(3)]), maps)  # type: ignore[arg-type]
    assert raw.measured_DHW.shape == (3, 12, 11)
    assert (raw.measured_DHW == mask).all()
    assert (raw.calibrated, raw.acceleration, raw.affine) == (3, 11 / 6, None)


@pytest.mark.parametrize("kind", ["bool", "uint8", "float32", "two axes", "inferred"])
def test_a_mask_may_be_told_in_any_usual_way(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    y, mask = images(rng, 2, 3, 8, 10), rng.permutation(np.arange(10) % 3 == 0)
    given = {"inferred": {}, "two axes": {"mask": np.tile(mask, (8, 1))}}
    content = given[kind] if kind in given else {"mask": mask.astype(kind)}
    raw = read(write_fastmri(tmp_path / "a.h5", y * mask, **content))
    assert (raw.measured_DHW == mask).all()
    assert np.array_equal(all_slices(raw), y * mask)


def test_columns_that_were_filled_up_are_not_measured(tmp_path: Path, rng: np.random.Generator) -> None:
    y = images(rng, 2, 3, 8, 10)
    y[..., :2] = 0
    raw = read(write_fastmri(tmp_path / "a.h5", y, mask=np.ones(10)))
    assert not raw.measured_DHW[..., :2].any()
    assert raw.measured_DHW[..., 2:].all()


def test_one_coil_and_double_precision(tmp_path: Path, rng: np.random.Generator) -> None:
    y = images(rng, 2, 8, 10).astype(np.complex128)
    raw = read(write_fastmri(tmp_path / "a.h5", y))
    assert raw.coils == 1
    assert raw.samples(0).dtype == np.complex64
    assert np.array_equal(all_slices(raw)[:, 0], y.astype(np.complex64))


def test_maps_of_another_file(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_fastmri(tmp_path / "a.h5", images(rng, 2, 3, 8, 10), sensitivity_maps=images(rng, 2, 3, 8, 10))
    maps = images(rng, 3, 8, 10)
    np.save(tmp_path / "maps.npy", maps)
    with h5py.File(tmp_path / "maps.h5", "w") as file:
        file["maps"] = maps[None].repeat(2, 0)
    for name in ("maps.npy", "maps.h5"):
        raw = read(path, tmp_path / name)
        assert raw.maps_from == tmp_path / name
        assert np.array_equal(raw.maps(1), maps)  # type: ignore[arg-type]


def test_noise_is_that_of_the_outermost_samples(tmp_path: Path, rng: np.random.Generator) -> None:
    y, x = np.meshgrid(*[np.linspace(-1, 1, 64)] * 2, indexing="ij")
    smooth = np.exp(-8 * (x**2 + y**2)) * np.ones((4, 4, 1, 1))
    sd = 10 ** rng.uniform(-3, -1)
    noise = images(rng, 4, 4, 64, 64) * sd / np.sqrt(2)
    mask = np.arange(64) % 4 == 0
    assert read(write_fastmri(tmp_path / "a.h5", transform(smooth) + noise, mask=mask)).noise == pytest.approx(
        sd, rel=0.1
    )


# --- ISMRMRD --------------------------------------------------------------------------------------------------------


def scanned(
    rng: np.random.Generator, path: Path, read_dir: NDArray[Any], phase_dir: NDArray[Any], *, over: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[Any], int]:
    """A volume of coil images with its RAS affine, written as a scanner holding it so would: every raw pixel is found
    by its place in space. Also how many pixels of the field of view lie beyond the image, along the lines."""
    shape = {0: int(rng.integers(5, 9)), 1: int(rng.integers(5, 9))}  # x and y of the house
    step = {0: rng.uniform(0.8, 2), 1: rng.uniform(0.8, 2)}
    slices, coils, gap = int(rng.integers(2, 4)), 2, rng.uniform(2, 5)
    volume_SCHW = images(rng, slices, coils, shape[1], shape[0])
    origin, slice_dir = rng.uniform(-50, 50, 3), rng.choice([-1, 1]) * np.array([0, 0, 1.0])
    affine = np.diag([step[0], step[1], gap, 1.0])
    affine[:3, 3] = origin
    r, p = int(np.abs(read_dir).argmax()), int(np.abs(phase_dir).argmax())
    n, m = shape[r], shape[p]
    nx, ny = n * over[0], m + over[1]
    held = {"read_dir": RAS @ read_dir, "phase_dir": RAS @ phase_dir, "slice_dir": RAS @ slice_dir}
    made, order = [], rng.permutation(slices)  # the scanner's slice numbers are not in the order of space
    for number, z in enumerate(order):
        corner = {
            axis: (shape[axis] - 1 - shape[axis] // 2 if d[axis] < 0 else shape[axis] // 2)
            for axis, d in ((r, read_dir), (p, phase_dir))
        }
        centre = affine @ [corner[0], corner[1], z, 1]
        raw_CXY = images(rng, coils, nx, ny)  # what lies beyond the image is there too
        for i, j in itertools.product(range(n), range(m)):
            at = centre[:3] + read_dir * (i - n // 2) * step[r] + phase_dir * (j - m // 2) * step[p]
            x, y, k = np.rint(np.linalg.solve(affine, [*at, 1])).astype(int)[:3]
            assert (k, 0 <= x < shape[0], 0 <= y < shape[1]) == (z, True, True)
            raw_CXY[:, i - n // 2 + nx // 2, j - m // 2 + ny // 2] = volume_SCHW[z, :, y, x]
        kspace_CXY = transform(raw_CXY)
        for line in range(ny):
            extra = images(rng, coils, nx)
            for average, part in enumerate((extra, 2 * kspace_CXY[..., line] - extra)):
                made.append(acquisition(part, line, number, average=average, position=RAS @ centre[:3], **held))
    sizes = [[nx, ny, 1], [n, m, 1], [nx * step[r], ny * step[p], gap], [n * step[r], m * step[p], gap]]
    noise = acquisition(images(rng, coils, nx), 0, 0, [ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    write_ismrmrd(path, header(*sizes), [noise, *(made[int(i)] for i in rng.permutation(len(made)))])
    return volume_SCHW, affine, over[1]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=2)))
def test_ismrmrd_is_brought_to_the_house_s_axes(
    tmp_path: Path, rng: np.random.Generator, swap: bool, signs: tuple[int, int]
) -> None:
    """Read, phase and slice directions, oversampling, averages and the order of lines and slices drawn at random."""
    right, front = np.eye(3)[0] * signs[0], np.eye(3)[1] * signs[1]
    volume, affine, beyond = scanned(
        rng, tmp_path / "raw.h5", *((right, front) if swap else (front, right)), over=(2, int(rng.integers(0, 4)))
    )
    raw = read(tmp_path / "raw.h5")
    assert (raw.layout, raw.image_HW) == ("ISMRMRD", volume.shape[-2:])
    along = 0 if swap else 1
    assert raw.matrix_HW[along] == raw.image_HW[along] + beyond
    assert raw.matrix_HW[1 - along] == raw.image_HW[1 - along]
    (y, x), (h, w) = raw.start_HW, raw.image_HW
    assert np.allclose(back(all_slices(raw))[..., y : y + h, x : x + w], volume, atol=1e-4)
    assert raw.affine is not None
    assert np.allclose(raw.affine, affine, atol=1e-3)
    assert raw.measured_DHW.all()


def test_what_has_a_line_is_measured(tmp_path: Path, rng: np.random.Generator) -> None:
    lines = [0, 2, 4, 5, 6]
    y, made = plain_scan(rng, lines)
    reference = acquisition(y[0][..., 3], 3, 0, [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
    both = acquisition(y[1][..., 3], 3, 1, [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
    raw = read(write_ismrmrd(tmp_path / "raw.h5", header(*SQUARE), [*made, reference, both]))
    mask = np.isin(np.arange(8), lines)
    assert (raw.measured_DHW == mask).all()
    assert np.allclose(all_slices(raw), y * mask)
    assert np.allclose(raw.calibration(0), y[0] * (mask | (np.arange(8) == 3)))
    assert raw.calibrated == 5
    assert (raw.affine, raw.start_HW) == (None, (0, 0))


def test_lines_count_from_the_centre_that_the_header_names(tmp_path: Path, rng: np.random.Generator) -> None:
    """Partial Fourier: five lines, of which number 1 is k = 0."""
    y = images(rng, 1, 3, 10, 8)
    made = [acquisition(y[0][..., n + 3], n, 0) for n in range(5)]
    raw = read(write_ismrmrd(tmp_path / "raw.h5", header(*SQUARE, centre=1), made))
    assert np.allclose(raw.samples(0)[..., 3:], y[0][..., 3:])
    assert not raw.measured_DHW[..., :3].any()


def test_smaller_pixels_than_measured_are_unmeasured_frequencies(rng: np.random.Generator) -> None:
    sizes = ([16, 6, 1], [12, 9, 1], [32, 18, 5], [16, 18, 5])  # half of the readout is kept: 8 pixels of 2 mm, made 12
    reduction = reduction_of(parse_header(header(*sizes).encode()), (16, 6))
    assert (reduction.field_H, reduction.matrix_HW, reduction.image_HW) == (8, (12, 9), (12, 9))
    small = images(rng, 2, 8, 6)
    raw = transform(centred(small, (16, 6)))
    assert np.allclose(centred(reduction.samples(raw), (8, 6)), transform(small), atol=1e-5)
    mask = reduction.mask(np.ones((16, 6), bool))
    assert np.array_equal(mask, centred(np.ones((8, 6), bool), (12, 9)))


@pytest.mark.parametrize("n", range(1, 9))
def test_calibration_lines_lie_on_both_sides_of_the_centre(n: int) -> None:
    lines = np.zeros(16, bool)
    lines[8 - n // 2 : 8 + (n + 1) // 2] = True
    assert calibration_width(lines) == (n if n % 2 else n - 1)
    assert calibration_width(~lines) == 0


def test_memory_holds_one_slice_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (40, 8, 64, 64), np.complex64, chunks=(1, 8, 64, 64), compression="gzip")
        for z in range(40):
            file["kspace"][z] = images(np.random.default_rng(z), 8, 64, 64)
    import tracemalloc

    tracemalloc.start()
    raw = read(path)
    raw.samples(3)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 * 2**20  # the whole is 10 MiB, a slice 256 KiB
    assert door.MOST_SAMPLES * 8 <= 2**30
