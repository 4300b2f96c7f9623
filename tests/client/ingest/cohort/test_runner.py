"""Many subjects: each whole or not at all, resumed, done again without change; a person's word is kept."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from support.cohort.heads import fruit, head, put
from support.cohort.validator import errors_in
from typer.testing import CliRunner

from client.cli.cli import app
from client.ingest.arrive.records import Job
from client.ingest.cohort import review, runner, tables
from client.ingest.image.preparation import Preparation
from shared.base.errors import ConfigError, DataError
from shared.data import cohort as data
from shared.data.bids import DECISIONS, read_preparation
from shared.data.volumes import Grid

pytestmark = pytest.mark.slow  # left out of `make fast`

NAMES = ("sub-one", "sub-two", "sub-fruit")


def job(subject: str, session: str | None = None, **inputs: Path) -> Job:
    sidecars = {modality: {"EchoTime": 0.09} for modality in inputs}
    return Job(subject=subject, session=session, inputs=inputs, sidecars=sidecars, clinical={"age": 61.0})


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    folder = tmp_path_factory.mktemp("images")
    t1, t2 = (put(head(m), folder / f"{m}.nii.gz") for m in ("T1", "T2"))
    flair, apple = put(head("FLAIR"), folder / "FLAIR.nii.gz"), put(fruit(), folder / "fruit.nii.gz")
    return [job("sub-one", T1=t1, T2=t2), job("sub-two", "ses-1", FLAIR=flair), job("sub-fruit", T1=apple)]


@pytest.fixture(scope="module")
def prepared(jobs: list[Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    cohort = tmp_path_factory.mktemp("cohort")
    seen: list[tuple[int, int]] = []
    done = runner.prepare_all(
        jobs, cohort, options=Preparation(), workers=1, progress=lambda n, total: seen.append((n, total))
    )
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [outcome.excluded is None for outcome in done] == [True, True, False]
    tables.write_participants(cohort, jobs)
    tables.write_description(cohort)
    return cohort


@pytest.fixture
def cohort(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "cohort"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_written(prepared: Path) -> None:
    images = {path.relative_to(prepared).as_posix() for path in prepared.rglob("*.nii.gz")}
    assert images == {
        "sub-one/anat/sub-one_T1w.nii.gz",
        "sub-one/anat/sub-one_T2w.nii.gz",
        "sub-two/ses-1/anat/sub-two_ses-1_FLAIR.nii.gz",
    }
    sidecar = json.loads((prepared / "sub-one/anat/sub-one_T2w.json").read_text())
    assert sidecar["EchoTime"] == 0.09
    assert sidecar["LacunaPreparation"] == read_preparation(prepared) == Preparation().digest
    assert not list(prepared.glob(".sub-*"))


def test_the_cache_takes_it(cohort: Path) -> None:
    done = data.prepare(cohort, Grid(height=96, width=96), workers=0)
    assert [s.name for s in done.cohort.subjects] == ["sub-one", "sub-two"]
    assert done.cohort.preparation == Preparation().digest


def test_the_validator_finds_no_error(prepared: Path) -> None:
    assert errors_in(prepared) == []


def test_done_again_nothing_changes(cohort: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    before = bytes_of(cohort)
    monkeypatch.setattr(runner, "prepare", None)  # would fail, were anything prepared
    runner.prepare_all(jobs, cohort, options=Preparation(), workers=1)
    assert bytes_of(cohort) == before


def test_what_was_lost_is_made_again_to_the_same_bytes(cohort: Path, jobs: list[Job]) -> None:
    before = bytes_of(cohort)
    shutil.rmtree(cohort / "sub-two")
    (cohort / ".sub-two_ses-1.99.partial").mkdir()
    runner.prepare_all(jobs, cohort, options=Preparation(), workers=1)
    assert bytes_of(cohort) == before
    assert not list(cohort.glob(".sub-*"))


def test_a_failure_stops_nobody(jobs: list[Job], tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    done = runner.prepare_all([job("sub-bad", T1=broken), jobs[1]], tmp_path / "out", options=Preparation(), workers=1)
    assert "T1" in str(done[0].excluded)
    assert done[1].excluded is None
    assert not (tmp_path / "out" / "sub-bad").exists()


def test_a_cohort_half_done_has_no_preparation(cohort: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "prepare", killed)
    with pytest.raises(KeyboardInterrupt):
        runner.prepare_all(jobs, cohort, options=Preparation(spacing_mm=3.0), workers=1)
    assert read_preparation(cohort) == ""


def test_too_little_disk_is_said_first(jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runner.disk_needed(jobs, Preparation()) > 4 * 99 * 117 * 95
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="GB are free"):
        runner.prepare_all(jobs, tmp_path, options=Preparation(), workers=1)


def test_the_page_shows_all_and_loads_nothing(prepared: Path) -> None:
    page = (prepared / runner.PAGE).read_text()
    for name in ("sub-one", "sub-two_ses-1", "sub-fruit"):
        assert page.count(f'data-v="{name}"') == 1
    assert "no brain" in page
    assert page.count("data:image/png;base64,") >= 2
    assert re.search(r'(src|href)="(?!data:)', page) is None
    assert "script-src 'sha256-" in page.replace("&#x27;", "'")


def test_a_rejected_subject_stays_on_disk_and_is_left_out(cohort: Path) -> None:
    review.decide(cohort, accept=(), reject=("sub-one",), why="moved <b>too</b> much")
    done = data.prepare(cohort, Grid(height=96, width=96), workers=0)
    assert [s.name for s in done.cohort.subjects] == ["sub-two"]
    assert (cohort / "sub-one/anat/sub-one_T1w.nii.gz").exists()
    with (done.folder / "exclusions.csv").open() as file:
        rows = {row["subject"]: row for row in csv.DictReader(file) if row["done"] == "excluded"}
    assert rows["sub-one"]["why"] == "rejected by a person: moved <b>too</b> much"
    review.decide(cohort, accept=("one",), reject=(), why="looked again")
    again = data.prepare(cohort, Grid(height=96, width=96), workers=0)
    assert [s.name for s in again.cohort.subjects] == ["sub-one", "sub-two"]


def test_an_accepted_subject_comes_in_with_the_next_run(cohort: Path, jobs: list[Job]) -> None:
    review.decide(cohort, accept=("sub-fruit",), reject=(), why="I know this fruit")
    (row,) = [row for row in review.listing(cohort) if row.subject == "sub-fruit"]
    assert "ingest again" in row.state
    done = runner.prepare_all(jobs, cohort, options=Preparation(), workers=1)
    assert done[2].excluded is None
    assert (cohort / "sub-fruit/anat/sub-fruit_T1w.nii.gz").exists()


@pytest.mark.parametrize(
    ("accept", "reject", "why", "says"),
    [
        ((), ("sub-one",), " ", "why"),
        ((), ("sub-nobody",), "x", "not in the cohort"),
        (("sub-one",), ("sub-one",), "x", "the same call"),
        ((), ("sub-one",), "x" * 501, "500"),
    ],
)
def test_a_wrong_decision_is_named(
    cohort: Path, accept: tuple[str, ...], reject: tuple[str, ...], why: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        review.decide(cohort, accept=accept, reject=reject, why=why)
    assert not (cohort / DECISIONS).exists()


@pytest.mark.parametrize("content", ["[]", "{", '{"sub-one": {"decision": "reject"}}', '{"sub-one": 3}'])
def test_damaged_decisions_stop_the_cache_with_one_line(cohort: Path, content: str) -> None:
    (cohort / DECISIONS).write_text(content)
    with pytest.raises(DataError, match=r"decisions\.json"):
        data.prepare(cohort, Grid(height=96, width=96), workers=0)


def test_the_verb_lists_and_decides(cohort: Path) -> None:
    run = CliRunner().invoke(app, ["review", str(cohort), "--reject", "sub-two", "--why", "motion"])
    assert run.exit_code == 0, run.output
    lines = {line.split()[0]: line for line in run.output.splitlines()}
    assert set(lines) == set(NAMES)
    assert "rejected" in lines["sub-two"]
    assert "motion" in lines["sub-two"]
    assert "no brain" in lines["sub-fruit"]
