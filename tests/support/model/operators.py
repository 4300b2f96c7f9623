"""Linear measurements other than MRI's, to show that restoring asks nothing of MRI alone."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.base.options import require
from shared.diffusion.operators import Sd, _at, _exact, _rule, _to


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SuperResolution:
    """Each measured pixel is the mean of factor x factor pixels."""

    factor: int
    sigma: Sd = 0.0

    def __post_init__(self) -> None:
        require(self.factor >= 1, "factor", self.factor, "1 or more")

    def forward(self, x_BHW: Tensor) -> Tensor:
        _rule(
            all(n % self.factor == 0 for n in x_BHW.shape[-2:]),
            f"image of shape {tuple(x_BHW.shape[-2:])}",
            f"must divide by the factor {self.factor}",
        )
        with _exact(x_BHW) as x_BHW:
            return F.avg_pool2d(x_BHW[:, None], self.factor)[:, 0]

    def adjoint(self, y: Tensor) -> Tensor:
        with _exact(y) as y:
            return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1) / self.factor**2

    def normal(self, x_BHW: Tensor) -> Tensor:
        return self.adjoint(self.forward(x_BHW))

    def at(self, index: Sequence[int]) -> "SuperResolution":
        return dataclasses.replace(self, sigma=_at(self.sigma, index))

    def to(self, device: torch.device | str) -> "SuperResolution":
        return _to(self, device)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GaussianBlur:
    """A Gaussian of `sd` pixels along both axes; beyond the image is 0. It is its own adjoint."""

    sd: float
    sigma: Sd = 0.0

    def __post_init__(self) -> None:
        require(0 < self.sd < math.inf, "sd", self.sd, "above 0")

    def forward(self, x_BHW: Tensor) -> Tensor:
        with _exact(x_BHW) as x_BHW:
            rows_HH, columns_WW = (self._along(n, x_BHW) for n in x_BHW.shape[-2:])
            return rows_HH @ x_BHW @ columns_WW

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def normal(self, x_BHW: Tensor) -> Tensor:
        return self.forward(self.forward(x_BHW))

    def at(self, index: Sequence[int]) -> "GaussianBlur":
        return dataclasses.replace(self, sigma=_at(self.sigma, index))

    def to(self, device: torch.device | str) -> "GaussianBlur":
        return _to(self, device)

    def _along(self, size: int, like: Tensor) -> Tensor:
        """Symmetric; a whole kernel adds up to 1, and one cut off by the border to less."""

        def kernel(distance: Tensor) -> Tensor:
            return torch.exp(-0.5 * (distance / self.sd) ** 2)

        reach = math.ceil(6 * self.sd)
        at = torch.arange(size, dtype=torch.float64)
        whole = kernel(torch.arange(-reach, reach + 1, dtype=torch.float64)).sum()
        return (kernel(at[:, None] - at) / whole).to(like)
