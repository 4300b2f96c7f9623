"""How far a figure lies from what is right, in standard deviations: exact tails, turned into those of a normal."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft, stats

MOST = 99.0  # sigmas are not counted further

Tails = tuple[float, float]  # chances of so little or less, and of so much or more


def sigmas(tails: Tails) -> float:
    """Turn tails into standard deviations of a normal, two-sided."""
    chance = 2 * min(tails)
    if not chance > 0:
        return MOST
    return min(MOST, max(0.0, float(stats.norm.isf(min(chance, 1.0) / 2))))


def normal_size(values: NDArray[np.float64]) -> Tails:
    """Tails of the sum of squares of values that should be standard normal."""
    total = float(np.square(values).sum())
    return float(stats.chi2.cdf(total, values.size)), float(stats.chi2.sf(total, values.size))


def normal_shape(values: NDArray[np.float64]) -> float:
    """The worst of mean, Kolmogorov-Smirnov and the number beyond three sigmas, in sigmas."""
    if not np.isfinite(values).all():
        return MOST
    mean = min(MOST, abs(float(values.mean())) * float(np.sqrt(values.size)))
    ks = float(stats.kstest(values.ravel(), "norm").pvalue) / 2
    far = binomial(int((np.abs(values) > 3).sum()), values.size, 2 * float(stats.norm.sf(3)))
    return max(mean, sigmas((ks, ks)), sigmas(far))


def likeness(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Correlation times the root of the number; the most where one of them does not vary at all."""
    a, b = one.ravel() - one.mean(), other.ravel() - other.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    if not (np.isfinite(scale) and scale > 0):
        return MOST
    return min(MOST, abs(float(a @ b)) / scale * float(np.sqrt(a.size)))


def binomial(count: int, trials: int, rate: float) -> Tails:
    return float(stats.binom.cdf(count, trials, rate)), float(stats.binom.sf(count - 1, trials, rate))


def dispersion(counts: Sequence[int] | NDArray[np.int64], trials: int, rate: float) -> Tails:
    """Of independent binomial counts: the sum of their squared distances from the mean, which is a whole number.

    Its distribution is the one of a single square, folded with itself as often as there are counts.
    """
    centre = round(trials * rate)
    squares = np.square(np.arange(trials + 1) - centre)
    top = int(min(squares.max(), 20 * trials * rate * (1 - rate)))  # more than four standard deviations count as these
    single = np.zeros(top + 1)
    np.add.at(single, np.minimum(squares, top), stats.binom.pmf(np.arange(trials + 1), trials, rate))
    length = int(fft.next_fast_len(top * len(counts) + 1, real=True))
    folded = fft.irfft(fft.rfft(single, length) ** len(counts), length)
    total = int(np.minimum(np.square(np.asarray(counts) - centre), top).sum())
    return float(folded[: total + 1].sum()), float(folded[total:].sum())
