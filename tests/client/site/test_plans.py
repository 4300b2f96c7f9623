"""What was asked of a site, what a person said to it, and the work that it took: kept over kills and restarts."""

import dataclasses
import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from support.rounds.federation import config
from support.rounds.spoilt import about, start
from typer.testing import CliRunner

from client.cli.cli import app
from client.round import work as work_
from client.site import plans
from client.site.plans import considered, decide, find, listing, used
from client.site.policy import Policy
from client.site.site import Site
from server.journal import facts
from server.rounds import roster
from shared.base.errors import ConfigError, PlanRefused, PlanWaits, RunFailed
from shared.base.records import RoundPlan
from shared.plan.settings import RunSettings

pytestmark = pytest.mark.slow  # left out of `make fast`

CONFIG = '{"method": {"name": "amm_diff", "options": {"size": "tiny"}}, "min_holders": 2, "privacy": {"mode": "off"}}'


def site(state: Path, **rules: Any) -> Site:
    return Site(name="north", cohorts=(), state=state, policy=Policy(**rules))


def work(here: Site, number: int = 0, *, seconds: float = 0.0) -> None:
    """A round, of as many seconds as one says."""
    with considered(here, "r", CONFIG, phase="fit", round=number) as mine:
        mine.work().started -= seconds


# --- a yes and a no -------------------------------------------------------------------------------------------------


def ask(here: Site, run: str = "r", text: str = CONFIG) -> None:
    with considered(here, run, text) as mine:
        mine.allowed_here()


def test_a_plan_waits_for_a_yes_and_the_yes_is_for_that_plan_alone(tmp_path: Path) -> None:
    here = site(tmp_path, approve="ask")
    with pytest.raises(PlanWaits, match=r"north: plan [0-9a-f]{12} waits for local approval"):
        ask(here)
    (plan,) = listing(tmp_path)
    assert plan.pending
    decide(tmp_path, plan.id, "approved")
    ask(here)
    others = [("r", CONFIG[:i] + chr(ord(CONFIG[i]) ^ 1) + CONFIG[i + 1 :]) for i in range(len(CONFIG))]
    others += [("s", CONFIG), ("r" + CONFIG[0], CONFIG[1:]), ("", "r" + CONFIG), ("r", CONFIG + " "), ("R", CONFIG)]
    for run, text in others:
        with pytest.raises(PlanWaits):
            ask(here, run, text)
    found = listing(tmp_path)
    assert [one.state for one in found] == ["approved"] + ["waits for you"] * len(others)
    assert len({one.id for one in found}) == len(found)
    ask(here)
    decide(tmp_path, found[1].id, "approved")
    ask(here, *others[0])
    with pytest.raises(PlanWaits):
        ask(here, *others[1])


@pytest.mark.usefixtures("probe")
def test_what_was_not_said_yes_to_is_not_begun(tmp_path: Path) -> None:
    """The question is asked where the work is, before anything is read: there are no cohorts here to read."""
    text = RunSettings.of_run(json.loads(config(Path("/nowhere")).text())).text()
    schema = RunSettings.parse(text).schema
    here = site(tmp_path, approve="ask", min_holders=1, min_samples=1)
    plan = RoundPlan(run="r", phase="fit", round=0, config=text, schema=schema, weights={})
    for _ in range(2):
        with pytest.raises(PlanWaits):
            work_.do_round(here, plan)
    (one,) = listing(tmp_path)
    assert [asked.worked for asked in one.asked] == [None, None]
    decide(tmp_path, one.id, "approved")
    with pytest.raises(PlanWaits):
        work_.do_round(here, dataclasses.replace(plan, run="s"))
    with pytest.raises(PlanRefused, match="takes no part in fit"):  # now it is: of what this site holds, nothing fits
        work_.do_round(here, plan)


def test_a_no_holds_under_any_policy_until_a_yes(tmp_path: Path) -> None:
    ask(site(tmp_path))
    decide(tmp_path, listing(tmp_path)[0].id, "refused")
    for rules in ({}, {"approve": "ask"}):
        with pytest.raises(PlanRefused, match="was refused by a person there"):
            ask(site(tmp_path, **rules))
    decide(tmp_path, listing(tmp_path)[0].id, "approved")
    ask(site(tmp_path, approve="ask"))


def test_every_message_is_kept_with_its_answer(tmp_path: Path) -> None:
    here = site(tmp_path)
    ask(here)
    work(here, 3, seconds=2.0)
    with pytest.raises(PlanRefused), considered(here, "r", CONFIG, phase="fit", round=4):
        raise PlanRefused("north: plan.size=big: ...")
    with pytest.raises(KeyError), considered(here, "r", CONFIG, phase="fit", round=5):
        raise KeyError("sub-secret")
    (plan,) = listing(tmp_path)
    assert [(one.phase, one.round) for one in plan.asked] == [(None, None), ("fit", 3), ("fit", 4), ("fit", 5)]
    assert [one.verdict for one in plan.asked] == [
        plans.TAKEN,
        plans.TAKEN,
        "PlanRefused: north: plan.size=big: ...",
        "KeyError",
    ]
    assert plan.asked[1].worked == pytest.approx(2.0, abs=1.0)
    assert plan.asked[2].worked is None


def test_a_plan_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    ask(site(tmp_path))
    (plan,) = listing(tmp_path)
    assert find(tmp_path, plan.id[:4]).id == plan.id
    for name in ("", "zz", plan.id + "0"):
        with pytest.raises(ConfigError, match="0 plans here begin so"):
            find(tmp_path, name)


def test_settings_of_a_plan_that_are_no_settings_can_be_listed(tmp_path: Path) -> None:
    for text in ("{", "[1]", "[" * 5000, '{"method": 3, "training": [1], "privacy": "\\u001b[31m"}', "null"):
        ask(site(tmp_path), run="evil\x1b[2J\nrun", text=text)
    done = CliRunner().invoke(app, ["plans", "--state", str(tmp_path)])
    assert done.exit_code == 0, done.exception
    assert "\x1b" not in done.stdout
    assert done.stdout.count("evil") == 5
    for plan in listing(tmp_path):
        assert CliRunner().invoke(app, ["plans", "show", plan.id, "--state", str(tmp_path)]).exit_code == 0


def test_a_plan_as_long_as_a_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="the most is 1048576"):
        ask(site(tmp_path), text=" " * (plans.MOST_CONFIG + 1))
    assert listing(tmp_path) == []


# --- the day's work -------------------------------------------------------------------------------------------------


def yesterday(state: Path) -> None:
    with sqlite3.connect(state / plans.FILE) as file:
        file.execute("UPDATE asked SET at = at - 86401")


def test_the_days_rounds_are_counted_over_restarts(tmp_path: Path) -> None:
    here = site(tmp_path, max_rounds_per_day=2)
    for number in range(2):
        work(here, number)
    for _ in range(2):
        with pytest.raises(PlanRefused, match="max_rounds_per_day=2, and 2 were done in the last 24 hours"):
            work(here, 2)
    yesterday(tmp_path)
    work(here, 2)


def long_work(here: Site) -> None:
    with considered(here, "r", CONFIG, phase="fit", round=1) as mine:
        at_work = mine.work()
        at_work.started -= 500.0
        at_work.go_on()
        at_work.started -= 200.0
        at_work.go_on()


def test_the_days_hours_are_counted_and_a_round_that_gets_there_ends(tmp_path: Path) -> None:
    here = site(tmp_path, max_hours_per_day=1.0)
    work(here, seconds=3000.0)
    with pytest.raises(PlanRefused, match=r"max_hours_per_day=1, .* so this round was given up"):
        long_work(here)
    assert used(tmp_path)[1] == pytest.approx(3700 / 3600, abs=0.01)
    with pytest.raises(PlanRefused, match="used up in the last 24 hours"):
        work(here, 2)
    yesterday(tmp_path)
    work(here, 2)


def test_a_killed_round_is_counted_as_far_as_it_came(tmp_path: Path) -> None:
    here = site(tmp_path, max_rounds_per_day=1)
    child = os.fork()
    if child == 0:
        with considered(here, "r", CONFIG, phase="fit", round=0) as mine:
            at_work = mine.work()
            at_work.started -= 1800.0
            at_work.go_on()
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    rounds, hours = used(tmp_path)
    assert (rounds, hours) == (1, pytest.approx(0.5, abs=0.01))
    assert listing(tmp_path)[0].asked[0].verdict == plans.WORKING
    with pytest.raises(PlanRefused, match="max_rounds_per_day=1"):
        work(here, 1)


# --- in a federation ------------------------------------------------------------------------------------------------


def nodes_of(folder: Path) -> Path:
    return folder / "sites" / "north"


@pytest.mark.usefixtures("probe")
def test_a_waiting_site_joins_the_round_after_its_yes(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def say_yes(name: str, reply: Message) -> Message | None:
        if name == "east" and about(reply) == ("fit", 0):
            (plan,) = listing(nodes_of(folder))
            done = CliRunner().invoke(app, ["plans", "approve", plan.id[:6], "--state", str(nodes_of(folder))])
            assert done.exit_code == 0, done.exception
        return reply

    start(folder, config(world), spoil=say_yes, policies={"north": {"approve": "ask"}})
    asked = {(one.phase, one.round): sorted(one.sites) for one in facts.read(folder / "rounds.jsonl")}
    assert asked[("level", 0)] == asked[("fit", 0)] == ["east", "south"]
    assert asked[("fit", 1)] == asked[("fit", 2)] == ["east", "north", "south"]
    assert sorted(facts.load_coverage(folder / "inventory.json").sites) == ["east", "north", "south"]
    (plan,) = listing(nodes_of(folder))
    verdicts = [one.verdict.split(":")[0] for one in plan.asked]
    assert verdicts == ["PlanWaits"] * 3 + [plans.TAKEN] * 3  # the handshake, two more before rounds; then it has part


@pytest.mark.usefixtures("probe")
def test_a_quorum_of_people_is_waited_for_until_the_deadline(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "ASK_AGAIN_SECONDS", 0.1)
    wanted = config(world, rounds=1)
    short = dataclasses.replace(wanted, federation=dataclasses.replace(wanted.federation, deadline=2.0))
    everybody = {name: {"approve": "ask"} for name in ("north", "east", "south")}
    began = time.monotonic()
    with pytest.raises(
        RunFailed, match=r"only 0 sites passed the handshake: east: plan \w+ waits for local approval; n"
    ):
        start(tmp_path / "late", short, policies=everybody)
    assert time.monotonic() - began >= 2.0

    folder, calls = tmp_path / "run", 0

    def say_yes(name: str, reply: Message) -> Message | None:
        nonlocal calls
        calls += 1
        if calls == 5:  # in the second turn of the handshake
            for one in ("north", "south"):
                state = folder / "sites" / one
                decide(state, listing(state)[0].id, "approved")
        return reply

    start(folder, wanted, spoil=say_yes, policies=everybody)
    assert sorted(facts.read(folder / "rounds.jsonl")[-1].sites) == ["north", "south"]


@pytest.mark.usefixtures("probe")
def test_a_site_whose_day_is_over_refuses_rounds_and_the_others_go_on(world: Path, tmp_path: Path) -> None:
    start(tmp_path / "run", config(world), policies={"north": {"max-rounds-per-day": "2"}})
    history = facts.read(tmp_path / "run" / "rounds.jsonl")
    assert [one.sites["north"].status for one in history] == ["ok", "ok", "refused", "refused"]
    assert "max_rounds_per_day=2, and 2 were done" in history[-1].refusals[0]
    assert all(one.sites[name].status == "ok" for one in history for name in ("east", "south"))
