"""ACADiff's network: an autoencoder and a generator by modality, what volumes are told from, the latents' scale."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.base.vocabulary import Modality
from shared.clinical import OWN, Encoder, Hearing, Unset, make_encoder
from shared.methods.contract import Network, Precision
from shared.methods.nets.anchor import Anchor
from shared.methods.nets.autoencoder import Autoencoder, AutoencoderShape
from shared.methods.nets.generator import Fused, Generator, Heard
from shared.methods.nets.precision import autocast_volumes
from shared.methods.nets.volumetric import VolumeShape


class AcaNet(Network, Hearing):
    mean_MC: Tensor
    spread_MC: Tensor

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
        self.register_buffer("mean_MC", torch.zeros(len(self.modalities), coder.latent))
        self.register_buffer("spread_MC", torch.ones(len(self.modalities), coder.latent))

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

    def latents(self, volumes_BMDHW: Tensor, exists_BM: Tensor, precision: Precision) -> Tensor:
        """Encode what exists, on the agreed scale; exactly 0 for what is not there."""
        z = self.raw_latents(volumes_BMDHW, exists_BM, precision)
        mean, spread = (v[None, :, :, None, None, None] for v in (self.mean_MC, self.spread_MC))
        return torch.where(exists_BM[:, :, None, None, None, None], (z - mean) / spread, 0.0)

    def unstandardised(self, z_BCDHW: Tensor, m: int) -> Tensor:
        mean, spread = (v[m][:, None, None, None] for v in (self.mean_MC, self.spread_MC))
        return z_BCDHW * spread + mean

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
