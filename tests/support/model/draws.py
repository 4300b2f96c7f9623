"""Everything random of one test of an operator, and the operators that several tests draw."""

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.diffusion.acquisition import unit_maps
from shared.diffusion.operators import CartesianMRI, Place

B = 3
F64, C128 = torch.float64, torch.complex128


@dataclass
class Draw:
    """Everything random of one test; its seed is printed where the test fails."""

    parity: tuple[int, int]
    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(2**31))

    def __post_init__(self) -> None:
        pick = random.Random(self.seed)
        self.g = torch.Generator().manual_seed(self.seed)
        self.H, self.W = (2 * pick.randint(3, 6) + odd for odd in self.parity)
        self.coils, self.factor, self.sd = pick.randint(1, 4), pick.randint(1, 3), pick.uniform(0.3, 3)
        print(f"seed {self.seed}: {self.H} x {self.W}, {self.coils} coils, factor {self.factor}, blur {self.sd:.3g}")

    def normal(self, *shape: int, dtype: torch.dtype = F64) -> Tensor:
        return torch.randn(shape, generator=self.g, dtype=dtype)

    def mask(self, *shape: int) -> Tensor:
        mask = torch.rand(shape, generator=self.g) < 0.4
        mask[..., 0] = True  # never empty
        return mask

    def maps(self, batch: int, H: int, W: int) -> Tensor:
        return unit_maps(self.normal(batch, self.coils, H, W, dtype=C128))


def mri_lines(d: Draw) -> CartesianMRI:
    return CartesianMRI(maps_BCHW=d.maps(1, d.H, d.W), mask=d.mask(d.W), sigma=0.1)


def mri_points_each(d: Draw) -> CartesianMRI:
    return CartesianMRI(maps_BCHW=d.maps(B, d.H, d.W), mask=d.mask(B, d.H, d.W), sigma=0.1)


def mri_placed_each(d: Draw) -> CartesianMRI:
    H, W = d.H + 1, d.W + 4
    place = Place(rows=d.normal(B, H, d.H), columns=d.normal(B, W, d.W))
    return CartesianMRI(maps_BCHW=d.maps(B, H, W), mask=d.mask(1, H, W), sigma=torch.rand(B), placement=place)
