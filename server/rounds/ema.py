"""The server's exponential moving average of the weights, per owner group.

Why so: docs/methods/federating.md, "The average over rounds".

A round of k local steps decays by decay^k; early on (1+r)/(10+r) is smaller, so that the initial weights fade at once.
A group's own count of rounds decides, and a slice that nobody trained is left alone.
"""

from collections.abc import Mapping

from torch import Tensor

from shared.base.owners import parts
from shared.base.records import Owners
from shared.base.vocabulary import Owner, Weights


def follow(
    ema: Weights,
    weights: Weights,
    owners: Owners,
    trained: frozenset[Owner],
    rounds_seen: Mapping[Owner, int],
    *,
    decay: float,
    steps: int,
) -> tuple[dict[str, Tensor], dict[Owner, int]]:
    """Take the average one round further; gives it, and in how many rounds each group has been trained."""
    if not decay:
        return {**ema, **{name: weights[name] for name in owners}}, dict(rounds_seen)
    seen = dict(rounds_seen)
    after = dict(ema)
    rate: dict[Owner, float] = {}
    for owner in sorted(trained):
        r = seen.get(owner, 0)
        rate[owner] = min(decay**steps, (1 + r) / (10 + r))
        seen[owner] = r + 1
    for name, owner_or_cut in owners.items():
        value = ema[name].clone()
        for owner, dim, index in parts(owner_or_cut):
            if owner not in trained:
                continue
            if index is None or dim is None:
                value.lerp_(weights[name], 1 - rate[owner])
            else:
                part = value.index_select(dim, index).lerp_(weights[name].index_select(dim, index), 1 - rate[owner])
                value.index_copy_(dim, index, part)
        after[name] = value
    return after, seen
