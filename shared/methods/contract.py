"""What every method is: options in a frozen dataclass, in one file that reads as the paper's method section.

A new one is a subclass of `Method`, a row in METHODS and a YAML (docs/extending.md). What has a sensible default has it
here; what is left abstract is the method. `ReadsChart` and `Restores` are for those that can do more than fill in from
images. tests/shared/methods/test_methods.py holds every row to this page.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from shared.base.options import require
from shared.base.randomness import Noise
from shared.base.records import Batch, Losses, Owners, Phase
from shared.base.vocabulary import Modality
from shared.data.bids import Clinical
from shared.diffusion.operators import Measured
from shared.diffusion.samplers import SAMPLERS, Kind, Sampler

Size: TypeAlias = Literal["tiny", "small", "paper"]
Precision: TypeAlias = Literal["auto", "fp32", "bf16"]  # nets/precision.py says what `auto` is


class Network(nn.Module):
    """What a method builds. Its `forward` is the part that other programs may want: the denoiser."""

    def example(self, batch: int, height: int, width: int) -> tuple[Tensor, ...] | None:
        """Inputs that `forward` takes, batch first, for exporters; None: nothing is exported."""
        return None

    def forget(self) -> None:
        """Wipe what training alone needed, before the model is released."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(ABC):
    """A method is its options, checked when made; everything else is passed in."""

    modalities: tuple[Modality, ...]
    size: Size = "small"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        require(len(set(self.modalities)) == len(self.modalities), "modalities", self.modalities, "named once each")

    # --- what it is ----------------------------------------------------------------------------------------------

    @property
    def targets(self) -> tuple[Modality, ...]:
        """The modalities that it can make."""
        return self.modalities

    @property
    def slab(self) -> int:
        """Adjacent slices that it sees and makes at once: 1 for slices, whose batches are BMHW, else BMDHW.

        A method of slabs is laid over a volume as overlapping windows, along the slices and in the plane.
        """
        return 1

    @property
    def samplers(self) -> tuple[Kind, ...]:
        """Kinds of sampler that `synthesize` takes; others are a ConfigError."""
        return tuple(SAMPLERS)

    @property
    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Its stages of training in order, each with its own trainable tensors and federation."""

    # --- the clinical chart: nothing is heard unless a method says so ------------------------------------------------

    @property
    def text(self) -> str:
        """Who turns the chart into tokens: a row of shared/clinical's ENCODERS."""
        return "none"

    @property
    def text_width(self) -> int:
        """Numbers in a token."""
        return 0

    @property
    def text_fingerprint(self) -> str:
        """Of the encoder that it is trained with; "" where nobody said."""
        return ""

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the chart that it hears, where they are known."""
        return ()

    # --- training ------------------------------------------------------------------------------------------------

    def build(self, seed: int) -> Network:
        """Make the whole network with its initial weights: the same bits for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.network()

    @abstractmethod
    def network(self) -> Network:
        """Make the whole network, its weights drawn from torch's own generator."""

    def lacks(self, held: Collection[Modality], phase: str) -> str | None:
        """Say what a subject with just these modalities lacks to train this phase; None if it can."""
        return None if held else "all of the method's modalities"

    @abstractmethod
    def owners(self, net: nn.Module, phase: str) -> Owners:
        """Name the phase's trainable tensors, each with its owner; what is not named is frozen."""

    @abstractmethod
    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        """Score every sample by itself; what is shown, noise and times are drawn from `generator` (on its device)."""

    def sums(self, net: nn.Module, batch: Batch, phase: str) -> Mapping[str, Tensor]:
        """In a phase of kind "sums", total the batch in fp64: totals are added over batches and sites."""
        raise AssertionError(f"{type(self).__name__} has no phase of sums")

    def settle(self, net: nn.Module, phase: str, sums: Mapping[str, Tensor]) -> None:
        """Turn the pooled sums into the network's agreed constants (buffers)."""
        raise AssertionError(f"{type(self).__name__} has no phase of sums")

    # --- use -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        """Make all modalities in [0, 1] (BMHW) from any non-empty shown subset: one Monte-Carlo sample.

        With a generator per sample of the batch, the same bits of noise whatever batch it comes in.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadsChart(Method):
    """A method that may hear what is known of a subject beside its images, and makes each modality by itself."""

    @abstractmethod
    def synthesize(
        self,
        net: nn.Module,
        images_BMHW: Tensor,
        shown_BM: Tensor,
        sampler: Sampler,
        generator: Noise,
        *,
        clinical: Sequence[Clinical] = (),
        wanted: Collection[Modality] | None = None,
    ) -> Tensor:
        """`clinical`: one record for each sample, or none at all; `wanted`: what to make, by default all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restores(Method):
    """A method that takes raw measurements as well as images."""

    @abstractmethod
    def restore(
        self,
        net: nn.Module,
        measured: Sequence[Measured],
        sampler: Sampler,
        generator: Noise,
        *,
        like_BMHW: Tensor,
        silent: Collection[int] = (),
    ) -> Tensor:
        """Make all modalities in [0, 1], of the shape and on the device of `like_BMHW`; `silent` ones take no part."""
