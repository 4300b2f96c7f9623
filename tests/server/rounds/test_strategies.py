"""Every row of the table obeys the common laws; each keeps its own."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from support.rounds.federation import config

from server.rounds.aggregation import Mean, holding
from server.rounds.spool import Shelf, robust_mean
from server.rounds.step import build_strategy
from server.rounds.strategies import STRATEGIES
from server.rounds.strategies.adaptive import FedAdam, FedYogi
from server.rounds.strategies.average import FedAvg, FedAvgM
from server.rounds.strategies.robust import Krum, Median, TrimmedMean
from server.runs import runs
from shared.base.errors import ConfigError
from shared.base.options import build
from shared.base.owners import take
from shared.base.records import Cut, Owners, Update
from shared.base.vocabulary import SHARED
from shared.plan.settings import CONFIGS

OWNERS: Owners = {"w": SHARED, "head": Cut(dim=0, owners=("to:T1", "to:T2"))}
WEIGHTS = {"w": torch.linspace(-1, 1, 6), "head": torch.ones(2, 3)}


def draw(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=g) for name, value in WEIGHTS.items()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_a_config_that_builds_it(name: str) -> None:
    values = OmegaConf.to_container(OmegaConf.load(CONFIGS / "strategy" / f"{name}.yaml"))
    assert isinstance(values, dict)
    assert values.pop("name") == name
    assert build(STRATEGIES[name], values, "strategy") == STRATEGIES[name]()


def test_the_table_and_the_configs_have_the_same_stems() -> None:
    assert {p.stem for p in (CONFIGS / "strategy").glob("*.yaml")} == set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_step_is_pure_and_no_delta_moves_nothing(name: str) -> None:
    strategy = STRATEGIES[name]()
    before = {k: v.clone() for k, v in WEIGHTS.items()}
    state = strategy.begin(WEIGHTS)
    after, state2 = strategy.step(WEIGHTS, {k: torch.zeros_like(v) for k, v in WEIGHTS.items()}, state)
    assert all(torch.equal(after[k], before[k]) for k in before)
    strategy.step(WEIGHTS, draw(0), state)
    assert all(torch.equal(WEIGHTS[k], before[k]) for k in before)
    assert state.keys() == state2.keys()
    assert all(key.split("/", 1)[1] in WEIGHTS for key in state)


def test_momentum_zero_is_fedavg() -> None:
    delta = draw(1)
    plain, _ = FedAvg().step(WEIGHTS, delta, {})
    heavy = FedAvgM(momentum=0.0)
    stepped, _ = heavy.step(WEIGHTS, delta, heavy.begin(WEIGHTS))
    assert all(torch.equal(plain[k], stepped[k]) for k in WEIGHTS)


def test_momentum_sums_a_constant_delta_to_its_geometric_series() -> None:
    strategy, weights = FedAvgM(momentum=0.5), WEIGHTS
    state = strategy.begin(weights)
    delta = draw(2)
    for _ in range(30):
        weights, state = strategy.step(weights, delta, state)
    assert torch.allclose(state["velocity/w"], delta["w"] / (1 - 0.5), atol=1e-6)


def test_adam_with_a_huge_tau_is_scaled_momentum() -> None:
    adam = FedAdam(lr=1e4, beta1=0.0, tau=1e4)
    stepped, _ = adam.step(WEIGHTS, draw(3), adam.begin(WEIGHTS))
    assert torch.allclose(stepped["w"], WEIGHTS["w"] + draw(3)["w"] / (1 + 0.99**0.5), atol=1e-3)  # v starts at tau^2


def test_yogi_moves_its_second_moment_by_at_most_one_square() -> None:
    yogi, delta = FedYogi(beta2=0.9), draw(4)
    _, state = yogi.step(WEIGHTS, delta, yogi.begin(WEIGHTS))
    assert torch.all((state["second/w"] - yogi.tau**2).abs() <= 0.1 * delta["w"].square() + 1e-12)


def mean_of(
    folder: Path,
    deltas: list[dict[str, torch.Tensor]],
    counts: list[dict[str, int]],
    strategy: Median,
    min_holders: int = 1,
) -> Mean:
    kept = Shelf(folder)
    for i, (delta, n) in enumerate(zip(deltas, counts, strict=True)):
        one = Update(site=f"s{i}", run="r", phase="p", round=0, schema="", delta=delta, counts=n)
        held = holding(one)
        sent = {k: part for k, o in OWNERS.items() if (part := take(delta[k], o, held)) is not None}
        kept.add(Update(site=f"s{i}", run="r", phase="p", round=0, schema="", delta=sent, counts=n))
    return robust_mean(kept, strategy, OWNERS, WEIGHTS, min_holders=min_holders)


ALL = {SHARED: 4, "to:T1": 4, "to:T2": 4}
NO_T2 = {SHARED: 4, "to:T1": 4, "to:T2": 0}


@pytest.mark.parametrize("strategy", [Median(), TrimmedMean(), Krum()])
def test_one_liar_among_five_is_outvoted(tmp_path: Path, strategy: Median) -> None:
    honest = draw(5)
    deltas = [{k: v + 0.01 * draw(i)[k] for k, v in honest.items()} for i in range(4)]
    deltas.append({k: torch.full_like(v, 50.0) for k, v in honest.items()})
    mean = mean_of(tmp_path / "s", deltas, [ALL] * 5, strategy)
    assert (mean.delta["w"] - honest["w"]).abs().max() < 0.1
    assert (mean.delta["head"] - honest["head"]).abs().max() < 0.1


def test_median_of_a_slice_is_over_its_holders_only(tmp_path: Path) -> None:
    deltas = [draw(i) for i in range(4)]
    mean = mean_of(tmp_path / "s", deltas, [ALL, NO_T2, ALL, ALL], Median())
    ordered = torch.stack([d["head"][0] for d in deltas]).sort(dim=0).values
    assert torch.allclose(mean.delta["head"][0], (ordered[1] + ordered[2]) / 2)
    three = torch.stack([deltas[i]["head"][1] for i in (0, 2, 3)])
    assert torch.equal(mean.delta["head"][1], three.median(dim=0).values)
    assert mean.holders["to:T2"] == 3


@pytest.mark.parametrize("strategy", [Median(), TrimmedMean(), Krum(byzantine=0)])
def test_what_two_hold_is_not_trained_by_a_rule_that_cannot_outvote_one_of_them(
    strategy: Median, tmp_path: Path
) -> None:
    """With two, the median and the trimmed mean were the plain mean."""
    mean = mean_of(tmp_path / "s", [draw(i) for i in range(3)], [ALL, NO_T2, ALL], strategy)
    assert mean.trained == {SHARED, "to:T1"}
    assert torch.equal(mean.delta["head"][1], torch.zeros(3))


NEEDS = {"median": (2, 3), "trimmed_mean": (2, 3), "krum": (4, 5)}


@pytest.mark.parametrize("name", NEEDS)
def test_a_robust_rule_refuses_fewer_sites_than_it_needs_and_says_why(name: str, tmp_path: Path) -> None:
    few, enough = NEEDS[name]
    says = rf"federation.min_sites={few}: strategy {name} needs {enough} or more: \w+"
    with pytest.raises(ConfigError, match=says):
        build_strategy(config(tmp_path, strategy=name, min_sites=few))
    build_strategy(config(tmp_path, strategy=name, min_sites=enough))
    assert runs.for_one_site(config(tmp_path, strategy=name), "north").strategy.name == "fedavg"


def test_krum_weighs_what_it_keeps_by_samples(tmp_path: Path) -> None:
    deltas = [draw(i) for i in range(3)]
    counts = [dict.fromkeys(ALL, n) for n in (1, 2, 3)]
    mean = mean_of(tmp_path / "s", deltas, counts, Krum(byzantine=0, keep=3))
    expected = (deltas[0]["w"] + 2 * deltas[1]["w"] + 3 * deltas[2]["w"]) / 6
    assert torch.allclose(mean.delta["w"], expected, atol=1e-6)


def test_krum_leaves_slices_of_the_unheard_alone(tmp_path: Path) -> None:
    same = draw(6)
    deltas = [{k: v + far for k, v in same.items()} for far in (0.0, 0.01, 0.02, 9.0, -9.0, 30.0)]
    mean = mean_of(tmp_path / "s", deltas, [NO_T2] * 3 + [ALL] * 3, Krum(byzantine=0, keep=1))
    assert mean.holders["to:T2"] == 3
    assert mean.trained == {SHARED, "to:T1"}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_arrival_order_changes_no_bit(tmp_path: Path, order: tuple[int, ...]) -> None:
    deltas = [draw(i) for i in range(3)]
    for strategy in (Median(), TrimmedMean(), Krum(byzantine=0, keep=2)):
        means = []
        for turn in ((0, 1, 2), order):
            kept = Shelf(tmp_path / "s")
            for i in turn:
                kept.add(Update(site=f"s{i}", run="r", phase="p", round=0, schema="", delta=deltas[i], counts=ALL))
            means.append(robust_mean(kept, strategy, OWNERS, WEIGHTS, min_holders=1).delta)
        assert all(torch.equal(means[0][k], means[1][k]) for k in OWNERS)
