"""`lacuna-site budget` says what a ledger says, never less, and what a run would cost before it starts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.privacy.chargers import TERMS
from typer.testing import CliRunner

from client.cli.cli import app
from client.privacy import budget_view as view
from client.privacy.budget import Budget
from shared.base.errors import BudgetSpent, ConfigError, DataError
from shared.plan import config
from shared.plan.config import Config
from shared.trust import privacy
from shared.trust.privacy import Query

pytestmark = pytest.mark.slow  # left out of `make fast`

STEP, SUMS = Query(noise=2.0, rate=0.1), Query(noise=5.0, rate=1.0)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    with Budget.open(tmp_path / "privacy", **TERMS) as ledger:
        ledger.charge(SUMS, 1, run="glioma-1", phase="sums", round=0)
        ledger.charge(STEP, 100, run="glioma-1", phase="translate", round=0)
        ledger.charge(STEP, 20, run="vessels-2", phase="bridge", round=3)
    return tmp_path


def said(*words: object) -> str:
    done = CliRunner().invoke(app, ["budget", *map(str, words)])
    if done.exception is not None:
        raise done.exception
    return done.output


def run_config(**changes: Any) -> Config:
    made = config.load(["privacy=dp", "tuning.start=none", "size=tiny", "privacy.noise=2.0", "tracking=none"])
    return config.with_changes(made, privacy=replace(made.privacy, **changes))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_table_adds_up_to_the_ledger(state: Path) -> None:
    found = json.loads(said(state, "--json"))
    with Budget.look(state / "privacy") as ledger:
        assert (found["epsilon"], found["bound"]) == (ledger.epsilon(), ledger.bound())
        assert found["left"] == pytest.approx(ledger.budget - ledger.bound())
        assert (found["rows"], found["head"]) == (ledger.sequence, ledger.head)
        total: dict[Query, int] = {}
        for run in found["runs"]:
            for one in run["queries"]:
                total = privacy.together(total, {Query(noise=one["noise"], rate=one["rate"]): one["steps"]})
            assert sum(run["phases"].values()) == sum(one["steps"] for one in run["queries"])
            assert run["epsilon"] < found["epsilon"]
        assert total == ledger.spending()
    text = said(state)
    assert f"epsilon {view.up(found['epsilon'])} (PRV), {view.up(found['bound'])} by the gate (RDP)" in text
    assert "chain       whole, 4 rows" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("glioma-1 sums, translate 100 + 1 2 + 5 0.1 + 1 ") for line in lines)
    assert any(line.startswith("vessels-2 bridge 20 2 0.1 ") for line in lines)


def test_no_figure_is_rounded_towards_more_privacy() -> None:
    assert (view.up(1.0), view.up(1.0001), view.up(1.009)) == ("1", "1.01", "1.01")
    assert (view.down(1.0), view.down(1.0099), view.down(0.001)) == ("1", "1", "0")


def test_the_budget_is_set_with_a_reason_that_is_shown_from_then_on(state: Path) -> None:
    with pytest.raises(ConfigError, match="why=''"):
        said(state, "--set-epsilon", 9)
    assert "budget 9, about 200 subjects: the board, 3 March" in said(
        state, "--set-epsilon", 9, "--why", "the board, 3 March"
    )
    assert "budget 9, about 250 subjects: more patients" in said(state, "--set-size", 250, "--why", "more patients")
    text = said(state)
    assert "budget 8, about 200 subjects: enrolled" in text
    assert "budget      epsilon 9, delta 1e-05, about 250 subjects" in text


def test_a_refused_run_is_shown_with_what_it_asked(state: Path) -> None:
    with Budget.open(state / "privacy") as ledger, pytest.raises(BudgetSpent):
        ledger.charge(STEP, 10**6, run="greedy", phase="translate", round=0)
    text = said(state)
    assert "left        epsilon 0 by the gate; a run was refused, and nothing is admitted" in text
    assert "refused to greedy: 1000000 steps at noise 2, rate 0.1 would come to" in text


def test_a_plan_costs_what_the_run_then_charges(state: Path) -> None:
    plan = run_config()
    found = json.loads(said(state, "--plan", write(state / "config.json", plan.text()), "--json"))
    more = plan.for_sites().queries(plan.build_method())
    assert found["alone"]["bound"] == pytest.approx(privacy.bound(more, 1e-5))
    assert found["fits"]
    sent = json.loads(said(state, "--plan", write(state / "sent.json", plan.for_sites().text()), "--json"))
    assert sent == found
    with Budget.open(state / "privacy") as ledger:
        for query, steps in more.items():
            ledger.charge(query, steps, run="planned", phase="translate", round=0)
        assert found["total"]["bound"] == pytest.approx(ledger.bound())
        assert found["total"]["epsilon"] == pytest.approx(ledger.epsilon())


def test_a_plan_that_does_not_fit_ends_with_the_code_of_a_spent_budget(state: Path) -> None:
    plan = write(state / "config.json", run_config(noise=0.5).text())
    done = CliRunner().invoke(app, ["budget", str(state), "--plan", str(plan)])
    assert isinstance(done.exception, BudgetSpent)
    assert done.exception.exit_code == 4
    assert "alone       epsilon " in done.output
    assert "it fits" not in done.output
    with Budget.look(state / "privacy") as ledger:
        assert not ledger.latched, "asking is no charge"
        assert ledger.sequence == 4


def test_nothing_fits_a_budget_that_was_spent(state: Path) -> None:
    with Budget.open(state / "privacy") as ledger, pytest.raises(BudgetSpent):
        ledger.charge(STEP, 10**6, run="greedy", phase="translate", round=0)
    with pytest.raises(BudgetSpent, match="an earlier run was refused"):
        said(state, "--plan", write(state / "config.json", run_config(noise=500.0).text()))


def test_a_plan_at_a_site_that_is_not_enrolled_is_held_against_the_runs_own_terms(tmp_path: Path) -> None:
    plan = write(tmp_path / "config.json", run_config(epsilon=50.0, delta=1e-6).text())
    text = said(tmp_path, "--plan", plan)
    assert "budget      epsilon 50, delta 1e-06 (the run's own: this site has made none yet)" in text
    assert list(tmp_path.iterdir()) == [plan]


def test_a_run_without_privacy_is_not_charged_and_that_is_said(state: Path) -> None:
    plan = write(state / "config.json", run_config(mode="off", noise=None).text())
    assert "the run asks for no differential privacy" in said(state, "--plan", plan)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"federation": 1}', "nonsense"])
def test_a_plan_that_is_no_runs_settings_is_refused(text: str, state: Path) -> None:
    with pytest.raises(ConfigError):
        said(state, "--plan", write(state / "config.json", text))


def test_a_plan_whose_noise_is_not_a_number_yet_is_refused(state: Path) -> None:
    with pytest.raises(ConfigError, match="noise=null"):
        said(state, "--plan", write(state / "config.json", run_config(noise=None).text()))


def test_the_verb_makes_a_budget_and_later_changes_it(tmp_path: Path) -> None:
    said(tmp_path, "--set-epsilon", 8, "--set-size", 70)
    with Budget.look(tmp_path / "privacy") as own:
        assert (own.budget, own.delta, own.size) == (8.0, 1e-5, 70)
    said(tmp_path, "--set-epsilon", 9, "--why", "the board said so")
    with pytest.raises(ConfigError, match="it can't be changed"):
        said(tmp_path, "--set-epsilon", 10, "--delta", 1e-6, "--why", "none")
    with Budget.look(tmp_path / "privacy") as own:
        assert (own.budget, own.delta) == (9.0, 1e-5)


def test_where_there_is_no_ledger_or_a_broken_one_the_verb_says_so(state: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has never been enrolled"):
        said(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="to make one name epsilon and size"):
        said(tmp_path / "elsewhere", "--set-epsilon", 9, "--why", "none")
    (state / "privacy" / "ledger.db").unlink()
    for words in ((), ("--set-epsilon", 9, "--why", "none"), ("--plan", write(state / "c.json", run_config().text()))):
        with pytest.raises(DataError, match="missing or empty, but this site is enrolled"):
            said(state, *words)
