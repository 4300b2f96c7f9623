"""What one run proves about epsilon, from below, after Steinke, Nasr and Jagielski (arXiv 2305.08846, section 5).

Each of m canaries is put in or left out by a fair coin. From all that was released, someone guesses r of the coins and
is right v times. Let the mechanism be (epsilon, delta)-private, q = e^epsilon / (1 + e^epsilon), and look at coin i
given the release t and the coins before it; let p and p' be the densities of t for heads and tails:

* a guess "heads" is right with chance p / (p + p') <= q + f, where f = max(0, p - e^epsilon p') / ((p + p') (1 +
  e^epsilon)), and "tails" likewise with p and p' exchanged;
* on average over t, whose density is (p + p') / 2, each of the two f is at most delta / (2 (1 + e^epsilon)), so that
  both together are at most delta / (1 + e^epsilon);
* so v is at most Binomial(r, q), plus at most one for each of m events whose chances add up to m delta / (1 +
  e^epsilon). Where none of them happens, v is the binomial's alone.

Hence P[v or more] <= P[Binomial(r, q) >= v] + m delta / (1 + e^epsilon), whatever the guesser does and however t made
it choose which coins to guess. (The paper's theorem has a smaller second term; with m delta below the doubt, it does
not matter, and this one is proved in three lines.) Every epsilon for which that is below the doubt is refuted.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

EPSILONS = np.arange(0.0, 12.0, 0.005)


def least_epsilon(right: int, guesses: int, *, canaries: int, delta: float, doubt: float) -> float:
    """The largest epsilon that is refuted: the true one is above it, but for a chance of `doubt`. 0 where none is."""
    odds = np.exp(EPSILONS)
    chance = binom.sf(right - 1, guesses, odds / (1 + odds)) + canaries * delta / (1 + odds)
    refuted = EPSILONS[chance <= doubt]
    return float(refuted[-1]) if len(refuted) else 0.0


def guessed(
    scores: NDArray[np.float64], inside: NDArray[np.bool_], shares: Sequence[float] = (0.5, 0.15)
) -> list[tuple[int, int]]:
    """(right, guesses) for each share of the canaries: half of it, of highest scores, is guessed in, the lowest out."""
    order = np.argsort(np.nan_to_num(scores), kind="stable")
    found = []
    for share in shares:
        k = max(1, round(len(scores) * share / 2))
        found.append((int((~inside[order[:k]]).sum() + inside[order[-k:]].sum()), 2 * k))
    return found


def proved(
    scores: Sequence[NDArray[np.float64]], inside: NDArray[np.bool_], *, delta: float, doubt: float, looks: int = 1
) -> float:
    """The best of all ways of guessing; the doubt is shared out among them, and among so many `looks` like this."""
    tries = [one for score in scores for one in guessed(score, inside)]
    doubt = doubt / (looks * len(tries))
    return max(least_epsilon(v, r, canaries=len(inside), delta=delta, doubt=doubt) for v, r in tries)
