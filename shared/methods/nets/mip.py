"""Maximum intensity projection as a loss: a running soft maximum along the slices, both ways.

What is wrong in print: docs/methods/mmdm.md, "The MIP loss".

    target      max_{j <= i} x_j                        the hard maximum of each prefix
    prediction  sum_{j <= i} w_ij x_j,  w_i. = softmax_{j <= i}(x_j / tau)

The paper prints a sum over the prefix *projections*, which grows with i; this is the reading that is a projection.
A running maximum, sum and weighted sum give all prefixes in one scan, and another scan gives the gradient
(docs/methods/mmdm.md, "The MIP loss in one scan").
"""

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Gumbel: TypeAlias = Literal["off", "added", "paper_literal"]
TINY = 1e-20  # the paper's 1^-20; fp32 holds it


def mip_loss(
    made_BDHW: Tensor,
    truth_BDHW: Tensor,
    *,
    tau: float,
    gumbel: Gumbel = "off",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Per sample: mean squared error of the prefix projections, from the first slice and from the last."""
    with torch.autocast(made_BDHW.device.type, enabled=False):
        made, truth = made_BDHW.float(), truth_BDHW.float()
        logits = _logits(made, tau, gumbel, generator)
        total = torch.zeros(len(made), device=made.device)
        for turn in (False, True):
            x, a, y = (v.flip(1) for v in (made, logits, truth)) if turn else (made, logits, truth)
            total = total + (soft_maximum(x, a) - y.cummax(1).values).square().mean((1, 2, 3))
    return total


def soft_maximum(x_BDHW: Tensor, logits_BDHW: Tensor) -> Tensor:
    """sum_{j <= i} softmax_{j <= i}(logits)_j x_j along axis 1, in O(D) time and memory; `cummax` as tau goes to 0."""
    out: Tensor = _Scan.apply(x_BDHW, logits_BDHW)  # type: ignore[no-untyped-call]
    return out


def _logits(x_BDHW: Tensor, tau: float, gumbel: Gumbel, generator: torch.Generator | None) -> Tensor:
    if gumbel == "off":
        return x_BDHW / tau
    u = torch.rand(x_BDHW.shape, generator=generator, device=x_BDHW.device)
    noise = -torch.log(-torch.log(u + TINY) + TINY)
    if gumbel == "added":  # fades with tau: the hard maximum
        return x_BDHW / tau + noise
    return (x_BDHW + noise) / tau  # the paper's: picks slice j with probability softmax(x)_j, whatever tau


class _Scan(torch.autograd.Function):
    """All exponents are 0 or less; nothing of size D^2 is ever held."""

    @staticmethod
    def forward(ctx: Any, x_BDHW: Tensor, a_BDHW: Tensor) -> Tensor:
        y, level = torch.empty_like(x_BDHW), torch.empty_like(a_BDHW)  # level: log sum exp of the prefix
        y[:, 0], level[:, 0] = x_BDHW[:, 0], a_BDHW[:, 0]
        for i in range(1, x_BDHW.shape[1]):
            torch.logaddexp(level[:, i - 1], a_BDHW[:, i], out=level[:, i])
            share = (a_BDHW[:, i] - level[:, i]).exp_()  # of the newest slice
            torch.lerp(y[:, i - 1], x_BDHW[:, i], share, out=y[:, i])
        ctx.save_for_backward(x_BDHW, a_BDHW, y, level)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BDHW: Tensor) -> tuple[Tensor, Tensor]:
        x, a, y, level = ctx.saved_tensors
        on_x, on_a = torch.empty_like(x), torch.empty_like(a)
        total, along = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])  # sum of g_i e^(.), and of g_i y_i e^(.)
        for k in range(x.shape[1] - 1, -1, -1):
            if k + 1 < x.shape[1]:
                fade = (level[:, k] - level[:, k + 1]).exp_()
                total, along = total * fade, along * fade
            total = total + g_BDHW[:, k]
            along = along + g_BDHW[:, k] * y[:, k]
            weight = (a[:, k] - level[:, k]).exp_()
            torch.mul(weight, total, out=on_x[:, k])
            torch.mul(weight, x[:, k] * total - along, out=on_a[:, k])
        return on_x, on_a
