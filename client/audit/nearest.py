"""How near a slice lies to a set of subjects: every pair is compared in the brain that both share, at a coarse grid.

Two distances, both blind to brightness: 1 - correlation, which is blind to contrast too, and the root mean square of
the difference of images that were each divided by their own. A copy may come from any height: all slices are searched.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

EDGE = 32  # pixels of the coarse grid: noise and blur are gone, anatomy is not
SHARED_BRAIN = 0.5  # of both brains together, that two slices must share to be compared
FLAT = 1e-10  # variance of an image with nothing in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Prints:
    """Slices on the coarse grid, flat, 0 outside of the brain."""

    images_NP: NDArray[np.float64]
    brain_NP: NDArray[np.float64]  # 0 or 1
    subject_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images_NP)


def prints(images_NHW: Tensor, brain_NHW: Tensor, subject: int) -> Prints:
    size = (min(EDGE, images_NHW.shape[1]), min(EDGE, images_NHW.shape[2]))
    weight_NHW = brain_NHW.double()
    inside = F.adaptive_avg_pool2d(weight_NHW, size)
    images = F.adaptive_avg_pool2d(torch.where(brain_NHW, images_NHW.double(), 0.0), size)
    brain = inside >= 0.5
    coarse = torch.where(brain, images / inside.clamp(min=0.5), 0.0)
    return Prints(
        images_NP=coarse.flatten(1).numpy(),
        brain_NP=brain.double().flatten(1).numpy(),
        subject_N=np.full(len(images_NHW), subject),
    )


def joined(parts: Iterable[Prints]) -> Prints:
    every = list(parts)
    return Prints(
        images_NP=np.concatenate([part.images_NP for part in every]),
        brain_NP=np.concatenate([part.brain_NP for part in every]),
        subject_N=np.concatenate([part.subject_N for part in every]),
    )


def distances(a: Prints, b: Prints) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of all pairs: by correlation, and by normalised difference; infinite where two slices can't be compared."""
    A, B, in_a, in_b = a.images_NP, b.images_NP, a.brain_NP, b.brain_NP
    n = in_a @ in_b.T
    together = in_a.sum(1)[:, None] + in_b.sum(1)[None] - n
    can = (n >= SHARED_BRAIN * together) & (n > 0)
    n = np.maximum(n, 1)
    sum_a, sum_b = A @ in_b.T, in_a @ B.T
    square_a, square_b = np.square(A) @ in_b.T, in_a @ np.square(B).T
    product = A @ B.T
    var_a, var_b = square_a / n - np.square(sum_a / n), square_b / n - np.square(sum_b / n)
    flat = (var_a < FLAT) | (var_b < FLAT)
    spread = np.sqrt(np.where(flat, 1.0, var_a * var_b))
    correlation = np.where(flat, 0.0, (product / n - sum_a * sum_b / n**2) / spread)
    dark = (square_a / n < FLAT) | (square_b / n < FLAT)
    cosine = np.where(dark, 0.0, product / np.sqrt(np.where(dark, 1.0, square_a * square_b)))
    return (
        np.where(can, np.clip(1 - correlation, 0, 2), np.inf),
        np.where(can, np.sqrt(np.clip(2 - 2 * cosine, 0, 4)), np.inf),
    )


@dataclass(slots=True, kw_only=True)
class Nearest:
    """The nearest candidate of every query so far."""

    correlation_N: NDArray[np.float64]
    difference_N: NDArray[np.float64]
    subject_N: NDArray[np.int64]  # whose slice is nearest by correlation; -1: none could be compared
    place_N: NDArray[np.int64]  # which of the candidate's prints that is

    @staticmethod
    def of(queries: Prints) -> "Nearest":
        n = len(queries)
        return Nearest(
            correlation_N=np.full(n, np.inf),
            difference_N=np.full(n, np.inf),
            subject_N=np.full(n, -1),
            place_N=np.full(n, -1),
        )

    def look_at(self, queries: Prints, candidate: Prints, *, own: bool) -> None:
        """`own`: the candidate is of the queries' cohort, and no nearest of itself."""
        subject = int(candidate.subject_N[0])
        correlation, difference = distances(queries, candidate)
        if own:
            self_N = queries.subject_N == subject
            correlation[self_N], difference[self_N] = np.inf, np.inf
        place_N = correlation.argmin(1)
        best_N = correlation[np.arange(len(queries)), place_N]
        nearer_N = best_N < self.correlation_N
        self.correlation_N[nearer_N] = best_N[nearer_N]
        self.subject_N[nearer_N] = subject
        self.place_N[nearer_N] = place_N[nearer_N]
        self.difference_N = np.minimum(self.difference_N, difference.min(1))
