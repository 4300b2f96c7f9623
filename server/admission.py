"""Never trust what came over the wire: every update is checked whole before one number of it is folded in."""

import math

import torch

from server.aggregation import holding
from shared.config import Limits
from shared.errors import UpdateRejected
from shared.owners import named, taken_shape
from shared.records import Owners, Update
from shared.vocabulary import LOCAL, SHARED, Weights


def admit(update: Update, *, run: str, phase: str, round: int, schema: str, weights: Weights, owners: Owners,
          limits: Limits, samples: int) -> Update:  # fmt: skip
    """The same update, or UpdateRejected naming the site, the value and the rule."""
    site = update.site
    if (update.run, update.phase, update.round) != (run, phase, round):
        raise UpdateRejected(
            f"{site}: update is for {update.run}/{update.phase}/{update.round}, this is {run}/{phase}/{round}"
        )
    if update.schema != schema:
        raise UpdateRejected(f"{site}: schema {update.schema[:12]} differs from the run's {schema[:12]}")
    unknown = set(update.counts) - named(owners)
    if unknown:
        raise UpdateRejected(f"{site}: counts for unknown owners {sorted(unknown)[:3]}")
    for owner, n in update.counts.items():
        if not 0 <= n <= samples:
            raise UpdateRejected(f"{site}: count of {owner} is {n}, the round has at most {samples} samples")
    if update.counts.get(LOCAL):
        raise UpdateRejected(f"{site}: counts for '{LOCAL}', which never leaves a site")
    held = holding(update)
    if held and not update.counts.get(SHARED):
        raise UpdateRejected(f"{site}: counts for {held[0]} but none for '{SHARED}'")
    expected = {
        name: shape
        for name, owner in owners.items()
        if (shape := taken_shape(weights[name].shape, owner, held)) is not None
    }
    if update.delta.keys() != expected.keys():
        differing = sorted(update.delta.keys() ^ expected.keys())
        raise UpdateRejected(f"{site}: {len(differing)} tensors missing or not owned, such as {differing[:3]}")
    square = 0.0
    for name, tensor in update.delta.items():
        if tensor.dtype != torch.float32:
            raise UpdateRejected(f"{site}: {name} is {tensor.dtype}, expected torch.float32")
        if tuple(tensor.shape) != expected[name]:
            raise UpdateRejected(f"{site}: {name} has shape {tuple(tensor.shape)}, expected {expected[name]}")
        if tensor.numel() == 0:
            continue
        lowest, highest = (end.item() for end in torch.aminmax(tensor))
        largest = max(-lowest, highest)
        if not largest <= limits.entry:  # also catches nan
            raise UpdateRejected(f"{site}: {name} has an entry of {largest:.3g}, over the limit {limits.entry:.3g}")
        square += torch.linalg.vector_norm(tensor, dtype=torch.float64).item() ** 2
    norm = math.sqrt(square)
    if not norm <= limits.norm:
        raise UpdateRejected(f"{site}: delta norm {norm:.3g} is over the limit {limits.norm:.3g}")
    return update


def admit_sums(update: Update, *, run: str, phase: str, round: int, schema: str) -> Update:
    """The same for a phase of sums: finite fp64 totals of this run, phase and round."""
    site = update.site
    if (update.run, update.phase, update.round) != (run, phase, round):
        raise UpdateRejected(
            f"{site}: sums are for {update.run}/{update.phase}/{update.round}, this is {run}/{phase}/{round}"
        )
    if update.schema != schema:
        raise UpdateRejected(f"{site}: schema {update.schema[:12]} differs from the run's {schema[:12]}")
    for name, tensor in update.delta.items():
        if tensor.dtype != torch.float64:
            raise UpdateRejected(f"{site}: {name} is {tensor.dtype}, expected torch.float64")
        if not torch.isfinite(tensor).all():
            raise UpdateRejected(f"{site}: {name} is not finite")
    return update
