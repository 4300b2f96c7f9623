"""The site's policy: where it is read, that no key is ignored, and what each rule lets in."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.rounds.federation import config
from typer.testing import CliRunner

from client.cli.cli import app
from client.site import checks
from client.site.enrol import init_site
from client.site.policy import RULES, Policy, make_policy
from client.site.settings import SETTINGS, read_file
from client.site.site import Site, find_site
from shared.base.errors import ConfigError, DataError, PlanRefused
from shared.base.files import canonical
from shared.base.records import RELEASED
from shared.plan.settings import RunSettings
from shared.trust.manifest import Intensities, Manifest, Plane

pytestmark = pytest.mark.usefixtures("probe")
AGREED = Manifest(
    federation="strokes",
    version=1,
    before="",
    made="2026-11-21T00:00:00Z",
    lacuna="0.1.0",
    modalities=("T1", "T2", "FLAIR"),
    intensities=Intensities(version="1", rules=dict.fromkeys(("T1", "T2", "FLAIR"))),
    methods=("probe", "amm_diff"),
    min_holders=2,
    quorum=2,
    grid=Plane(height=16, width=16),
)
KIT = AGREED.digest


def toml(state: Path, text: str) -> Path:
    state.mkdir(parents=True, exist_ok=True)
    (state / SETTINGS).write_text(f'[site]\ncohorts = ["/data"]\n\n[policy]\n{text}\n')
    return state


def install(state: Path, agreed: Manifest = AGREED) -> None:
    """Of a kit, what `lacuna-site join` leaves of its head and its manifest."""
    (state / "federation").mkdir(parents=True)
    (state / checks.KIT).write_bytes(canonical({"manifest": agreed.digest}))
    (state / checks.AGREED).write_bytes(agreed.content())


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_policy_is_read_from_both_places_and_typed(tmp_path: Path) -> None:
    state = toml(tmp_path, 'methods = ["amm_diff"]\nmax_hours_per_day = 8\napprove = "ask"')
    node = {"min-subjects": "20", "metrics": "loss, samples", "epsilon": 3.0, "max-hours-per-day": "8.0"}
    assert make_policy(read_file(state).policy, node) == (
        Policy(
            methods=("amm_diff",),
            max_hours_per_day=8.0,
            approve="ask",
            min_subjects=20,
            metrics=("loss", "samples"),
            epsilon=3.0,
        )
    )
    assert make_policy(read_file(tmp_path / "nothing").policy) == Policy()


WRONG = {
    "min_samples = 0": "policy.min_samples=0: must be 1 or more",
    "max_rounds = 0": "policy.max_rounds=0: must be 1 or more",
    "min_cell = 0": "policy.min_cell=0: must be 1 or more",
    "repeats = 'never'": "policy.repeats='never': must be one of same, any",
    "methdos = ['amm_diff']": r"policy.methdos=\['amm_diff'\]: unknown key; policy takes .*methods",
    "methods = ['amm-diff']": "policy.methods='amm-diff': must be among amm_diff, ",
    "methods = []": "policy.methods=.*one or more; leave the key out for no rule",
    "methods = 'amm_diff'": "policy.methods='amm_diff': must be a list",
    "sizes = ['big']": "policy.sizes='big': must be among tiny, small, paper",
    "metrics = ['mmse']": "policy.metrics='mmse': must be among loss, samples",
    "max_rounds_per_day = 0": "policy.max_rounds_per_day=0: must be 1 or more",
    "max_hours_per_day = 0.0": "policy.max_hours_per_day=0.0: must be above 0",
    "max_hours_per_day = nan": "policy.max_hours_per_day=nan: must be above 0",
    "min_subjects = true": "policy.min_subjects=True: must be int",
    "epsilon = -1.0": "policy.epsilon=-1.0: must be above 0",
    "manifest = 'yes'": "policy.manifest='yes': must be installed, any, or the 64 hex digits",
    "approve = 'maybe'": "policy.approve='maybe': must be one of auto, ask",
    "approve = ": "is no TOML",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_key_or_value_that_is_not_ours_is_an_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=WRONG[text]):
        make_policy(read_file(toml(tmp_path, text)).policy)
    assert isinstance(CliRunner().invoke(app, ["policy", "--check", "--state", str(tmp_path)]).exception, ConfigError)


def test_the_node_config_is_no_way_round(tmp_path: Path) -> None:
    state = toml(tmp_path, "min_subjects = 20")
    node = {"site": "north", "cohort": "/data", "state": str(state)}
    assert find_site({**node, "min-subjects": 20}).policy.min_subjects == 20
    with pytest.raises(
        ConfigError, match=r"policy.min_subjects: 1 in the node config and 20 in site.toml; say it once"
    ):
        find_site({**node, "min-subjects": 1})
    with pytest.raises(ConfigError, match=r"policy\.min_subject=1: unknown key"):
        find_site({**node, "min-subject": 1})


def test_every_key_is_told_in_words(tmp_path: Path) -> None:
    assert [key for key, _ in Policy().words() if key not in ("delta", "about")] == [
        one.name for one in dataclasses.fields(Policy) if one.name not in ("delta", "about")
    ]
    state = toml(tmp_path, "max_rounds_per_day = 3\nepsilon = 4.0")
    said = CliRunner().invoke(app, ["policy", "--state", str(state)]).stdout
    assert "at most 3 rounds in any 24 hours" in said
    assert "trains privately only, and spends 4 in all" in said
    assert "used                0 rounds and 0.00 hours" in said


def test_the_file_that_init_writes_explains_every_key_and_sets_none(tmp_path: Path) -> None:
    """And each of its lines is a rule as soon as its first # is gone: the default, or an example."""
    init_site(tmp_path, "north")
    text = (tmp_path / SETTINGS).read_text()
    assert make_policy(read_file(tmp_path).policy) == Policy()
    keys = [one.name for one in dataclasses.fields(Policy)]
    assert re.findall(r"^# (\w+) = .*# \w", text, re.MULTILINE) == ["cohorts", *[k for k in keys if k != "sizes"]]
    (tmp_path / SETTINGS).write_text(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    uncommented = make_policy(read_file(tmp_path).policy)
    assert set(read_file(tmp_path).policy) == set(keys)
    assert {key: getattr(uncommented, key) for key in RULES if key != "epsilon"} == {
        key: getattr(Policy(), key) for key in RULES if key != "epsilon"
    }
    (tmp_path / SETTINGS).write_text("[policy]\nmin_subjects = 9\n")
    init_site(tmp_path, "north", again=True)
    assert make_policy(read_file(tmp_path).policy).min_subjects == 9  # what a person wrote stays


# --- checking -------------------------------------------------------------------------------------------------------


def settings(tmp_path: Path, **changes: Any) -> RunSettings:
    return dataclasses.replace(config(tmp_path).for_sites(), **changes)


def site(tmp_path: Path, **rules: Any) -> Site:
    return Site(name="north", cohorts=(), state=tmp_path, policy=Policy(**({"min_holders": 2} | rules)))


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "method": ({"methods": ("amm_diff",)}, {}, "plan.method=probe: this site's policy allows only methods: amm_diff"),
    "size": ({"sizes": ("tiny",)}, {}, "plan.size=small: this site's policy allows only sizes: tiny"),
    "holders": ({"min_holders": 3}, {}, "plan.min_holders=2: this site's policy allows only min_holders: at least 3"),
    "rounds": (
        {"max_rounds": 3},
        {},
        "plan.rounds=4: this site's policy allows only max_rounds: at most 3, over all phases of a run",
    ),
    "no manifest": ({}, {}, f"plan.manifest=None: .* manifest: {KIT}"),
    "no manifest, asked for": ({"manifest": "installed"}, {}, f"plan.manifest=None: .* manifest: {KIT}"),
    "another manifest": ({}, {"manifest": "b" * 64}, f"plan.manifest=b{{64}}: .* manifest: {KIT}"),
    "not this manifest": ({"manifest": "c" * 64}, {"manifest": KIT}, f"plan.manifest={KIT}: .* manifest: c{{64}}"),
}
ALLOWED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no rule": ({}, {"manifest": KIT}),
    "method": ({"methods": ("amm_diff", "probe")}, {"manifest": KIT}),
    "holders": ({"min_holders": 2}, {"manifest": KIT}),
    "rounds": ({"max_rounds": 4}, {"manifest": KIT}),
    "manifest": ({"manifest": "installed"}, {"manifest": KIT}),
    "any manifest": ({"manifest": "any"}, {"manifest": "b" * 64}),
    "this manifest": ({"manifest": "c" * 64}, {"manifest": "c" * 64}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_plan_outside_the_policy_is_refused_with_key_value_and_rule(what: str, tmp_path: Path) -> None:
    rules, changes, says = REFUSED[what]
    install(tmp_path)
    asked = settings(tmp_path, **changes)
    with pytest.raises(PlanRefused, match=f"north: {says}"):
        checks.check(site(tmp_path, **rules), asked, asked.build_method())


@pytest.mark.parametrize("what", ALLOWED)
def test_a_plan_within_it_is_not(what: str, tmp_path: Path) -> None:
    rules, changes = ALLOWED[what]
    install(tmp_path)
    asked = settings(tmp_path, **changes)
    checks.check(site(tmp_path, **rules), asked, asked.build_method())


def test_without_a_kit_there_is_no_manifest_to_keep_to(tmp_path: Path) -> None:
    asked = settings(tmp_path, manifest="b" * 64)
    checks.check(site(tmp_path), asked, asked.build_method())
    with pytest.raises(PlanRefused, match="manifest=installed, and no kit is installed here"):
        checks.check(site(tmp_path, manifest="installed"), asked, asked.build_method())


UNLIKE: dict[str, tuple[dict[str, Any], str]] = {
    "method": (
        {"methods": ("amm_diff",)},
        "plan.method=probe: the federation's manifest, which it names, has amm_diff",
    ),
    "holders": ({"min_holders": 3, "quorum": 3}, "plan.min_holders=2: .* has 3 or more"),
    "grid": ({"grid": Plane(height=16, width=16, spacing_mm=2.0)}, "plan.grid=16x16: .* has 16x16@2"),
    "slices": ({"grid": Plane(height=16, width=16, slice_mm=2.0)}, "plan.grid=16x16: .* has 16x16@ownx2"),
    "modalities": (
        {"modalities": ("T1", "T2"), "intensities": Intensities(version="1", rules=dict.fromkeys(("T1", "T2")))},
        "plan.modalities=FLAIR: .* has T1, T2",
    ),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_a_plan_must_keep_to_what_was_agreed_and_name_it(what: str, tmp_path: Path) -> None:
    changes, says = UNLIKE[what]
    agreed = dataclasses.replace(AGREED, **changes)
    install(tmp_path, agreed)
    asked = settings(tmp_path, manifest=agreed.digest)
    with pytest.raises(PlanRefused, match=says):
        checks.check(site(tmp_path), asked, asked.build_method())
    unnamed = settings(tmp_path)
    with pytest.raises(PlanRefused, match=f"plan.manifest=None: .* manifest: {agreed.digest}"):
        checks.check(site(tmp_path), unnamed, unnamed.build_method())


def test_a_manifest_that_is_not_the_kits_is_no_manifest(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / checks.AGREED).write_bytes(dataclasses.replace(AGREED, min_holders=1).content())
    asked = settings(tmp_path)
    with pytest.raises(DataError, match="has not the hash"):
        checks.check(site(tmp_path), asked, asked.build_method())


ROUNDS: dict[str, tuple[str, int, str | None]] = {
    "the last of the run": ("fit", 2, None),
    "the sums": ("level", 0, None),
    "one more": ("fit", 3, "plan.round=3: .* fit has the rounds 0 to 2"),
    "a second time the sums": ("level", 1, "plan.round=1: .* level has the rounds 0 to 0"),
    "before the first": ("fit", -1, "plan.round=-1"),
    "a phase of another method": (
        "translate",
        0,
        "plan.phase=translate: this site's policy allows only the method: level",
    ),
}


@pytest.mark.parametrize("what", ROUNDS)
def test_a_round_must_be_one_of_the_runs_own(what: str, tmp_path: Path) -> None:
    phase, number, says = ROUNDS[what]
    asked = settings(tmp_path)
    done: Callable[[], None] = lambda: checks.check_round(  # noqa: E731
        site(tmp_path), asked, asked.build_method(), phase, number
    )
    if says is None:
        done()
    else:
        with pytest.raises(PlanRefused, match=says):
            done()


def test_a_phase_that_is_not_allowed_is_refused_before_and_in_its_round(tmp_path: Path) -> None:
    asked, here = settings(tmp_path), site(tmp_path, phases=("level",))
    method, held = asked.build_method(), {("T1", "T2"): 5}
    says = "plan.phase=fit: this site's policy allows only phases: level"
    assert checks.why_not(here, method, held, "fit") == says
    assert checks.why_not(here, method, held, "level") is None
    with pytest.raises(PlanRefused, match=says):
        checks.check_round(here, asked, method, "fit", 0)


def test_metrics_that_are_not_allowed_are_left_out_and_nothing_is_refused() -> None:
    every = dict.fromkeys(RELEASED, 1.0)
    assert Policy().releasable(every) == every
    assert Policy(metrics=("loss",)).releasable(every) == {"loss": 1.0}
    assert Policy(metrics=()).releasable(every) == {}
