"""Raw k-space that can not be used: every fault is one line that names the file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest
from support.cohort.raw import SQUARE, acquisition, header, images, plain_scan, write_fastmri, write_ismrmrd

from shared.base.errors import DataError
from shared.data.kspace import read
from shared.data.trial import tried

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
        for _ in range(6):
            content = bytearray(whole)
            for at in rng.integers(0, min(len(whole), 6000), 8):
                content[at] = int(rng.integers(256))
            (tmp_path / "raw.h5").write_bytes(content)
            try:
                tried(tmp_path / "raw.h5", seconds=5)
            except DataError as error:
                assert str(error).startswith("raw.h5: ")  # noqa: PT017


def test_a_file_that_hdf5_reads_for_ever_is_refused(tmp_path: Path) -> None:
    """A heap that says it is longer than it is: HDF5 2.0 goes round in it without end."""
    path = tmp_path / "raw.h5"
    scan(header(*SQUARE))(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"GCOL") + 9] = 56
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^raw.h5: damaged: HDF5 comes to no end of it in 2 s$"):
        tried(path, seconds=2)


def test_a_file_that_ends_its_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw.h5").write_bytes(b"HDF")
    (tmp_path / "falls.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr("shared.data.trial.TRIAL", "falls")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DataError, match=r"^raw.h5: damaged: HDF5 breaks off over it \(SIGSEGV\)$"):
        tried(tmp_path / "raw.h5")


def test_a_whole_file_is_read_and_a_known_fault_keeps_its_name(tmp_path: Path) -> None:
    put()(tmp_path / "raw.h5")
    assert tried(tmp_path / "raw.h5").slices == 2
    cut(tmp_path / "raw.h5")
    with pytest.raises(DataError, match=r"^raw.h5: truncated: the file ends early$"):
        tried(tmp_path / "raw.h5")
