"""MMDM over sites that each lack something: who trains what, who is turned away, and what nobody may touch."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.cohort.worlds import write_world
from support.rounds.federation import config, write

from server.journal import facts
from server.runs import simulation
from server.runs.local_grid import LocalGrid
from server.runs.serve import serve as carry_out
from shared.base.errors import PlanRefused, RunFailed
from shared.diffusion.samplers import Sampler
from shared.model.model import read_model
from shared.plan.config import Config, build_method
from shared.plan.settings import Choice
from shared.plan.training import PhaseTraining

WHOLE = ("T1", "T2", "FLAIR", "TOF")
OPTIONS = {"modalities": list(WHOLE), "size": "tiny", "slab": 3, "times": 20, "precision": "fp32"}


def wanted(world: Path, **federation: object) -> Config:
    training = {"bridge": PhaseTraining(rounds=2, steps=3, batch=2, lr=0.01, ema=0.0)}
    method = Choice(name="mmdm", options=OPTIONS)
    return dataclasses.replace(config(world, min_holders=1, **federation), method=method, training=training)


def serve(folder: Path, of: Config) -> Path:
    write(folder, of)
    cohorts = simulation.find_cohorts(of)
    simulation.prepare_cohorts(of, cohorts)
    grid = LocalGrid(simulation.client_app(), simulation._node_configs(of, folder, cohorts))
    return carry_out(grid, folder, quiet=True)


def test_an_expert_is_trained_where_its_source_is_and_nowhere_else(tmp_path: Path) -> None:
    """No site with the target has FLAIR: its expert, its variance and its slices of the fusion keep every bit."""
    world = write_world(tmp_path / "world", {"north": [("T1", "T2", "TOF")] * 2, "east": [("T1", "TOF")] * 2})
    final = serve(tmp_path / "run", wanted(world, targets=("TOF",)))
    after = load_file(final / "weights.safetensors")
    before = build_method(Choice(name="mmdm", options=OPTIONS)).build(3).state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert not {name for name in moved if "FLAIR" in name}
    assert {name for name in moved if name.startswith("experts.T2.")}
    assert {"naws.rho.T1", "naws.rho.T2", "naws.rho.fused"} <= moved
    stem, first = after["fusion.stem.weight"], before["fusion.stem.weight"]
    slab = 3 * 4  # of a source, its pixels put to depth
    same = [torch.equal(a, b) for a, b in zip(stem.split(slab, dim=1), first.split(slab, dim=1), strict=True)][:6]
    assert same == [False, False, True, False, False, True]  # each estimate, then each source
    last = facts.read(tmp_path / "run" / "rounds.jsonl")[-1]
    assert not last.counts.get("from:FLAIR")
    assert last.holders["from:T1"] == 2
    assert last.holders["from:T2"] == last.holders["beside:T2"] == last.holders["beside:T1"] == 1  # east can't choose


def test_a_site_without_the_target_is_told_so_at_the_handshake(tmp_path: Path) -> None:
    world = write_world(
        tmp_path / "world",
        {"north": [WHOLE] * 2, "east": [("T1", "T2", "TOF")] * 2, "south": [("T1", "T2", "FLAIR")] * 2},
    )
    final = serve(tmp_path / "run", wanted(world))
    assert [set(one.sites) for one in facts.read(tmp_path / "run" / "rounds.jsonl")] == [{"east", "north"}] * 2
    roster = (tmp_path / "run").glob("**/*.json")
    assert any("no subject can train bridge: lacks TOF, which is what is taught" in p.read_text() for p in roster)
    # it still fills in TOF for its own subjects, from any of their images
    model = read_model(final)
    images = torch.rand(1, 4, 3, 16, 16)
    for shown in ([1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]):
        made = model.method.synthesize(
            model.net, images, torch.tensor([shown]).bool(), Sampler(kind="bridge", steps=2), torch.Generator()
        )
        assert bool(made[:, 3].isfinite().all())


def test_nobody_with_the_target_is_no_federation(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", {"north": [("T1", "T2")] * 2, "east": [("T1", "FLAIR")] * 2})
    with pytest.raises((RunFailed, PlanRefused), match="TOF"):
        serve(tmp_path / "run", wanted(world))
