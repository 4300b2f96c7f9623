"""Holder-only, per-slice, sample-weighted averaging in integers.

The law, and its two estimators: docs/methods/federating.md, "Averaging".

Each update is folded in as it arrives and freed: memory is one int64 per weight, whatever the number of sites.
A delta becomes round(delta * 2^bits); sums of integers are the same bits in any order of arrival, and could be masked.
`bits` is the largest scale at which no sum can overflow, given the admission limits (decision 0001).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shared.base.owners import held_index, named, parts
from shared.base.records import Cut, Owners, Update
from shared.base.vocabulary import LOCAL, SHARED, Owner, Weights

Estimator = Literal["masked", "delta"]
# masked: each slice over its holders' samples, so a rare modality is not diluted
# delta:  each slice over all samples of the round, equal to one pooled step (exact FedSGD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """What a round learnt: the mean delta, zero where nobody trained, and which parts were trained."""

    delta: Weights
    trained: frozenset[Owner]
    holders: Mapping[Owner, int]
    counts: Mapping[Owner, int]


def scale_bits(*, max_abs: float, max_count: int) -> int:
    """Largest b with max_abs * 2^b * max_count < 2^62."""
    return 62 - math.ceil(math.log2(max_abs)) - math.ceil(math.log2(max(max_count, 2)))


class Fold:
    """The running sum of one round."""

    def __init__(self, owners: Owners, weights: Weights, *, bits: int, estimator: Estimator = "masked") -> None:
        self._owners, self._bits, self._estimator = owners, bits, estimator
        self._shapes = {name: weights[name].shape for name in owners}
        self._sums: dict[str, Tensor] = {}  # made when the first holder arrives
        self._counts: dict[Owner, int] = {}
        self._holders: dict[Owner, int] = {}

    def add(self, update: Update) -> None:
        """Fold in one admitted update. Its tensors are not kept."""
        held = holding(update)
        for owner in held:
            self._counts[owner] = self._counts.get(owner, 0) + update.counts[owner]
            self._holders[owner] = self._holders.get(owner, 0) + 1
        for name, sent in update.delta.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(self._shapes[name], dtype=torch.int64)
            owned = self._owners[name]
            fixed = sent.double().mul_(2.0**self._bits).round_().long()
            if not isinstance(owned, Cut):
                self._sums[name] += fixed.mul_(self._weight(update, owned))
                continue
            index = held_index(owned, held)
            weight = torch.tensor([self._weight(update, owned.owners[i]) for i in index.tolist()])
            shape = [-1 if d == owned.dim else 1 for d in range(fixed.dim())]
            self._sums[name].index_add_(owned.dim, index, fixed.mul_(weight.reshape(shape)))

    def mean(self, *, min_holders: int) -> Mean:
        """Divide each slice by its own count. Slices with fewer holders than the policy asks for stay zero."""
        trained = frozenset(owner for owner, n in self._holders.items() if n >= min_holders)
        delta: dict[str, Tensor] = {}
        for name in self._owners:
            delta[name] = torch.zeros(self._shapes[name])
            if name not in self._sums:
                continue
            total = self._sums.pop(name)
            for owner, dim, index in parts(self._owners[name]):
                if owner not in trained:
                    continue
                n = self._counts[self._over(owner)]
                if index is None or dim is None:
                    delta[name] = total.double().div_(n * 2.0**self._bits).float()
                else:
                    value = total.index_select(dim, index).double().div_(n * 2.0**self._bits).float()
                    delta[name].index_copy_(dim, index, value)
        return Mean(delta=delta, trained=trained, holders=dict(self._holders), counts=dict(self._counts))

    def _weight(self, update: Update, owner: Owner) -> int:
        return update.counts[self._over(owner)]

    def _over(self, owner: Owner) -> Owner:
        """Whose samples a slice is averaged over; where nothing is shared, every owner has only its own."""
        return SHARED if self._estimator == "delta" and SHARED in named(self._owners) else owner


def holding(update: Update) -> list[Owner]:
    """The owners this site actually trained: those with a count."""
    return [owner for owner, n in sorted(update.counts.items()) if n > 0 and owner != LOCAL]


def keep_untrained(old: Weights, new: Weights, owners: Owners, trained: frozenset[Owner]) -> dict[str, Tensor]:
    """Put the old value back into every slice that nobody trained: a strategy's momentum must not move it."""
    kept = dict(new)
    for name, owner in owners.items():
        untrained = [(dim, index) for part, dim, index in parts(owner) if part not in trained]
        if not untrained:
            continue
        if not isinstance(owner, Cut):
            kept[name] = old[name]
            continue
        value = new[name].clone()
        for dim, index in untrained:
            assert dim is not None
            assert index is not None
            value.index_copy_(dim, index, old[name].index_select(dim, index))
        kept[name] = value
    return kept
