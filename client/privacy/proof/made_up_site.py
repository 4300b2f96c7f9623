"""A site made of nothing but gradients: an engine between a budget, coins and subjects that write down who asked when.

A subject is a tuple of slices, a slice the gradients that it gives to some of the parameters.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.privacy.private import Charge, Engine, Entropy, Secret
from shared.base.errors import BudgetSpent
from shared.trust.privacy import PrivacyPlan, Query

DELTA = 1e-8

Make = Callable[[PrivacyPlan, Charge, Entropy], Engine]
Shapes: TypeAlias = Sequence[tuple[int, ...]]
Unit: TypeAlias = tuple[Mapping[int, Tensor], ...]  # of each slice: number of a parameter -> gradient
Heads: TypeAlias = NDArray[np.bool_]


def engine_of(plan: PrivacyPlan, charge: Charge, entropy: Entropy) -> Engine:
    """Make the one real engine."""
    return Engine(plan=plan, charge=charge, entropy=entropy)


def plan_of(*, noise: float, rate: float, size: int) -> PrivacyPlan:
    return PrivacyPlan(
        epsilon=1e6,
        delta=DELTA,
        noise=noise,
        rate=rate,
        clip=0.5,
        draws=1,
        slices=1,
        rows=0,
        sums_noise=4.0,
        sums_clip=1.0,
        size=size,
    )


class Replay:
    """Give the same bits again: what differs then between two runs is not the noise."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def bits(self, n: int) -> NDArray[np.uint64]:
        return self._rng.integers(0, 2**64, n, dtype=np.uint64)


def as_they_fall(n: int) -> Heads | None:
    return None


def tails(n: int) -> Heads | None:
    return np.zeros(n, dtype=np.bool_)


@dataclass(kw_only=True)
class MadeUpSite:
    make: Make
    plan: PrivacyPlan
    shapes: Shapes
    source: Entropy = field(default_factory=Secret)
    coins: Callable[[int], Heads | None] = as_they_fall  # of the n subjects of a step
    broke: bool = False  # the budget refuses
    events: list[tuple[str, object]] = field(default_factory=list)  # since the last step began
    due: bool = True  # the next bits are coins

    def __post_init__(self) -> None:
        self.parameters = [nn.Parameter(torch.zeros(shape)) for shape in self.shapes]
        self.engine = self.make(self.plan, self.charge, self)

    def charge(self, query: Query) -> None:
        if any(p.grad is not None for p in self.parameters):
            self.events.append(("gradient", None))
        self.events.append(("charge", query))
        if self.broke:
            raise BudgetSpent("the audit's budget is spent")
        self.due = True

    def bits(self, n: int) -> NDArray[np.uint64]:
        self.events.append(("bits", n))
        heads = self.coins(n) if self.due else None
        self.due = False
        if heads is None or len(heads) != n:
            return self.source.bits(n)
        return np.where(heads, np.uint64(0), np.uint64(2**64 - 1))

    def loss(self, unit: Unit) -> Iterator[Tensor]:
        """Slice by slice, and linear: its gradient is what the audit wants it to be."""
        self.events.append(("look", id(unit)))
        for part in unit:
            if part:
                yield torch.stack([(self.parameters[i] * g).sum() for i, g in part.items()]).sum()

    def step(self, units: Sequence[Unit]) -> NDArray[np.float64]:
        """What is released in a step, as the noised sum in units of clip; zeros where nothing was set."""
        self.events.clear()
        for p in self.parameters:
            p.grad = None
        self.engine.step(self.parameters, units, self.loss)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([g.detach().double().flatten() for g in grads])
        return np.asarray(flat.numpy() * (self.plan.expected / self.plan.clip))

    @property
    def charges(self) -> list[Query]:
        return [what for event, what in self.events if event == "charge" and isinstance(what, Query)]

    @property
    def looks(self) -> list[object]:
        return [what for event, what in self.events if event == "look"]


def random_unit(shapes: Shapes, seed: int, length: float, slices: int) -> Unit:
    """A gradient over all layers, of that norm, in slices that add up to it."""
    g = torch.Generator().manual_seed(seed)
    whole = [torch.randn(shape, generator=g) for shape in shapes]
    norm = math.sqrt(sum(float(t.square().sum()) for t in whole))
    return tuple({i: t * (length / norm / slices) for i, t in enumerate(whole)} for _ in range(slices))


def spike(shape: tuple[int, ...], at: int, height: float) -> Tensor:
    made = torch.zeros(math.prod(shape))
    made[at] = height
    return made.reshape(shape)
