"""Every way that foreign input can be bad: one clear line each, nothing lost, nothing half written, memory bounded.

Each case spoils one patient's series, or adds a file, beside a good series of another patient that must come through.
"""

import re
import resource
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian
from support.dicom.bad_input import CASES, spoiled, void
from support.dicom.dicoms import write_series

from shared.base.errors import DataError

pytestmark = pytest.mark.slow  # left out of `make fast`

HARMLESS = {  # odd, but the series is whole
    "duplicate_instance_numbers": lambda f: void(spoiled(tags={"InstanceNumber": 1})(f)),
    "no_instance_numbers": lambda f: void(spoiled(tags={"InstanceNumber": None})(f)),
    "no_dates": lambda f: void(spoiled(tags=dict.fromkeys(("StudyDate", "SeriesDate", "AcquisitionDate")))(f)),
    "age_of_letters": lambda f: [p.write_bytes(p.read_bytes().replace(b"061Y", b"OLD!")) for p in spoiled()(f)],
    "implicit_syntax": lambda f: [_implicit(p) for p in spoiled()(f)],
    "no_preamble": lambda f: [_headless(p) for p in spoiled()(f)],
    "a_long_private_tag": lambda f: void(spoiled(change=_private)(f)),
}


def _implicit(path: Path) -> None:
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=True)


def _headless(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[raw.index(b"\x08\x00\x16\x00UI") :])


def _private(_: int, dataset: Dataset) -> None:
    dataset.add_new(0x00291010, "OB", bytes(3_000_000))
    dataset.RequestAttributesSequence = Sequence([Dataset() for _ in range(200)])


@pytest.mark.parametrize("name", CASES)
def test_bad_input_costs_itself_alone_and_says_why(site: Any, name: str) -> None:
    spoil, says = CASES[name]
    write_series(site.source / "good", "T2", patient="GOOD")
    spoil(site.source)
    before = listing(site.source)
    site.ingest()
    lines = [aside.why for aside in site.asides]
    assert any(re.search(says, line) for line in lines), lines
    assert all("\n" not in line and len(line) < 200 and "Traceback" not in line for line in lines)
    good = [job for job in site.jobs if list(job.inputs) == ["T2"]]
    assert len(good) == 1
    assert len(site.jobs) <= 2
    assert accounted_for(site, before)
    assert not list(site.leftovers())
    assert listing(site.source) == before  # a source is only read


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_but_whole_is_used(site: Any, name: str) -> None:
    HARMLESS[name](site.source)
    site.ingest()
    assert [list(job.inputs) for job in site.jobs] == [["T1"]], [aside.why for aside in site.asides]


def test_there_are_forty_cases() -> None:
    assert len(CASES) >= 40


def test_memory_stays_bounded_before_hostile_files(site: Any) -> None:
    """A gigantic header, a claim of 4 GB and two bombs, read in one process, cost less than 200 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("gigantic_value", "gigantic_claim", "zip_bomb", "gzip_bomb", "deflate_bomb"):
        place = site.source / name
        place.mkdir()
        CASES[name][0](place)
    grown_by_making = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    site.ingest()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - max(before, grown_by_making) < 200_000


def test_a_folder_that_is_none_is_one_line(site: Any) -> None:
    with pytest.raises(DataError, match="no such folder"):
        site.ingest(site.source / "nowhere")


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.lstat().st_size) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def accounted_for(site: Any, files: list[tuple[str, int]]) -> bool:
    """Every file is used, stands in the list, or belongs to a series that does."""
    used = {str(path) for job in site.jobs for path in sources_of(site, job)}
    named = {aside.where for aside in site.asides}
    series = sum(aside.what == "series" for aside in site.asides)
    lost = [f for f, _ in files if f not in used and f.encode("utf-8", "backslashreplace").decode() not in named]
    return not lost or series > 0


def sources_of(site: Any, job: Any) -> list[str]:
    import json

    entries = json.loads((site.state / "provenance.json").read_text())
    return [file for entry in entries if entry["subject"] == job.subject for file in entry["files"]]
