"""Which modalities are there, which are shown: random subsets for training, every subset for evaluation.

"Missing" is two things, kept apart: a modality that does not exist for a subject has no ground truth; one that is
hidden exists, and the network may not see it in this step (docs/methods/data.md, "Missing is two things").
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from shared.base.vocabulary import Modality


def random_shown(exists_BM: Tensor, generator: torch.Generator, *, proper: bool = False) -> Tensor:
    """Per sample, k uniform in 1..|exists|, then any k of the existing; `proper` leaves one out, where it can."""
    device = exists_BM.device
    most_B = (exists_BM.sum(dim=1) - int(proper)).clamp(min=1)
    k_B = 1 + (torch.rand(len(exists_BM), generator=generator, device=device) * most_B).long()
    order_BM = torch.rand(exists_BM.shape, generator=generator, device=device).masked_fill(~exists_BM, 2.0)
    rank_BM = order_BM.argsort(dim=1).argsort(dim=1)
    return exists_BM & (rank_BM < k_B[:, None])


def randomly_less(exists_BM: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Choose a proper part of what exists in `share` of the samples, if there are several; all of it in the others."""
    device = exists_BM.device
    less_B = torch.rand(len(exists_BM), generator=generator, device=device) < share
    part_BM = random_shown(exists_BM, generator)
    one_BM = torch.rand(exists_BM.shape, generator=generator, device=device).masked_fill(~exists_BM, -1.0)
    one_BM = exists_BM & (one_BM == one_BM.max(dim=1, keepdim=True).values)
    whole_B = (part_BM == exists_BM).all(1)  # of k drawn evenly from 1..n, the n: one instead
    part_BM = torch.where(whole_B[:, None], one_BM, part_BM)
    return torch.where(less_B[:, None], part_BM, exists_BM)


def all_patterns(modalities: Sequence[Modality]) -> tuple[tuple[Modality, ...], ...]:
    """Every non-empty subset: the single ones first, all of them last."""
    return tuple(subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size))


def suppress(patterns: Mapping[tuple[Modality, ...], int], k: int) -> dict[tuple[Modality, ...], int]:
    """Counts below k become -k, which says "1 to k-1" (records.Inventory); empty cells are left out."""
    return {pattern: count if count >= k else -k for pattern, count in patterns.items() if count > 0}
