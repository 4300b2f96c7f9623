"""The generator of one modality's latent: fusion of the sources, text tokens, and the U-Net that hears both."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from shared.base.records import Cut
from shared.base.vocabulary import CHART, SHARED, TOGETHER, Modality, Owner, alone, beside, source
from shared.clinical import ENCODERS, PIECES
from shared.methods.nets.fusion import Fusion
from shared.methods.nets.volumetric import VolumeShape, VolumeUNet

Fused: TypeAlias = Literal["adaptive", "concat"]
TEXTS = tuple(ENCODERS)
FUSIONS: tuple[str, ...] = get_args(Fused)


class Heard(NamedTuple):
    """A batch's prompts: a token for each piece, and which pieces are there."""

    tokens_BLD: Tensor
    held_BL: Tensor


class Generator(nn.Module):
    """(z_t, source latents, which are shown, t, prompt) -> noise, or v, of the target's latent."""

    def __init__(
        self, sources: Sequence[Modality], shape: VolumeShape, *, latent: int, fusion: Fused, text: int
    ) -> None:
        super().__init__()
        self.sources, self.latent, self.hears = tuple(sources), latent, text > 0
        S, width = len(self.sources), 4 * shape.base
        self.fusion = Fusion(sources, latent, max(16, shape.base)) if fusion == "adaptive" else None
        fused = latent if self.fusion is not None else S * latent
        shape = dataclasses.replace(shape, text=width if self.hears else 0)
        self.unet = VolumeUNet(latent + fused + S + 3, latent, shape)
        self.shown = nn.Linear(S, width, bias=False)  # which are shown, beside the time
        self.prompt = Prompt(text, width) if self.hears else None

    def forward(
        self,
        z_BCDHW: Tensor,
        known_BSCDHW: Tensor,
        shown_BS: Tensor,
        t_B: Tensor,
        heard: Heard | None = None,
        *,
        skip: bool = True,
    ) -> Tensor:
        known = torch.where(shown_BS[:, :, None, None, None, None], known_BSCDHW, 0.0)
        fused = known.flatten(1, 2) if self.fusion is None else self.fusion(known, shown_BS, skip=skip)
        maps_BS = shown_BS.to(z_BCDHW.dtype)
        maps = maps_BS[:, :, None, None, None].expand(-1, -1, *z_BCDHW.shape[2:])
        text = self.prompt(*heard) if self.prompt is not None and heard is not None else None
        inputs = torch.cat([z_BCDHW, fused, maps, places(z_BCDHW)], dim=1)
        out: Tensor = self.unet(inputs, t_B, self.shown(maps_BS), text)
        return out

    def owner(self, name: str) -> Owner | Cut:
        """Who trains a tensor of this generator."""
        sources = [source(m) for m in self.sources]
        if name == "unet.stem.weight":
            latents = [SHARED] * self.latent if self.fusion else [o for o in sources for _ in range(self.latent)]
            channels = [*[SHARED] * self.latent, *latents, *sources, *[SHARED] * 3]
            return Cut(dim=1, owners=tuple(o for o in channels for _ in range(self.unet.shape.patch**3)))
        if name == "shown.weight":
            return Cut(dim=1, owners=tuple(sources))
        for m in self.sources:
            if name.startswith(f"fusion.alone.{m}."):
                return alone(m)
            if name.startswith(f"fusion.beside.{m}."):
                return beside(m)
        if name.startswith("fusion.cross."):
            return TOGETHER
        return CHART if name.startswith("prompt.token.") else SHARED


def places(like_BCDHW: Tensor) -> Tensor:
    """Where each voxel lies, -1 to 1 along each edge: the volumes are of brains that lie alike."""
    B, _, *shape = like_BCDHW.shape
    edges = [torch.linspace(-1, 1, n, device=like_BCDHW.device, dtype=like_BCDHW.dtype) for n in shape]
    return torch.stack(torch.meshgrid(*edges, indexing="ij"))[None].expand(B, -1, -1, -1, -1)


class Prompt(nn.Module):
    """Tokens to the U-Net's width. A piece that is not there has a learned stand-in, and one token is always there."""

    def __init__(self, text: int, width: int) -> None:
        super().__init__()
        self.token = nn.Linear(text, width)
        self.missing = Table(len(PIECES), width)
        self.always = Table(1, width)

    def forward(self, tokens_BLD: Tensor, held_BL: Tensor) -> Tensor:
        made = self.token(torch.where(held_BL[:, :, None], tokens_BLD, 0.0))
        missing = self.missing(held_BL).to(made.dtype)
        heard = torch.where(held_BL[:, :, None], made, missing)
        return torch.cat([heard, self.always(held_BL).to(made.dtype)], dim=1)


class Table(nn.Module):
    """Learned rows, for every sample of a batch: in a leaf module that takes one tensor."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(0.02 * torch.randn(rows, width))

    def forward(self, like_BL: Tensor) -> Tensor:
        return self.rows[None].expand(like_BL.shape[0], -1, -1)
