"""ACADiff's network: an autoencoder and a generator by modality, what volumes are told from, the latents' scale."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shared.base.vocabulary import Modality
from shared.clinical import OWN, Encoder, Hearing, Unset, make_encoder
from shared.methods.contract import Network, Precision
from shared.methods.nets.anchor import Anchor, LeftOut
from shared.methods.nets.autoencoder import Autoencoder, AutoencoderShape
from shared.methods.nets.generator import Fused, Generator, Heard
from shared.methods.nets.precision import autocast_volumes
from shared.methods.nets.volumetric import VolumeShape

SUBJECTS = {"subjects": ("subjects", 1)}  # the cells of its sums: a modality
SCALE_CELLS = dict.fromkeys(("seen", "seen2", "made", "made2"), ("subjects", 1))


class Scale(nn.Module):
    """Mean and spread of latents by modality and channel, which all sites agree on."""

    mean_MC: Tensor
    spread_MC: Tensor

    def __init__(self, modalities: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean_MC", torch.zeros(modalities, channels))
        self.register_buffer("spread_MC", torch.ones(modalities, channels))

    def on(self, z_BMCDHW: Tensor) -> Tensor:
        mean, spread = (v[None, :, :, None, None, None] for v in (self.mean_MC, self.spread_MC))
        return (z_BMCDHW - mean) / spread

    def off(self, z_BCDHW: Tensor, m: int) -> Tensor:
        mean, spread = (v[m][:, None, None, None] for v in (self.mean_MC, self.spread_MC))
        return z_BCDHW * spread + mean

    def settle(self, n_M: Tensor, z_MC: Tensor, z2_MC: Tensor) -> None:
        """From sums over subjects; a modality that nobody has keeps mean 0 and spread 1. Sums may be noised."""
        held_M1, n_M1 = (n_M >= 0.5)[:, None], n_M[:, None].clamp(min=1)
        mean_MC = z_MC / n_M1
        variance_MC = z2_MC / n_M1 - mean_MC.square()
        self.mean_MC.copy_(torch.where(held_M1, mean_MC, 0.0))
        self.spread_MC.copy_(torch.where(held_M1, variance_MC.clamp(min=1e-6).sqrt(), 1.0))


class AcaNet(Network, Hearing):
    def __init__(
        self,
        modalities: Sequence[Modality],
        shape_DHW: tuple[int, int, int],
        coder: AutoencoderShape,
        unet: VolumeShape,
        *,
        cube: int,
        fusion: Fused,
        text: str,
        text_width: int,
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.encoder: Encoder = Unset(text, text_width) if text in OWN else make_encoder(text, text_width)
        self.autoencoders = nn.ModuleDict({m: Autoencoder(coder) for m in modalities})
        words = 0 if text == "none" else text_width
        self.generators = nn.ModuleDict(
            {
                m: Generator([s for s in modalities if s != m], unet, latent=coder.latent, fusion=fusion, text=words)
                for m in modalities
            }
        )
        self.anchor = Anchor(len(self.modalities), shape_DHW, cube)
        self.latent = coder.latent
        self.multiple = coder.multiple * unet.multiple  # of every edge of a volume
        self.coder_multiple = coder.multiple
        self.shape_DHW = shape_DHW
        self.seen = Scale(len(self.modalities), coder.latent)  # of what a modality tells: its difference from the mean
        self.made = Scale(len(self.modalities), coder.latent)  # of what is made of it: what the others do not tell

    def generator(self, made: Modality) -> Generator:
        generator = self.generators[made]
        assert isinstance(generator, Generator)
        return generator

    def coder(self, modality: Modality) -> Autoencoder:
        coder = self.autoencoders[modality]
        assert isinstance(coder, Autoencoder)
        return coder

    def padded(self, x_BCDHW: Tensor) -> Tensor:
        """Lay empty space around a volume, up to multiples that both networks can halve."""
        pads: list[int] = []
        for n in reversed(x_BCDHW.shape[2:]):
            more = -n % self.multiple
            pads += [more // 2, more - more // 2]
        return nn.functional.pad(x_BCDHW, pads)

    def cropped(self, x_BCDHW: Tensor, shape_DHW: Sequence[int]) -> Tensor:
        """Cut off what `padded` laid around a volume of this shape."""
        starts = [(-n % self.multiple) // 2 for n in shape_DHW]
        d, h, w = (slice(a, a + n) for a, n in zip(starts, shape_DHW, strict=True))
        return x_BCDHW[..., d, h, w]

    def latent_shape(self, x_BCDHW: Tensor) -> tuple[int, ...]:
        return (self.latent, *(n // self.coder_multiple for n in x_BCDHW.shape[2:]))

    @torch.no_grad()
    def raw_latents(self, volumes_BMDHW: Tensor, exists_BM: Tensor, precision: Precision) -> Tensor:
        """Encode what exists, to its posterior mean; 0 for the rest."""
        z = []
        for m, modality in enumerate(self.modalities):
            x = self.padded(volumes_BMDHW[:, m][:, None])
            made = torch.zeros((len(x), *self.latent_shape(x)), device=x.device)
            rows = exists_BM[:, m].nonzero().flatten()
            if len(rows):
                with autocast_volumes(x.device, precision):
                    made[rows] = self.coder(modality).remembered(x[rows])
            z.append(made)
        return torch.stack(z, dim=1)

    def latents(self, volumes_BMDHW: Tensor, exists_BM: Tensor, precision: Precision, scale: Scale) -> Tensor:
        """Encode what exists, on an agreed scale; exactly 0 for what is not there."""
        z = scale.on(self.raw_latents(volumes_BMDHW, exists_BM, precision))
        return torch.where(exists_BM[:, :, None, None, None, None], z, 0.0)

    def untold(self, left: LeftOut, k: int, shown_BM: Tensor) -> Tensor:
        """The volumes, but of modality `k` what those that are shown do not tell of it: with none shown, all of it."""
        volumes_BMDHW = left.differences_BMDHW.clone()
        volumes_BMDHW[:, k] -= self.anchor.expected(k, left.differences_BMDHW, shown_BM, left.covariance_BMMDHW)
        return volumes_BMDHW

    def scale_sums(self, left: LeftOut, exists_BM: Tensor, precision: Precision) -> dict[str, Tensor]:
        """Per modality and channel the means over voxels of the latent and of its square, added over subjects: of what
        is seen, and of what is made, in the mean over ways to tell it.
        """
        seen, seen2 = _moments(self.raw_latents(left.differences_BMDHW, exists_BM, precision))
        made, made2 = torch.zeros_like(seen), torch.zeros_like(seen2)
        for k in range(len(self.modalities)):
            ways = ways_to_tell(k, exists_BM)
            for shown_BM in ways:
                z = self.raw_latents(self.untold(left, k, shown_BM), only(k, exists_BM), precision)
                for total, moment in zip((made, made2), _moments(z), strict=True):
                    total += moment / len(ways)
        return {"seen": seen, "seen2": seen2, "made": made, "made2": made2}

    def settle_scales(self, sums: Mapping[str, Tensor]) -> None:
        for name, scale in (("seen", self.seen), ("made", self.made)):
            scale.settle(sums["subjects"], sums[name], sums[f"{name}2"])

    def forget(self) -> None:
        self.anchor.wipe()

    def forward(
        self,
        z_BMCDHW: Tensor,
        known_BMCDHW: Tensor,
        shown_BM: Tensor,
        t_B: Tensor,
        tokens_BMLD: Tensor,
        held_BML: Tensor,
    ) -> Tensor:
        """All generators at once, each on its modality's noisy latent: what is exported. `known`: standardised latents
        of what is shown, 0 for the rest; tokens of each target's prompt."""
        made = []
        for m, modality in enumerate(self.modalities):
            at = [i for i in range(len(self.modalities)) if i != m]
            heard = Heard(tokens_BLD=tokens_BMLD[:, m], held_BL=held_BML[:, m])
            generator = self.generator(modality)
            made.append(
                generator(
                    z_BMCDHW[:, m],
                    known_BMCDHW[:, at],
                    shown_BM[:, at],
                    t_B,
                    heard if generator.hears else None,
                    skip=False,
                )
            )
        return torch.stack(made, dim=1)

    def example(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Inputs that `forward` takes, for exporters."""
        M, L = len(self.modalities), 6
        shape = self.latent_shape(self.padded(torch.empty(1, 1, *self.shape_DHW, device="meta")))
        z = torch.zeros(batch, M, *shape)
        return (
            z,
            z.clone(),
            torch.ones(batch, M, dtype=torch.bool),
            torch.zeros(batch, dtype=torch.long),
            torch.zeros(batch, M, L, self.encoder.width),
            torch.ones(batch, M, L, dtype=torch.bool),
        )


def only(k: int, held_BM: Tensor) -> Tensor:
    """Of what is held modality `k` alone."""
    return held_BM & (torch.arange(held_BM.shape[1], device=held_BM.device) == k)


def ways_to_tell(k: int, exists_BM: Tensor) -> list[Tensor]:
    """Sets of sources that training shows: all that exist, and each alone; all, for a subject that lacks that one."""
    all_BM = exists_BM & ~only(k, exists_BM)
    ways = [all_BM]
    for m in range(exists_BM.shape[1]):
        if m != k:
            one_BM = only(m, exists_BM)
            ways.append(torch.where(one_BM.any(1, keepdim=True), one_BM, all_BM))
    return ways


def _moments(z_BMCDHW: Tensor) -> tuple[Tensor, Tensor]:
    z = z_BMCDHW.double()
    return z.mean(dim=(3, 4, 5)).sum(0), z.square().mean(dim=(3, 4, 5)).sum(0)
