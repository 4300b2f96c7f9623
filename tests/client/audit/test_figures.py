"""The figures that an audit of memorisation comes down to: intervals, distances between images, what is looked at."""

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from client.audit import duplicates
from client.audit.duplicates import wilson
from client.audit.inspection import Effort, spread
from client.audit.membership import auc, check_enough, hits
from client.audit.nearest import Nearest, Prints, distances, joined, prints
from shared.base.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("training", "heldout", "enough"),
    [
        (4, 4, True),
        (3, 3, False),
        (3, 5, True),
        (2, 7, False),
        (2, 8, True),
        (1, 90, False),
        (0, 9, False),
    ],
)
def test_too_few_subjects_are_told_how_many_are_needed(training: int, heldout: int, enough: bool) -> None:
    """Enough is where a perfect separation, either way, happens by chance to at most one in twenty."""
    by_chance = 2 / math.comb(training + heldout, training)
    if enough:
        assert by_chance <= 0.05
        check_enough(training, heldout, "with T1")
        return
    with pytest.raises(DataError, match=f"{training} training and {heldout} held-out subjects with T1.*at least 4 of"):
        check_enough(training, heldout, "with T1")


# --- the figures themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [0.5, 0.75, 0.92])
@pytest.mark.parametrize(("n", "m", "sd"), [(20, 20, 1.0), (60, 25, 1.0), (30, 30, 2.0)])
def test_the_interval_of_the_auc_holds_the_truth_as_often_as_it_says(true: float, n: int, m: int, sd: float) -> None:
    """Normal scores of known AUC, 200 times: between 0.90 and 0.99 of the intervals, where 0.95 is meant."""
    rng = np.random.default_rng([n, m, round(100 * true)])
    apart = norm.ppf(true) * math.sqrt(1 + sd**2)
    found = [auc(rng.normal(apart, sd, n), rng.normal(0, 1, m)) for _ in range(200)]
    assert 0.90 <= np.mean([one.low <= true <= one.high for one in found]) <= 0.99
    assert abs(np.mean([one.value for one in found]) - true) < 0.02


def test_the_auc_of_a_perfect_separation_still_has_an_interval() -> None:
    """With 4 and 4 it is above chance; with more it closes in on 1."""
    lows = [auc(np.arange(n) + 100.0, np.arange(n) * 1.0).low for n in (4, 8, 20, 100)]
    assert lows == sorted(lows)
    assert 0.5 < lows[0] < 0.8
    assert lows[-1] > 0.96
    upside_down = auc(np.arange(8) * 1.0, np.arange(8) + 100.0)
    assert (upside_down.value, upside_down.low) == (0.0, 0.0)
    assert upside_down.high == pytest.approx(1 - lows[1], abs=1e-9)
    ties = auc(np.zeros(6), np.zeros(6))
    assert ties.value == 0.5
    assert ties.low < 0.3
    assert ties.high > 0.7


def test_true_positives_are_counted_above_one_in_twenty_false_ones() -> None:
    heldout = np.arange(40.0)  # two of them may lie above the threshold: 38 and 39
    assert hits(np.array([37.0, 37.5, 39.5, 0.0]), heldout) == 0.5
    assert hits(heldout, heldout) == 0.05
    assert hits(np.arange(9.0), np.arange(19.0)) is None


@pytest.mark.parametrize(("rate", "n"), [(0.0, 8), (1.0, 8), (0.3, 50)])
def test_a_share_has_an_interval_even_where_nothing_was_found(rate: float, n: int) -> None:
    low, high = wilson(rate, n)
    assert 0 <= low <= rate <= high <= 1
    assert high - low > 0.1
    for edge in (low, high):  # where the rate is just as far as its own error reaches
        if 0 < edge < 1:
            assert abs(rate - edge) == pytest.approx(1.96 * math.sqrt(edge * (1 - edge) / n), rel=1e-3)


def images(seed: int, n: int = 3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    brain = (y.square() + x.square() < 0.8).expand(n, 64, 64)
    smooth = nn.functional.interpolate(torch.rand(n, 1, 9, 9, generator=rng), 64, mode="bilinear")[:, 0]
    return torch.where(brain, 0.2 + 0.6 * smooth, 0.0), brain


def made(seed: int, change: Callable[[Tensor], Tensor] = lambda x: x, subject: int = 0) -> Prints:
    image, brain = images(seed)
    return prints(torch.where(brain, change(image), 0.0), brain, subject)


def test_a_copy_is_near_however_bright_it_is() -> None:
    one = made(1)
    for change in (lambda x: x, lambda x: 0.3 * x):
        correlation, difference = distances(made(1, change), one)
        assert np.diag(correlation).max() < 1e-12
        assert np.diag(difference).max() < 1e-6
    correlation, difference = distances(made(1, lambda x: 0.3 * x + 0.4), one)
    assert np.diag(correlation).max() < 1e-12  # blind to contrast too
    assert np.diag(difference).min() > 0.05
    correlation, _ = distances(made(2), one)
    assert correlation.min() > 0.3
    blank, _ = distances(made(2, torch.zeros_like), one)
    assert np.all(blank == 1)


def test_distances_are_those_of_the_shared_brain() -> None:
    """Against the plain formula, pixel by pixel of what both brains hold; with too little of it there is none."""
    a, b = made(3), made(4)
    cut = dataclasses.replace(b, brain_NP=b.brain_NP.copy(), images_NP=b.images_NP.copy())
    cut.brain_NP[:, :400] = 0
    cut.images_NP[:, :400] = 0
    correlation, difference = distances(a, cut)
    for i, j in ((0, 0), (1, 2)):
        both = (a.brain_NP[i] > 0) & (cut.brain_NP[j] > 0)
        x, y = a.images_NP[i][both], cut.images_NP[j][both]
        assert correlation[i, j] == pytest.approx(1 - np.corrcoef(x, y)[0, 1])
        scaled = x / np.sqrt((x**2).mean()) - y / np.sqrt((y**2).mean())
        assert difference[i, j] == pytest.approx(np.sqrt((scaled**2).mean()))
    cut.brain_NP[:, :700] = 0
    assert np.all(np.isinf(distances(a, cut)[0]))


def test_the_nearest_is_found_among_all_and_never_oneself() -> None:
    queries = joined([made(5, subject=0), made(6, subject=1)])
    found, own = Nearest.of(queries), Nearest.of(queries)
    for subject, seed in enumerate((8, 6, 9)):
        found.look_at(queries, made(seed, subject=subject), own=False)
        own.look_at(queries, made(seed, subject=subject), own=True)
    assert found.subject_N[3:].tolist() == [1, 1, 1]
    assert found.place_N[3:].tolist() == [0, 1, 2]
    assert found.correlation_N[3:].max() < 1e-12
    assert 1 not in own.subject_N[3:]
    assert own.correlation_N[3:].min() > 0.3


def test_slices_are_spread_over_the_brain() -> None:
    assert spread(11, 3) == [1, 5, 9]
    assert spread(2, 4) == [0, 0, 1, 1]
    assert duplicates.NOMINAL == 0.01


@pytest.mark.parametrize("key", ["subjects", "slices", "draws"])
def test_effort_is_at_least_one(key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{key}=0: must be 1 or more")):
        Effort(**{key: 0})
