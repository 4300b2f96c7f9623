"""A site leaves: which runs have its data, from which checkpoint on, and the run trained again without it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from support.rounds.federation import config, weights_digest
from support.rounds.spoilt import about, failed, start
from typer.testing import CliRunner

from server.cli.cli import app
from server.journal import facts, withdrawn
from server.report.report import write_report
from server.runs.runs import read_config
from server.runs.without import where, without
from server.superlink import overview
from shared.base.errors import ConfigError
from shared.plan.config import Config, load, same_run
from shared.plan.settings import Tuning

pytestmark = [pytest.mark.usefixtures("probe"), pytest.mark.slow]


def run(folder: Path, wanted: Config, **how: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "overrides.json").write_text("[]")
    start(folder, wanted, **how)
    return folder


def late(site: str, first: int) -> Any:
    """A site that is heard from this round of the second phase on."""

    def spoil(name: str, reply: Message) -> Message | None:
        found = about(reply)
        silent = found is not None and (found[0] == "level" or found[1] < first)
        return failed(reply) if name == site and silent else reply

    return spoil


def go_on(folder: Path) -> Path:
    start(folder, read_config(folder))
    return folder


def withdraw(folder: Path, site: str, **how: Any) -> None:
    withdrawn.mark(folder, site, withdrawn.Mark(who="site", at=1.7e9, **how))


def test_without_a_site_from_the_beginning_is_the_run_in_which_it_never_was(world: Path, tmp_path: Path) -> None:
    """The same bits, in every weight; and not those of the run that had it."""
    whole = run(tmp_path / "whole", config(world))
    before = {path: path.read_bytes() for path in sorted(whole.rglob("*")) if path.is_file()}
    made = without(whole, "east")
    assert (made.name, where(made)) == ("whole-without-east", "from its beginning")
    assert without(whole, "east") == made  # the same line again goes on with it
    never = run(tmp_path / "never", config(world, sites=("north", "south")))
    assert weights_digest(go_on(made)) == weights_digest(never)
    assert weights_digest(made) != weights_digest(whole)
    assert {site for one in facts.read(made / "rounds.jsonl") for site in one.sites} == {"north", "south"}
    assert {path: path.read_bytes() for path in before} == before, "the run itself stays as it was"


def test_who_came_late_is_left_out_from_the_checkpoint_before(world: Path, tmp_path: Path) -> None:
    """It is still there, many rounds later; and from there on the bits are those of a run without the site."""
    whole = run(tmp_path / "whole", config(world, rounds=7), spoil=late("east", 3))
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["000008", "000016", "000017"]
    withdraw(whole, "east")
    (one,) = withdrawn.affected(whole)
    assert (one.phase, one.round, one.done, one.checkpoint) == ("fit", 3, 4, "000010")
    made = without(whole, "east")
    assert where(made) == "after fit round 3"
    assert [p.name for p in (made / "checkpoints").iterdir()] == ["000008"]
    never = run(tmp_path / "never", config(world, rounds=7), spoil=late("east", 99))
    assert weights_digest(go_on(made)) == weights_digest(never) != weights_digest(whole)
    assert withdrawn.affected(made) == []


def test_without_the_checkpoint_it_begins_earlier_and_never_later(world: Path, tmp_path: Path) -> None:
    import shutil

    whole = run(tmp_path / "whole", config(world, rounds=7), spoil=late("east", 3))
    shutil.rmtree(whole / "checkpoints" / "000008")
    made = without(whole, "east")
    assert where(made) == "from its beginning"
    assert not (made / "checkpoints").exists()


def test_who_is_left_out_has_no_part_whatever_it_answers(world: Path, tmp_path: Path) -> None:
    made = run(tmp_path / "run", config(world, rounds=1, without=("east",)))
    assert all(sorted(one.sites) == ["north", "south"] for one in facts.read(made / "rounds.jsonl"))
    folder = tmp_path / "asked"
    folder.mkdir()
    from support.rounds.federation import write
    from support.rounds.relay import RelayGrid

    from server.runs import simulation
    from server.runs.serve import serve

    wanted = config(world, rounds=1)
    nodes = simulation._node_configs(wanted, folder, simulation.find_cohorts(wanted))
    write(folder, config(world, rounds=1, without=("east",)))
    serve(RelayGrid(simulation.client_app(), nodes), folder, quiet=True)  # its node is there all the same
    assert all(sorted(one.sites) == ["north", "south"] for one in facts.read(folder / "rounds.jsonl"))


def test_status_report_and_export_say_it(world: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "runs" / "whole", config(world))
    clean = CliRunner().invoke(app, ["status", "--runs", str(tmp_path / "runs")])
    assert "withdrawn" not in clean.output
    withdraw(whole, "east")
    says = "has data of east, which was withdrawn, from level round 1 on (checkpoint 000002 and later)"
    assert overview.standing(whole).withdrawn == (says,)
    table = CliRunner().invoke(app, ["status", "--runs", str(tmp_path / "runs")])
    assert f"warning: whole {says}" in table.stderr
    assert f"warning  {says}" in CliRunner().invoke(app, ["status", "whole", "--runs", str(tmp_path / "runs")]).stdout
    told = json.loads(CliRunner().invoke(app, ["status", "whole", "--json", "--runs", str(tmp_path / "runs")]).stdout)
    assert told["standing"]["withdrawn"] == [says]
    write_report(whole)
    assert says in (whole / "report.html").read_text()
    keys = ["--key", str(tmp_path / "signing.key"), "--out", str(tmp_path / "bundle")]
    done = CliRunner().invoke(app, ["export", "whole", "--runs", str(tmp_path / "runs"), *keys])
    assert f"warning: whole {says}" in done.stderr


def test_a_run_that_starts_from_an_affected_one_is_affected_from_its_beginning(world: Path, tmp_path: Path) -> None:
    """East has no part in it, and is in it all the same."""
    run(tmp_path / "first", config(world, rounds=1))
    wanted = config(world, rounds=1, sites=("north", "south"))
    second = run(tmp_path / "second", dataclasses.replace(wanted, runs=str(tmp_path), tuning=Tuning(start="first")))
    assert withdrawn.affected(second) == []
    withdraw(tmp_path / "first", "east")
    assert withdrawn.lines(second) == [
        "second has data of east, which was withdrawn, from its beginning on: it starts from run first"
    ]
    with pytest.raises(ConfigError, match=r"--without east: second starts from run first, which has its data"):
        without(second, "east")


def test_who_was_never_in_a_run_can_not_be_left_out_of_it(world: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", config(world, rounds=1, sites=("north", "south")))
    with pytest.raises(ConfigError, match="--without east: whole has nothing of it; it has updates of north, south"):
        without(whole, "east")
    with pytest.raises(ConfigError, match=r"--without='\.\./x': must match"):
        without(whole, "../x")
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_resume_without_says_how_to_go_on_with_a_simulation(world: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", config(world, rounds=1))
    done = CliRunner().invoke(app, ["resume", "whole", "--without", "east", "--runs", str(tmp_path)])
    assert done.stdout == f"lacuna simulate resume=whole-without-east runs='{tmp_path}'\n", done.exception
    assert "goes on from its beginning, without east; whole stays as it is" in done.stderr
    assert read_config(tmp_path / "whole-without-east").federation.without == ("east",)


@pytest.mark.parametrize("site", ["007", "1e3", "null", "a-b.c_d"])
def test_what_was_asked_can_be_asked_again_whatever_a_site_is_called(site: str, world: Path, tmp_path: Path) -> None:
    run = tmp_path / "whole"
    run.mkdir()
    (run / "overrides.json").write_text(json.dumps(["size=tiny", "run=whole"]))
    (run / "config.json").write_text(load(["size=tiny", "run=whole"]).text())
    done = facts.RoundFacts(
        phase="fit", round=0, of=1, ended=0.0, seconds=1.0, loss=None, sites={site: facts.SiteFacts(status="ok")}
    )
    facts.append(run / "rounds.jsonl", done)
    made = without(run, site)
    again = load([*json.loads((made / "overrides.json").read_text()), f"resume={made.name}"])
    assert again.federation.without == read_config(made).federation.without == (site,)
    same_run(read_config(made), again)
