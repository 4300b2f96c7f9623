"""From a round's updates to the next weights: folded together, the strategy's step, the average; and the collapse rule.

Pure but for `Place`, which each of these moves on.
"""

from collections.abc import Mapping
from statistics import median

from server.rounds import ema
from server.rounds.aggregation import Fold, Mean, keep_untrained, scale_bits
from server.rounds.collect import Answers
from server.rounds.place import Place
from server.rounds.spool import Shelf, folded, robust_mean
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
    if not strategy.needs_all:
        return strategy
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
    bits = scale_bits(max_abs=federation.limits.entry, max_count=most)
    fold = Fold(owners, weights, bits=bits, estimator=federation.estimator)
    return folded(shelf, fold, min_holders=federation.min_holders)


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
