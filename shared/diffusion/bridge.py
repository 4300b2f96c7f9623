"""Brownian bridges from a source image y to its target x_0, with the reverse step for any skip.

Formulas, and a misprint: docs/methods/mmdm.md, "The bridge".

    x_t = (1 - m_t) x_0 + m_t y + sqrt(delta_t) eps,    delta_t = 2 (m_t - m_t^2)

Index 0 is next to x_0, T - 1 next to y. m runs from 0.001 to 0.999: with the literal t / T the ends are 0 / 0. Tables
are fp64 on the CPU; coefficients are Python floats.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shared.base.randomness import Noise, normal

ENDS = (0.001, 0.999)

Estimate = Callable[[Tensor, int], Tensor]  # (x_t, index t) -> x_0, of any shape that broadcasts against x_t


class Step(NamedTuple):
    """x_n = on_x x_t + on_x0 x_0 + on_y y + sqrt(variance) z."""

    on_x: float
    on_x0: float
    on_y: float
    variance: float


@dataclass(frozen=True, slots=True, eq=False)
class Bridge:
    m_T: Tensor  # fp64, CPU

    def __len__(self) -> int:
        return len(self.m_T)

    @property
    def delta_T(self) -> Tensor:
        return 2 * (self.m_T - self.m_T.square())

    def noised(self, x0: Tensor, y: Tensor, t_B: Tensor, eps: Tensor) -> Tensor:
        """Mix x_0, y and noise into x_t: a time for each sample, which counts along the first axis."""
        m, delta = (table.to(x0.device)[t_B].reshape(-1, *[1] * (y.ndim - 1)) for table in (self.m_T, self.delta_T))
        return (1 - m).to(y.dtype) * x0 + m.to(y.dtype) * y + delta.sqrt().to(y.dtype) * eps

    def step(self, t: int, n: int, eta: float) -> Step:
        """Step from index t to n < t. eta = 1 is the Markov posterior, 0 draws no noise; marginals stay exact."""
        m_t, m_n = self.m_T[t].item(), self.m_T[n].item()
        delta_t, delta_n = self.delta_T[t].item(), self.delta_T[n].item()
        variance = eta**2 * (delta_t - delta_n * (1 - m_t) ** 2 / (1 - m_n) ** 2) * delta_n / delta_t
        r = math.sqrt((delta_n - variance) / delta_t)
        # the paper prints "c_1 x_t + c_1 x_0": the second is c_2
        return Step(on_x=r, on_x0=(1 - m_n) - r * (1 - m_t), on_y=m_n - r * m_t, variance=variance)

    def grid(self, steps: int) -> tuple[int, ...]:
        """List the indices of a chain, T - 1 first: evenly down, then 1 and 0, as BBDM has it."""
        last = len(self) - 1
        if steps <= 2 or last <= 1:
            return (last, 0)[: min(steps, len(self))]
        down = [int(last - k * last / (steps - 2)) for k in range(steps - 2)]
        return tuple(dict.fromkeys([*(t for t in down if t > 1), 1, 0]))


@functools.cache
def bridge(times: int) -> Bridge:
    return Bridge(torch.linspace(*ENDS, times, dtype=torch.float64))


def cross(estimate: Estimate, y: Tensor, over: Bridge, *, steps: int, eta: float, generator: Noise | None) -> Tensor:
    """Walk from x_T = y to the last estimate of x_0. Several bridges side by side may share one estimate.

    The start is a point, so with eta = 0 the result is a function of y alone.
    """
    x, times = y, over.grid(steps)
    for t, n in itertools.pairwise(times):
        at = over.step(t, n, eta)
        x = at.on_x * x + at.on_x0 * estimate(x, t) + at.on_y * y
        if at.variance > 0:
            x = x + math.sqrt(at.variance) * normal(x, generator)
    return estimate(x, times[-1])
