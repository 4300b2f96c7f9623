"""Conjugate gradients for N x = b, N Hermitian and positive, every sample of a batch on its own.

Pitfalls: docs/methods/reconstruction.md, "Conjugate gradients".

Steps, directions and stopping are per sample: a sample that has converged, or whose curvature p^H N p is not positive,
stays as it is, so a hard sample does not change an easy one. The inner product is Re <p, q>, right for real and
complex unknowns. Nothing is done under autocast.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def solve(
    normal: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, *, iterations: int, tolerance: float = 1e-6
) -> Tensor:
    """Find x with N x = b, from the first guess `x`; a sample stops at |b - N x| <= tolerance |b|."""
    with torch.autocast(b.device.type, enabled=False):
        residual = b - normal(x)
        direction = residual
        power = _dot(residual, residual)
        goal = tolerance**2 * _dot(b, b)
        for _ in range(iterations):
            going = power > goal
            if not bool(going.any()):
                break
            turned = normal(direction)
            curvature = _dot(direction, turned)
            going = going & (curvature > 0)  # False for NaN too
            step = torch.where(going, power / curvature, 0.0)
            x = torch.where(going, x + step * direction, x)
            residual = torch.where(going, residual - step * turned, residual)
            before, power = power, torch.where(going, _dot(residual, residual), 0.0)  # 0: never goes again
            direction = residual + torch.where(going, power / before, 0.0) * direction
        return x


def _dot(p: Tensor, q: Tensor) -> Tensor:
    """Re <p, q> per sample, shaped to be broadcast."""
    product = (p.conj() * q).real if p.is_complex() else p * q
    return product.flatten(1).sum(1).reshape(-1, *[1] * (p.ndim - 1))
