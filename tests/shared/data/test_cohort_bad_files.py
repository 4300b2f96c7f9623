"""Files of a BIDS cohort that can not be used: each costs its modality, or its subject, and one line."""

import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from support.cohort.cohorts import AFFINE, GRID, brain_mask, cohort_of, lines, prepare, volume

from shared.base.errors import DataError
from shared.data.cohort import cache_folder
from shared.data.modalities import bids_path
from shared.data.volumes import Grid, read, write

nib: Any = nibabel


# --- what is bad: each costs one line and nothing else ----------------------------------------------------------------


def header(**fields: Any) -> Callable[[Path], None]:
    """Rewrite header fields of an uncompressed copy."""

    def spoil(path: Path) -> None:
        image = nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
        content = bytearray(image.to_bytes())
        raw = image.header.structarr.copy()
        for name, value in fields.items():
            raw[name] = value
        content[:348] = raw.tobytes()
        path.write_bytes(gzip.compress(bytes(content)))

    return spoil


def values(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE) -> Callable[[Path], None]:
    return lambda path: nib.save(nib.Nifti1Image(change(read(path).data_DHW.transpose(2, 1, 0)), affine), path)


def content(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes()))  # type: ignore[func-returns-value]


def poke(data: np.ndarray, value: float) -> np.ndarray:
    data[5, 5, 5] = value
    return data


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def nowhere_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.nii.gz")


def loop_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


BAD: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "empty": ("T2", content(lambda data: b""), "empty file"),
    "text": ("T2", content(lambda data: b"this is no image\n" * 99), "compressed data can't be unpacked|not a NIfTI"),
    "text, packed": ("T2", content(lambda data: gzip.compress(b"no image\n" * 99)), "not a NIfTI file"),
    "not packed": ("T2", content(gzip.decompress), "compressed data can't be unpacked|not a NIfTI"),
    "cut off": ("T2", content(lambda data: data[: len(data) // 2]), "truncated|not a NIfTI"),
    "cut off before packing": ("T2", content(lambda data: gzip.compress(gzip.decompress(data)[:999])), "truncated"),
    "cut off in the header": ("T2", content(lambda data: gzip.compress(gzip.decompress(data)[:99])), "not a NIfTI"),
    "flipped byte": ("T2", content(lambda data: flip(data, len(data) // 2)), "compressed data can't be unpacked"),
    "wrong checksum": ("T2", content(lambda data: flip(data, len(data) - 6)), "compressed data can't be unpacked"),
    "bomb": ("T2", content(lambda data: gzip.compress(gzip.decompress(data) + bytes(2**22))), "far more than"),
    "4D": ("T2", values(lambda x: np.stack([x, x], axis=-1)), "4D with shape"),
    "2D": ("T2", values(lambda x: x[:, :, 0]), "2D with shape"),
    "NaN": ("T2", values(lambda x: poke(x, np.nan)), "1 of 1680 voxels are NaN"),
    "infinite": ("T2", values(lambda x: poke(x, np.inf)), "1 of 1680 voxels are NaN or infinite"),
    "beyond float32": ("T2", values(lambda x: poke(x.astype(np.float64), 1e300)), "NaN or infinite"),
    "complex": ("T2", values(lambda x: x.astype(np.complex64)), "one real number"),
    "RGB": ("T2", values(lambda x: np.zeros(x.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "one real number"),
    "zero size": ("T2", header(dim=[3, 0, 14, 10, 1, 1, 1, 1]), "holds no voxel|damaged header"),
    "huge": ("T2", header(dim=[3, 32000, 32000, 32000, 1, 1, 1, 1]), "over the limit"),
    "late voxels": ("T2", header(vox_offset=1e12), "over the limit"),
    "unknown type": ("T2", header(datatype=777), "damaged header"),
    "no orientation": ("T2", header(sform_code=0, qform_code=0), "orientation is unknown"),
    "singular": ("T2", header(srow_z=[0, 0, 0, 0]), "no inverse"),
    "NaN affine": ("T2", header(srow_x=[np.nan, 0, 0, 0]), "no inverse"),
    "micrometres": ("T2", header(srow_x=[2e-3, 0, 0, 0], srow_y=[0, 2e-3, 0, 0], srow_z=[0, 0, 3e-3, 0]), "voxels of"),
    "blank": ("T2", values(lambda x: x * 0), "blank"),
    "negative": ("T2", values(lambda x: -x), "blank"),
    "flat": ("T2", values(lambda x: x * 0 + 3), "flat"),
    "another shape": ("T2", values(lambda x: x[:-1]), "another shape .* than T1: must be registered"),
    "shifted": ("T2", values(lambda x: x, AFFINE + np.eye(4, k=3) * 2), "lies up to 2 mm elsewhere than T1"),
    "rotated": ("T2", values(lambda x: x, turned(10)), "mm elsewhere than T1"),
    "oblique": ("T2", values(lambda x: x, turned(44)), "44 degrees oblique"),
    "a folder": ("T2", folder_instead, "not a NIfTI|can't be read: Is a directory"),
    "a link to nowhere": ("T2", nowhere_link, "no such file"),
    "a link to itself": ("T2", loop_link, "can't be read"),
    "raw CT numbers": ("CT", values(lambda x: x + (x > 0) * np.float32(1024)), "must be in HU"),
    "PET in becquerel": ("FDG", values(lambda x: x * np.float32(8000)), "must be in SUVR"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_costs_its_modality_and_one_line(tmp_path: Path, case: str) -> None:
    modality, spoil, says = BAD[case]
    cohort_of(tmp_path, [("T1", modality), ("T1", modality)])
    spoil(tmp_path / bids_path("sub-01", modality))
    prepared = prepare(tmp_path)
    done, why = lines(prepared).pop(("sub-01", bids_path("sub-01", modality)))
    assert done == "skipped modality"
    assert re.search(says, why), why
    assert "\n" not in why
    assert "sub-01" not in why
    assert prepared.cohort.patterns() == {("T1",): 1, ("T1", modality): 1}
    assert prepared.count("skipped modality") == 1
    assert lines(prepared)["sub-01", ""] == ("incomplete", f"T1; lacks {modality}")


def test_the_odd_one_out_is_left_aside_even_when_it_comes_first(tmp_path: Path) -> None:
    cohort_of(tmp_path, [("T1", "T2", "FLAIR")])
    values(lambda x: x, turned(10))(tmp_path / bids_path("01", "T1"))
    assert prepare(tmp_path).cohort.patterns() == {("T2", "FLAIR"): 1}


def test_a_subject_without_usable_volume_is_excluded_and_the_rest_goes_on(tmp_path: Path) -> None:
    cohort_of(tmp_path, [("T1",), ("T1", "T2")])
    (tmp_path / bids_path("01", "T1")).write_bytes(b"")
    (tmp_path / "sub-03").mkdir()
    (tmp_path / "sub-04").write_text("a file")
    (tmp_path / "sub-x y" / "anat").mkdir(parents=True)
    shutil.copy(tmp_path / bids_path("02", "T1"), tmp_path / "sub-02/anat/sub-01_T1w.nii.gz")
    shutil.copy(tmp_path / bids_path("02", "T1"), tmp_path / "sub-02/anat/sub-02_dwi.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-02\nsub-99\n")
    prepared = prepare(tmp_path)
    assert prepared.cohort.patterns() == {("T1", "T2"): 1}
    told = lines(prepared)
    assert told["sub-01", ""] == ("excluded", "no usable volume")
    assert told["sub-03", ""] == ("excluded", "no usable volume")
    assert told["sub-04", ""] == ("excluded", "not a folder")
    assert told["sub-x y", ""][0] == "excluded"
    assert told["sub-99", ""] == ("excluded", "in participants.tsv, but has no folder")
    assert told["sub-02", "sub-02/anat/sub-01_T1w.nii.gz"][1] == "its name is not this subject's"
    assert told["sub-02", "sub-02/anat/sub-02_dwi.nii.gz"][1] == "no modality that Lacuna knows"
    assert prepared.count("excluded") == 5


def test_a_brain_too_large_for_the_grid_excludes_its_subject_alone(tmp_path: Path) -> None:
    cohort_of(tmp_path, [("T1",), ("T1",)])
    small = np.where(np.pad(brain_mask()[:, 4:10, 4:8], ((0, 0), (4, 4), (4, 4))), volume("T1", 1), 0)
    write(tmp_path / bids_path("01", "T1"), small, AFFINE)
    prepared = prepare(tmp_path, Grid(height=8, width=8))
    assert [subject.name for subject in prepared.cohort.subjects] == ["sub-01"]
    assert "more than grid native-8x8" in lines(prepared)["sub-02", ""][1]


@pytest.mark.parametrize("case", ["no folder", "no subjects", "nothing usable"])
def test_a_cohort_without_anything_usable_is_a_data_error_that_names_no_subject(tmp_path: Path, case: str) -> None:
    if case == "nothing usable":
        (tmp_path / cohort_of(tmp_path, [("T1",)]) / bids_path("01", "T1")).write_bytes(b"")
    with pytest.raises(
        DataError, match=r"no such folder|no sub-\* folder|no subject can be used.*empty file"
    ) as raised:
        prepare(tmp_path / "none" if case == "no folder" else tmp_path)
    assert "sub-01" not in str(raised.value)


def test_a_disk_too_small_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort_of(tmp_path, [("T1",)])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"needs up to .* GB and 0\.00 GB are free"):
        prepare(tmp_path)
    assert not (cache_folder(tmp_path, GRID) / "sub-01").exists()
