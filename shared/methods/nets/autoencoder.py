"""A modality's autoencoder of volumes: MONAI's 3D AutoencoderKL without attention.

What the paper does: docs/methods/aca_diff.md, "The autoencoder".

It learns what a cosine transform of small cubes loses: before any training the latent is the lowest frequencies of each
cube, and the volume comes back from them. From random weights a site would spend hundreds of steps on getting there.

Once frozen, its latents are kept by the content of the volume: training a generator sees every subject many times.
"""

import hashlib
import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.base.options import require
from shared.methods.nets.volumetric import fold, unfold, zeroed

KEPT = 512  # latents held in memory
START = -6.0  # log-variance of a latent before training: at 0 the noise drowns it, and hundreds of steps go to that


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderShape:
    channels: tuple[int, ...]  # of each level; each but the last halves the volume
    blocks: int
    latent: int
    patch: int = 1  # 2: space to depth, the whole coder at half the resolution
    checkpoint: bool = False

    def __post_init__(self) -> None:
        require(len(self.channels) >= 1, "channels", self.channels, "one level or more")
        require(self.patch >= 1, "patch", self.patch, "1 or more")
        require(all(c % 4 == 0 for c in self.channels), "channels", self.channels, "multiples of 4")

    @property
    def multiple(self) -> int:
        """Every edge of the volume must be a multiple of this: what is encoded then decodes to the same shape."""
        return int(self.patch * 2 ** (len(self.channels) - 1))


class Autoencoder(nn.Module):
    basis_LCDHW: Tensor

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        from monai.networks.nets.autoencoderkl import AutoencoderKL  # seconds to import

        self.shape = shape
        self.coder = AutoencoderKL(
            spatial_dims=3,
            in_channels=shape.patch**3,
            out_channels=shape.patch**3,
            num_res_blocks=[shape.blocks] * len(shape.channels),
            channels=shape.channels,
            attention_levels=[False] * len(shape.channels),
            latent_channels=shape.latent,
            norm_num_groups=min(shape.channels[0] // 4 or 1, 32),
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
            use_checkpoint=shape.checkpoint,
        )
        zeroed(self.coder.quant_conv_log_sigma)
        for name, bias in self.coder.quant_conv_log_sigma.named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(bias, START)
        zeroed(self.coder.quant_conv_mu)
        zeroed(next(m for m in reversed(list(self.coder.decoder.modules())) if isinstance(m, nn.Conv3d)))
        self.register_buffer("basis_LCDHW", cosines(shape.multiple, shape.latent), persistent=False)
        self._kept: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()
        self._seen: tuple[tuple[tuple[int, int], ...], bytes] = ((), b"")

    def forward(self, x_BCDHW: Tensor, eps_BCDHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The volume again, from a latent drawn by the given noise; and the latent's mean and sd."""
        mean, sd = self._encode(x_BCDHW)
        return self.decode(mean + sd * eps_BCDHW), mean, sd

    def encode(self, x_BCDHW: Tensor) -> Tensor:
        """The posterior's mean: nothing is drawn."""
        return self._encode(x_BCDHW)[0].float()

    def decode(self, z_BCDHW: Tensor) -> Tensor:
        learned = unfold(self.coder.decode(z_BCDHW), self.shape.patch)
        with torch.autocast(z_BCDHW.device.type, enabled=False):
            waves = F.conv_transpose3d(z_BCDHW.float(), self.basis_LCDHW, stride=self.shape.multiple)
        return learned + waves

    def _encode(self, x_BCDHW: Tensor) -> tuple[Tensor, Tensor]:
        mean, sd = self.coder.encode(fold(x_BCDHW, self.shape.patch))
        with torch.autocast(x_BCDHW.device.type, enabled=False):
            waves = F.conv3d(x_BCDHW.float(), self.basis_LCDHW, stride=self.shape.multiple)
        return mean + waves, sd

    def remembered(self, x_BCDHW: Tensor) -> Tensor:
        """Encode one volume at a time, from memory where these weights have seen the same bytes before."""
        weights = self._digest()
        out = []
        for x in x_BCDHW:
            content = hashlib.blake2b(x.detach().cpu().numpy().tobytes(), digest_size=16).digest()
            key = (weights, x.device, torch.is_autocast_enabled(x.device.type), content)
            if key not in self._kept:
                twice = torch.stack([x, x]) if x.device.type == "cpu" else x[None]  # a CPU is slow with one
                self._kept[key] = self.encode(twice)[0].detach()
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            out.append(self._kept[key])
        return torch.stack(out)

    def _digest(self) -> bytes:
        """Hash the weights, anew only when one of them was written to."""
        version = tuple((p.data_ptr(), p._version) for p in self.parameters())
        if self._seen[0] != version:
            digest = hashlib.blake2b(digest_size=16)
            for p in self.parameters():
                digest.update(p.detach().cpu().numpy().tobytes())
            self._seen = version, digest.digest()
        return self._seen[1]


def cosines(edge: int, count: int) -> Tensor:
    """The `count` lowest frequencies of a cube, orthonormal: the discrete cosine transform."""
    require(count <= edge**3, "latent", count, f"at most {edge**3}, the voxels of a cube")
    at = torch.arange(edge, dtype=torch.float64)
    wave_KN = torch.cos(math.pi * (at + 0.5) * at[:, None] / edge) * math.sqrt(2 / edge)
    wave_KN[0] /= math.sqrt(2)
    lowest = sorted(itertools.product(range(edge), repeat=3), key=lambda k: (sum(n * n for n in k), k))[:count]
    cubes = [torch.einsum("d,h,w->dhw", wave_KN[d], wave_KN[h], wave_KN[w]) for d, h, w in lowest]
    return torch.stack(cubes)[:, None].float()
