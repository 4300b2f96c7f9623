"""The table of methods, and what every method is: one file each, to be read as the paper's method section."""

from collections.abc import Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from shared.base.randomness import Noise
from shared.base.records import Batch, Losses, Owners, Phase
from shared.base.vocabulary import Modality
from shared.diffusion.samplers import Sampler
from shared.methods.aca_diff import AcaDiff
from shared.methods.amm_diff import AmmDiff
from shared.methods.any2all import Any2all
from shared.methods.baselines.bbdm import Bbdm
from shared.methods.baselines.ddpm import Ddpm
from shared.methods.baselines.ldm import Ldm
from shared.methods.baselines.pix2pix import Pix2pix
from shared.methods.mmdm import Mmdm


class Method(Protocol):
    """A method is its options, a frozen dataclass checked when made; everything else is passed in."""

    @property
    def modalities(self) -> tuple[Modality, ...]: ...

    @property
    def targets(self) -> tuple[Modality, ...]:
        """The modalities that it can make."""

    @property
    def slab(self) -> int:
        """Adjacent slices that it sees and makes at once: 1 for slices, whose batches are BMHW, else BMDHW.

        A method of slabs is laid over a volume as overlapping windows, along the slices and in the plane.
        """

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Its stages of training in order, each with its own trainable tensors and federation."""

    def lacks(self, held: Collection[Modality], phase: str) -> str | None:
        """Say what a subject with just these modalities lacks to train this phase; None if it can."""

    def build(self, seed: int) -> nn.Module:
        """Make the whole network with its initial weights: the same bits for the same seed."""

    def owners(self, net: nn.Module, phase: str) -> Owners:
        """Name the phase's trainable tensors, each with its owner; what is not named is frozen."""

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        """Score every sample by itself; what is shown, noise and times are drawn from `generator` (on its device)."""

    def sums(self, net: nn.Module, batch: Batch, phase: str) -> Mapping[str, Tensor]:
        """In a phase of kind "sums", total the batch in fp64: totals are added over batches and sites."""

    def settle(self, net: nn.Module, phase: str, sums: Mapping[str, Tensor]) -> None:
        """Turn the pooled sums into the network's agreed constants (buffers)."""

    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        """Make all modalities in [0, 1] (BMHW) from any non-empty shown subset: one Monte-Carlo sample.

        With a generator per sample of the batch, the same bits of noise whatever batch it comes in.
        """


METHODS: Mapping[str, type[Method]] = {
    "amm_diff": AmmDiff,
    "aca_diff": AcaDiff,
    "any2all": Any2all,
    "mmdm": Mmdm,
    "bbdm": Bbdm,
    "ddpm": Ddpm,
    "ldm": Ldm,
    "pix2pix": Pix2pix,
}
