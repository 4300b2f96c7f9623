"""Private sites in a federation: what they tell, what they charge, who refuses whom, and what a kill can't undo."""

import dataclasses
import json
import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile.test_egress import RecordingGrid
from safetensors.torch import load_file
from support.cohort.worlds import prepare_here, write_cohort, write_world
from support.rounds.federation import config, write

from client.privacy.budget import Budget
from server.journal import facts
from server.rounds.ledgers import Ledgers
from server.runs import simulation
from server.runs.serve import serve as carry_out
from shared.base.errors import ConfigError, DataError, RunFailed, UpdateRejected
from shared.base.options import plain
from shared.base.records import Spent
from shared.plan import wire
from shared.plan.config import Config
from shared.plan.settings import Tuning
from shared.trust import claims
from shared.trust.privacy import Privacy, Query, bound, epsilon

pytestmark = [pytest.mark.usefixtures("probe"), pytest.mark.slow]

STEP, SUMS = Query(noise=3.0, rate=0.3), Query(noise=20.0, rate=1.0)
PRIVATE = Privacy(mode="on", noise=3.0, rate=0.3, epsilon=50.0, sums_noise=20.0)
SITES = {"north": [("T1", "T2")] * 6, "east": [("T1", "FLAIR")] * 6, "south": [("T1", "T2", "FLAIR")] * 6}


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("private"), SITES)


def private(world: Path, *, rounds: int = 2, privacy: Privacy = PRIVATE, **federation: Any) -> Config:
    return dataclasses.replace(config(world, rounds=rounds, **federation), privacy=privacy)


def serve(wanted: Config, folder: Path) -> tuple[Path, RecordingGrid]:
    if not (folder / "config.json").exists():
        write(folder, wanted)
    nodes = simulation._node_configs(wanted, folder, simulation.find_cohorts(wanted))
    grid = RecordingGrid(simulation.client_app(), nodes)
    carry_out(grid, folder, quiet=True)
    return folder, grid


def ledger(folder: Path, site: str) -> Budget:
    return Budget.look(folder / "sites" / site / "privacy")


def provenance(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "final" / "model.json").read_text())["provenance"]
    return found


# --- what is charged and told ---------------------------------------------------------------------------------------


def test_every_step_is_charged_and_what_is_told_is_what_the_ledger_holds(hospitals: Path, tmp_path: Path) -> None:
    wanted = private(hospitals)
    folder, _ = serve(wanted, tmp_path / "run")
    asked = wanted.for_sites().queries(wanted.build_method())
    assert asked == {STEP: 2 * 4, SUMS: 1}
    for site in SITES:
        own = ledger(folder, site)
        assert own.spending() == asked
        told = Ledgers.of(wanted, folder).last(site)
        assert told == own.spent(others=0)
        assert told.epsilon == epsilon(asked, 1e-5) <= bound(asked, 1e-5)
    last = facts.read(folder / "rounds.jsonl")[-1]
    assert {one.epsilon_spent for one in last.sites.values()} == {epsilon(asked, 1e-5)}
    record = claims.read(provenance(folder))
    assert [(one.site, one.steps, one.sums) for one in record.private] == [(site, 8, 1) for site in sorted(SITES)]
    assert record.not_private == ()


def test_no_loss_time_or_true_count_leaves_a_private_site(hospitals: Path, tmp_path: Path) -> None:
    """The same plan at two sites with the same patterns, other images and other numbers of subjects: the same words."""
    world = tmp_path / "world"
    for i, (site, n) in enumerate({"few": 5, "many": 9}.items()):
        prepare_here(write_cohort(world / "sites" / site, site, [("T1", "T2", "FLAIR")] * n, seed=10 + i))
    folder, _ = serve(private(world), tmp_path / "run")
    entries = {}
    for site in ("few", "many"):
        lines = (folder / "sites" / site / "ledger.jsonl").read_text().splitlines()
        entries[site] = [json.loads(line)["fields"] for line in lines]
    for few, many in zip(entries["few"], entries["many"], strict=True):
        assert few.keys() == many.keys()
        for key in few.keys() - {"update.site", "update.spent", "inventory.site", "inventory.spent", "ledger.before"}:
            assert few[key] == many[key], key
    updates = [one for one in entries["few"] if "update.metrics" in one]
    assert [json.loads(one["update.metrics"]) for one in updates] == [{}, {"samples": 16.0}, {"samples": 16.0}]
    words = json.loads(entries["few"][0]["inventory.spent"])
    assert words["size"] == 10  # of 5 subjects: a round figure


def test_a_federation_of_noise_alone_moves_by_the_noise(hospitals: Path, tmp_path: Path) -> None:
    """With all gradients clipped to almost nothing against the noise, the deltas have the noise's spread."""
    noisy = dataclasses.replace(PRIVATE, clip=1e-6, noise=1e3, sums_noise=1e3)
    wanted = private(hospitals, rounds=1, privacy=noisy)
    sgd = dataclasses.replace(wanted.training["fit"], optimizer="sgd", lr=1.0, steps=1, ema=0.0)
    wanted = dataclasses.replace(wanted, training={"fit": sgd})
    folder, _ = serve(wanted, tmp_path / "run")
    end = load_file(folder / "final" / "weights.safetensors")
    start = wanted.for_sites().build_net(wanted.build_method()).state_dict()
    moved = torch.cat([(end[name] - start[name]).flatten() for name in ("body.weight", "body.bias", "stem.bias")])
    sd = 1e3 * 1e-6 / (0.3 * 10) / math.sqrt(3)  # noise x clip over the expected subjects, mean of three sites
    assert 0.6 * sd < moved.std().item() < 1.5 * sd


# --- who refuses whom -----------------------------------------------------------------------------------------------


def test_a_site_that_requires_privacy_refuses_a_run_without(hospitals: Path, tmp_path: Path) -> None:
    off = dataclasses.replace(PRIVATE, mode="off", sites={"north": 3.0})
    folder, _ = serve(private(hospitals, privacy=off), tmp_path / "run")
    assert set(facts.read(folder / "rounds.jsonl")[-1].sites) == {"east", "south"}
    assert not (folder / "sites" / "north" / "privacy").exists()
    assert claims.short(claims.read(provenance(folder))) == "no differential privacy"


def test_one_private_site_among_others_and_its_end_does_not_end_the_run(hospitals: Path, tmp_path: Path) -> None:
    one_round = {STEP: 4, SUMS: 1}
    budget = bound({STEP: 8, SUMS: 1}, 1e-5) * 1.001
    assert bound(one_round, 1e-5) < budget < bound({STEP: 12, SUMS: 1}, 1e-5)
    mixed = dataclasses.replace(PRIVATE, mode="mixed", sites={"north": budget})
    folder, _ = serve(private(hospitals, rounds=4, privacy=mixed), tmp_path / "run")
    history = [one for one in facts.read(folder / "rounds.jsonl") if one.phase == "fit"]
    statuses = [one.sites["north"].status if "north" in one.sites else None for one in history]
    assert statuses == ["ok", "ok", "refused", None]
    assert "privacy budget of epsilon" in history[2].refusals[0]
    assert all(one.sites[site].status == "ok" for one in history for site in ("east", "south"))
    assert ledger(folder, "north").spending() == {STEP: 8, SUMS: 1}
    record = claims.read(provenance(folder))
    assert ([one.site for one in record.private], record.not_private) == (["north"], ("east", "south"))
    assert record.private[0].steps == 8


def test_without_quorum_a_spent_budget_ends_the_run_with_its_reason(hospitals: Path, tmp_path: Path) -> None:
    poor = dataclasses.replace(
        PRIVATE, epsilon=1.0, sites=dict.fromkeys(SITES, bound({STEP: 4, SUMS: 1}, 1e-5) * 1.001)
    )
    with pytest.raises(RunFailed, match="privacy budget of epsilon"):
        serve(private(hospitals, rounds=4, privacy=poor), tmp_path / "run")


def test_a_budget_holds_over_runs(hospitals: Path, tmp_path: Path) -> None:
    """A second run over the same disks goes on in the same ledgers."""
    enough = dict.fromkeys(SITES, bound({STEP: 16, SUMS: 2}, 1e-5) * 1.001)
    disks = str(tmp_path / "disks")
    wanted = private(hospitals, privacy=dataclasses.replace(PRIVATE, epsilon=1.0, sites=enough), disks=disks)
    for run in ("first", "second"):
        serve(wanted, tmp_path / run)
    with Budget.look(tmp_path / "disks" / "north" / "privacy") as own:
        assert own.spending() == {STEP: 16, SUMS: 2}
        assert [one.run for one in own.by_run()] == ["first", "second"]
    with pytest.raises(RunFailed, match="privacy budget"):
        serve(wanted, tmp_path / "third")


def test_a_rolled_back_ledger_is_refused_by_the_coordinator_and_by_the_site(hospitals: Path, tmp_path: Path) -> None:
    disks = tmp_path / "disks"
    wanted = private(hospitals, disks=str(disks))
    serve(wanted, tmp_path / "first")
    shutil.copytree(disks / "north", tmp_path / "backup")
    serve(wanted, tmp_path / "second")
    shutil.rmtree(disks / "north")
    shutil.copytree(tmp_path / "backup", disks / "north")
    serve(wanted, tmp_path / "third")
    rounds = facts.read(tmp_path / "third" / "rounds.jsonl")
    assert all("north" not in one.sites for one in rounds)  # refused at the handshake
    (tmp_path / "ledgers.json").unlink()  # as if it had asked the site behind the coordinator's back
    serve(wanted, tmp_path / "fourth")
    later = Ledgers.of(wanted, tmp_path / "x").last("north")
    assert later is not None
    seen = Spent(**{**plain(later), "sequence": later.sequence - 1, "head": "0" * 64})
    (tmp_path / "ledgers.json").write_text(json.dumps({"north": plain(seen)}))
    serve(wanted, tmp_path / "fifth")
    last = facts.read(tmp_path / "fifth" / "rounds.jsonl")[-1]
    assert last.sites["north"].status == "refused"
    assert "not on this site's chain" in last.sites["north"].reason


def test_a_lost_ledger_is_a_refusal_and_not_nought(hospitals: Path, tmp_path: Path) -> None:
    disks = tmp_path / "disks"
    wanted = private(hospitals, disks=str(disks))
    serve(wanted, tmp_path / "first")
    (disks / "north" / "privacy" / "ledger.db").unlink()
    for path in (disks / "north" / "privacy").glob("ledger.db-*"):
        path.unlink()
    serve(wanted, tmp_path / "second")
    assert all("north" not in one.sites for one in facts.read(tmp_path / "second" / "rounds.jsonl"))
    shutil.rmtree(disks / "north")  # all of it: a new site by the same name
    serve(wanted, tmp_path / "third")
    assert all("north" not in one.sites for one in facts.read(tmp_path / "third" / "rounds.jsonl"))


def spent(**changes: Any) -> Spent:
    facts_of_it: dict[str, Any] = {
        "ledger": "ab" * 16,
        "sequence": 7,
        "head": "cd" * 32,
        "epsilon": 1.0,
        "budget": 8.0,
        "delta": 1e-5,
        "size": 70,
        "others": 0,
    }
    return Spent(**{**facts_of_it, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sequence": 6}, "rolled back"),
        ({"ledger": "ef" * 16, "sequence": 9}, "forgets what was spent"),
        ({}, "nothing was charged"),
        ({"head": "00" * 32}, "nothing was charged"),
    ],
)
def test_a_word_on_a_budget_must_follow_from_the_one_before(changes: Any, says: str, tmp_path: Path) -> None:
    ledgers = Ledgers(tmp_path / "ledgers.json", "on")
    ledgers._check("north", spent(), {SUMS: 1})
    ledgers._seen["north"] = spent()
    with pytest.raises(UpdateRejected, match=says):
        ledgers._check("north", spent(**changes), {SUMS: 1})
    ledgers._check("north", spent(sequence=8, head="11" * 32), {SUMS: 1})
    with pytest.raises(UpdateRejected, match="does not say what it has spent"):
        ledgers._check("north", None, {SUMS: 1})


def test_a_damaged_memory_of_ledgers_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "ledgers.json").write_text('{"north": {"sequence": 3}}')
    with pytest.raises(DataError, match="damaged"):
        Ledgers(tmp_path / "ledgers.json", "on")


@pytest.mark.parametrize(
    "text",
    [
        '{"ledger": 3}',
        "[]",
        "{",
        json.dumps(plain(spent(head="x" * 64))),
        json.dumps(plain(spent(epsilon=-1.0))),
        json.dumps(plain(spent(sequence=-1))),
        json.dumps({**plain(spent()), "epsilon": math.inf}),
    ],
)
def test_a_malformed_word_on_a_budget_is_not_read(text: str) -> None:
    with pytest.raises((ValueError, ConfigError, TypeError)):
        wire._unpack_spent(text)


def test_the_same_person_under_two_names_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lacuna.site"), "disabled", False)  # MLflow's migrations disable all loggers
    bids = write_cohort(tmp_path / "sites" / "north", "north", [("T1", "T2")] * 5, seed=1)
    first, second = sorted(bids.glob("sub-*"))[:2]
    for path in second.rglob("*.nii.gz"):
        twin = next(first.rglob("*" + path.name.split("_", 1)[1]))
        shutil.copy(twin, path)
    prepare_here(bids)
    prepare_here(write_cohort(tmp_path / "sites" / "east", "east", [("T1", "T2")] * 5, seed=2))
    with pytest.raises(RunFailed, match="north: its data can't be used, see its log"):
        serve(private(tmp_path), tmp_path / "run")
    assert "two subjects of the cohort have the same images" in caplog.text


# --- where a run starts ---------------------------------------------------------------------------------------------


def test_a_private_run_starts_from_a_public_prior(hospitals: Path, tmp_path: Path) -> None:
    """Its constants are the prior's, its first weights too; one that nobody called public is refused."""
    open_ = dataclasses.replace(config(hospitals, rounds=1), runs=str(tmp_path))
    serve(open_, tmp_path / "secret")
    serve(dataclasses.replace(open_, public="made-up blobs"), tmp_path / "prior")
    still = dataclasses.replace(PRIVATE, clip=1e-9)
    wanted = dataclasses.replace(private(hospitals, privacy=still), runs=str(tmp_path))
    serve(dataclasses.replace(wanted, tuning=Tuning(start="prior")), tmp_path / "run")
    before, after = (load_file(tmp_path / run / "final" / "weights.safetensors") for run in ("prior", "run"))
    assert torch.equal(before["level.mean_M"], after["level.mean_M"])
    assert ledger(tmp_path / "run", "north").spending() == {STEP: 8}  # no sums: the prior brought them
    assert claims.read(provenance(tmp_path / "run")).prior is not None
    with pytest.raises(ConfigError, match="nobody called public"):
        serve(dataclasses.replace(wanted, tuning=Tuning(start="secret")), tmp_path / "refused")
    with pytest.raises(ConfigError, match="no finished run"):
        serve(dataclasses.replace(wanted, tuning=Tuning(start="nowhere")), tmp_path / "refused2")


@pytest.mark.parametrize("tuning", [Tuning(lora=2), Tuning(only=("body.*",)), Tuning(lora=2, only=("head.bias",))])
def test_only_what_was_asked_for_changes(tuning: Tuning, hospitals: Path, tmp_path: Path) -> None:
    wanted = dataclasses.replace(config(hospitals, rounds=1), tuning=tuning)
    folder, _ = serve(wanted, tmp_path / "run")
    end = load_file(folder / "final" / "weights.safetensors")
    start = wanted.build_method().build(wanted.seed).state_dict()
    assert end.keys() == start.keys()  # additions are merged into the weights
    moved = {name for name in end if not torch.equal(end[name], start[name])} - {"level.mean_M"}
    expected = {"body.weight"} if tuning.lora else {"body.weight", "body.bias"}
    assert moved == expected | ({"head.bias"} if "head.bias" in tuning.only else set())
    if tuning.lora:
        change = end["body.weight"] - start["body.weight"]
        assert torch.linalg.matrix_rank(change, atol=1e-5) <= 2


def test_tuning_nothing_is_an_error(hospitals: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tuning.only=\['nose.\*'\]: names no tensor"):
        serve(dataclasses.replace(config(hospitals), tuning=Tuning(only=("nose.*",))), tmp_path / "run")


# --- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_9_again_and_again_never_leaves_less_in_the_ledger_than_was_released(tmp_path: Path) -> None:
    """LACUNA_KILLS=50 for the long form. What a kill made it do again stands in the ledger again."""
    kills = int(os.environ.get("LACUNA_KILLS", "8"))
    program = Path(__file__).parent / "support" / "privacy" / "private_kills.py"
    seed = int.from_bytes(os.urandom(4), "big")  # other moments every time; a failure names it
    command = [sys.executable, str(program), str(tmp_path), str(kills), str(seed)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, f"seed {seed}: {ended.stderr[-2000:]}"
    seen = json.loads(ended.stdout.splitlines()[-1])
    assert seen["finished"], f"seed {seed}"
    assert seen["killed"] >= kills // 2, f"seed {seed}"
    steps = seen["rounds"] * 4 + 1  # and one sum
    assert seen["least_over"] >= 0, f"seed {seed}"
    for site, rows in seen["spending"].items():
        spending = {Query(noise=noise, rate=rate): n for noise, rate, n in rows}
        assert sum(spending.values()) >= steps
        told = seen["told"][site]
        assert told["epsilon"] == pytest.approx(epsilon(spending, 1e-5), rel=1e-9)
        assert told["sequence"] == sum(spending.values()) + 1  # a row of the budget, then one a step
    redone = sum(n for rows in seen["spending"].values() for *_, n in rows) - 2 * steps
    assert redone > 0, f"seed {seed}: no kill fell into a round"
