"""Grouping: by tags alone, whole or with the reason why not."""

import random
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from support.dicom.dicoms import write_series, write_study

from client.ingest.arrive.collect import collect
from client.ingest.recognise.series import Series, group


def series_of(folder: Path) -> list[Series]:
    headers, _ = collect(folder)
    found, _ = group(headers)
    return found


def test_a_whole_series_is_one_volume(tmp_path: Path) -> None:
    write_series(tmp_path, "T1", spacing=(3.5, 1, 1))
    (one,) = series_of(tmp_path)
    assert (one.fault, one.slices, one.step, one.key) == ("", 16, 3.5, one.uid)
    assert one.extent == pytest.approx(15 * 3.5)


def test_folders_names_and_order_mean_nothing(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", "T1") + write_series(tmp_path / "a", "T2", number=2, name="IM{:d}")
    straight = series_of(tmp_path)
    rng = random.Random(4)
    for path in paths:
        target = tmp_path / "b" / str(rng.randrange(5)) / f"{rng.randrange(10**9):x}"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    mixed = series_of(tmp_path)
    assert [(s.key, s.slices, s.fault) for s in mixed] == [(s.key, s.slices, s.fault) for s in straight]
    assert [h.sop for s in mixed for h in s.headers] == [h.sop for s in straight for h in s.headers]


def test_two_patients_in_one_folder_are_two(tmp_path: Path) -> None:
    write_series(tmp_path, "T1", patient="A", name="a{:d}")
    write_series(tmp_path, "T1", patient="B", name="b{:d}")
    assert {s.patient: s.slices for s in series_of(tmp_path)} == {"A": 16, "B": 16}


def test_echoes_of_one_series_are_parts(tmp_path: Path) -> None:
    """A dual-echo series is a proton-density and a T2 volume."""

    def second(i: int, dataset: Dataset) -> None:
        dataset.EchoTime = 100
        dataset.SOPInstanceUID += ".2"
        dataset.InstanceNumber = 17 + i

    write_series(tmp_path, "T2", tags={"EchoTime": 20}, name="pd{:d}")
    write_series(tmp_path, "T2", change=second, name="t2{:d}")
    parts = series_of(tmp_path)
    assert [(p.part, p.slices, p.echoes, p.fault) for p in parts] == [(1, 16, 2, ""), (2, 16, 2, "")]
    assert parts[1].key == f"{parts[0].key}#2"


def test_a_copy_counts_once(tmp_path: Path) -> None:
    paths = write_series(tmp_path, "T1")
    (tmp_path / "copy").write_bytes(paths[3].read_bytes())
    headers, _ = collect(tmp_path)
    (one,), asides = group(headers)
    assert one.slices == 16
    assert not one.fault
    assert [a.why for a in asides] == ["a copy of another file, which was used"]


@pytest.mark.parametrize(
    ("lost", "fault"),
    [((7,), "about 1 slices are missing"), ((4, 5, 6), "about 3 slices are missing"), ((0, 15), "")],
)
def test_lost_slices_are_seen_between_others(tmp_path: Path, lost: tuple[int, ...], fault: str) -> None:
    write_series(tmp_path, "T1", skip=lost)
    (one,) = series_of(tmp_path)
    assert one.fault.startswith(fault)
    assert bool(one.fault) == bool(fault)


def test_slices_of_a_head_ct_may_be_thicker_above(tmp_path: Path) -> None:
    """Thin at the base and thick above, each with its own thickness: not a gap."""

    def thicker(i: int, dataset: Dataset) -> None:
        x, y, _ = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, 3.0 * min(i, 10) + 7.0 * max(i - 10, 0)]
        dataset.SliceThickness = 3 if i <= 10 else 7

    write_series(tmp_path / "ct", "CT", change=thicker)
    write_series(tmp_path / "mr", "T1", number=2, change=thicker)
    by_kind = {s.kind: s.fault for s in series_of(tmp_path)}
    assert by_kind["CT"] == ""
    assert "slices" in by_kind["MR"]


def test_one_patient_id_for_two_people_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", "T1", patient="ANON")
    write_series(tmp_path / "b", "T1", patient="ANON", study="other", tags={"PatientBirthDate": "19500505"})
    assert {s.fault for s in series_of(tmp_path)} == {"its PatientID stands for people of 2 birth dates"}


def test_a_study_of_two_patients_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path / "a", "A", ["T1"])
    write_study(tmp_path / "b", "B", ["T1"])
    study = series_of(tmp_path / "a")[0].study
    write_series(tmp_path / "c", "T2", patient="B", number=5, tags={"StudyInstanceUID": study})
    faults = {(s.patient, s.kind, s.study == study): s.fault for s in series_of(tmp_path)}
    assert faults["A", "MR", True] == faults["B", "MR", True] == "its study is filed under 2 patients"
    assert faults["B", "MR", False] == ""
