"""Holder-only, per-slice, sample-weighted averaging in integers.

The law, and its two estimators: docs/methods/federating.md, "Averaging".

Updates lie on the disk, and are folded a tensor at a time: memory is that of one tensor, whatever the number of sites.
A delta becomes integers (shared/plan/integers.py), whose sums are the same bits in any order of arrival.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from shared.base.disk.tensors import WorkedOut, forms
from shared.base.owners import held_index, parts
from shared.base.records import Cut, Owners, Update
from shared.base.vocabulary import LOCAL, Owner, Weights
from shared.plan.integers import Estimator, counted_over, weighed


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """What a round learnt: the mean delta, zero where nobody trained, and which parts were trained."""

    delta: Weights  # of which each tensor is worked out when it is asked for
    trained: frozenset[Owner]
    holders: Mapping[Owner, int]
    counts: Mapping[Owner, int]


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
        total = self._total(name)
        if total is None:
            return torch.zeros(self._shapes[name])
        return divided(total, self._owners[name], trained, lambda owner: self._counts[self._over(owner)], self._bits)

    def _total(self, name: str) -> Tensor | None:
        """Of one tensor over all that sent it: the same bits in any order."""
        owned, total = self._owners[name], None
        for update in self._updates:
            if name not in update.delta:
                continue
            if total is None:
                total = torch.zeros(self._shapes[name], dtype=torch.int64)
            index = held_index(owned, holding(update)) if isinstance(owned, Cut) else None
            fixed = weighed(update.delta[name], owned, index, partial(self._weight, update), self._bits)
            if isinstance(owned, Cut) and index is not None:
                total.index_add_(owned.dim, index, fixed)
            else:
                total += fixed
        return total

    def _weight(self, update: Update, owner: Owner) -> int:
        return update.counts[self._over(owner)]

    def _over(self, owner: Owner) -> Owner:
        return counted_over(owner, self._owners, self._estimator)


def divided(
    total: Tensor, owned: Owner | Cut, trained: frozenset[Owner], count: Callable[[Owner], int], bits: int
) -> Tensor:
    """The mean of a sum of integers: each slice by its own count, nought where nobody trained it."""
    mean = torch.zeros(total.shape)
    for owner, dim, index in parts(owned):
        if owner not in trained:
            continue
        n = count(owner)
        if index is None or dim is None:
            mean = total.double().div_(n * 2.0**bits).float()
        else:
            mean.index_copy_(dim, index, total.index_select(dim, index).double().div_(n * 2.0**bits).float())
    return mean


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
