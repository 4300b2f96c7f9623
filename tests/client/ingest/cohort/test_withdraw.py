"""Somebody takes it back: cohort and caches forget them, nobody trains on them, and it is said where they were."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.cohort.worlds import prepare_here, write_cohort
from support.dicom.dicoms import write_study
from support.rounds.federation import config
from support.rounds.spoilt import start
from typer.testing import CliRunner

from client.cli.cli import app
from client.ingest.cohort.pipeline import MARK
from client.ingest.cohort.withdraw import withdraw
from client.site import withdrawn
from shared.base.chain import Chain
from shared.base.errors import ConfigError
from shared.base.options import plain
from shared.data.cohort import Cohort, cache_folder
from shared.plan.config import Config

pytestmark = [pytest.mark.usefixtures("probe"), pytest.mark.slow]
GONE, NAME = "sub-northsecret002", "northsecret002"


def world_of(root: Path, people: int = 6) -> Path:
    for i, site in enumerate(("north", "south")):
        prepare_here(write_cohort(root / "sites" / site, site, [("T1", "T2")] * people, seed=i))
    return root


def plan(world: Path, disks: Path, **federation: Any) -> Config:
    return config(world, rounds=2, disks=str(disks), targets=("T1",), **federation)


def leave(state: Path, cohort: Path, *more: str) -> Any:
    words = ["withdraw", GONE, "--state", str(state), "--cohort", str(cohort), "--why", "asked for it", *more]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    return done


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def names_it(folder: Path) -> list[str]:
    return [str(path) for path, text in contents(folder).items() if NAME in str(path) or NAME.encode() in text]


def test_it_is_told_which_runs_phases_and_rounds_they_were_in(tmp_path: Path) -> None:
    """The first run was before they came; the second is marked as sums and rounds; the third is after they left."""
    world, disks = world_of(tmp_path / "world"), tmp_path / "disks"
    north = world / "sites" / "north"
    (north / GONE).rename(tmp_path / "later")
    prepare_here(north)
    start(tmp_path / "first", plan(world, disks))
    (tmp_path / "later").rename(north / GONE)
    prepare_here(north)
    start(tmp_path / "second", plan(world, disks))
    told = "run second: since level round 0: level rounds 0 to 0 (1 updates), fit rounds 0 to 1 (2 updates)"
    rehearsal = leave(disks / "north", north, "--dry-run")
    done = leave(disks / "north", north)
    assert [line for line in done.stdout.splitlines() if line.startswith("run ")] == [f"{told}; sums over them left"]
    assert told in rehearsal.stdout
    start(tmp_path / "third", plan(world, disks))
    people = [(e["run"], GONE in e["people"]) for e in Chain(disks / "north" / withdrawn.TRAINED).entries()]
    assert dict(people) == {"first": False, "second": True, "third": False}
    assert [part.run for part in withdrawn.parts_of(disks / "north", GONE)] == ["second"]
    others = withdrawn.parts_of(disks / "north", "sub-northsecret001")
    assert [part.run for part in others] == ["first", "second", "third"]


def test_of_rounds_before_it_was_written_down_everybody_was_in_them(tmp_path: Path) -> None:
    world, disks = world_of(tmp_path / "world"), tmp_path / "disks"
    start(tmp_path / "first", plan(world, disks))
    (disks / "north" / withdrawn.TRAINED).unlink()
    (part,) = withdrawn.parts_of(disks / "north", GONE)
    assert not part.known
    assert part.line().endswith("(2 updates); who was trained on was not written down then")


def test_a_rehearsal_changes_nothing_and_says_what_would_go(tmp_path: Path) -> None:
    world = world_of(tmp_path / "world")
    state = tmp_path / "state"
    state.mkdir()
    before = contents(tmp_path)
    done = leave(state, world / "sites" / "north", "--dry-run")
    assert f"would delete: {cache_folder(world / 'sites' / 'north', config(world).grid) / GONE}" in done.stdout
    assert "nothing that they were in has left this site" in done.stdout
    assert contents(tmp_path) == before


def test_a_hospitals_own_folder_keeps_its_files_and_its_caches_forget(tmp_path: Path) -> None:
    world = world_of(tmp_path / "world")
    north, state = world / "sites" / "north", tmp_path / "state"
    state.mkdir()
    done = leave(state, north)
    assert f"set aside, for you to delete: {north / GONE}" in done.stdout
    assert (north / GONE).is_dir()
    cache = cache_folder(north, config(world).grid)
    assert names_it(cache) == []
    assert len(Cohort.open(cache).subjects) == 5
    prepare_here(north)  # made again, they are not in it
    assert GONE not in {subject.name for subject in Cohort.open(cache).subjects}
    again = leave(state, north)
    assert "deleted" not in again.stdout
    assert len(list(Chain(state / withdrawn.WITHDRAWN).entries())) == 1


def test_of_a_cohort_that_ingest_made_all_of_them_goes(tmp_path: Path) -> None:
    from client.ingest.cohort import tables
    from client.ingest.cohort.outcome import Outcome

    north, state = world_of(tmp_path / "world") / "sites" / "north", tmp_path / "state"
    state.mkdir()
    (north / MARK).write_text("2.25.1\n")
    (north / "quality").mkdir()
    made = []
    for folder in sorted(north.glob("sub-*")):
        files = {"T1": f"{folder.name}/anat/x"}
        made.append(
            Outcome(subject=folder.name, session=None, files=files, quality=None, left={}, excluded=None, key="k")
        )
        (north / "quality" / f"{folder.name}.json").write_text(json.dumps(plain(made[-1])))
        (north / "quality" / f"{folder.name}.png").write_bytes(b"png")
    tables.write_cohort(north, made, "")
    (north / "exclusions.csv").write_text(f"subject,why\n{GONE},dark\nsub-northsecret0021,dark\n")
    leave(state, north)
    assert names_it(north) == [str(north / "decisions.json"), str(north / "exclusions.csv")]
    assert (north / "exclusions.csv").read_text() == "subject,why\nsub-northsecret0021,dark\n"
    assert len(json.loads((north / "cohort.json").read_text())["subjects"]) == 5
    assert len((north / "participants.tsv").read_text().splitlines()) == 1 + 5


def test_the_next_ingest_does_not_bring_them_back(site: Any) -> None:
    write_study(site.source, "PAT-77", ["T1", "T2"])
    write_study(site.source / "b", "PAT-78", ["T1", "T2"])
    site.ingest()
    leaving = next(job.subject for job in site.jobs)
    withdraw(site.state, [site.cohort], None, leaving, why="asked", rehearsal=False)
    assert not (site.cohort / leaving).exists()
    site.ingest()
    assert leaving not in {job.subject for job in site.jobs}
    assert len(site.jobs) == 1
    assert not (site.cohort / leaving).exists()


def test_who_is_not_known_can_not_leave(tmp_path: Path) -> None:
    north, state = world_of(tmp_path / "world") / "sites" / "north", tmp_path / "state"
    state.mkdir()
    for other in ("sub-northsecret0020", "northsecret00", "sub-northsecret"):
        with pytest.raises(ConfigError, match="in no cohort of this site, and nothing was ever trained on them"):
            withdraw(state, [north], None, other, why="asked", rehearsal=False)
    for path in ("sub-../../elsewhere", "", "sub-*", "../sub-northsecret001"):
        with pytest.raises(ConfigError, match="must be sub- and letters or digits"):
            withdraw(state, [north], None, path, why="asked", rehearsal=False)
    with pytest.raises(ConfigError, match="no folder there"):
        withdraw(state, [tmp_path / "none"], None, GONE, why="asked", rehearsal=False)
    with pytest.raises(ConfigError, match="must say why"):
        withdraw(state, [north], None, GONE, why=" ", rehearsal=False)
    assert list(state.iterdir()) == []
    assert not (tmp_path / "none").exists()
