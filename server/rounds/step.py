"""From a round's updates to the next weights: folded together, the strategy's step, the average; and the collapse rule.

Pure but for `Place`, which each of these moves on.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import median

from server.rounds import ema
from server.rounds.aggregation import Fold, Mean, keep_untrained, scale_bits
from server.rounds.collect import Answers
from server.rounds.place import Place
from server.rounds.spool import Spool
from server.rounds.strategies import STRATEGIES, RobustStrategy, Strategy
from shared.base.errors import ConfigError, RunFailed
from shared.base.options import build
from shared.base.records import Owners, Phase
from shared.base.vocabulary import Weights
from shared.plan.config import Config, Federation
from shared.plan.training import PhaseTraining


def build_strategy(config: Config) -> Strategy:
    name = config.strategy.name
    if name not in STRATEGIES:
        raise ConfigError(f"strategy={name}: must be one of {', '.join(STRATEGIES)}")
    strategy = build(STRATEGIES[name], config.strategy.options, "strategy")
    if strategy.needs_all and config.federation.estimator == "delta":
        raise ConfigError(f"federation.estimator=delta: strategy {name} has no such form, only masked")
    return strategy


def new_fold(
    strategy: Strategy, owners: Owners, weights: Weights, *, spool: Path, federation: Federation, most: int
) -> Fold | Spool:
    """What takes in a round's updates one by one; `most` is the most samples that they can have together."""
    if strategy.needs_all:
        return Spool(spool, owners, weights)
    bits = scale_bits(max_abs=federation.limits.entry, max_count=most)
    return Fold(owners, weights, bits=bits, estimator=federation.estimator)


def mean_of(fold: Fold | Spool, strategy: Strategy, *, min_holders: int) -> Mean:
    if isinstance(fold, Fold):
        return fold.mean(min_holders=min_holders)
    robust: RobustStrategy = strategy  # type: ignore[assignment]  # needs_all says that it is one
    mean = fold.mean(robust, min_holders=min_holders)
    fold.clear()
    return mean


def step(place: Place, strategy: Strategy, owners: Owners, mean: Mean, options: PhaseTraining) -> None:
    """New weights, new state of the strategy, new average; what nobody trained stays."""
    old = {name: place.weights[name] for name in owners}
    stepped, state = strategy.step(old, mean.delta, place.state)
    kept = keep_untrained(old, stepped, owners, mean.trained)
    place.weights = {**place.weights, **kept}
    by_kind = {key: owners[key.split("/", 1)[1]] for key in state}
    place.state = keep_untrained(place.state, state, by_kind, mean.trained)
    place.ema, place.seen = ema.follow(
        place.ema, place.weights, owners, mean.trained, place.seen, decay=options.ema, steps=options.steps
    )


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
