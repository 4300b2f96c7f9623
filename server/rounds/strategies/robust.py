"""Robust means over each slice's holders: median and trimmed mean (Yin et al. 2018), multi-Krum (Blanchard 2017)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shared.base.options import require
from shared.base.vocabulary import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """Coordinate-wise median; for an even number of holders the mean of the middle two."""

    needs_all: ClassVar[bool] = True

    @property
    def needs(self) -> int:
        return 3

    @property
    def why(self) -> str:
        return "of two the median is the mean, which one of them moves at will"

    def begin(self, weights: Weights) -> dict[str, Tensor]:
        return {}

    def step(
        self, weights: Weights, mean_delta: Weights, state: Weights
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {name: weights[name] + delta for name, delta in mean_delta.items()}, {}

    def choose(self, distances_NN: Tensor) -> Sequence[int]:
        return range(len(distances_NN))

    def centre(self, deltas_N: Tensor, counts_N: Tensor) -> Tensor:
        ordered, n = deltas_N.sort(dim=0).values, len(deltas_N)
        return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedMean(Median):
    """Mean of what is left after cutting the k smallest and k largest of each coordinate."""

    trim: float = 0.2  # fraction cut at each end, rounded up so that one bad site of three is cut

    def __post_init__(self) -> None:
        require(0 < self.trim < 0.5, "trim", self.trim, "in (0, 0.5)")

    @property
    def why(self) -> str:
        return "of two nothing can be cut, and what is left is the mean, which one of them moves at will"

    def centre(self, deltas_N: Tensor, counts_N: Tensor) -> Tensor:
        n = len(deltas_N)
        cut = min(-int(-self.trim * n // 1), (n - 1) // 2)
        return deltas_N.sort(dim=0).values[cut : n - cut].mean(dim=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Krum(Median):
    """The `keep` updates closest to their neighbours, then their count-weighted mean."""

    byzantine: int = 1
    keep: int = 1

    def __post_init__(self) -> None:
        require(self.byzantine >= 0, "byzantine", self.byzantine, "0 or more")
        require(self.keep >= 1, "keep", self.keep, "1 or more")

    @property
    def needs(self) -> int:
        return 2 * self.byzantine + 3  # Blanchard et al., Proposition 2: 2 f + 2 < n

    @property
    def why(self) -> str:
        return f"with byzantine={self.byzantine} that is 2 x byzantine + 3: of fewer, liars may be the nearest"

    def choose(self, distances_NN: Tensor) -> Sequence[int]:
        n = len(distances_NN)
        nearest = max(1, n - self.byzantine - 2)
        others = distances_NN.masked_fill(torch.eye(n, dtype=torch.bool), torch.inf).nan_to_num(nan=torch.inf)
        scores = others.sort(dim=1).values[:, :nearest].sum(dim=1) if n > 1 else torch.zeros(1)
        return sorted(torch.argsort(scores, stable=True)[: self.keep].tolist())

    def centre(self, deltas_N: Tensor, counts_N: Tensor) -> Tensor:
        share = (counts_N.double() / counts_N.sum()).reshape(-1, *[1] * (deltas_N.dim() - 1))
        return (deltas_N.double() * share).sum(dim=0).float()
