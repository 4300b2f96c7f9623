"""The Image-Frequency Fusion Network and the plain encoder it is compared with (the paper's section 2.2).

How we read it: docs/methods/amm_diff.md, "The encoder".

Both turn the shown images into one unified map. f = 2 is read as: the map is formed at half the images' size. It is
given back at the size of the diffusion network's first layer: the images' own, or, where that one works on 2 x 2
patches, at half.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.base.options import require
from shared.methods.nets.unet import Down, ResBlock, UNet, UNetShape, Up, conv3, norm


@dataclass(frozen=True, slots=True, kw_only=True)
class IffnShape:
    width: int  # C
    out: int  # channels of the unified map, Cz
    depth: tuple[int, int, int, int] = (2, 4, 2, 2)  # residual blocks: spatial at H, at H/2, spectral, after fusion
    levels: int = 0  # intensities are also given as this many soft levels; 0 is the paper's

    def __post_init__(self) -> None:
        require(self.width >= 8 and self.width % 8 == 0, "width", self.width, "a multiple of 8")
        require(self.out >= 4 and self.out % 4 == 0, "out", self.out, "a multiple of 4")
        require(min(self.depth) >= 0, "depth", self.depth, "numbers from 0")
        require(self.levels >= 0, "levels", self.levels, "0 or more")


class IFFN(nn.Module):
    """Output is a function of (shown, the shown images) alone; hidden ones are 0, or filled in from the shown."""

    EDGES = "spectral_stem.weight"
    multiple = 2

    def __init__(self, modalities: int, shape: IffnShape, *, patch: int) -> None:
        super().__init__()
        C, (full, half, spectral, fused) = shape.width, shape.depth
        self.shape, self.patch = shape, patch
        self.spatial_stem = conv3((2 + shape.levels) * modalities, C)  # images, their levels, availability maps
        self.spatial_full = chain(C, full)
        self.down = Down(C, 2 * C)
        self.spatial_half = chain(2 * C, half)
        self.attention = ChannelAttention(2 * C)
        self.spectral_stem = conv3(modalities, C // 2)
        self.spectral_down = Down(C // 2, C)
        self.spectral_half = chain(C, spectral)
        self.fuse = nn.Conv2d(3 * C, 2 * C, 1)
        self.fused = chain(2 * C, fused)
        self.up = Up(2 * C, C) if patch == 1 else None
        self.last = ResBlock(C + C // 2, C) if patch == 1 else None  # with the full-size edges
        self.out = nn.Conv2d(C if patch == 1 else 2 * C, shape.out, 1)
        self.norm = norm(shape.out)

    def forward(self, images_BMHW: Tensor, spectral_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
        maps_BMHW = shown_BM[:, :, None, None].to(images_BMHW.dtype).expand_as(images_BMHW)
        coded_BCHW = soft_levels(images_BMHW, self.shape.levels)
        spatial = self.spatial_full(self.spatial_stem(torch.cat([images_BMHW, coded_BCHW, maps_BMHW], dim=1)))
        spatial = self.attention(self.spatial_half(self.down(spatial)))
        edges = self.spectral_stem(spectral_BMHW)
        late = self.spectral_half(self.spectral_down(edges))
        h = self.fused(self.fuse(torch.cat([spatial, late], dim=1)))
        if self.up is not None and self.last is not None:
            h = self.last(torch.cat([self.up(h), edges], dim=1))
        out: Tensor = self.norm(self.out(h))
        return out

    def sources(self, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Which modality each input slice of the stems sees (dim 1 of the weight)."""
        coded = [m for m in modalities for _ in range(self.shape.levels)]
        return {
            "spatial_stem.weight": (*modalities, *coded, *modalities),
            self.EDGES: tuple(modalities),
        }


class PlainEncoder(nn.Module):
    """The ablation: an ordinary four-level U-Net of the images; no spectral branch, no availability maps."""

    def __init__(self, modalities: int, shape: IffnShape, *, patch: int) -> None:
        super().__init__()
        self.shape, self.patch, self.multiple = shape, patch, 8 * patch
        self.net = UNet(
            (1 + shape.levels) * modalities * patch**2,
            shape.out,
            UNetShape(base=shape.width, mult=(1, 2, 2, 4), blocks=1, attention=0),
            timed=False,
        )
        self.net.out.reset_parameters()  # a map, not a correction: it must not start as nothing
        self.norm = norm(shape.out)

    def forward(self, images_BMHW: Tensor, spectral_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
        x = torch.cat([images_BMHW, soft_levels(images_BMHW, self.shape.levels)], dim=1)
        out: Tensor = self.norm(self.net(F.pixel_unshuffle(x, self.patch)))
        return out

    def sources(self, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
        seen = [*modalities, *(m for m in modalities for _ in range(self.shape.levels))]
        return {"net.stem.weight": tuple(m for m in seen for _ in range(self.patch**2))}


class Predictor(nn.Module):
    """Of the pretext: from the masked branch's map to the complete one's, position by position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels // 2, 1)
        self.second = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        out: Tensor = self.second(F.silu(self.first(h_BCHW)))
        return out


class ChannelAttention(nn.Module):
    """Each channel weighed by what the whole image holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, channels // 4)
        self.second = nn.Linear(channels // 4, channels)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        weight_BC = torch.sigmoid(self.second(F.silu(self.first(h_BCHW.mean(dim=(2, 3))))))
        return h_BCHW * weight_BC[:, :, None, None]


def soft_levels(images_BMHW: Tensor, levels: int) -> Tensor:
    """How near each intensity in [0, 1] is to the levels 1/L .. 1, as hats; a blank has none of them.

    One layer can then make any piecewise-linear function of an intensity: fluid is dark in FLAIR and oedema bright,
    though both are bright in T2. Learnt from the intensities alone this took four times the steps.
    """
    return images_BMHW[:, :0] if levels == 0 else hats(images_BMHW, levels + 1)[:, :, 1:].flatten(1, 2)


def hats(images_BMHW: Tensor, levels: int) -> Tensor:
    """How near each intensity in [0, 1] is to `levels` levels from 0 to 1: BMLHW."""
    centres_L = torch.arange(levels, device=images_BMHW.device, dtype=images_BMHW.dtype) / (levels - 1)
    distance_BMLHW = (images_BMHW[:, :, None] - centres_L[:, None, None]).abs()
    return (1 - (levels - 1) * distance_BMLHW).clamp(min=0)


def chain(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*[ResBlock(channels, channels) for _ in range(blocks)])
