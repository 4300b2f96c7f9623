"""Holder-only, per-slice, sample-weighted averaging in integers.

The law, and its two estimators: docs/methods/federating.md, "Averaging".

Updates lie on the disk, and are folded a tensor at a time: memory is that of one tensor, whatever the number of sites.
A delta becomes round(delta * 2^bits); sums of integers are the same bits in any order of arrival, and could be masked.
`bits` is the largest scale at which no sum can overflow, given the admission limits (decision 0001).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shared.base.disk.tensors import WorkedOut, forms
from shared.base.owners import held_index, named, parts
from shared.base.records import Cut, Owners, Update
from shared.base.vocabulary import LOCAL, SHARED, Owner, Weights

Estimator = Literal["masked", "delta"]
# masked: each slice over its holders' samples, so a rare modality is not diluted
# delta:  each slice over all samples of the round, equal to one pooled step (exact FedSGD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """What a round learnt: the mean delta, zero where nobody trained, and which parts were trained."""

    delta: Weights  # of which each tensor is worked out when it is asked for
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
        self._shapes = {name: forms(weights)[name].shape for name in owners}
        self._updates: list[Update] = []
        self._counts: dict[Owner, int] = {}
        self._holders: dict[Owner, int] = {}

    def add(self, update: Update) -> None:
        """One admitted update more."""
        for owner in holding(update):
            self._counts[owner] = self._counts.get(owner, 0) + update.counts[owner]
            self._holders[owner] = self._holders.get(owner, 0) + 1
        self._updates.append(update)

    def mean(self, *, min_holders: int) -> Mean:
        """Divide each slice by its own count. Slices with fewer holders than the policy asks for stay zero."""
        trained = frozenset(owner for owner, n in self._holders.items() if n >= min_holders)
        delta = WorkedOut(self._owners, lambda name: self._mean_of(name, trained))
        return Mean(delta=delta, trained=trained, holders=dict(self._holders), counts=dict(self._counts))

    def _mean_of(self, name: str, trained: frozenset[Owner]) -> Tensor:
        mean, total = torch.zeros(self._shapes[name]), self._total(name)
        for owner, dim, index in parts(self._owners[name]):
            if owner not in trained or total is None:
                continue
            n = self._counts[self._over(owner)]
            if index is None or dim is None:
                mean = total.double().div_(n * 2.0**self._bits).float()
            else:
                value = total.index_select(dim, index).double().div_(n * 2.0**self._bits).float()
                mean.index_copy_(dim, index, value)
        return mean

    def _total(self, name: str) -> Tensor | None:
        """Of one tensor over all that sent it: the same bits in any order."""
        owned, total = self._owners[name], None
        for update in self._updates:
            if name not in update.delta:
                continue
            if total is None:
                total = torch.zeros(self._shapes[name], dtype=torch.int64)
            fixed = update.delta[name].double().mul_(2.0**self._bits).round_().long()
            if not isinstance(owned, Cut):
                total += fixed.mul_(self._weight(update, owned))
                continue
            index = held_index(owned, holding(update))
            weight = torch.tensor([self._weight(update, owned.owners[i]) for i in index.tolist()])
            shape = [-1 if d == owned.dim else 1 for d in range(fixed.dim())]
            total.index_add_(owned.dim, index, fixed.mul_(weight.reshape(shape)))
        return total

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
