"""The folder walk and the headers: every file once, however it is reached, and nothing but the tags that are wanted."""

import os
from pathlib import Path

import pytest
from support.dicom.dicoms import write_series

from client.ingest.arrive.collect import collect, find_files, is_bids
from client.ingest.arrive.headers import read


def test_every_file_is_found_once_however_it_is_reached(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "deep" / "deeper" / "x.y", "T1")
    (tmp_path / "again").symlink_to(tmp_path / "deep")
    (tmp_path / "one.dcm").symlink_to(paths[0])
    os.link(paths[1], tmp_path / "hard.dcm")
    found, asides = find_files(tmp_path)
    assert len(found) == len(paths)
    assert sorted(aside.why for aside in asides) == [
        "a link to a folder that was read already",
        "the same file under another name (a link)",
        "the same file under another name (a link)",
    ]


def test_a_file_outside_may_be_linked_in(tmp_path: Path) -> None:
    """As data managers do that keep content apart from names."""
    paths = write_series(tmp_path / "store", "T1")
    (tmp_path / "view").mkdir()
    for path in paths:
        (tmp_path / "view" / path.name).symlink_to(path)
    headers, asides = collect(tmp_path / "view")
    assert (len(headers), asides) == (len(paths), [])


def test_unreadable_things_are_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (path, *_) = write_series(tmp_path / "a", "T1")
    path.chmod(0)
    (tmp_path / "closed").mkdir(mode=0)
    why = {aside.why for aside in collect(tmp_path)[1]}
    assert why == {"can't be read: Permission denied", "a folder that can't be read: Permission denied"}


def test_names_and_addresses_are_not_read_at_all(tmp_path: Path) -> None:
    (path, *_) = write_series(tmp_path, "T1", tags={"InstitutionName": "St. Elsewhere", "OperatorsName": "Ehrlich"})
    header = read(path)
    said = repr(header)
    assert "Elsewhere" not in said
    assert "Ehrlich" not in said
    assert "Made" not in said  # the patient's name


def test_equal_tags_are_kept_once(tmp_path: Path) -> None:
    headers, _ = collect_series(tmp_path)
    assert len({id(header.tags) for header in headers}) == 1


def collect_series(folder: Path):  # type: ignore[no-untyped-def]
    write_series(folder, "T1")
    return collect(folder)


@pytest.mark.parametrize(
    ("file", "is_one"),
    [("sub-1/anat/sub-1_T1w.nii.gz", True), ("sub-1/ses-2/pet/sub-1_ses-2_pet.nii", True), ("a/b.nii.gz", False)],
)
def test_bids_is_known_by_its_folders(tmp_path: Path, file: str, is_one: bool) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    assert is_bids(tmp_path) == is_one
