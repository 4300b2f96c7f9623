"""Raw k-space from both layouts: the same images whatever way the scanner held them, and every fault in one line."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest
from numpy.typing import NDArray
from support.cohort.raw import acquisition, back, header, transform, write_fastmri, write_ismrmrd

from shared.base.errors import DataError
from shared.data import kspace as door
from shared.data.encoding import calibration_width, centred, parse_header, reduction_of
from shared.data.kspace import KSpace, read

RAS = np.diag([-1.0, -1.0, 1.0])  # patient coordinates of the header (left, posterior, superior) to ours


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence().entropy)


def images(rng: np.random.Generator, *shape: int) -> NDArray[np.complex64]:
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


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


def plain_scan(rng: np.random.Generator, lines: list[int], **fields: Any) -> tuple[NDArray[Any], list[Any]]:
    """Two slices of 10 x 8 without directions, only these lines."""
    y = images(rng, 2, 3, 10, 8)
    return y, [acquisition(y[z][..., n], n, z, **fields) for z in range(2) for n in lines]


SQUARE = ([10, 8, 1], [10, 8, 1], [10, 8, 5], [10, 8, 5])


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


# --- faults ---------------------------------------------------------------------------------------------------------


def spoiled(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A fastMRI file whose content was changed."""

    def write(path: Path) -> None:
        rng = np.random.default_rng(0)
        content = {"kspace": images(rng, 2, 3, 8, 10), "mask": np.ones(10), "maps": images(rng, 2, 3, 8, 10)}
        change(content)
        write_fastmri(path, **content)

    return write


def put(**values: Any) -> Callable[[Path], None]:
    return spoiled(lambda content: content.update(values))


def nan_at(name: str, value: complex) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        content[name][1, 2, 3, 4] = value

    return spoiled(change)


def cut(path: Path) -> None:
    put()(path)
    path.write_bytes(path.read_bytes()[:-500])


def linked(path: Path) -> None:
    put()(path)
    with h5py.File(path.with_name("b.h5"), "w") as file:
        file["kspace"] = h5py.ExternalLink(path.name, "kspace")
    path.with_name("b.h5").replace(path)


def virtual(path: Path) -> None:
    put()(path)
    layout = h5py.VirtualLayout(shape=(2, 3, 8, 10), dtype=np.complex64)
    layout[:] = h5py.VirtualSource(path.with_name("c.h5"), "kspace", shape=(2, 3, 8, 10))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("kspace", layout)


def scan(xml: str, **fields: Any) -> Callable[[Path], None]:
    return lambda path: void(
        write_ismrmrd(path, xml, plain_scan(np.random.default_rng(0), list(range(8)), **fields)[1])
    )


def void(_: object) -> None: ...


def slices_apart(path: Path) -> None:
    rng = np.random.default_rng(0)
    made = [
        acquisition(
            images(rng, 1, 10),
            n,
            z,
            position=(0, 0, [0, 3, 9][z]),
            read_dir=(0, -1, 0),
            phase_dir=(-1, 0, 0),
            slice_dir=(0, 0, 1),
        )
        for z in range(3)
        for n in range(8)
    ]
    write_ismrmrd(path, header(*SQUARE), made)


def directions(path: Path) -> None:
    scan(header(*SQUARE), read_dir=(0, 1, 0), phase_dir=(0, 0, 1), slice_dir=(1, 0, 0))(path)


def with_last(**fields: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        y, made = plain_scan(np.random.default_rng(0), list(range(8)))
        made.append(acquisition(y[0][..., 1], fields.pop("line", 1), 0, **fields))
        write_ismrmrd(path, header(*SQUARE), made)

    return write


FAULTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("no file", lambda path: None, "no such file"),
    ("text", lambda path: void(path.write_text("k-space")), "not an HDF5 file"),
    ("cut off", cut, "truncated: the file ends early"),
    ("empty", lambda path: h5py.File(path, "w").close(), "no dataset `kspace` .fastMRI. and no group with"),
    ("a folder", lambda path: path.mkdir(), "truncated|damaged"),
    ("magnitudes", put(kspace=np.ones((2, 3, 8, 10))), "`kspace` of type float64: must be complex"),
    ("words", put(kspace=np.array([b"a", b"b"])), "`kspace` of type .S1: must be complex"),
    ("flat", put(kspace=np.ones((8, 10), complex)), r"`kspace` of shape \(8, 10\): must be \(slices, coils, H, W\)"),
    ("no coil", put(kspace=np.ones((2, 0, 8, 10), complex)), "2 slices of 0 coils x 8 x 10 samples: must be"),
    ("blank", put(kspace=np.zeros((2, 3, 8, 10), complex)), "blank: every sample is 0"),
    ("nan", nan_at("kspace", np.nan), "1 of 240 samples of slice 1 are NaN or infinite"),
    ("inf", nan_at("kspace", 1j * np.inf), "1 of 240 samples of slice 1 are NaN or infinite"),
    ("mask's shape", put(mask=np.ones(9)), r"`mask` of shape \(9,\): must be \(10,\) or \(8, 10\), as `kspace` has"),
    ("mask's values", put(mask=np.full(10, 2.0)), "`mask`: must hold 0 and 1 only"),
    ("nan mask", put(mask=np.full(10, np.nan)), "`mask`: must hold 0 and 1 only"),
    ("mask of words", put(mask=np.array([b"a"] * 10)), "`mask`: must hold 0 and 1 only"),
    ("nothing measured", put(mask=np.zeros(10)), "`mask`: no line is measured"),
    ("maps' shape", put(maps=np.ones((2, 3, 8, 9), complex)), r"coil maps of shape \(2, 3, 8, 9\): the k-space needs"),
    ("maps' coils", put(maps=np.ones((4, 8, 10), complex)), r"coil maps of shape \(4, 8, 10\): the k-space needs"),
    ("maps' type", put(maps=np.ones((2, 3, 8, 10))), "coil maps of type float64: must be complex"),
    ("nan maps", nan_at("maps", np.nan), "coil maps of slice 1 hold NaN"),
    ("no maps", put(maps=np.zeros((2, 3, 8, 10), complex)), "coil maps of slice 0 are 0 everywhere"),
    ("a link", linked, "`kspace` is a link to elsewhere"),
    ("virtual", virtual, "`kspace` is kept in other files"),
    ("header of another size", put(ismrmrd_header=header(*SQUARE)), "lines of 8 samples: its header says 10"),
    ("no header", put(ismrmrd_header=b"<a>"), "its XML header can't be parsed"),
    ("entities", put(ismrmrd_header=b"<!DOCTYPE a []><a/>"), "its XML header is over the limit or declares"),
    ("3D", scan(header([10, 8, 4], *SQUARE[1:])), r"3D-encoded \(4 partitions\): must be 2D slices"),
    ("3D by its lines", with_last(kspace_encode_step_2=3), "3D-encoded .kspace_encode_step_2."),
    ("spiral", scan(header(*SQUARE, trajectory="spiral")), "trajectory 'spiral': must be cartesian"),
    ("two contrasts", with_last(contrast=1), "2 of `contrast`: must be one image"),
    ("a line too far", with_last(line=9), "lines 0 to 9: its header has 0 to 7"),
    ("epi", with_last(flags=[ismrmrd.ACQ_IS_REVERSE]), "lines that run backwards"),
    ("partial echo", with_last(center_sample=2), "partial echoes"),
    (
        "no lines",
        lambda path: void(
            write_ismrmrd(
                path,
                header(*SQUARE),
                plain_scan(np.random.default_rng(0), [1], flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])[1],
            )
        ),
        "no acquisition is a line of the image",
    ),
    ("short lines", scan(header([12, 8, 1], *SQUARE[1:])), "lines of 10 samples: its header says 12"),
    ("outside", scan(header([10, 8, 1], [20, 8, 1], [10, 8, 5], [20, 8, 5])), "its header reconstructs 20 x 8 mm"),
    ("sagittal", directions, "sagittal, 0 degrees oblique: must be axial"),
    ("uneven", slices_apart, "its slices are 3 to 6 mm apart: must be even"),
]


@pytest.mark.parametrize(("spoil", "line"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_every_fault_is_one_line_that_names_the_file(tmp_path: Path, spoil: Callable[[Path], None], line: str) -> None:
    spoil(tmp_path / "raw.h5")
    with pytest.raises(DataError, match=rf"^raw.h5: ({line})") as caught:
        read(tmp_path / "raw.h5")
    assert "\n" not in str(caught.value)


def test_a_fault_of_a_maps_file_names_that_file(tmp_path: Path) -> None:
    put()(tmp_path / "raw.h5")
    (tmp_path / "words.npy").write_text("no array")
    np.save(tmp_path / "objects.npy", np.array([None, {}]), allow_pickle=True)
    np.save(tmp_path / "short.npy", np.ones((3, 8, 9), complex))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["kspace"] = np.ones((3, 8, 10), complex)
    for name, line in [
        ("absent.npy", "no such file"),
        ("absent.h5", "no such file"),
        ("words.npy", "not a whole npy file"),
        ("objects.npy", "not a whole npy file"),
        ("short.npy", r"coil maps of shape \(3, 8, 9\): the k-space needs \(2, 3, 8, 10\) or \(3, 8, 10\)"),
        ("other.h5", "no dataset of coil maps; it must be called `sensitivity_maps` or `maps`"),
    ]:
        with pytest.raises(DataError, match=f"^{name}: {line}"):
            read(tmp_path / "raw.h5", tmp_path / name)


def test_damaged_bytes_never_end_in_anything_else(tmp_path: Path, rng: np.random.Generator) -> None:
    """Bytes changed at random in both layouts: read, or refused in one line."""
    put()(tmp_path / "a.h5")
    scan(header(*SQUARE))(tmp_path / "b.h5")
    for name in ("a.h5", "b.h5"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(25):
            content = bytearray(whole)
            for at in rng.integers(0, min(len(whole), 6000), 8):
                content[at] = int(rng.integers(256))
            (tmp_path / "raw.h5").write_bytes(content)
            try:
                read(tmp_path / "raw.h5")
            except DataError as error:
                assert str(error).startswith("raw.h5: ")  # noqa: PT017


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
