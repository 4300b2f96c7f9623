"""Owners: which slices of which tensors a site may send, and what the server may average.

Which owners there are: docs/methods/federating.md, "Owners".
"""

import fnmatch
import hashlib
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from shared.base.disk.tensors import bytes_of
from shared.base.records import Cut, Owners
from shared.base.vocabulary import LOCAL, Owner, Weights


def named(owners: Owners) -> set[Owner]:
    """Every owner that appears, LOCAL included."""
    found: set[Owner] = set()
    for owner in owners.values():
        found.update(owner.owners if isinstance(owner, Cut) else [owner])
    return found


def held_index(cut: Cut, held: Collection[Owner]) -> Tensor:
    """Indices along `cut.dim` that belong to one of the held owners."""
    return torch.tensor([i for i, owner in enumerate(cut.owners) if owner in held and owner != LOCAL], dtype=torch.long)


def take(tensor: Tensor, owner: Owner | Cut, held: Collection[Owner]) -> Tensor | None:
    """The part of a tensor that the held owners own; None when that is nothing."""
    if isinstance(owner, Cut):
        index = held_index(owner, held)
        if len(index) == 0:
            return None
        return tensor if len(index) == len(owner.owners) else tensor.index_select(owner.dim, index.to(tensor.device))
    return tensor if owner in held and owner != LOCAL else None


def taken_shape(shape: Sequence[int], owner: Owner | Cut, held: Collection[Owner]) -> tuple[int, ...] | None:
    """The shape that `take` gives: what admission expects of a site that holds these owners."""
    if isinstance(owner, Cut):
        index = held_index(owner, held)
        return None if len(index) == 0 else (*shape[: owner.dim], len(index), *shape[owner.dim + 1 :])
    return tuple(shape) if owner in held and owner != LOCAL else None


def parts(owner: Owner | Cut) -> Iterable[tuple[Owner, int | None, Tensor | None]]:
    """(owner, dim, index along dim) of each differently owned part; (owner, None, None) is the whole tensor."""
    if not isinstance(owner, Cut):
        yield owner, None, None
        return
    for name in dict.fromkeys(owner.owners):
        yield name, owner.dim, torch.tensor([i for i, o in enumerate(owner.owners) if o == name], dtype=torch.long)


def frozen(weights: Weights, owners: Owners) -> str:
    """One hash of the weights that a phase does not train: what is trained around others can't be averaged with it."""
    return _digest(weights, (name for name in weights if name not in owners))


def digest(weights: Weights) -> str:
    """One hash of all weights, by name: equal digests are equal bits."""
    return _digest(weights, weights)


def _digest(weights: Weights, names: Iterable[str]) -> str:
    state = hashlib.sha256()
    for name in sorted(names):
        value = weights[name].detach().cpu().contiguous()
        state.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        state.update(bytes_of(value))
    return state.hexdigest()


def keep_local(owners: Owners, patterns: Sequence[str]) -> Owners:
    """Personalised layers: tensors whose name matches a pattern (shell style) stay at the site."""
    return {
        name: LOCAL if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) else owner
        for name, owner in owners.items()
    }
