"""Real operators that no scanner of ours is, for the laws of whatever takes any operator."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Separable:
    """y = rows x columns^T, with noise of sd `sigma`."""

    rows: Tensor
    columns: Tensor
    sigma: float = 0.0

    def forward(self, x_BHW: Tensor) -> Tensor:
        return self.rows.to(x_BHW) @ x_BHW @ self.columns.to(x_BHW).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return self.rows.to(y).mT @ y @ self.columns.to(y)

    def normal(self, x_BHW: Tensor) -> Tensor:
        return self.adjoint(self.forward(x_BHW))

    def at(self, index: Sequence[int]) -> "Separable":
        return self

    def to(self, device: object) -> "Separable":
        return self


def means(height: int, width: int, factor: int, sigma: float = 0.0) -> Separable:
    """Each measured pixel is the mean of factor x factor pixels."""
    rows, columns = (
        torch.eye(n // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor for n in (height, width)
    )
    return Separable(rows=rows, columns=columns, sigma=sigma)


def blur(height: int, width: int, sd: float, sigma: float = 0.0) -> Separable:
    """A Gaussian of `sd` pixels along both axes; beyond the image is 0."""

    def along(size: int) -> Tensor:
        at = torch.arange(size, dtype=torch.float64)
        kernel = torch.exp(-0.5 * ((at[:, None] - at) / sd) ** 2)
        return kernel / torch.exp(-0.5 * (torch.arange(-99, 100, dtype=torch.float64) / sd) ** 2).sum()

    return Separable(rows=along(height), columns=along(width), sigma=sigma)
