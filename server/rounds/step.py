"""From a round's updates to the next weights: folded together, the strategy's step, the average; and the collapse rule.

Pure but for `Place`, which each of these moves on.
"""

import functools
from collections.abc import Iterator, Mapping
from statistics import median

import torch
from torch import Tensor

from server.rounds import ema
from server.rounds.aggregation import Fold, Mean, keep_untrained
from server.rounds.collect import Answers
from server.rounds.place import AVERAGED, STATE, WEIGHTS, Place
from server.rounds.spool import Shelf, folded, robust_mean
from server.rounds.strategies import STRATEGIES, RobustStrategy, Strategy
from shared.base.disk.tensors import Tensors
from shared.base.errors import ConfigError, RunFailed
from shared.base.options import build
from shared.base.records import Owners, Phase
from shared.base.vocabulary import Weights
from shared.plan.config import Config, Federation
from shared.plan.integers import scale_bits
from shared.plan.training import PhaseTraining


def build_strategy(config: Config) -> Strategy:
    name = config.strategy.name
    if name not in STRATEGIES:
        raise ConfigError(f"strategy={name}: must be one of {', '.join(STRATEGIES)}")
    strategy = build(STRATEGIES[name], config.strategy.options, "strategy")
    if not strategy.needs_all:
        return strategy
    if config.federation.secure:
        raise ConfigError(
            f"strategy={name}: needs each site's own update, which privacy=secure hides; of sums alone there is "
            "fedavg, and what steps by its mean"
        )
    robust: RobustStrategy = strategy  # type: ignore[assignment]  # needs_all says that it is one
    if config.federation.estimator == "delta":
        raise ConfigError(f"federation.estimator=delta: strategy {name} has no such form, only masked")
    if config.federation.min_sites < robust.needs:
        raise ConfigError(
            f"federation.min_sites={config.federation.min_sites}: strategy {name} needs {robust.needs} or more: "
            f"{robust.why}"
        )
    return strategy


def mean_of(
    shelf: Shelf, strategy: Strategy, owners: Owners, weights: Weights, *, federation: Federation, most: int
) -> Mean:
    """What a round's updates come to; `most` is the most samples that they can have together."""
    if strategy.needs_all:
        robust: RobustStrategy = strategy  # type: ignore[assignment]  # needs_all says that it is one
        return robust_mean(shelf, robust, owners, weights, min_holders=federation.min_holders)
    bits = scale_bits(max_abs=federation.limits.entry, max_count=most, word=federation.word)
    fold = Fold(owners, weights, bits=bits, estimator=federation.estimator)
    return folded(shelf, fold, min_holders=federation.min_holders)


def start(place: Place, strategy: Strategy, owners: Owners) -> None:
    """The strategy's first state, which a phase begins with; its average begins at the weights."""
    kinds = _kinds(strategy)
    every = {f"{kind}/{name}": place.weights.entries[name] for name in owners for kind in kinds}

    def each() -> Iterator[tuple[str, Tensor]]:
        for name in owners:
            yield from strategy.begin({name: place.weights[name]}).items()

    place.state = place.written("begun", every, each()) if every else Tensors({})
    place.equal(owners)
    place.seen, place.first_watch = {}, {}


def step(place: Place, strategy: Strategy, owners: Owners, mean: Mean, options: PhaseTraining) -> None:
    """New weights, new state of the strategy, new average, a tensor at a time; what nobody trained stays."""
    kinds, ema_before, trained = _kinds(strategy), place.ema, mean.trained
    follow = functools.partial(ema.follow, decay=options.ema, steps=options.steps)
    groups = [WEIGHTS, *(f"{STATE}/{kind}" for kind in kinds), *([AVERAGED] if options.ema else [])]
    every = {f"{group}/{name}": place.weights.entries[name] for name in owners for group in groups}

    def each() -> Iterator[tuple[str, Tensor]]:
        for name, owner in owners.items():
            old = {name: place.weights[name]}
            state = {key: place.state[key] for key in (f"{kind}/{name}" for kind in kinds)}
            stepped, after = strategy.step(old, {name: mean.delta[name]}, state)
            new = keep_untrained(old, stepped, {name: owner}, trained)
            yield f"{WEIGHTS}/{name}", new[name]
            kept = keep_untrained(state, after, dict.fromkeys(after, owner), trained)
            for kind in kinds:
                yield f"{STATE}/{kind}/{name}", kept[f"{kind}/{name}"]
            if options.ema:
                averaged, _ = follow({name: ema_before[name]}, new, {name: owner}, trained, place.seen)
                yield f"{AVERAGED}/{name}", averaged[name]

    place.change(place.written("stepped", every, each()))
    if not options.ema:
        place.equal(owners)
    _, place.seen = follow({}, {}, {}, trained, place.seen)


def _kinds(strategy: Strategy) -> list[str]:
    """Of a strategy's state: one tensor of each for every one of the weights."""
    return [key.split("/", 1)[0] for key in strategy.begin({"one": torch.zeros(1)})]


def watch(place: Place, phase: Phase, answers: Answers) -> dict[str, float]:
    """What the phase keeps an eye on: the median over sites, which one of three or more can't move at will.

    Its start is what sites saw before the first step of the first round: the untrained network's.
    """
    if phase.collapse is None:
        return {}
    name = phase.collapse[0]
    watched = _median_of(name, answers)
    start = _median_of(f"{name}_before", answers)
    if start and place.round == 0:
        place.first_watch = {name: start[f"{name}_before"]}
    return watched


def _median_of(name: str, answers: Answers) -> dict[str, float]:
    if answers.told is not None:  # no site's own is seen: their mean
        return {name: answers.told[name]} if name in answers.told else {}
    values = [m[name] for site in answers.ok if name in (m := answers.metrics[site])]
    return {name: median(values)} if values else {}


def check_collapse(place: Place, phase: Phase, watched: Mapping[str, float]) -> None:
    """RunFailed where what the phase watches fell too far below that of the untrained network."""
    if phase.collapse is None:
        return
    name, fraction = phase.collapse
    if name in watched and watched[name] < fraction * place.first_watch.get(name, 0.0):
        raise RunFailed(
            f"{phase.name} round {place.round - 1}: {name} fell to {watched[name]:.3g} from "
            f"{place.first_watch[name]:.3g}, below {fraction:g} of its start: the features have collapsed"
        )
