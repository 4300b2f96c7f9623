"""A BIDS cohort to its cache: what is good is used, what is bad costs one line, and doing it again changes nothing."""

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from support.cohort.cohorts import AFFINE, GRID, SHAPE, add_subject, brain_mask, cohort_of, lines, prepare, volume

from shared.base.errors import ConfigError, DataError
from shared.data.bids import find_files, read_participants
from shared.data.cohort import Cohort, cache_folder
from shared.data.modalities import bids_path, lesion_path
from shared.data.preparation import load
from shared.data.volumes import Grid, read, write, write_like

pytestmark = pytest.mark.slow  # left out of `make fast`

nib: Any = nibabel
MS = Path("/work/shared/data/nifti/ms-ljubljana")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


# --- what is good -----------------------------------------------------------------------------------------------------


def test_the_cache_holds_each_present_modality_in_order_on_the_grid(tmp_path: Path) -> None:
    prepared = prepare(cohort_of(tmp_path, [("FLAIR", "T1"), ("CT", "FDG", "TOF")]))
    first, second = prepared.cohort.subjects
    assert (first.modalities, second.modalities) == (("T1", "FLAIR"), ("CT", "FDG", "TOF"))
    images = np.load(prepared.folder / "sub-01" / "vol.npy")
    brain = np.load(prepared.folder / "sub-01" / "brain.npy").astype(bool)
    assert images.dtype == np.float16
    assert images.shape == (first.depth, 2, 16, 12)
    assert images.min() == 0
    assert 0.5 < images.max() <= 1
    assert not images.transpose(1, 0, 2, 3)[:, ~brain].any()
    assert brain.sum() == brain_mask().sum()
    assert prepared.cohort.modalities == ("T1", "FLAIR", "CT", "FDG", "TOF")


def test_a_cached_volume_goes_back_to_its_own_grid_and_values(tmp_path: Path) -> None:
    prepared = prepare(cohort_of(tmp_path, [("T1", "CT")]))
    subject = prepared.cohort.subjects[0]
    geometry = prepared.cohort.geometry(subject)
    stack = np.load(prepared.folder / "sub-01" / "vol.npy")[:, 1]
    back = geometry.scalings["CT"].invert(geometry.placement.from_grid(stack), brain_mask())
    assert np.allclose(geometry.affine, AFFINE)
    assert np.abs(back - volume("CT", 1)).max() < 120 * 2**-11 + 1e-3  # half precision of the window


def test_incomplete_subjects_are_kept_and_told(tmp_path: Path) -> None:
    prepared = prepare(cohort_of(tmp_path, [("T1", "T2"), ("T2",), ("T1", "T2")]))
    assert prepared.cohort.patterns() == {("T1", "T2"): 2, ("T2",): 1}
    assert lines(prepared)["sub-02", ""] == ("incomplete", "T2; lacks T1")
    assert lines(prepared)["sub-01", ""] == ("used", "T1, T2")
    assert (prepared.count("used"), prepared.count("incomplete"), prepared.count("excluded")) == (2, 1, 0)
    with (prepared.folder / "exclusions.csv").open(newline="") as file:
        assert list(csv.reader(file))[:2] == [["subject", "file", "done", "why"], ["sub-01", "", "used", "T1, T2"]]
    assert dict(prepared.summary)["subjects incomplete, kept"] == "1"


def test_only_the_asked_modalities_are_cached(tmp_path: Path) -> None:
    prepared = prepare(cohort_of(tmp_path, [("T1", "T2"), ("T1",)]), modalities=("flair", "T1"))
    assert prepared.cohort.patterns() == {("T1",): 2}
    assert lines(prepared)["sub-01", ""] == ("incomplete", "T1; lacks FLAIR")
    with pytest.raises(ConfigError, match="DWI"):
        prepare(tmp_path, modalities=("DWI",))


def test_lesion_maps_keep_their_labels(tmp_path: Path) -> None:
    cohort_of(tmp_path, [("T1",), ("T1",), ("T1",)])
    labels = np.where(volume("T1", 9) > 600, 4, 0) + np.where(volume("T1", 9) > 700, -2, 0)
    write(tmp_path / lesion_path("01", tumour=True), labels, AFFINE, dtype=np.uint8)
    write(tmp_path / lesion_path("02"), volume("T1", 3), AFFINE)
    prepared = prepare(tmp_path)
    assert [subject.lesion for subject in prepared.cohort.subjects] == [True, False, False]
    stored = np.load(prepared.folder / "sub-01" / "lesion.npy")
    back = prepared.cohort.geometry(prepared.cohort.subjects[0]).placement.from_grid(stored)
    assert np.array_equal(back, labels)
    done, why = lines(prepared)["sub-02", lesion_path("02")]
    assert done == "skipped modality"
    assert "no label map" in why


def test_orientation_on_disk_changes_no_byte_of_the_images(tmp_path: Path) -> None:
    for name in ("ras", "other"):
        add_subject(tmp_path / name, "sub-01", ("T1", "T2"))
    path = tmp_path / "other" / bids_path("01", "T2")
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple("PIL"))
    )
    nib.save(nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes())).as_reoriented(turn), path)
    one, other = (prepare(tmp_path / name).folder for name in ("ras", "other"))
    assert (one / "sub-01/vol.npy").read_bytes() == (other / "sub-01/vol.npy").read_bytes()


def test_slices_with_little_brain_are_cached_and_not_listed(tmp_path: Path) -> None:
    cohort_of(tmp_path, [("T1",)])
    tipped = volume("T1", 1)
    tipped[9, 6, 5] = 500  # one voxel of brain above the topmost slice
    write(tmp_path / bids_path("01", "T1"), tipped, AFFINE)
    prepared = prepare(tmp_path)
    subject = prepared.cohort.subjects[0]
    area = np.load(prepared.folder / "sub-01" / "brain.npy").sum(axis=(1, 2))
    assert area[-1] == 1
    assert subject.brain_slices == tuple(range(subject.depth - 1))
    assert all(area[z] >= area.max() / 6 for z in subject.brain_slices)


def test_of_several_sessions_the_fullest_is_used_and_of_several_runs_the_first(tmp_path: Path) -> None:
    for session, modalities in (("1", ("T1",)), ("2", ("T1", "T2"))):
        for modality in modalities:
            ending = bids_path("01", modality).split("_")[-1]
            for run in ("2", "1"):
                path = tmp_path / f"sub-01/ses-{session}/anat/sub-01_ses-{session}_run-{run}_{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, volume(modality, int(run)), AFFINE)
    prepared = prepare(tmp_path)
    assert prepared.cohort.patterns() == {("T1", "T2"): 1}
    why = {file: why for (_, file), (done, why) in lines(prepared).items() if done == "skipped modality"}
    assert why["sub-01/ses-1/anat/sub-01_ses-1_run-1_T1w.nii.gz"] == "session 2 was used"
    assert why["sub-01/ses-2/anat/sub-01_ses-2_run-2_T1w.nii.gz"] == "another T1 file was used"
    assert len(why) == 4


# --- participants.tsv -------------------------------------------------------------------------------------------------


def test_participants_give_split_and_clinical_values(tmp_path: Path) -> None:
    cohort_of(tmp_path, [("T1",), ("T1", "T2"), ("T1",), ("T1",)])
    (tmp_path / "participants.tsv").write_bytes(
        b"\xef\xbb\xbfparticipant_id\tAge\tsex\tDX\tMMSE\tCDR-SB\tsplit\tsite code\r\n"
        b"sub-01\t71.5\tF\tAD\t21\tn/a\ttest\tx\r\n"
        b"02\tn/a\tM\tn/a\tnan\t0.5\t\tx\r\n"
        b"sub-03\told\tM\tCN\t30\t0\tVal\tx\r\n"
        b"sub-04\t60\tM\tCN\t30\t0\tholdout\tx\r\n"
    )
    prepared = prepare(tmp_path)
    assert [(s.name, s.split, dict(s.clinical)) for s in prepared.cohort.subjects] == [
        ("sub-01", "test", {"age": 71.5, "sex": "F", "diagnosis": "AD", "mmse": 21.0}),
        ("sub-02", "train", {"sex": "M", "cdrsb": 0.5}),
        ("sub-03", "val", {"sex": "M", "diagnosis": "CN", "mmse": 30.0, "cdrsb": 0.0}),
    ]
    assert prepared.cohort.patterns("train") == {("T1", "T2"): 1}
    assert lines(prepared)["sub-03", "participants.tsv"] == ("used", "age='old': must be a number; left out")
    assert "split='holdout'" in lines(prepared)["sub-04", ""][1]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (b"participant_id,age\nsub-01,70\n", "must be tab-separated with a column participant_id"),
        (b"subject\tage\nsub-01\t70\n", "must be tab-separated with a column participant_id"),
        (b"", "must be tab-separated with a column participant_id"),
        (b"participant_id\tage\nsub-01\n", "row 2: 1 entries under 2 columns"),
        (b"participant_id\tage\nsub-01\t1\nsub-01\t2\n", "row 3: this participant has a row already"),
        (b"participant_id\tage\tAge\nsub-01\t1\t1\n", "2 columns mean age"),
        ("participant_id\tage\n".encode("utf-16"), "can't be read as tab-separated UTF-8"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(tmp_path: Path, table: bytes, says: str) -> None:
    (tmp_path / "participants.tsv").write_bytes(table)
    with pytest.raises(DataError, match=says) as raised:
        read_participants(tmp_path)
    assert "sub-01" not in str(raised.value)


# --- again ------------------------------------------------------------------------------------------------------------


def test_workers_change_no_byte(tmp_path: Path) -> None:
    cohort_of(tmp_path, [("T1", "T2"), ("T2",), ("T1",)])
    (tmp_path / bids_path("03", "T1")).write_bytes(b"")
    seen: list[tuple[int, int]] = []
    alone = prepare(tmp_path, out=tmp_path / "alone", progress=lambda done, total: seen.append((done, total)))
    shared = prepare(tmp_path, out=tmp_path / "shared", workers=2)
    assert files(alone.folder) == files(shared.folder)
    assert alone.cohort.digest == shared.cohort.digest
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_only_what_changed_is_done_again(tmp_path: Path) -> None:
    first = prepare(cohort_of(tmp_path, [("T1", "T2"), ("T1",), ("T1",)]))
    before = files(first.folder)
    again = prepare(tmp_path)
    assert (first.renewed, again.renewed) == (3, 0)
    assert files(first.folder) == before
    assert again.remarks == first.remarks

    write(tmp_path / bids_path("01", "T2"), volume("T2", 77), AFFINE)
    shutil.rmtree(tmp_path / "sub-02")
    changed = prepare(tmp_path)
    assert changed.renewed == 1
    assert [subject.name for subject in changed.cohort.subjects] == ["sub-01", "sub-03"]
    assert not (changed.folder / "sub-02").exists()
    assert changed.cohort.digest != first.cohort.digest
    assert files(changed.folder)["sub-03/vol.npy"] == before["sub-03/vol.npy"]


def test_a_killed_preparation_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = prepare(cohort_of(tmp_path, [("T1",), ("T1", "T2"), ("T2",)]))
    before = files(whole.folder)
    shutil.rmtree(whole.folder / "sub-02")
    (whole.folder / "cohort.json").unlink()
    (whole.folder / "sub-03" / "vol.npy").write_bytes(b"half")
    (whole.folder / ".sub-02.4711.partial").mkdir()
    (whole.folder / ".sub-02.4711.partial" / "vol.npy").write_bytes(b"half")
    assert prepare(tmp_path).renewed == 2
    assert files(whole.folder) == before


def test_one_subject_can_be_loaded_without_a_cache_and_written_back_in_its_own_storage(tmp_path: Path) -> None:
    cohort_of(tmp_path, [("T1", "T2")])
    path = tmp_path / bids_path("01", "T1")
    turn = nib.orientations.axcodes2ornt(tuple("LPI"))
    nib.save(nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes())).as_reoriented(turn), path)
    left: list[Path] = []
    loaded = load(find_files(tmp_path, tmp_path / "sub-01"), GRID, lambda file, why: left.append(file))
    assert (left, loaded.reference, list(loaded.scalings)) == ([], path, ["T1", "T2"])
    cached = np.load(prepare(tmp_path).folder / "sub-01/vol.npy")
    assert np.array_equal(loaded.images_MDHW.swapaxes(0, 1).astype(np.float16), cached)
    brain = loaded.placement.from_grid(loaded.brain_DHW) > 0.5
    full = loaded.scalings["T1"].invert(loaded.placement.from_grid(loaded.images_MDHW[0]), brain)
    write_like(tmp_path / "out.nii.gz", full, loaded.reference)
    out, original = nib.load(tmp_path / "out.nii.gz"), nib.load(path)
    assert np.array_equal(out.affine, original.affine)
    scaling = loaded.scalings["T1"]
    assert np.allclose(
        out.get_fdata(), original.get_fdata().clip(scaling.low, scaling.high) * (original.get_fdata() > 0), atol=1e-2
    )


def test_another_grid_has_its_own_cache(tmp_path: Path) -> None:
    cohort_of(tmp_path, [("T1",)])
    coarse = prepare(tmp_path, Grid(spacing_mm=3.0, height=10, width=10))
    assert coarse.folder == tmp_path / "derivatives/lacuna/3mm-10x10"
    assert np.load(coarse.folder / "sub-01/vol.npy").shape[2:] == (10, 10)
    assert prepare(tmp_path).folder.name == "native-16x12"


# --- opening ----------------------------------------------------------------------------------------------------------


def test_an_opened_cohort_is_what_was_prepared(tmp_path: Path) -> None:
    prepared = prepare(cohort_of(tmp_path, [("T1", "T2"), ("T1",)]))
    assert Cohort.open(cache_folder(tmp_path, GRID)) == prepared.cohort


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda cache: shutil.rmtree(cache), "not prepared for this grid"),
        (lambda cache: (cache / "cohort.json").write_text("{"), "damaged"),
        (lambda cache: (cache / "cohort.json").write_text("[]"), "damaged"),
        (lambda cache: edit(cache / "cohort.json", pipeline="0"), "another version"),
        (lambda cache: edit(cache / "cohort.json", rules="0"), "another version"),
        (lambda cache: edit(cache / "cohort.json", modalities=["T2"]), "was changed after"),
        (lambda cache: edit(cache / "sub-01" / "meta.json", modalities=["T2"]), "subject 0 are missing or changed"),
        (lambda cache: (cache / "sub-01" / "vol.npy").unlink(), "subject 0 are missing or changed"),
        (lambda cache: (cache / "sub-01" / "brain.npy").write_bytes(b"x"), "subject 0 are missing or changed"),
    ],
)
def test_a_cache_that_was_not_made_whole_by_this_version_is_not_opened(
    tmp_path: Path, harm: Callable[[Path], None], says: str
) -> None:
    harm(prepare(cohort_of(tmp_path, [("T1",)])).folder)
    with pytest.raises(DataError, match=says) as raised:
        Cohort.open(cache_folder(tmp_path, GRID))
    assert "sub-01" not in str(raised.value)


# --- a real patient ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not MS.is_dir(), reason="the real MS patient is not on this machine")
def test_a_real_patient_goes_through_whole(tmp_path: Path) -> None:
    for name, ending in {"T1w": "T1w", "T1ce": "ce-gd_T1w", "T2w": "T2w", "FLAIR": "FLAIR"}.items():
        path = tmp_path / f"sub-07/anat/sub-07_{ending}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(MS / f"sub-07_{name}.nii.gz", path)
    shutil.copy(MS / "sub-07_lesion.nii.gz", tmp_path / lesion_path("07"))
    prepared = prepare(tmp_path, Grid(height=176, width=144))
    assert lines(prepared) == {("sub-07", ""): ("used", "T1, T1CE, T2, FLAIR")}
    subject = prepared.cohort.subjects[0]
    assert subject.lesion
    assert subject.depth - len(subject.brain_slices) in range(10, 40)
    original = read(tmp_path / bids_path("07", "FLAIR")).data_DHW
    geometry = prepared.cohort.geometry(subject)
    scaling = geometry.scalings["FLAIR"]
    back = geometry.placement.from_grid(np.load(prepared.folder / "sub-07/vol.npy")[:, 3].astype(np.float32))
    wanted = np.clip((original - scaling.low) / (scaling.high - scaling.low), 0, 1)
    assert np.abs(back - wanted)[original > 0].max() < 1e-3


def test_the_fixture_is_a_brain_in_the_middle() -> None:
    assert brain_mask().shape == SHAPE
    assert 0.2 < brain_mask().mean() < 0.6
