"""Everything random comes from named keys, so that a killed run resumes to the same bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from shared.base.seeds import seed_of as seed_of


@dataclass(frozen=True, slots=True)
class Mirror:
    """The numbers of a generator with their signs changed: normal ones are as likely."""

    of: torch.Generator


Noise: TypeAlias = torch.Generator | Sequence[torch.Generator | Mirror]  # of a whole batch, or of each sample in it


def generator(device: torch.device | str, *keys: str | int) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed_of(*keys))


def normal(like: Tensor, noise: Noise | Mirror | None) -> Tensor:
    """Standard normal values in the shape of `like`. With a generator per sample they do not depend on the batch."""
    if isinstance(noise, Mirror):
        return -normal(like, noise.of)
    if isinstance(noise, Sequence):
        return torch.stack([normal(sample, own) for sample, own in zip(like, noise, strict=True)])
    return torch.randn(like.shape, generator=noise, device=like.device, dtype=like.dtype)
