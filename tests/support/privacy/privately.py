"""A private round that can be repeated with other subjects: chosen coins, and the same seeds and noise every time."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from support.rounds.probe import Probe
from torch import Tensor, nn

from client.privacy.private import Engine, train_private
from shared.base.owners import named
from shared.data.cohort import Cohort, prepare
from shared.data.slices import Pool, Slices
from shared.data.volumes import Grid
from shared.plan.training import PhaseTraining, Trained
from shared.trust.privacy import PrivacyPlan, Query

PATTERNS = [("T1", "T2", "FLAIR")] * 4 + [("T1", "T2"), ("T1",), ("T1", "FLAIR")]
EVERYONE = range(len(PATTERNS))
PROBE = Probe()
LR = 100.0  # a step far above the rounding of the weights
TRAINING: Mapping[str, Any] = {"rounds": 1, "steps": 1, "batch": 4, "lr": LR, "optimizer": "sgd"}


def plan_of(**changes: Any) -> PrivacyPlan:
    values = {"epsilon": 8.0, "delta": 1e-5, "noise": 1.0, "rate": 0.5, "clip": 0.05, "size": 6}
    values |= {"draws": 2, "slices": 2, "rows": 0, "sums_noise": 2.0, "sums_clip": 3.0}
    return PrivacyPlan(**{**values, **changes})  # type: ignore[arg-type]


class Script:
    """Entropy and ledger in one: the coins of each step as written down, the rest from a seed.

    Seeds of subjects and noise come from streams of their own, so that one subject more, at the end, changes neither
    the others' seeds nor the noise.
    """

    def __init__(self, *steps: Sequence[int], seed: int = 0) -> None:
        self._steps = list(steps)
        self._seeds, self._noise = (np.random.default_rng([seed, stream]) for stream in (0, 1))
        self.queries: list[Query] = []
        self.events: list[str] = []
        self.asked: list[int] = []  # of how many subjects each step threw coins

    def charge(self, query: Query) -> None:
        self.events.append("charge")
        self.queries.append(query)

    def bits(self, n: int) -> NDArray[np.uint64]:
        self.events.append("bits")
        if len(self.asked) < len(self.queries):
            self.asked.append(n)
            heads = self._steps[len(self.asked) - 1] if self._steps else []
            coins = np.full(n, 2**64 - 1, dtype=np.uint64)
            coins[list(heads)] = 0
            return coins
        stream = self._seeds if n == 1 else self._noise
        return stream.integers(0, 2**64, n, dtype=np.uint64)


def cohort_at(folder: Path, edge: int = 16) -> Cohort:
    return prepare(folder, Grid(height=edge, width=edge), workers=0).cohort


def pool_of(method: Any, cohort: Cohort, subjects: int | None = None) -> Pool:
    """The first few subjects."""
    few = dataclasses.replace(cohort, subjects=cohort.subjects[:subjects])
    return Pool((Slices(few, method.modalities, split=None, slab=method.slab),))


def engine_of(plan: PrivacyPlan, script: Any) -> Engine:
    """With the script's coins and noise, charged to its list."""
    return Engine(plan=plan, charge=script.charge, entropy=script)


def a_round(
    method: Any,
    net: nn.Module,
    pool: Pool,
    script: Any,
    plan: PrivacyPlan,
    *,
    phase: str = "fit",
    shares: dict[str, float] | None = None,
    fresh: bool = False,
    **training: Any,
) -> Trained:
    """From the same weights every time; `net` is left as it was. `fresh`: the coins and noise of a real run."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    owners = method.owners(net, phase)
    try:
        return train_private(
            method,
            net,
            pool,
            phase=phase,
            owners=owners,
            round=0,
            engine=Engine(plan=plan, charge=script.charge) if fresh else engine_of(plan, script),
            options=PhaseTraining(**{**TRAINING, **training}),
            shares=dict.fromkeys(named(owners), 1.0) if shares is None else shares,
        )
    finally:
        net.load_state_dict(before)


def noised_sum(trained: Trained, plan: PrivacyPlan) -> Tensor:
    """What a single step of SGD released, in units of clip."""
    flat = torch.cat([trained.delta[name].double().flatten() for name in sorted(trained.delta)])
    return -flat / LR * plan.expected / plan.clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoilt(Probe):
    """The subject with this number has a loss that is not finite."""

    subject: int

    def loss(self, net: nn.Module, batch: Any, phase: str, generator: torch.Generator) -> Any:
        losses = super().loss(net, batch, phase, generator)
        spoilt_B = torch.where(batch.subject_B == self.subject, torch.nan, 1.0)
        return dataclasses.replace(losses, loss_B=losses.loss_B * spoilt_B)
