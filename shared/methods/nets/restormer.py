"""Restormer as a time-conditioned U-Net: channel attention and gated convolutions (Zamir et al. 2022).

How MMDM uses it: docs/methods/mmdm.md, "The networks".

The attention (MDTA) and the feed-forward (GDFN) are MONAI's; the layer norms carry the time by FiLM. The original adds
its input to its output, which makes no sense for a target that is a difference: left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shared.base.options import require
from shared.methods.nets.unet import TimeEmbedding, conv3, zeroed


@dataclass(frozen=True, slots=True, kw_only=True)
class RestormerShape:
    dim: int  # channels of the top level; each level below doubles them and halves the image
    blocks: tuple[int, ...]  # of each level; the last one is the bottom
    heads: tuple[int, ...]
    refinement: int = 2
    expansion: float = 2.66
    patch: int = 1  # 2: space to depth, the whole network at half the resolution
    checkpoint: bool = False  # recompute activations in the backward pass: less memory, a third more time

    def __post_init__(self) -> None:
        require(self.dim >= 4 and self.dim % 4 == 0, "dim", self.dim, "a multiple of 4")
        require(len(self.blocks) >= 1 and min(self.blocks) >= 1, "blocks", self.blocks, "numbers from 1")
        require(len(self.heads) == len(self.blocks), "heads", self.heads, "one number for each level")
        fits = all(self.dim * 2**level % n == 0 for level, n in enumerate(self.heads))
        require(fits, "heads", self.heads, "divisors of each level's channels")
        require(self.refinement >= 0, "refinement", self.refinement, "0 or more")
        require(self.patch >= 1, "patch", self.patch, "1 or more")

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this."""
        return int(self.patch * 2 ** (len(self.blocks) - 1))


class Restormer(nn.Module):
    """in_channels -> out_channels at the same size, at a time."""

    def __init__(self, in_channels: int, out_channels: int, shape: RestormerShape) -> None:
        super().__init__()
        self.shape = shape
        area, emb = shape.patch**2, 4 * shape.dim
        self.time = TimeEmbedding(shape.dim)
        self.stem = conv3(in_channels * area, shape.dim)
        last = len(shape.blocks) - 1
        widths = [shape.dim * 2**level for level in range(last + 1)]

        def level(width: int, blocks: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, heads, emb, shape.expansion) for _ in range(blocks))

        self.encoder = nn.ModuleList(level(widths[i], shape.blocks[i], shape.heads[i]) for i in range(last))
        self.down = nn.ModuleList(
            nn.Sequential(conv3(widths[i], widths[i] // 2), nn.PixelUnshuffle(2)) for i in range(last)
        )
        self.bottom = level(widths[last], shape.blocks[last], shape.heads[last])
        self.up = nn.ModuleList(
            nn.Sequential(conv3(widths[i + 1], 2 * widths[i + 1]), nn.PixelShuffle(2)) for i in range(last)
        )
        # the top level keeps the skip's channels beside its own
        self.joined = nn.ModuleList(
            nn.Identity() if i == 0 else nn.Conv2d(2 * widths[i], widths[i], 1) for i in range(last)
        )
        top = 2 * shape.dim if last else shape.dim
        self.decoder = nn.ModuleList(
            level(top if i == 0 else widths[i], shape.blocks[i], shape.heads[i]) for i in range(last)
        )
        self.refinement = level(top, shape.refinement, shape.heads[0])
        self.out = zeroed(conv3(top, out_channels * area))

    def forward(self, x_BCHW: Tensor, t_B: Tensor) -> Tensor:
        emb_BE = self.time(t_B)
        h = self.stem(F.pixel_unshuffle(x_BCHW, self.shape.patch))
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            h = self._through(blocks, h, emb_BE)
            skips.append(h)
            h = down(h)
        h = self._through(self.bottom, h, emb_BE)
        for i in reversed(range(len(skips))):
            h = self.joined[i](torch.cat([self.up[i](h), skips[i]], dim=1))
            h = self._through(self.decoder[i], h, emb_BE)
        h = self._through(self.refinement, h, emb_BE)
        return F.pixel_shuffle(self.out(h), self.shape.patch)

    def _through(self, blocks: nn.Module, h: Tensor, emb_BE: Tensor) -> Tensor:
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            if self.shape.checkpoint and torch.is_grad_enabled() and h.requires_grad:
                h = checkpoint(block, h, emb_BE, use_reentrant=True)
            else:
                h = block(h, emb_BE)
        return h


class Block(nn.Module):
    """LN, MDTA; LN, GDFN; the time scales and shifts behind each norm."""

    def __init__(self, width: int, heads: int, emb: int, expansion: float) -> None:
        from monai.networks.blocks.cablock import CABlock, FeedForward  # brings mlflow and much else: seconds

        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.film = nn.Linear(emb, 4 * width)
        self.attention = CABlock(2, width, heads, bias=False)
        self.feed = FeedForward(2, width, expansion, bias=False)

    def forward(self, x: Tensor, emb_BE: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = self.film(emb_BE)[:, None, None, :].chunk(4, dim=-1)
        x = x + self.attention(_normed(x, self.norm1, scale1, shift1))
        out: Tensor = x + self.feed(_normed(x, self.norm2, scale2, shift2))
        return out


def _normed(x_BCHW: Tensor, norm: nn.Module, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise the channels of each pixel, then scale and shift them."""
    out_BHWC = norm(x_BCHW.permute(0, 2, 3, 1)) * (1 + scale) + shift
    out: Tensor = out_BHWC.permute(0, 3, 1, 2).contiguous()
    return out
