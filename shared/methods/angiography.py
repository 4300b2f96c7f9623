"""What methods with fixed sources and one target share: options, the split of a batch, the assembled output.

They see slabs of adjacent slices. Sources and target are in [-1, 1] inside; a source that is not shown is 0 throughout.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shared.base.errors import ConfigError, DataError
from shared.base.options import require
from shared.base.records import Batch
from shared.base.vocabulary import SHARED, Modality, Owner, source
from shared.data.missing import random_shown
from shared.methods.contract import Method


class Lesson(NamedTuple):
    """What a sample is taught from; without the target it is shown nothing."""

    x_BSNHW: Tensor
    shown_BS: Tensor
    x0_BNHW: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Angiography(Method):
    """Its modalities are the sources and the target."""

    target: Modality = "TOF"
    slab: int = 5  # adjacent slices that the networks see, and make, at once
    drop: float = 0.5  # share of samples that are shown a random part of the sources

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        require(self.target in self.modalities, "target", self.target, f"one of {', '.join(self.modalities)}")
        require(len(self.modalities) >= 2, "modalities", self.modalities, "the target and one source at least")
        require(self.slab >= 1, "slab", self.slab, "1 or more")
        require(0 <= self.drop <= 1, "drop", self.drop, "in [0, 1]")

    @property
    def sources(self) -> tuple[Modality, ...]:
        return tuple(m for m in self.modalities if m != self.target)

    @property
    def targets(self) -> tuple[Modality, ...]:
        return (self.target,)

    def lacks(self, held: Collection[Modality], phase: str) -> str | None:
        if self.target not in held:
            return f"{self.target}, which is what is taught"
        return None if set(held) & set(self.sources) else f"a source: one of {', '.join(self.sources)}"

    # --- in ----------------------------------------------------------------------------------------------------------

    def lesson(self, batch: Batch, multiple: int, generator: torch.Generator) -> Lesson:
        x_BSNHW, shown_BS = self.given(batch.images_BMHW, batch.exists_BM, multiple)
        x0_BNHW, can_B = self.truth(batch)
        shown_BS = self.some(shown_BS & can_B[:, None], generator)
        return Lesson(only(x_BSNHW, shown_BS), shown_BS, x0_BNHW)

    def given(self, images_BMHW: Tensor, shown_BM: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
        """The sources, and which are shown; a network's height and width are multiples of `multiple`."""
        images_BMNHW = slabs(images_BMHW)
        *_, slices, height, width = images_BMNHW.shape
        if slices != self.slab:
            raise ConfigError(f"method.slab={self.slab}: was given {slices} slices at once")
        if height % multiple or width % multiple:
            raise ConfigError(f"grid={height}x{width}: this network needs multiples of {multiple}")
        rows = [i for i, m in enumerate(self.modalities) if m != self.target]
        shown_BS = shown_BM[:, rows]
        return only(2 * images_BMNHW[:, rows].float() - 1, shown_BS), shown_BS

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Give the target, and which samples have it."""
        at = self.modalities.index(self.target)
        can_B = batch.exists_BM[:, at]
        x0_BNHW = slabs(batch.images_BMHW)[:, at].float()
        return 2 * torch.where(can_B[:, None, None, None], x0_BNHW, 0.0) - 1, can_B

    def some(self, shown_BS: Tensor, generator: torch.Generator) -> Tensor:
        """Choose what is shown: for `drop` of the samples a random part of the sources."""
        some_B = torch.rand(len(shown_BS), generator=generator, device=shown_BS.device) < self.drop
        return torch.where(some_B[:, None], random_shown(shown_BS, generator), shown_BS)

    def gave(self, shown_BS: Tensor) -> dict[Owner, Tensor]:
        return {SHARED: shown_BS.any(1), **{source(m): shown_BS[:, s] for s, m in enumerate(self.sources)}}

    # --- out ---------------------------------------------------------------------------------------------------------

    def can_synthesize(self, shown_BS: Tensor) -> None:
        if not bool(shown_BS.any(1).all()):
            raise DataError(f"nothing to synthesize from: an image with none of {', '.join(self.sources)}")

    def assembled(self, images_BMHW: Tensor, shown_BM: Tensor, x0_BNHW: Tensor) -> Tensor:
        """Put the made target in; what is shown comes back as it is, and a source that is hidden is not made."""
        made = torch.where(shown_BM[:, :, None, None, None], slabs(images_BMHW).float(), 0.0)
        made[:, self.modalities.index(self.target)] = (x0_BNHW.clamp(-1, 1) + 1) / 2
        return made.reshape(images_BMHW.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diffused(Angiography):
    """A method that goes step by step from the sources, or from noise, to the target."""

    times: int = 1000
    noisiest: float = 0.5  # share of samples at the last time, where nothing of the target shows; the paper's: 0
    checkpoint: bool = False  # less memory, a third more time

    def __post_init__(self) -> None:
        Angiography.__post_init__(self)
        require(self.times >= 2, "times", self.times, "2 or more")
        require(0 <= self.noisiest <= 1, "noisiest", self.noisiest, "in [0, 1]")

    def random_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw times evenly, but for a share at the last time: there an image is made from its sources alone."""
        t_B = torch.randint(self.times, (n,), generator=generator, device=generator.device)
        last_B = torch.rand(n, generator=generator, device=generator.device) < self.noisiest
        return torch.where(last_B, self.times - 1, t_B)


def slabs(images_BMHW: Tensor) -> Tensor:
    """Give images the axis of a slab: BMHW is a slab of one slice."""
    return images_BMHW if images_BMHW.ndim == 5 else images_BMHW[:, :, None]


def only(x_BSNHW: Tensor, shown_BS: Tensor) -> Tensor:
    return torch.where(shown_BS[:, :, None, None, None], x_BSNHW, 0.0)


def choice(logits_BSNHW: Tensor, shown_BS: Tensor) -> Tensor:
    """Softmax over the shown sources; the others weigh exactly nothing, and one alone exactly 1."""
    # -inf for all would make nan: a sample that is shown nothing is not looked at
    hidden_BS = ~shown_BS & shown_BS.any(1, keepdim=True)
    return logits_BSNHW.masked_fill(hidden_BS[:, :, None, None, None], -torch.inf).softmax(dim=1)


def seen(x_BSNHW: Tensor, shown_BS: Tensor) -> Tensor:
    """The shown sources and their presence maps, as channels: what a network is told of its condition."""
    B, S, _, H, W = x_BSNHW.shape
    maps_BSHW = shown_BS[:, :, None, None].to(x_BSNHW.dtype).expand(B, S, H, W)
    return torch.cat([only(x_BSNHW, shown_BS).flatten(1, 2), maps_BSHW], dim=1)


def seen_by(sources: Collection[Modality], slab: int, area: int = 1) -> list[Owner]:
    """Owner of each channel of `seen`, `area` pixels to a channel."""
    images = [source(m) for m in sources for _ in range(slab * area)]
    return images + [source(m) for m in sources for _ in range(area)]
