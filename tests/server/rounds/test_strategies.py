"""Every row of the table obeys the common laws; each keeps its own."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from server.rounds.aggregation import holding
from server.rounds.spool import Spool
from server.rounds.strategies import STRATEGIES
from server.rounds.strategies.adaptive import FedAdam, FedYogi
from server.rounds.strategies.average import FedAvg, FedAvgM
from server.rounds.strategies.robust import Krum, Median, TrimmedMean
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


def spool(folder: Path, deltas: list[dict[str, torch.Tensor]], counts: list[dict[str, int]]) -> Spool:
    kept = Spool(folder, OWNERS, WEIGHTS)
    for i, (delta, n) in enumerate(zip(deltas, counts, strict=True)):
        one = Update(site=f"s{i}", run="r", phase="p", round=0, schema="", delta=delta, counts=n)
        held = holding(one)
        sent = {k: part for k, o in OWNERS.items() if (part := take(delta[k], o, held)) is not None}
        kept.add(Update(site=f"s{i}", run="r", phase="p", round=0, schema="", delta=sent, counts=n))
    return kept


ALL = {SHARED: 4, "to:T1": 4, "to:T2": 4}
NO_T2 = {SHARED: 4, "to:T1": 4, "to:T2": 0}


@pytest.mark.parametrize("strategy", [Median(), TrimmedMean(), Krum()])
def test_one_liar_among_five_is_outvoted(tmp_path: Path, strategy: Median) -> None:
    honest = draw(5)
    deltas = [{k: v + 0.01 * draw(i)[k] for k, v in honest.items()} for i in range(4)]
    deltas.append({k: torch.full_like(v, 50.0) for k, v in honest.items()})
    mean = spool(tmp_path / "s", deltas, [ALL] * 5).mean(strategy, min_holders=2)
    assert (mean.delta["w"] - honest["w"]).abs().max() < 0.1
    assert (mean.delta["head"] - honest["head"]).abs().max() < 0.1


def test_median_of_a_slice_is_over_its_holders_only(tmp_path: Path) -> None:
    deltas = [draw(i) for i in range(3)]
    mean = spool(tmp_path / "s", deltas, [ALL, NO_T2, ALL]).mean(Median(), min_holders=2)
    assert torch.equal(mean.delta["head"][0], torch.stack([d["head"][0] for d in deltas]).median(dim=0).values)
    assert torch.allclose(mean.delta["head"][1], (deltas[0]["head"][1] + deltas[2]["head"][1]) / 2)
    assert mean.holders["to:T2"] == 2


def test_krum_weighs_what_it_keeps_by_samples(tmp_path: Path) -> None:
    deltas = [draw(i) for i in range(3)]
    mean = spool(tmp_path / "s", deltas, [dict.fromkeys(ALL, n) for n in (1, 2, 3)]).mean(Krum(keep=3), min_holders=1)
    expected = (deltas[0]["w"] + 2 * deltas[1]["w"] + 3 * deltas[2]["w"]) / 6
    assert torch.allclose(mean.delta["w"], expected, atol=1e-6)


def test_krum_leaves_slices_of_the_unheard_alone(tmp_path: Path) -> None:
    same = draw(6)
    deltas = [same, {k: v + 0.01 for k, v in same.items()}, {k: v + 9 for k, v in same.items()}]
    mean = spool(tmp_path / "s", deltas, [NO_T2, NO_T2, ALL]).mean(Krum(byzantine=0, keep=1), min_holders=1)
    assert "to:T2" not in mean.trained


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_arrival_order_changes_no_bit(tmp_path: Path, order: tuple[int, ...]) -> None:
    deltas = [draw(i) for i in range(3)]
    for strategy in (Median(), TrimmedMean(), Krum(keep=2)):
        means = []
        for turn in ((0, 1, 2), order):
            kept = Spool(tmp_path / "s", OWNERS, WEIGHTS)
            for i in turn:
                kept.add(Update(site=f"s{i}", run="r", phase="p", round=0, schema="", delta=deltas[i], counts=ALL))
            means.append(kept.mean(strategy, min_holders=1).delta)
        assert all(torch.equal(means[0][k], means[1][k]) for k in OWNERS)
