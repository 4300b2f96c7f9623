"""Reconstruction of one modality from its own measurement, without a prior: what Any2all is measured against.

All three take y and the operator in the image's physical units and give real images, 0 or more (BHW), every sample of
the batch on its own. `strength` of CG-SENSE is relative to |A|, so it has no unit; that of TV is in the image's units:
c y with strength c * s gives c times the image.
"""

import dataclasses
import math

import torch
from torch import Tensor

from shared.base.options import require
from shared.diffusion import conjugate
from shared.diffusion.operators import CartesianMRI, Operator, finite

_DARK = 1e-6  # of the best-seen pixel's weight: below it a pixel is not measured at all
_POWER = 15  # power iterations for |A^T A|
_INNER = 10  # steps of the denoising inside a step of TV
_TINY = 1e-30


@torch.no_grad()
def zero_filled(y: Tensor, operator: Operator) -> Tensor:
    """A^T y, divided by what a complete measurement would see of each pixel: for unit maps on their own grid, by 1."""
    image_BHW = operator.adjoint(finite(y, "measurement"))
    whole = operator
    if isinstance(operator, CartesianMRI):
        whole = dataclasses.replace(operator, mask=torch.ones_like(operator.mask))
    seen_BHW = whole.normal(torch.ones_like(image_BHW))
    lit = seen_BHW > _DARK * seen_BHW.amax((-2, -1), keepdim=True)
    return torch.where(lit, image_BHW / seen_BHW, 0.0).clamp(min=0)


@torch.no_grad()
def cg_sense(y: Tensor, operator: Operator, *, strength: float, iterations: int) -> Tensor:
    """Pruessmann et al. 2001 with a Tikhonov term: argmin |A x - y|^2 + strength |x|^2 over real x, then x >= 0."""
    require(strength >= 0, "strength", strength, "0 or more")
    require(iterations >= 1, "iterations", iterations, "1 or more")
    b_BHW = operator.adjoint(finite(y, "measurement"))
    x_BHW = conjugate.solve(
        lambda x: operator.normal(x) + strength * x, b_BHW, torch.zeros_like(b_BHW), iterations=iterations
    )
    return x_BHW.clamp(min=0)


@torch.no_grad()
def total_variation(y: Tensor, operator: Operator, *, strength: float, iterations: int) -> Tensor:
    """argmin 1/2 |A x - y|^2 + strength TV(x) over x >= 0; TV is the sum of the gradient's lengths.

    Beck & Teboulle 2009, MFISTA: the objective never rises. One application of A^T A an iteration.
    """
    require(strength >= 0, "strength", strength, "0 or more")
    require(iterations >= 1, "iterations", iterations, "1 or more")
    b = operator.adjoint(finite(y, "measurement"))
    x = zero_filled(y, operator)
    norm_B11 = largest(operator, x)
    dual, seen = torch.zeros_like(gradient(x)), operator.normal(x)
    ahead, seen_ahead, cost, t = x, seen, _cost(x, seen, b, strength), 1.0
    for _ in range(iterations):
        new, dual = _denoised(ahead - (seen_ahead - b) / norm_B11, dual, strength / norm_B11)
        seen_new = operator.normal(new)
        cost_new = _cost(new, seen_new, b, strength)
        better = cost_new <= cost
        best, seen_best = torch.where(better, new, x), torch.where(better, seen_new, seen)
        t_new = _next(t)
        to_new, onward = t / t_new, (t - 1) / t_new
        ahead = best + to_new * (new - best) + onward * (best - x)
        seen_ahead = seen_best + to_new * (seen_new - seen_best) + onward * (seen_best - seen)  # A^T A is linear
        x, seen, cost, t = best, seen_best, torch.where(better, cost_new, cost), t_new
    return x


def _denoised(v_BHW: Tensor, dual: Tensor, weight_B11: Tensor) -> tuple[Tensor, Tensor]:
    """argmin 1/2 |x - v|^2 + weight TV(x) over x >= 0, by fast projected gradients on its dual, |p| <= weight.

    Begun from the last dual, a few steps are enough.
    """
    limit, ahead, s = weight_B11[:, None].clamp(min=_TINY), dual, 1.0
    for _ in range(_INNER):
        x = (v_BHW - gradient_adjoint(ahead)).clamp(min=0)
        new = ahead + gradient(x) / 8  # |gradient|^2 <= 8
        new = new / (new.norm(dim=1, keepdim=True) / limit).clamp(min=1)
        s_new = _next(s)
        dual, ahead, s = new, new + (s - 1) / s_new * (new - dual), s_new
    return (v_BHW - gradient_adjoint(dual)).clamp(min=0), dual


def _next(t: float) -> float:
    return (1 + math.sqrt(1 + 4 * t * t)) / 2  # Nesterov's sequence


def _cost(x_BHW: Tensor, seen_BHW: Tensor, b_BHW: Tensor, strength: float) -> Tensor:
    """The objective less |y|^2 / 2, B11, from seen = A^T A x and b = A^T y."""
    lengths_BHW = gradient(x_BHW).norm(dim=1)
    cost: Tensor = (x_BHW * (0.5 * seen_BHW - b_BHW) + strength * lengths_BHW).sum((1, 2), keepdim=True)
    return cost


def gradient(x_BHW: Tensor) -> Tensor:
    """Difference of each pixel to the next row and to the next column, B2HW; 0 at the last."""
    down = torch.zeros_like(x_BHW)
    across = torch.zeros_like(x_BHW)
    down[:, :-1] = x_BHW.diff(dim=1)
    across[:, :, :-1] = x_BHW.diff(dim=2)
    return torch.stack([down, across], dim=1)


def gradient_adjoint(p_B2HW: Tensor) -> Tensor:
    x_BHW = torch.zeros_like(p_B2HW[:, 0])
    x_BHW[:, :-1] -= p_B2HW[:, 0, :-1]
    x_BHW[:, 1:] += p_B2HW[:, 0, :-1]
    x_BHW[:, :, :-1] -= p_B2HW[:, 1, :, :-1]
    x_BHW[:, :, 1:] += p_B2HW[:, 1, :, :-1]
    return x_BHW


def largest(operator: Operator, like_BHW: Tensor) -> Tensor:
    """|A^T A| of each sample by power iteration, B11, with a tenth to spare: it is approached from below."""
    start = torch.rand(like_BHW.shape[-2:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start.to(like_BHW).expand_as(like_BHW)
    size = like_BHW.new_ones(len(like_BHW), 1, 1)
    for _ in range(_POWER):
        x = operator.normal(x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_TINY))
        size = x.norm(dim=(1, 2), keepdim=True)
    return 1.1 * size.clamp(min=_TINY)
