"""Which modalities are there, which are shown: random subsets for training, every subset for evaluation.

"Missing" is two things, kept apart: a modality that does not exist for a subject has no ground truth; one that is
hidden exists, and the network may not see it in this step (docs/methods/data.md, "Missing is two things").
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from shared.base.vocabulary import Modality


def random_shown(exists_BM: Tensor, generator: torch.Generator, *, keep: int = 1) -> Tensor:
    """Per sample, k uniform in keep..|exists|, then any k of the existing: never more, and never none of some."""
    device = exists_BM.device
    held_B = exists_BM.sum(dim=1)
    spread_B = (held_B - keep + 1).clamp(min=1)  # how many values k can take
    k_B = keep + (torch.rand(len(exists_BM), generator=generator, device=device) * spread_B).long()
    order_BM = torch.rand(exists_BM.shape, generator=generator, device=device).masked_fill(~exists_BM, 2.0)
    rank_BM = order_BM.argsort(dim=1).argsort(dim=1)
    return exists_BM & (rank_BM < k_B[:, None])


def all_patterns(modalities: Sequence[Modality]) -> tuple[tuple[Modality, ...], ...]:
    """Every non-empty subset: the single ones first, all of them last."""
    return tuple(subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size))


def suppress(patterns: Mapping[tuple[Modality, ...], int], k: int) -> dict[tuple[Modality, ...], int]:
    """Counts below k become -k, which says "1 to k-1" (records.Inventory); empty cells are left out."""
    return {pattern: count if count >= k else -k for pattern, count in patterns.items() if count > 0}
