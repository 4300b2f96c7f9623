"""FedAdam and FedYogi (Reddi et al. 2021, Algorithm 2): the mean delta is the pseudo-gradient, no bias correction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shared.base.options import require
from shared.base.vocabulary import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdam:
    needs_all: ClassVar[bool] = False
    lr: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3  # how adaptive: large tau is FedAvgM

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", self.lr, "above 0")
        require(0 <= self.beta1 < 1, "beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, "beta2", self.beta2, "in [0, 1)")
        require(self.tau > 0, "tau", self.tau, "above 0")

    def begin(self, weights: Weights) -> dict[str, Tensor]:
        first = {f"first/{name}": torch.zeros_like(value) for name, value in weights.items()}
        second = {f"second/{name}": torch.full_like(value, self.tau**2) for name, value in weights.items()}
        return first | second

    def step(
        self, weights: Weights, mean_delta: Weights, state: Weights
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return _step(self, weights, mean_delta, state, lambda v, d2: self.beta2 * v + (1 - self.beta2) * d2)


@dataclass(frozen=True, slots=True, kw_only=True)
class FedYogi(FedAdam):
    def step(
        self, weights: Weights, mean_delta: Weights, state: Weights
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return _step(self, weights, mean_delta, state, lambda v, d2: v - (1 - self.beta2) * d2 * torch.sign(v - d2))


def _step(
    options: FedAdam,
    weights: Weights,
    mean_delta: Weights,
    state: Weights,
    second_moment: Callable[[Tensor, Tensor], Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    stepped: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    for name, delta in mean_delta.items():
        m = options.beta1 * state[f"first/{name}"] + (1 - options.beta1) * delta
        v = second_moment(state[f"second/{name}"], delta.square())
        stepped[name] = weights[name] + options.lr * m / (v.sqrt() + options.tau)
        after[f"first/{name}"], after[f"second/{name}"] = m, v
    return stepped, after
