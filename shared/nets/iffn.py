"""The Image-Frequency Fusion Network and the plain encoder it is compared with (AMM-Diff §2.2; seed_systems.md §2.2).

Both turn the shown images into one unified map at the images' own size. f = 2 is read as: the map is formed at half
that size, and brought back so that it can stand beside x_t.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.nets.unet import Down, ResBlock, UNet, UNetShape, Up, conv3, norm
from shared.options import require


@dataclass(frozen=True, slots=True, kw_only=True)
class IffnShape:
    width: int  # C
    out: int  # channels of the unified map, Cz
    depth: tuple[int, int, int, int] = (2, 4, 2, 2)  # residual blocks: spatial at H, at H/2, spectral, after fusion

    def __post_init__(self) -> None:
        require(self.width >= 8 and self.width % 8 == 0, "width", self.width, "a multiple of 8")
        require(self.out >= 4 and self.out % 4 == 0, "out", self.out, "a multiple of 4")
        require(min(self.depth) >= 0, "depth", self.depth, "numbers from 0")


class IFFN(nn.Module):
    """Output is a function of (shown, the shown images) alone; hidden images must already be 0."""

    multiple = 2

    def __init__(self, modalities: int, shape: IffnShape) -> None:
        super().__init__()
        C, (full, half, spectral, fused) = shape.width, shape.depth
        self.spatial_stem = conv3(2 * modalities, C)  # the images, then the availability maps
        self.spatial_full = chain(C, full)
        self.down = Down(C, 2 * C)
        self.spatial_half = chain(2 * C, half)
        self.attention = ChannelAttention(2 * C)
        self.spectral_stem = conv3(modalities, C // 2)
        self.spectral_down = Down(C // 2, C)
        self.spectral_half = chain(C, spectral)
        self.fuse = nn.Conv2d(3 * C, 2 * C, 1)
        self.fused = chain(2 * C, fused)
        self.up = Up(2 * C, C)
        self.last = ResBlock(C + C // 2, C)
        self.out = nn.Conv2d(C, shape.out, 1)
        self.norm = norm(shape.out)

    def forward(self, images_BMHW: Tensor, spectral_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
        maps_BMHW = shown_BM[:, :, None, None].to(images_BMHW.dtype).expand_as(images_BMHW)
        spatial = self.spatial_full(self.spatial_stem(torch.cat([images_BMHW, maps_BMHW], dim=1)))
        spatial = self.attention(self.spatial_half(self.down(spatial)))
        edges = self.spectral_stem(spectral_BMHW)
        late = self.spectral_half(self.spectral_down(edges))
        fused = self.fused(self.fuse(torch.cat([spatial, late], dim=1)))
        out: Tensor = self.norm(self.out(self.last(torch.cat([self.up(fused), edges], dim=1))))
        return out

    def sources(self, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Which modality each input slice of the stems sees (dim 1 of the weight)."""
        return {
            "spatial_stem.weight": (*modalities, *modalities),
            "spectral_stem.weight": tuple(modalities),
        }


class PlainEncoder(nn.Module):
    """The ablation: an ordinary four-level U-Net of the images; no spectral branch, no availability maps."""

    multiple = 8

    def __init__(self, modalities: int, shape: IffnShape) -> None:
        super().__init__()
        self.net = UNet(
            modalities, shape.out, UNetShape(base=shape.width, mult=(1, 2, 2, 4), blocks=1, attention=0), timed=False
        )
        self.net.out.reset_parameters()  # a map, not a correction: it must not start as nothing
        self.norm = norm(shape.out)

    def forward(self, images_BMHW: Tensor, spectral_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
        out: Tensor = self.norm(self.net(images_BMHW))
        return out

    def sources(self, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
        return {"net.stem.weight": tuple(modalities)}


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


def chain(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*[ResBlock(channels, channels) for _ in range(blocks)])
