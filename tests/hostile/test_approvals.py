"""A coordinator that gets a yes for one plan and carries out another: a yes is for what was shown, and that is all."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support.rounds.federation import config
from typer.testing import CliRunner

from client.cli.cli import app
from client.site import plans
from client.site.policy import Policy
from client.site.site import Site
from shared.base.errors import ConfigError, PlanRefused, PlanWaits
from shared.plan.settings import RunSettings

pytestmark = pytest.mark.usefixtures("probe")
HONEST, OTHER = '{"min_cell": 5}', '{"min_cell": 1}'


def ask(state: Path, text: str, run: str = "r") -> None:
    here = Site(name="north", cohorts=(), state=state, policy=Policy(approve="ask"))
    with plans.considered(here, run, text) as mine:
        mine.allowed_here()


def test_a_plan_that_bears_an_approved_ones_id_is_compared_with_what_is_stored(tmp_path: Path) -> None:
    """As if 2^128 tries had been made; of the 48 bits before, 2^24 were enough."""
    with pytest.raises(PlanWaits):
        ask(tmp_path, HONEST)
    plans.decide(tmp_path, plans.plan_id("r", HONEST), "approved")
    with sqlite3.connect(tmp_path / plans.FILE) as file:
        file.execute("UPDATE plans SET id = ?", (plans.plan_id("r", OTHER),))
    with pytest.raises(PlanRefused, match="is stored here with another run or other settings"):
        ask(tmp_path, OTHER)


def test_an_id_is_the_whole_hash_and_what_two_plans_begin_with_names_neither(tmp_path: Path) -> None:
    assert len(plans.plan_id("r", HONEST)) == 64
    for text in (HONEST, OTHER):
        with pytest.raises(PlanWaits):
            ask(tmp_path, text)
    honest, other = (plans.plan_id("r", text) for text in (HONEST, OTHER))
    with sqlite3.connect(tmp_path / plans.FILE) as file:  # the coordinator has ground an id
        file.execute("UPDATE plans SET id = ? WHERE id = ?", (honest[:12] + other[12:], other))
    with pytest.raises(ConfigError, match="2 plans here begin so"):
        plans.decide(tmp_path, honest[:12], "approved")


SHOWN: dict[str, tuple[dict[str, Any], str]] = {
    "min_cell": ({"min_cell": 1}, "min_cell            1\n"),
    "keep_local": ({"keep_local": ["head.*"]}, "keep_local          head.*\n"),
    "steps": ({"training": {"fit": {"steps": 1}}}, "steps 1,"),
    "what is behind an update": ({"training": {"fit": {"steps": 1, "batch": 3}}}, "behind fit          3 samples\n"),
    "batch": ({"training": {"fit": {"batch": 1}}}, "batch 1,"),
    "optimizer": ({"training": {"fit": {"optimizer": "sgd"}}}, "optimizer sgd,"),
    "clip": ({"training": {"fit": {"clip": 0}}}, "clip 0\n"),
    "delta": ({"privacy": {"mode": "on", "delta": 0.009}}, "delta 0.009,"),
    "a subject's clip": ({"privacy": {"mode": "on", "clip": 1e9}}, "clip 1000000000.0\n"),
    "what it starts from": ({"tuning": {"start": "prior"}}, "starts from         prior\n"),
}


@pytest.mark.parametrize("key", SHOWN)
def test_what_a_person_says_yes_to_is_shown(key: str, world: Path, tmp_path: Path) -> None:
    import json

    changes, line = SHOWN[key]
    settings = json.loads(RunSettings.of_run(json.loads(config(world).text())).text())
    for name, value in changes.items():
        if name == "training":
            settings["training"]["fit"] |= value["fit"]
        else:
            settings[name] = {**settings[name], **value} if isinstance(value, dict) else value
    with pytest.raises(PlanWaits):
        ask(tmp_path, json.dumps(settings))
    (plan,) = plans.listing(tmp_path)
    shown = CliRunner().invoke(app, ["plans", "show", plan.id, "--state", str(tmp_path)])
    assert shown.exit_code == 0, shown.exception
    assert plan.id in shown.stdout
    assert line in shown.stdout
    for rule in ("here: min_samples   a round's update is of 32", "here: min_holders   what fewer than 3 sites"):
        assert rule in shown.stdout
