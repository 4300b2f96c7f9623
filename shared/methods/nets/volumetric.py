"""The U-Net of latent volumes: time by FiLM in every block, text by cross-attention in the middle and on the way up.

Downs are strided convolutions: pooling of volumes has no bf16 kernel on a CPU.
Shape and inputs: docs/methods/aca_diff.md, "The generator".
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shared.base.options import require
from shared.methods.nets.unet import TimeEmbedding, norm


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeShape:
    base: int
    mult: tuple[int, ...]  # channels of each level, in units of base; each level halves the volume
    blocks: int = 2  # residual blocks per level on the way down; one more on the way up
    attention: int = 1  # how many levels attend to themselves, counted from the bottom
    patch: int = 1  # 2: space to depth, the whole network at half the resolution
    text: int = 0  # width of the text tokens; 0: it hears none
    checkpoint: bool = False  # recompute activations in the backward pass: less memory, a third more time

    def __post_init__(self) -> None:
        require(self.base >= 4 and self.base % 4 == 0, "base", self.base, "a multiple of 4")
        require(len(self.mult) >= 1 and min(self.mult) >= 1, "mult", self.mult, "numbers from 1")
        require(self.blocks >= 1, "blocks", self.blocks, "1 or more")
        require(0 <= self.attention <= len(self.mult), "attention", self.attention, "at most the number of levels")
        require(self.patch >= 1, "patch", self.patch, "1 or more")

    @property
    def multiple(self) -> int:
        """Every edge of the volume must be a multiple of this."""
        return int(self.patch * 2 ** (len(self.mult) - 1))


class VolumeUNet(nn.Module):
    """in_channels -> out_channels at the same size; `extra_BE` is added to the time embedding before it is used."""

    def __init__(self, in_channels: int, out_channels: int, shape: VolumeShape) -> None:
        super().__init__()
        self.shape = shape
        self.width = 4 * shape.base  # of the time embedding
        self.time = TimeEmbedding(shape.base)
        cube = shape.patch**3
        self.stem = conv3(in_channels * cube, shape.base)
        widths = [shape.base * m for m in shape.mult]
        attends = [len(widths) - level <= shape.attention for level in range(len(widths))]

        down: list[nn.Module] = []
        skips, width = [shape.base], shape.base
        for level, wide in enumerate(widths):
            for _ in range(shape.blocks):
                down.append(Stage(width, wide, self.width, attention=attends[level]))
                width = wide
                skips.append(width)
            if level < len(widths) - 1:
                down.append(nn.Conv3d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList(
            [
                Stage(width, width, self.width, attention=any(attends), text=shape.text),
                Stage(width, width, self.width),
            ]
        )
        up: list[nn.Module] = []
        for level, wide in reversed(list(enumerate(widths))):
            for block in range(shape.blocks + 1):
                text = shape.text if block == shape.blocks else 0  # once a level, at its end
                up.append(Stage(width + skips.pop(), wide, self.width, attention=attends[level], text=text))
                width = wide
            if level > 0:
                up.append(Up(width))
        self.up = nn.ModuleList(up)
        self.norm = norm(width)
        self.out = zeroed(conv3(width, out_channels * cube))

    def forward(
        self, x_BCDHW: Tensor, t_B: Tensor, extra_BE: Tensor | None = None, text_BLE: Tensor | None = None
    ) -> Tensor:
        emb_BE = self.time(t_B)
        if extra_BE is not None:
            emb_BE = emb_BE + extra_BE
        h = self.stem(fold(x_BCDHW, self.shape.patch))
        skips = [h]
        for layer in self.down:
            h = self._run(layer, h, emb_BE, text_BLE)
            skips.append(h)
        for layer in self.middle:
            h = self._run(layer, h, emb_BE, text_BLE)
        for layer in self.up:
            if isinstance(layer, Stage):
                h = torch.cat([h, skips.pop()], dim=1)
            h = self._run(layer, h, emb_BE, text_BLE)
        return unfold(self.out(F.silu(self.norm(h))), self.shape.patch)

    def _run(self, layer: nn.Module, h: Tensor, emb_BE: Tensor, text_BLE: Tensor | None) -> Tensor:
        if not isinstance(layer, Stage):
            out: Tensor = layer(h)
        elif self.shape.checkpoint and torch.is_grad_enabled() and h.requires_grad:
            out = checkpoint(layer, h, emb_BE, text_BLE, use_reentrant=True)
        else:
            out = layer(h, emb_BE, text_BLE)
        return out


class Stage(nn.Module):
    """A residual block and, where asked, attention to itself and to the text."""

    def __init__(self, c_in: int, c_out: int, emb: int, *, attention: bool = False, text: int = 0) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), conv3(c_in, c_out)
        self.film = nn.Linear(emb, 2 * c_out)
        self.norm2, self.conv2 = norm(c_out), zeroed(conv3(c_out, c_out))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv3d(c_in, c_out, 1)
        self.attention = Attention(c_out) if attention else None
        self.reading = Attention(c_out, text) if text else None

    def forward(self, x: Tensor, emb_BE: Tensor, text_BLE: Tensor | None = None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        scale, shift = self.film(emb_BE)[:, :, None, None, None].chunk(2, dim=1)
        h = self.skip(x) + self.conv2(F.silu(h * (1 + scale) + shift))
        if self.attention is not None:
            h = self.attention(h)
        if self.reading is not None and text_BLE is not None:
            h = self.reading(h, text_BLE)
        out: Tensor = h
        return out


class Attention(nn.Module):
    """Every position asks: the positions, or with a `text` width the tokens. The softmax in fp32."""

    def __init__(self, channels: int, text: int = 0, head: int = 32) -> None:
        super().__init__()
        self.heads = max(1, channels // head)
        self.norm = norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(text or channels, 2 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, text_BLE: Tensor | None = None) -> Tensor:
        B, C = x.shape[:2]
        asking_BNC = self.norm(x).flatten(2).transpose(1, 2)
        told_BLC = asking_BNC if text_BLE is None else text_BLE.to(asking_BNC.dtype)
        keys, values = self.key_value(told_BLC).chunk(2, dim=-1)
        heard_BNC = attend(self.query(asking_BNC), keys, values, self.heads)
        out: Tensor = x + self.out(heard_BNC).transpose(1, 2).reshape(B, C, *x.shape[2:])
        return out


def attend(q_BNC: Tensor, k_BLC: Tensor, v_BLC: Tensor, heads: int, hidden_BL: Tensor | None = None) -> Tensor:
    """Scaled dot product over `heads` heads; keys that are hidden get no weight."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q_BNC, k_BLC, v_BLC))
    logits = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
    if hidden_BL is not None:
        logits = logits.masked_fill(hidden_BL[:, None, None, :], -torch.inf)
    heard: Tensor = logits.softmax(-1).to(v.dtype) @ v
    return heard.transpose(1, 2).flatten(2)


class Up(nn.Module):
    """Double the size: repeat each voxel, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def conv3(c_in: int, c_out: int) -> nn.Conv3d:
    return nn.Conv3d(c_in, c_out, 3, padding=1)


def zeroed(layer: nn.Module) -> nn.Module:
    """Set a layer's weights to 0, so that a residual block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def fold(x_BCDHW: Tensor, patch: int) -> Tensor:
    """Space to depth: the voxels of a small cube become channels."""
    if patch == 1:
        return x_BCDHW
    B, C, D, H, W = x_BCDHW.shape
    cubes = x_BCDHW.reshape(B, C, D // patch, patch, H // patch, patch, W // patch, patch)
    return cubes.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(B, C * patch**3, D // patch, H // patch, W // patch)


def unfold(x_BCDHW: Tensor, patch: int) -> Tensor:
    """Undo `fold`: channels become the voxels of a small cube again."""
    if patch == 1:
        return x_BCDHW
    B, C, D, H, W = x_BCDHW.shape
    cubes = x_BCDHW.reshape(B, C // patch**3, patch, patch, patch, D, H, W)
    return cubes.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(B, C // patch**3, D * patch, H * patch, W * patch)
