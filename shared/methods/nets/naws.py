"""Noise-aware weighting of several losses by learned variances (docs/methods/mmdm.md, "NAWS").

    L = sum_k  L_k / (2 (s_k + delta_k)) + log(1 + s_k + delta_k),    s_k = sigma_k^2

delta is the variance that the bridge itself adds to a sample at its time; 0 for the fused image. For a fixed loss the
best s + delta is (L + sqrt(L^2 + 8 L)) / 4.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

FLOOR = 1e-4  # of s
FASTER = 10.0  # rho moves so many times the learning rate: 1e-3 where the networks have the paper's 1e-4


class Naws(nn.Module):
    """rho = log sigma^2 of each loss, registered, so that it is trained, and averaged over sites in the log domain."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        start = math.log1p(-FLOOR) / FASTER  # s = 1
        self.rho = nn.ParameterDict({name: nn.Parameter(torch.tensor(start)) for name in names})

    def variance(self, name: str) -> Tensor:
        variance: Tensor = FLOOR + (FASTER * self.rho[name].float()).exp()
        return variance

    def forward(self, losses_B: Mapping[str, Tensor], delta_B: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each loss weighed, per sample; what has no delta has 0. Who leaves a sample out, leaves out its term too."""
        weighed = {}
        for name, loss_B in losses_B.items():
            total_B = self.variance(name) + delta_B.get(name, torch.zeros_like(loss_B))
            weighed[name] = loss_B / (2 * total_B) + total_B.log1p()
        return weighed
