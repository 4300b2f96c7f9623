"""Differential privacy per subject: one plan from which clip, noise, sampling and epsilon all come.

How it is counted: docs/methods/privacy.md, "Accounting".

`Privacy` is what a run asks for and travels with it. `PrivacyPlan` is what one site carries out: the run's mechanism
under the site's own budget. Whoever clips, draws, adds noise or counts epsilon reads the same object, so none of these
can be changed without the others. Epsilon is counted by Opacus: the RDP bound is the gate, PRV the reported number;
both are upper bounds, for Poisson sampling and adding or removing one subject's whole record.
"""

import functools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ConfigError
from shared.base.options import require

ORDERS = (
    *(1 + n / 10 for n in range(1, 100)),
    *map(float, range(12, 64)),
    *(64.0, 80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 768.0, 1024.0),  # small spendings are bounded up here
)
MOST_NOISE = 1e4
MOST_PRV = 5e3  # epsilon x sqrt(steps), as which PRV's grid grows: 1 GB at about twice this, and then no end


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Query:
    """One look at the data: a Gaussian of sd noise x clip, on a sum over subjects each drawn with chance `rate`.

    Quantised, so that equal steps of many runs count as one kind.
    """

    noise: float
    rate: float

    def __post_init__(self) -> None:
        ok = isinstance(self.noise, int | float) and math.isfinite(self.noise) and 0 < self.noise <= MOST_NOISE
        require(ok, "noise", self.noise, f"a number in (0, {MOST_NOISE:g}]")
        ok = isinstance(self.rate, int | float) and math.isfinite(self.rate) and 0 < self.rate <= 1
        require(ok, "rate", self.rate, "a number in (0, 1]")
        object.__setattr__(self, "noise", max(round(float(self.noise), 3), 0.001))
        object.__setattr__(self, "rate", max(round(float(self.rate), 6), 1e-6))


Spending: TypeAlias = Mapping[Query, int]  # how often each query was made


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """What a run asks for (configs/privacy): the same at every site that trains privately.

    off: nobody; a site whose own policy requires privacy refuses. mixed: those sites alone. on: all.
    """

    mode: Literal["off", "mixed", "on"] = "off"
    epsilon: float = 8.0  # that the whole run may spend at a site; `noise` is made from it
    delta: float = 1e-5
    noise: float | None = None  # of a training step, in units of clip; null: the least that keeps within epsilon
    rate: float = 0.1  # chance of each subject to be drawn in a step
    clip: float = 1.0  # norm of one subject's gradient, over all trainable weights
    draws: int = 4  # of noise, times and shown subsets, for each slice of a drawn subject
    slices: int = 1  # of a drawn subject in a step
    rows: int = 0  # slices x draws held in memory at once; 0 is all of a subject's
    sums_noise: float = 4.0  # of a phase of sums, in units of sums_clip
    sums_clip: float = 1.0  # norm of one subject's mean sums
    sites: Mapping[str, float] = field(default_factory=dict)  # in a simulation: the budgets of sites' own policies

    def __post_init__(self) -> None:
        require(self.epsilon > 0, "epsilon", self.epsilon, "above 0")
        require(0 < self.delta < 0.01, "delta", self.delta, "in (0, 0.01)")
        if self.noise is not None:
            Query(noise=self.noise, rate=self.rate)
        Query(noise=self.sums_noise, rate=self.rate)
        require(self.clip > 0, "clip", self.clip, "above 0")
        require(self.draws >= 1, "draws", self.draws, "1 or more")
        require(self.slices >= 1, "slices", self.slices, "1 or more")
        require(self.rows >= 0, "rows", self.rows, "0 or more")
        require(self.sums_clip > 0, "sums_clip", self.sums_clip, "above 0")
        for site, budget in self.sites.items():
            require(budget > 0, f"sites.{site}", budget, "above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """One site's mechanism. `size` is a public round figure of its subjects, never their exact number."""

    epsilon: float  # the budget of the site's cohort, over all runs
    delta: float
    noise: float
    rate: float
    clip: float
    draws: int
    slices: int
    rows: int
    sums_noise: float
    sums_clip: float
    size: int
    unit: Literal["subject"] = "subject"
    adjacency: Literal["add or remove one subject"] = "add or remove one subject"
    sampling: Literal["Poisson"] = "Poisson"
    accountant: Literal["RDP gates, PRV reports"] = "RDP gates, PRV reports"

    def __post_init__(self) -> None:
        require(self.size >= 1, "size", self.size, "1 or more")
        require(0 < self.delta < 1 / self.size, "delta", self.delta, f"below one over the {self.size} subjects")

    @staticmethod
    def of(privacy: Privacy, *, epsilon: float, delta: float, size: int) -> "PrivacyPlan":
        if privacy.noise is None:
            raise ConfigError("privacy.noise=null: must be a number by now, made from privacy.epsilon")
        return PrivacyPlan(
            epsilon=epsilon,
            delta=delta,
            noise=privacy.noise,
            rate=privacy.rate,
            clip=privacy.clip,
            draws=privacy.draws,
            slices=privacy.slices,
            rows=privacy.rows,
            sums_noise=privacy.sums_noise,
            sums_clip=privacy.sums_clip,
            size=size,
        )

    @property
    def step(self) -> Query:
        """What a training step is charged as; the engine draws with its rate and adds its noise."""
        return Query(noise=self.noise, rate=self.rate)

    @property
    def sums(self) -> Query:
        return Query(noise=self.sums_noise, rate=1.0)

    @property
    def expected(self) -> float:
        """Subjects in a step, on average: the fixed number that a step's sum is divided by."""
        return self.step.rate * self.size


# --- counting -------------------------------------------------------------------------------------------------------


def bound(spending: Spending, delta: float) -> float:
    """Count epsilon by RDP, fast and with the same bits every time: the gate."""
    rdp = np.zeros(len(ORDERS))
    for query, steps in spending.items():
        require(steps >= 0, "steps", steps, "0 or more")
        rdp += steps * _rdp(query)
    return _epsilon_of(rdp, delta)


def epsilon(spending: Spending, delta: float) -> float:
    """Give the least epsilon that Opacus can prove: PRV, or RDP where that is smaller."""
    made = {query: steps for query, steps in spending.items() if steps}
    if not made:
        return 0.0
    gate = bound(made, delta)
    if max(gate, 5.0) * math.sqrt(sum(made.values())) > MOST_PRV:
        return gate
    return min(gate, _prv(tuple(sorted(made.items())), delta))


def fits(spending: Spending, more: Spending, *, budget: float, delta: float) -> bool:
    return bound(together(spending, more), delta) <= budget


def together(one: Spending, other: Spending) -> dict[Query, int]:
    total = dict(one)
    for query, steps in other.items():
        total[query] = total.get(query, 0) + steps
    return total


def noise_for(budget: float, delta: float, *, rate: float, steps: int, besides: Spending | None = None) -> float:
    """Find the least noise, in thousandths, at which `steps` steps and what is spent besides stay within the budget."""
    besides = besides or {}
    if not fits(besides, {}, budget=budget, delta=delta):
        raise ConfigError(
            f"privacy.epsilon={budget:g}: the phases of sums alone cost {bound(besides, delta):.3g}; "
            "raise privacy.sums_noise, or start from a prior, which brings its own"
        )

    def enough(noise: float) -> bool:
        return fits(besides, {Query(noise=noise, rate=rate): steps}, budget=budget, delta=delta)

    low, high = 0.3, 1.0
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise ConfigError(f"privacy.epsilon={budget:g}: no noise is enough for {steps} steps at rate {rate:g}")
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return math.ceil(high * 1000 - 1e-9) / 1000


@functools.lru_cache(maxsize=4096)
def _rdp(query: Query) -> NDArray[np.float64]:
    from opacus.accountants.analysis import rdp

    values = rdp.compute_rdp(q=query.rate, noise_multiplier=query.noise, steps=1, orders=list(ORDERS))
    return np.asarray(values, dtype=np.float64)


def _epsilon_of(rdp_by_order: NDArray[np.float64], delta: float) -> float:
    from opacus.accountants.analysis import rdp

    if not rdp_by_order.any():
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says when the best order is the first or last; the bound holds all the same
        found, _ = rdp.get_privacy_spent(orders=list(ORDERS), rdp=rdp_by_order, delta=delta)
    return max(float(found), 0.0)


@functools.lru_cache(maxsize=256)
def _prv(spending: tuple[tuple[Query, int], ...], delta: float) -> float:
    """Count by PRV; infinite where it can't be computed, so that RDP stands."""
    from opacus.accountants import PRVAccountant

    accountant: Any = PRVAccountant()
    accountant.history = [(query.noise, query.rate, steps) for query, steps in spending]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = float(accountant.get_epsilon(delta, eps_error=0.01))
    except (ValueError, RuntimeError, OverflowError, MemoryError):
        return math.inf
    return found if math.isfinite(found) else math.inf
