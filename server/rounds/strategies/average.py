"""FedAvg (McMahan et al. 2017) and FedAvgM (Hsu et al. 2019)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shared.base.options import require
from shared.base.vocabulary import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg:
    needs_all: ClassVar[bool] = False
    lr: float = 1.0

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", self.lr, "above 0")

    def begin(self, weights: Weights) -> dict[str, Tensor]:
        return {}

    def step(
        self, weights: Weights, mean_delta: Weights, state: Weights
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {name: weights[name] + self.lr * delta for name, delta in mean_delta.items()}, {}


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvgM:
    needs_all: ClassVar[bool] = False
    lr: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", self.lr, "above 0")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")

    def begin(self, weights: Weights) -> dict[str, Tensor]:
        return {f"velocity/{name}": torch.zeros_like(value) for name, value in weights.items()}

    def step(
        self, weights: Weights, mean_delta: Weights, state: Weights
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        velocity = {name: self.momentum * state[f"velocity/{name}"] + delta for name, delta in mean_delta.items()}
        stepped = {name: weights[name] + self.lr * v for name, v in velocity.items()}
        return stepped, {f"velocity/{name}": v for name, v in velocity.items()}
