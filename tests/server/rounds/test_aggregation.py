"""Laws of the holder-weighted, fixed-point mean."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.rounds.aggregation import Fold, keep_untrained
from shared.base.owners import take
from shared.base.records import Cut, Owners, Update
from shared.base.vocabulary import LOCAL, SHARED
from shared.plan.integers import scale_bits

OWNERS: Owners = {
    "body": SHARED,
    "stem": Cut(dim=1, owners=("from:T1", "from:T2", SHARED)),
    "head": Cut(dim=0, owners=("to:T1", "to:T2")),
    "own": LOCAL,
}
WEIGHTS = {"body": torch.zeros(5), "stem": torch.zeros(4, 3, 2), "head": torch.zeros(2, 3), "own": torch.zeros(2)}


def full_delta(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=g) for name, value in WEIGHTS.items()}


def update(site: str, delta: dict[str, torch.Tensor], counts: dict[str, int]) -> Update:
    held = [owner for owner, n in counts.items() if n]
    sent = {name: part for name, owner in OWNERS.items() if (part := take(delta[name], owner, held)) is not None}
    return Update(site=site, run="r", phase="p", round=0, schema="s", delta=sent, counts=counts)


def fold(*updates: Update, bits: int = 40, estimator: str = "masked") -> Fold:
    sums = Fold(OWNERS, WEIGHTS, bits=bits, estimator=estimator)  # type: ignore[arg-type]
    for one in updates:
        sums.add(one)
    return sums


BOTH = {SHARED: 8, "from:T1": 5, "from:T2": 3, "to:T1": 8, "to:T2": 8}
ONLY_T1 = {SHARED: 4, "from:T1": 4, "from:T2": 0, "to:T1": 4, "to:T2": 0}


def test_each_slice_is_averaged_over_its_own_holders_by_their_samples() -> None:
    a, b = full_delta(1), full_delta(2)
    mean = fold(update("a", a, BOTH), update("b", b, ONLY_T1)).mean(min_holders=1)
    assert torch.allclose(mean.delta["body"], (8 * a["body"] + 4 * b["body"]) / 12, atol=1e-6)
    assert torch.allclose(mean.delta["stem"][:, 0], (5 * a["stem"][:, 0] + 4 * b["stem"][:, 0]) / 9, atol=1e-6)
    assert torch.allclose(mean.delta["stem"][:, 1], a["stem"][:, 1], atol=1e-6)  # one holder: not halved
    assert torch.allclose(mean.delta["stem"][:, 2], (8 * a["stem"][:, 2] + 4 * b["stem"][:, 2]) / 12, atol=1e-6)
    assert torch.allclose(mean.delta["head"][1], a["head"][1], atol=1e-6)
    assert mean.holders == {SHARED: 2, "from:T1": 2, "from:T2": 1, "to:T1": 2, "to:T2": 1}
    assert torch.equal(mean.delta["own"], WEIGHTS["own"])


def test_arrival_order_changes_no_bit() -> None:
    updates = [update(f"s{i}", full_delta(i), BOTH if i % 2 else ONLY_T1) for i in range(4)]
    means = [fold(*order).mean(min_holders=1).delta for order in itertools.permutations(updates)]
    assert all(torch.equal(mean[name], means[0][name]) for mean in means for name in OWNERS)


@given(k=st.integers(1, 9), n=st.integers(1, 50))
@settings(max_examples=20, deadline=None)
def test_k_identical_sites_are_one(k: int, n: int) -> None:
    delta, counts = full_delta(3), dict.fromkeys(BOTH, n)
    one = fold(update("a", delta, counts)).mean(min_holders=1).delta
    many = fold(*(update(f"s{i}", delta, counts) for i in range(k))).mean(min_holders=1).delta
    assert all(torch.equal(one[name], many[name]) for name in OWNERS)


def test_a_slice_with_too_few_holders_is_not_released() -> None:
    mean = fold(update("a", full_delta(1), BOTH), update("b", full_delta(2), ONLY_T1)).mean(min_holders=2)
    assert not mean.delta["stem"][:, 1].any()
    assert not mean.delta["head"][1].any()
    assert mean.delta["head"][0].any()
    assert mean.trained == {SHARED, "from:T1", "to:T1"}


def test_poison_outside_the_owned_slices_changes_no_bit() -> None:
    """10.7: what a site does not own it can't even send; garbage there is cut off before the wire."""
    clean, poisoned = full_delta(2), full_delta(2)
    poisoned["stem"][:, 1] = torch.nan
    poisoned["head"][1] = 1e9
    poisoned["own"][:] = torch.inf
    a = update("a", full_delta(1), BOTH)
    means = [fold(a, update("b", delta, ONLY_T1)).mean(min_holders=1).delta for delta in (clean, poisoned)]
    assert all(torch.equal(means[0][name], means[1][name]) for name in OWNERS)


def test_nobody_there_keeps_every_value() -> None:
    mean = fold().mean(min_holders=1)
    assert mean.trained == frozenset()
    assert not any(value.any() for value in mean.delta.values())


def test_delta_estimator_divides_by_all_samples_of_the_round() -> None:
    a, b = full_delta(1), full_delta(2)
    mean = fold(update("a", a, BOTH), update("b", b, ONLY_T1), estimator="delta").mean(min_holders=1)
    assert torch.allclose(mean.delta["head"][1], 8 * a["head"][1] / 12, atol=1e-6)
    assert torch.allclose(mean.delta["stem"][:, 0], (8 * a["stem"][:, 0] + 4 * b["stem"][:, 0]) / 12, atol=1e-6)


@given(entry=st.floats(1e-3, 1e4), samples=st.integers(1, 1 << 16), sites=st.integers(1, 512))
@settings(max_examples=50, deadline=None)
def test_no_admissible_sum_overflows(entry: float, samples: int, sites: int) -> None:
    bits = scale_bits(max_abs=entry, max_count=samples * sites)
    assert entry * 2.0**bits * samples * sites < 2.0**63


def test_resolution_is_finer_than_float32_at_usual_sizes() -> None:
    assert scale_bits(max_abs=64.0, max_count=64 * 40 * 16) >= 38  # 4e-12


def test_keep_untrained_restores_only_what_nobody_trained() -> None:
    old, new = full_delta(1), full_delta(2)
    kept = keep_untrained(old, new, OWNERS, frozenset({SHARED, "to:T1"}))
    assert torch.equal(kept["body"], new["body"])
    assert torch.equal(kept["head"][0], new["head"][0])
    assert torch.equal(kept["head"][1], old["head"][1])
    assert torch.equal(kept["stem"][:, :2], old["stem"][:, :2])
    assert torch.equal(kept["stem"][:, 2], new["stem"][:, 2])
    assert torch.equal(kept["own"], old["own"])


@pytest.mark.parametrize("value", [1.0, -1.0, 3e-8, -0.7])
def test_fixed_point_is_closer_than_a_float32_ulp(value: float) -> None:
    delta = full_delta(0) | {"body": torch.full((5,), value)}
    mean = fold(update("a", delta, BOTH), bits=44).mean(min_holders=1)
    assert (mean.delta["body"] - delta["body"]).abs().max() <= 2.0**-44
