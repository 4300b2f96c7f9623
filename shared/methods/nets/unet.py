"""The U-Net of the diffusion models, ADM style, and its blocks (docs/methods/diffusion.md, "The U-Net").

GroupNorm keeps at least four channels to a group: with one, a narrow network could not tell levels apart.
Nothing here is channels_last: torch 2.13's CPU group norm ends the process in that layout.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shared.base.options import require


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetShape:
    base: int
    mult: tuple[int, ...]  # channels of each level, in units of base; each level halves the image
    blocks: int = 2  # residual blocks per level on the way down; one more on the way up
    attention: int = 1  # how many levels have it, counted from the bottom
    patch: int = 1  # 2: space to depth, the whole network at half the resolution
    checkpoint: bool = False  # recompute activations in the backward pass: less memory, a third more time

    def __post_init__(self) -> None:
        require(self.base >= 4 and self.base % 4 == 0, "base", self.base, "a multiple of 4")
        require(len(self.mult) >= 1 and min(self.mult) >= 1, "mult", self.mult, "numbers from 1")
        require(self.blocks >= 1, "blocks", self.blocks, "1 or more")
        require(0 <= self.attention <= len(self.mult), "attention", self.attention, "at most the number of levels")
        require(self.patch >= 1, "patch", self.patch, "1 or more")

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this."""
        return int(self.patch * 2 ** (len(self.mult) - 1))


class UNet(nn.Module):
    """in_channels -> out_channels at the same size. Without `timed` it is an ordinary U-Net of the same blocks.

    A `context` stands beside the input from the first layer on, at the network's own resolution (size / patch).
    `times` is how many times it hears: one for the whole image, or one for each modality.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shape: UNetShape,
        *,
        timed: bool = True,
        times: int = 1,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.shape = shape
        area = shape.patch**2
        emb = 4 * shape.base if timed else None
        self.time = TimeEmbedding(shape.base, times) if timed else None
        self.stem = conv3(in_channels * area + context, shape.base)
        widths = [shape.base * m for m in shape.mult]
        attends = [len(widths) - level <= shape.attention for level in range(len(widths))]

        down: list[nn.Module] = []
        skips, width = [shape.base], shape.base
        for level, wide in enumerate(widths):
            for _ in range(shape.blocks):
                down.append(Stage(width, wide, emb, attention=attends[level]))
                width = wide
                skips.append(width)
            if level < len(widths) - 1:
                down.append(Down(width, width))
                skips.append(width)
        self.down = nn.ModuleList(down)

        self.middle = nn.ModuleList([Stage(width, width, emb, attention=any(attends)), Stage(width, width, emb)])

        up: list[nn.Module] = []
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(shape.blocks + 1):
                up.append(Stage(width + skips.pop(), wide, emb, attention=attends[level]))
                width = wide
            if level > 0:
                up.append(Up(width, width))
        self.up = nn.ModuleList(up)

        self.norm = norm(width)
        self.out = zeroed(conv3(width, out_channels * area))

    def forward(self, x_BCHW: Tensor, t: Tensor | None = None, context_BCHW: Tensor | None = None) -> Tensor:
        emb_BE = self.time(t) if self.time is not None else None
        h = F.pixel_unshuffle(x_BCHW, self.shape.patch)
        h = self.stem(h if context_BCHW is None else torch.cat([h, context_BCHW.to(h.dtype)], dim=1))
        skips = [h]
        for layer in self.down:
            h = self._run(layer, h, emb_BE)
            skips.append(h)
        for layer in self.middle:
            h = self._run(layer, h, emb_BE)
        for layer in self.up:
            if isinstance(layer, Stage):
                h = torch.cat([h, skips.pop()], dim=1)
            h = self._run(layer, h, emb_BE)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), self.shape.patch)

    def _run(self, layer: nn.Module, h: Tensor, emb_BE: Tensor | None) -> Tensor:
        if not isinstance(layer, Stage):
            out: Tensor = layer(h)
        elif self.shape.checkpoint and torch.is_grad_enabled() and h.requires_grad:
            out = checkpoint(layer, h, emb_BE, use_reentrant=True)
        else:
            out = layer(h, emb_BE)
        return out


class Stage(nn.Module):
    """A residual block and, where asked, self-attention."""

    def __init__(self, c_in: int, c_out: int, emb: int | None, *, attention: bool = False) -> None:
        super().__init__()
        self.res = ResBlock(c_in, c_out, emb)
        self.attention = Attention(c_out) if attention else None

    def forward(self, h: Tensor, emb_BE: Tensor | None) -> Tensor:
        h = self.res(h, emb_BE)
        return h if self.attention is None else self.attention(h)


class ResBlock(nn.Module):
    """Two convolutions and a skip; the time enters by FiLM on the second norm."""

    def __init__(self, c_in: int, c_out: int, emb: int | None = None) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), conv3(c_in, c_out)
        self.film = None if emb is None else nn.Linear(emb, 2 * c_out)
        self.norm2, self.conv2 = norm(c_out), zeroed(conv3(c_out, c_out))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb_BE: Tensor | None = None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.film is not None and emb_BE is not None:
            scale, shift = self.film(emb_BE)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.conv2(F.silu(h))
        return out


class Attention(nn.Module):
    """Scaled dot-product self-attention over positions; the softmax in fp32."""

    def __init__(self, channels: int, head: int = 64) -> None:
        super().__init__()
        self.heads = max(1, channels // head)
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W).unbind(1)
        weights = (q.transpose(-1, -2) @ k / math.sqrt(C // self.heads)).float().softmax(-1).to(v.dtype)
        out: Tensor = x + self.out((v @ weights.transpose(-1, -2)).reshape(B, C, H, W))
        return out


class TimeEmbedding(nn.Module):
    """Sinusoids of each original index, then a small perceptron. Already through SiLU, as every block wants it.

    Its first layer is a sum over the times, a slice of its weights for each; a time below 0 adds nothing to it.
    """

    def __init__(self, base: int, times: int = 1) -> None:
        super().__init__()
        self.base, self.times = base, times
        self.first, self.second = nn.Linear(base * times, 4 * base), nn.Linear(4 * base, 4 * base)

    def forward(self, t: Tensor | None) -> Tensor:
        assert t is not None, "a timed network needs its time"
        t_BN = t.reshape(-1, self.times)
        half = self.base // 2
        frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
        angle = t_BN[..., None].float() * frequency
        waves_BNE = torch.where(t_BN[..., None] >= 0, torch.cat([angle.cos(), angle.sin()], dim=-1), 0.0)
        emb: Tensor = self.second(F.silu(self.first(waves_BNE.flatten(1))))
        return F.silu(emb)


class Down(nn.Module):
    """Halve the size by a strided convolution (pooling has no bf16 kernel everywhere)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Up(nn.Module):
    """Double the size: repeat each pixel, then a convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = conv3(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def conv3(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, max(1, channels // 4)), channels)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Set a layer's weights to 0, so that a residual block starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
