"""Our side of benchmarks/simulation.py: real rounds, wire, admission and checkpoints around a trainer of nothing."""

import json
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from server.federation.lead import make_up
from server.runs import simulation
from server.runs.local_grid import LocalGrid
from server.runs.serve import serve
from shared import methods
from shared.base import doors
from shared.base.randomness import Noise
from shared.base.records import Batch, Losses, Owners, Phase
from shared.base.vocabulary import SHARED, Modality
from shared.data.cohort import prepare
from shared.data.modalities import bids_path
from shared.data.volumes import Grid, write
from shared.diffusion.samplers import Sampler
from shared.methods import Method, Network
from shared.plan.config import Config, Federation, Tracking, Validation
from shared.plan.settings import Choice
from shared.plan.training import PhaseTraining

GRID = Grid(height=8, width=8)


@dataclass(frozen=True, kw_only=True)
class Noop(Method):
    """N tensors of 1 MB that a step leaves as they are."""

    modalities: tuple[Modality, ...] = ("T1", "T2")
    tensors: int = 100

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="nothing"),)

    def network(self) -> Network:
        net = Network()
        for i in range(self.tensors):
            net.register_parameter(f"t{i:04d}", nn.Parameter(torch.zeros(512, 512)))
        return net

    def owners(self, net: nn.Module, phase: str) -> Owners:
        return {name: SHARED for name, _ in net.named_parameters()}

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        first = next(net.parameters())
        return Losses(loss_B=first[:1, 0] * 0, gave={SHARED: torch.ones(1, dtype=torch.bool)})

    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        return images_BMHW


NOOP: type[Method] = Noop  # the contract, checked by mypy: the suite runs this at its smallest


def main(tensors: int, rounds: int, sites: int) -> None:
    folder, nodes = prepared(tensors, rounds, sites)
    serve(LocalGrid(doors.load(doors.CLIENT_APP), nodes), folder, quiet=True)


def prepared(
    tensors: int,
    rounds: int,
    sites: int,
    strategy: str = "fedavg",
    rewrite: Callable[[Config], Config] = lambda config: config,
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A run's folder and its sites' node configs, in the folder where we are."""
    listed()
    bids = Path("cohort")
    for modality in ("T1", "T2"):
        data = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32) + 1
        path = bids / bids_path("001", modality)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, data, np.eye(4))
    (bids / "participants.tsv").write_text("participant_id\nsub-001\n")
    prepare(bids, GRID, workers=0)
    config = Config(
        run=None,
        resume=None,
        runs="runs",
        world=None,
        seed=0,
        device="cpu",
        size="tiny",
        method=Choice(name="noop", options={"tensors": tensors}),
        training={"nothing": PhaseTraining(rounds=rounds, steps=1, batch=1, lr=1.0, optimizer="sgd", clip=0, ema=0)},
        grid=GRID,
        federation=Federation(),
        strategy=Choice(name=strategy),
        sampler=Sampler(),
        validation=Validation(every=0),
        tracking=Tracking(uri="none"),
    )
    config = rewrite(config)
    folder = Path("run")
    folder.mkdir()
    (folder / "config.json").write_text(config.text())
    nodes = {
        site: simulation.node_config(config, site, [bids], folder / site)
        for site in (f"site-{i:03d}" for i in range(sites))
    }
    states = {site: folder / site for site in nodes}
    make_up(folder, config.name_of(folder), config.for_sites().text(), states, folder)
    return folder, nodes


def listed() -> None:
    """The trainer of nothing is a method of this process."""
    cast(MutableMapping[str, Any], methods.METHODS)["noop"] = NOOP


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
