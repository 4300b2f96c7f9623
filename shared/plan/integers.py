"""Updates as integers, whose sums are the same bits in any order of arrival, and which masks can hide.

A delta becomes round(delta * 2^bits) times the samples behind it; `bits` is the largest scale at which no sum of a
round can overflow, given the limits of admission (decision 0001).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from shared.base.owners import named
from shared.base.records import Cut, Owners
from shared.base.vocabulary import SHARED, Owner

Estimator = Literal["masked", "delta"]
# masked: each slice over its holders' samples, so a rare modality is not diluted
# delta:  each slice over all samples of the round, equal to one pooled step (exact FedSGD)
Word = Literal[32, 64]  # bits of a sum


def scale_bits(*, max_abs: float, max_count: int, word: Word = 64) -> int:
    """Largest b with max_abs * 2^b * max_count < 2^(word - 2)."""
    return word - 2 - math.ceil(math.log2(max_abs)) - math.ceil(math.log2(max(max_count, 2)))


def counted_over(owner: Owner, owners: Owners, estimator: Estimator) -> Owner:
    """Whose samples a slice is averaged over; where nothing is shared, every owner has only its own."""
    return SHARED if estimator == "delta" and SHARED in named(owners) else owner


def weighed(
    delta: Tensor, owned: Owner | Cut, index: Tensor | None, weight: Callable[[Owner], int], bits: int
) -> Tensor:
    """The integers of one tensor as a site sends it; `index`: which slices of a cut one these are."""
    fixed = delta.double().mul_(2.0**bits).round_().long()
    if not isinstance(owned, Cut):
        return fixed.mul_(weight(owned))
    assert index is not None
    each = torch.tensor([weight(owned.owners[i]) for i in index.tolist()])
    return fixed.mul_(each.reshape([-1 if d == owned.dim else 1 for d in range(fixed.dim())]))
