"""Is the private engine what its epsilon says? Six tests of the step itself.

What they have to catch: docs/methods/privacy.md, "The audit".

Made-up subjects with chosen gradients go through the same charge, coins, clip, noise and division as real ones. The
first five tests are of single laws that the proof of privacy rests on; the sixth plants canaries and measures, from
what was released alone, an epsilon that the engine certainly has at least. Every figure has a limit that it must not
pass. What chance can move is in standard deviations from what is right, and fails at six: about fifty such figures
raise a false alarm in one audit of ten million, the canaries in one of two thousand at the very most.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.privacy.private import Secret
from client.privacy.proof.made_up_site import (
    DELTA,
    MadeUpSite,
    Make,
    Replay,
    Unit,
    engine_of,
    plan_of,
    random_unit,
    spike,
    tails,
)
from client.privacy.proof.one_run import proved
from client.privacy.proof.sigmas import binomial, dispersion, likeness, normal_shape, normal_size, sigmas
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import BudgetSpent
from shared.trust.privacy import Query, epsilon

SIGMAS = 6.0
MOVES = 1e-3  # rounding of a clipped sum, in units of clip
CANARIES, RUNS, DOUBT = 1200, 8, 5e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One figure that must not pass its limit."""

    test: str
    name: str
    figure: float
    limit: float
    line: str  # what it means, for a person

    @property
    def passed(self) -> bool:
        return self.figure <= self.limit  # not so for nan


def run_audit(
    make: Make = engine_of, *, tests: Sequence[str] | None = None, progress: Progress = unwatched
) -> list[Finding]:
    """All six tests, or some, of the engine that `make` makes."""
    found: list[Finding] = []
    names = tuple(TESTS) if tests is None else tests
    for number, name in enumerate(names):
        found += TESTS[name](make)
        progress(number + 1, len(names))
    return found


def caught(findings: Sequence[Finding]) -> set[str]:
    """Names of the tests that failed."""
    return {one.test for one in findings if not one.passed}


# --- 1. sensitivity -------------------------------------------------------------------------------------------------

LAYERS = ((30, 20), (300,), (6, 5, 10), ())


def sensitivity(make: Make) -> list[Finding]:
    """The same coins and noise with and without one subject: how far does the sum move?"""
    lengths = (0.05, 0.2, 1.5, 5e3, 0.5, 0.1)
    crowd = [random_unit(LAYERS, seed, length, 1 + seed % 3) for seed, length in enumerate(lengths)]
    now, later, reach = [], [], []
    for name, newcomer in newcomers().items():
        for rate in (1.0, 0.5):
            for place in (0, 3, len(crowd)):
                moved = _moved(make, crowd, newcomer, place, rate)
                now.append(moved[0])
                later.append(moved[1])
                if name == "huge":
                    reach.append(abs(moved[0] - 1))
    return [
        Finding(
            test="sensitivity",
            name="one subject",
            figure=_worst(now),
            limit=1 + MOVES,
            line="how far one subject moves the sum of a step that draws it, in units of clip",
        ),
        Finding(
            test="sensitivity",
            name="later",
            figure=_worst(later),
            limit=MOVES,
            line="how far it moves the next step, which does not draw it",
        ),
        Finding(
            test="sensitivity",
            name="reach",
            figure=_worst(reach),
            limit=MOVES,
            line="how much a huge gradient misses its clip by: the other tests would be blind to such an engine",
        ),
    ]


def newcomers() -> dict[str, Unit]:
    """Subjects that one wrong clip or another lets through."""
    one = random_unit(LAYERS, 50, 10.0, 1)[0]
    return {
        "huge": ({1: spike(LAYERS[1], 7, 1e6)},),
        "slices that point one way": (one,) * 6,
        "slices that point apart": tuple({1: spike(LAYERS[1], i, 1e3)} for i in range(6)),
        "all layers at once": ({i: torch.full(shape, 1e3) for i, shape in enumerate(LAYERS)},),
        "tiny": random_unit(LAYERS, 51, 1e-3, 1),
        "against the crowd": tuple({i: -1e5 * g for i, g in one.items()} for _ in range(2)),
        "not a number": ({0: torch.full(LAYERS[0], math.nan), 1: torch.ones(LAYERS[1])},),
        "infinite": ({2: torch.full(LAYERS[2], math.inf)},),
        "too large for fp32": ({0: torch.full(LAYERS[0], 1e30)},),
        "nothing": (),
    }


def _moved(make: Make, crowd: Sequence[Unit], newcomer: Unit, place: int, rate: float) -> tuple[float, float]:
    """In a step that draws the newcomer, and in the next one, which does not (unless all are drawn)."""
    heads = np.random.default_rng(place).random(len(crowd)) < rate
    both_sites = [
        MadeUpSite(make=make, plan=plan_of(noise=1.0, rate=rate, size=8), shapes=LAYERS, source=Replay(place))
        for _ in range(2)
    ]
    units = [list(crowd), [*crowd[:place], newcomer, *crowd[place:]]]

    def distance(coins: NDArray[np.bool_], its: bool) -> float:
        both = (coins, np.insert(coins, place, its))
        for site, own in zip(both_sites, both, strict=True):
            site.coins = lambda n, own=own: own  # type: ignore[misc]
        without, with_it = (site.step(them) for site, them in zip(both_sites, units, strict=True))
        return float(np.linalg.norm(with_it - without))

    return distance(heads, True), distance(~heads, False) if rate < 1 else 0.0


def _worst(figures: Sequence[float]) -> float:
    return math.inf if any(math.isnan(f) for f in figures) else max(figures)


# --- 2. noise -------------------------------------------------------------------------------------------------------

CANVAS = ((72, 64), (72, 64), (501,), (3,), ())


def noise(make: Make) -> list[Finding]:
    """Steps in which nobody is drawn release noise and nothing else: its size, its shape, and that it never repeats."""
    site = MadeUpSite(make=make, plan=plan_of(noise=1.3, rate=0.3, size=20), shapes=CANVAS, coins=tails)
    units = [random_unit(CANVAS, 0, 1e6, 1)] * 5
    steps = np.stack([site.step(units) for _ in range(12)]) / site.plan.noise
    ends = np.cumsum([math.prod(shape) for shape in CANVAS])
    layers = np.split(steps, ends[:-1], axis=1)
    halves = [(part[:, : part.shape[1] // 2], part[:, -(part.shape[1] // 2) :]) for part in (steps, layers[0])]
    pairs = [(steps[:-1], steps[1:]), (layers[0], layers[1]), *halves, *((a**2, b**2) for a, b in halves)]
    return [
        _chance(
            "noise",
            "size",
            max(sigmas(normal_size(part)) for part in (steps, *layers)),
            "spread of an empty draw's release against noise x clip, in all and in each layer",
        ),
        _chance("noise", "shape", normal_shape(steps), "its mean, shape (KS) and tails against a normal's"),
        _chance(
            "noise",
            "repeats",
            max(likeness(a, b) for a, b in pairs),
            "likeness of one step's noise to the next one's, of layer to layer, and within a layer",
        ),
    ]


# --- 3. sites -------------------------------------------------------------------------------------------------------


def sites(make: Make) -> list[Finding]:
    """Two sites, and one of them started again: noise and coins of each are its own."""
    plan = plan_of(noise=1.0, rate=0.5, size=32)
    runs, drawn = [], []
    for _ in range(3):
        site = MadeUpSite(make=make, plan=plan, shapes=((100, 100),), coins=tails)
        runs.append([site.step([()]) for _ in range(3)])
        drawn.append(_draws(MadeUpSite(make=make, plan=plan, shapes=((2,),)), units=64, steps=8)[0])
    pairs = ((0, 1), (0, 2), (1, 2))
    agree = [int((drawn[i] == drawn[j]).sum()) for i, j in pairs]
    return [
        _chance(
            "sites",
            "noise",
            max(likeness(a, b) for i, j in pairs for a in runs[i] for b in runs[j]),
            "likeness of two sites' noise, or of a site's before and after a restart",
        ),
        _chance(
            "sites", "coins", max(sigmas(binomial(n, drawn[0].size, 0.5)) for n in agree), "likeness of whom they draw"
        ),
    ]


# --- 4. ledger ------------------------------------------------------------------------------------------------------


def ledger(make: Make) -> list[Finding]:
    """The charge comes first, once a step, for the noise and rate that are used; refused, nothing happens."""
    plan = plan_of(noise=0.9, rate=0.4, size=10)
    units = [random_unit(((4,),), seed, 1.0, 2) for seed in range(8)]
    steps = uncharged = early = wrong = 0
    for coins in (tails, lambda n: ~np.zeros(n, dtype=np.bool_), lambda n: None):
        site = MadeUpSite(make=make, plan=plan, shapes=((4,),), coins=coins)
        for _ in range(8):
            site.step(units)
            steps += 1
            uncharged += len(site.charges) != 1
            early += [event for event, _ in site.events][:1] != ["charge"]
            wrong += any(query != plan.step for query in site.charges)
    site = MadeUpSite(make=make, plan=plan, shapes=((4,),), broke=True)
    went_on = 0
    with suppress(BudgetSpent):
        site.step(units)
        went_on += 1
    went_on += sum(event != "charge" for event, _ in site.events) + any(p.grad is not None for p in site.parameters)
    return [
        _count("ledger", "once", uncharged, f"of {steps} steps, empty draws among them, those not charged just once"),
        _count("ledger", "first", early, f"of {steps} steps, those that began with something else than the charge"),
        _count("ledger", "query", wrong, f"of {steps} steps, those charged for another noise or rate than used"),
        _count("ledger", "refused", went_on, "what the engine did after a refused charge"),
    ]


# --- 5. sampling ----------------------------------------------------------------------------------------------------


def sampling(make: Make) -> list[Finding]:
    """Every subject has its own coin in every step: numbers drawn are binomial, each way one looks at them."""
    steps, units, rate = 512, 64, 0.25
    site = MadeUpSite(make=make, plan=plan_of(noise=1.0, rate=rate, size=units), shapes=((2,),))
    drawn, twice = _draws(site, units=units, steps=steps)
    together = [int((drawn[::2] & drawn[1::2]).sum()), int((drawn[:, ::2] & drawn[:, 1::2]).sum())]
    return [
        _chance("sampling", "rate", sigmas(binomial(int(drawn.sum()), drawn.size, rate)), "how many are drawn in all"),
        _chance(
            "sampling",
            "steps",
            sigmas(dispersion(drawn.sum(axis=1), units, rate)),
            "how much the number drawn differs from step to step",
        ),
        _chance(
            "sampling",
            "subjects",
            sigmas(dispersion(drawn.sum(axis=0), steps, rate)),
            "how much subjects differ in how often they are drawn",
        ),
        _chance(
            "sampling",
            "memory",
            max(sigmas(binomial(n, drawn.size // 2, rate**2)) for n in together),
            "how often a subject is drawn in two steps running, or with its neighbour",
        ),
        _count("sampling", "twice", twice, "times that a subject was looked at again in the same step"),
    ]


def _draws(site: MadeUpSite, *, units: int, steps: int) -> tuple[NDArray[np.bool_], int]:
    """Who was looked at in each step, and how many looks were second ones."""
    everyone: list[Unit] = [({},) for _ in range(units)]  # with no gradient: they only tell that they were looked at
    numbers = {id(unit): i for i, unit in enumerate(everyone)}
    drawn = np.zeros((steps, units), dtype=np.bool_)
    looks = 0
    for step in range(steps):
        site.step(everyone)
        seen = [numbers[what] for what in site.looks if isinstance(what, int)]
        looks += len(seen)
        drawn[step, seen] = True
    return drawn, looks - int(drawn.sum())


# --- 6. one run -----------------------------------------------------------------------------------------------------


def one_run(make: Make) -> list[Finding]:
    """Canaries in or out by fair coins: what the released steps, or their difference to another site's, prove."""
    coins = (Secret().bits(CANARIES) >> np.uint64(63)).astype(np.bool_)
    shapes = ((CANARIES // 2,), (CANARIES // 2,))
    canaries: list[Unit] = []
    for i in np.flatnonzero(coins).tolist():
        layer, at = divmod(i, CANARIES // 2)
        canaries.append(({layer: spike(shapes[layer], at, 1e3)},) * 3)
    blanks: list[Unit] = [()] * len(canaries)  # at the other site; as many, for equal keys would then give equal noise
    plan = plan_of(noise=4.0, rate=0.5, size=CANARIES // 2)
    own, other = (MadeUpSite(make=make, plan=plan, shapes=shapes) for _ in range(2))
    spending: Counter[Query] = Counter()
    released, elsewhere = [], []
    for _ in range(RUNS):
        released.append(own.step(canaries))
        spending.update(own.charges)
        elsewhere.append(other.step(blanks))
    charged = epsilon(spending, DELTA)

    def least(seen: NDArray[np.float64]) -> float:
        return proved([seen.sum(axis=0), np.ptp(seen, axis=0)], coins, delta=DELTA, doubt=DOUBT, looks=2)

    steps, others = np.stack(released), np.stack(elsewhere)
    line = f"epsilon that {CANARIES} canaries prove; limit: what was charged;"
    return [
        Finding(test="one_run", name="alone", figure=least(steps), limit=charged, line=f"{line} from one site"),
        Finding(
            test="one_run",
            name="two sites",
            figure=least(steps - others),
            limit=charged,
            line=f"{line} from its difference to another site",
        ),
    ]


def _chance(test: str, name: str, figure: float, line: str) -> Finding:
    return Finding(test=test, name=name, figure=figure, limit=SIGMAS, line=f"{line}, in sigmas")


def _count(test: str, name: str, figure: int, line: str) -> Finding:
    return Finding(test=test, name=name, figure=figure, limit=0, line=line)


TESTS: Mapping[str, Callable[[Make], list[Finding]]] = {
    "sensitivity": sensitivity,
    "noise": noise,
    "sites": sites,
    "ledger": ledger,
    "sampling": sampling,
    "one_run": one_run,
}
