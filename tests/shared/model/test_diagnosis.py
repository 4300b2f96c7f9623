"""Who loses what, the classifier, one threshold for all, and the probe that looks for a leak."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from shared.base.errors import ConfigError, DataError
from shared.model.diagnosis import SIZES, DiagnosisOptions, auc, build, draw, fit, judge, pooled, predict, probe, youden

MODALITIES = ("T1", "FDG", "AV45")
CPU = torch.device("cpu")
TINY = SIZES["tiny"]


def cohort(ill: int = 20, well: int = 30) -> list[bool]:
    return [i % 5 < 2 for i in range(ill + well)] if 3 * ill == 2 * well else [True] * ill + [False] * well


def test_a_draw_is_a_partition_with_the_diagnoses_shared_out() -> None:
    ill = cohort()
    one = draw(ill, MODALITIES, DiagnosisOptions(), seed=1, g=0)
    assert sorted((*one.train, *one.val, *one.test)) == list(range(50))
    assert [sum(ill[i] for i in part) for part in (one.train, one.val, one.test)] == [11, 3, 6]
    assert [sum(not ill[i] for i in part) for part in (one.train, one.val, one.test)] == [17, 4, 9]


def test_what_is_lost_at_one_rate_is_lost_at_all_higher_ones() -> None:
    ill, options = cohort(), DiagnosisOptions()
    one = draw(ill, MODALITIES, options, seed=1, g=0)
    for lower, higher in zip((0.0, *options.rates), options.rates, strict=False):
        for i in range(50):
            lost = one.lost(i, lower)
            assert lost in (frozenset(), one.lost(i, higher))
            assert len(lost) in (0, 1, 2)
    for of in (True, False):
        members = [i for i in one.train if ill[i] == of]
        for rate in options.rates:
            losing = sum(bool(one.lost(i, rate)) for i in members)
            assert abs(losing - rate * len(members)) <= 0.5 + 1e-9
    assert not any(one.lost(i, 0.8) for i in (*one.val, *one.test))
    assert {len(one.loses[i]) for i in range(50)} == {1, 2}
    assert frozenset.union(*one.loses) == {0, 1, 2}


def test_test_subjects_lose_only_where_that_is_asked() -> None:
    one = draw(cohort(), MODALITIES, DiagnosisOptions(test_loses=True), seed=1, g=0)
    assert sum(bool(one.lost(i, 0.8)) for i in one.test) == 12
    assert any(one.lost(i, 0.8) for i in one.val)


def test_draws_repeat_and_generations_differ_but_not_in_what_a_subject_loses() -> None:
    a, b, other = (draw(cohort(), MODALITIES, DiagnosisOptions(), seed=s, g=g) for s, g in ((1, 0), (1, 0), (1, 1)))
    assert a == b
    assert a.test != other.test
    assert a.loses == other.loses
    assert draw(cohort(), MODALITIES, DiagnosisOptions(), seed=2, g=0).loses != a.loses


def test_too_few_of_a_diagnosis_are_named() -> None:
    with pytest.raises(DataError, match="4 complete AD subjects"):
        draw([True] * 4 + [False] * 30, MODALITIES, DiagnosisOptions(), seed=0, g=0)
    with pytest.raises(ConfigError, match="only one"):
        draw(cohort(), ("T1",), DiagnosisOptions(), seed=0, g=0)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"rates": (0.4, 0.2)}, "rates"),
        ({"rates": (0.0, 0.2)}, "rates"),
        ({"rates": ()}, "rates"),
        ({"generations": 0}, "generations"),
        ({"test": 1.0}, "test"),
        ({"val": 0.0}, "val"),
        ({"steps": 0}, "steps"),
        ({"ill": "MCI", "well": "MCI"}, "well"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}="):
        DiagnosisOptions(**wrong)  # type: ignore[arg-type]


scores = st.lists(
    st.tuples(st.floats(-5, 5).map(lambda x: round(x, 1)), st.booleans()), min_size=2, max_size=30
).filter(lambda found: len({ill for _, ill in found}) == 2)


@given(val=scores, test=scores)
@example(val=[(0.0, True), (-0.2, False)], test=[(0.0, False), (-0.1, True)])  # on the threshold, nearly
def test_accuracy_lies_between_sensitivity_and_specificity(
    val: list[tuple[float, bool]], test: list[tuple[float, bool]]
) -> None:
    """At one threshold it can't be else; the paper's table breaks this in 36 rows of 37."""
    parts = [(torch.tensor([s for s, _ in one]), [i for _, i in one]) for one in (val, test)]
    found = judge(*parts[0], *parts[1])
    share = sum(parts[1][1]) / len(test)
    assert found.acc == pytest.approx(share * found.sen + (1 - share) * found.spe)
    assert min(found.sen, found.spe) - 1e-9 <= found.acc <= max(found.sen, found.spe) + 1e-9
    called = [(s > found.threshold) == i for s, i in zip(parts[1][0].tolist(), parts[1][1], strict=True)]
    assert found.acc == pytest.approx(sum(called) / len(test), abs=1e-6)


@given(found=scores)
def test_no_other_threshold_does_better_on_validation(found: list[tuple[float, bool]]) -> None:
    values, ill = torch.tensor([s for s, _ in found]), [i for _, i in found]

    def index(threshold: float) -> float:
        above = [s > threshold for s, _ in found]
        hits = sum(a and i for a, i in zip(above, ill, strict=True)) / sum(ill)
        return hits + sum(not a and not i for a, i in zip(above, ill, strict=True)) / (len(ill) - sum(ill))

    best = index(youden(values, ill))
    assert all(index(k / 20) <= best + 1e-9 for k in range(-120, 121))


def test_auc_is_the_share_of_pairs_in_order() -> None:
    assert auc(torch.tensor([3.0, 2.0, 1.0]), [True, True, False]) == 1
    assert auc(torch.tensor([1.0, 1.0]), [True, False]) == 0.5
    assert auc(torch.tensor([0.0, 2.0, 1.0, 3.0]), [True, True, False, False]) == 0.25
    assert math.isnan(auc(torch.tensor([1.0]), [True]))


def sets(ill: list[bool], seed: int = 0, strength: float = 0.5) -> Tensor:
    """A ball is dimmer in the ill."""
    g = torch.Generator().manual_seed(seed)
    at = torch.linspace(-1, 1, 16)
    ball = ((at[:, None, None] ** 2 + at[:, None] ** 2 + at**2) < 0.3).float()
    dim = 1 - strength * torch.tensor(ill).float()[:, None, None, None, None]
    return 0.5 * ball * dim + 0.1 * torch.rand(len(ill), 3, 16, 16, 16, generator=g)


def test_the_classifier_learns_and_repeats_its_bits() -> None:
    ill = cohort(12, 18)
    x = sets(ill)
    made = [
        fit(lambda i: x[i], range(20), ill, TINY, steps=n, seed=s, device=CPU) for n, s in ((12, 3), (2, 3), (2, 3))
    ]
    said = [predict(net, lambda i: x[i], range(20, 30), TINY, CPU) for net in made]
    assert auc(said[0], ill[20:]) == 1
    assert torch.equal(said[1], said[2])
    other = fit(lambda i: x[i], range(20), ill, TINY, steps=2, seed=4, device=CPU)
    assert not torch.equal(said[1], predict(other, lambda i: x[i], range(20, 30), TINY, CPU))


def test_a_class_with_nobody_left_is_told() -> None:
    x = sets([True] * 4)
    with pytest.raises(DataError, match="no well subject"):
        fit(lambda i: x[i], range(4), [True] * 4, TINY, steps=1, seed=0, device=CPU)


@pytest.mark.parametrize("size", ["small", "paper"])
def test_densenet_121_has_121_layers_with_weights(size: str) -> None:
    shape = SIZES[size]  # type: ignore[index]
    net = build(3, shape, seed=0)
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv3d | torch.nn.Linear)]
    assert len(layers) == 121


@pytest.mark.parametrize("shape", [(20, 24, 18), (40, 33, 32), (9, 12, 9)])
def test_any_volume_is_pooled_to_a_cube_and_keeps_its_level(shape: tuple[int, int, int]) -> None:
    assert pooled(torch.full((3, *shape), 0.25), 16).shape == (3, 16, 16, 16)
    torch.testing.assert_close(pooled(torch.full((3, *shape), 0.25), 16), torch.full((3, 16, 16, 16), 0.25))
    x = torch.rand(3, *shape)
    assert torch.equal(pooled(x, None), x)


def test_the_probe_finds_what_is_written_and_nothing_where_nothing_is() -> None:
    g = torch.Generator().manual_seed(0)
    blind = []
    for seed in range(12):
        ill = [bool(k) for k in torch.rand(40, generator=g) < 0.5]
        noise = torch.randn(40, 64, generator=g)
        blind.append(probe(noise, ill, seed))
        assert probe(noise + torch.tensor(ill)[:, None], ill, seed) > 0.95
    mean = sum(blind) / len(blind)
    spread = math.sqrt(sum((b - mean) ** 2 for b in blind) / (len(blind) - 1) / len(blind))
    assert abs(mean - 0.5) < 4 * spread
    assert math.isnan(probe(torch.randn(5, 3), [True, False, False, False, False], 0))
