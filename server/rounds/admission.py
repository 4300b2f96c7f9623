"""Never trust what came over the wire: every update is checked whole before one number of it is folded in."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from server.rounds.aggregation import holding
from shared.base.disk.tensors import forms
from shared.base.errors import UpdateRejected
from shared.base.owners import named, taken_shape
from shared.base.records import Batch, Inventory, Owners, RoundPlan, Update
from shared.base.vocabulary import LOCAL, SHARED
from shared.data.volumes import Grid
from shared.methods import Method
from shared.plan.settings import Limits
from shared.plan.sums import BITS, MOST, MOST_TOTAL
from shared.plan.training import pool


def admit(update: Update, plan: RoundPlan, *, owners: Owners, frozen: str, limits: Limits, samples: int) -> Update:
    """The same update, or UpdateRejected naming the site, the value and the rule."""
    site = update.site
    check_asked("update is", update, plan, frozen)
    unknown = set(update.counts) - named(owners)
    if unknown:
        raise UpdateRejected(f"{site}: counts for unknown owners {sorted(unknown)[:3]}")
    for owner, n in update.counts.items():
        if not 0 <= n <= samples:
            raise UpdateRejected(f"{site}: count of {owner} is {n}, the round has at most {samples} samples")
    if update.counts.get(LOCAL):
        raise UpdateRejected(f"{site}: counts for '{LOCAL}', which never leaves a site")
    held = holding(update)
    if held and SHARED in named(owners) and not update.counts.get(SHARED):
        raise UpdateRejected(f"{site}: counts for {held[0]} but none for '{SHARED}'")
    shapes = forms(plan.weights)
    expected = {
        name: shape
        for name, owner in owners.items()
        if (shape := taken_shape(shapes[name].shape, owner, held)) is not None
    }
    check_forms(update, {name: (torch.float32, shape) for name, shape in expected.items()})
    square = 0.0
    for name, form in forms(update.delta).items():
        if 0 in form.shape:
            continue
        tensor = update.delta[name]  # it is no larger than was asked for
        lowest, highest = (end.item() for end in torch.aminmax(tensor))
        largest = max(-lowest, highest)
        if not largest <= limits.entry:  # also catches nan
            raise UpdateRejected(f"{site}: {name} has an entry of {largest:.3g}, over the limit {limits.entry:.3g}")
        square += torch.linalg.vector_norm(tensor, dtype=torch.float64).item() ** 2
    norm = math.sqrt(square)
    if not norm <= limits.norm:
        raise UpdateRejected(f"{site}: delta norm {norm:.3g} is over the limit {limits.norm:.3g}")
    return update


def check_forms(update: Update, expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """UpdateRejected unless its tensors are these, of these types and shapes; none of them is read."""
    site = update.site
    if update.delta.keys() != expected.keys():
        differing = sorted(update.delta.keys() ^ expected.keys())
        raise UpdateRejected(f"{site}: {len(differing)} tensors missing or not owned, such as {differing[:3]}")
    for name, form in forms(update.delta).items():
        dtype, shape = expected[name]
        if form.dtype != dtype:
            raise UpdateRejected(f"{site}: {name} is {form.dtype}, expected {dtype}")
        if tuple(form.shape) != shape:
            raise UpdateRejected(f"{site}: {name} has shape {tuple(form.shape)}, expected {shape}")


def check_held(update: Update, inventory: Inventory) -> None:
    """UpdateRejected for counts of a modality that the site's own inventory does not have."""
    held = {modality for pattern in inventory.patterns for modality in pattern}
    for owner in holding(update):
        _, of, modality = owner.partition(":")
        if of and modality not in held:
            raise UpdateRejected(f"{update.site}: counts for {owner}, and by its inventory nobody there has {modality}")


def sums_shapes(method: Method, net: nn.Module, phase: str, grid: Grid) -> dict[str, tuple[int, ...]]:
    """A phase's sums by name, and their shapes; found by summing over an empty image."""
    M = len(method.modalities)
    images = torch.zeros(1, M, method.slab, grid.height, grid.width)
    nothing = Batch(
        images_BMHW=images if method.slab > 1 else images[:, :, 0],
        exists_BM=torch.zeros(1, M, dtype=torch.bool),
        shown_BM=torch.zeros(1, M, dtype=torch.bool),
        subject_B=torch.zeros(1, dtype=torch.int64),
        clinical=({},),
    )
    return {name: tuple(value.shape) for name, value in pool(method, net, [nothing], phase).items()}


def admit_sums(
    update: Update, plan: RoundPlan, *, frozen: str, shapes: Mapping[str, tuple[int, ...]], sites: int
) -> Update:
    """The same for a phase of sums: integers of this run, phase and round, of the phase's own shapes.

    Those of so many `sites` can't overflow.
    """
    site, most = update.site, min(MOST, MOST_TOTAL / max(sites, 1))
    check_asked("sums are", update, plan, frozen)
    if update.delta.keys() != shapes.keys():
        differing = sorted(update.delta.keys() ^ shapes.keys())
        raise UpdateRejected(f"{site}: {len(differing)} sums missing or unknown, such as {differing[:3]}")
    for name, form in forms(update.delta).items():
        if form.dtype != torch.int64:
            raise UpdateRejected(f"{site}: {name} is {form.dtype}, expected torch.int64")
        if tuple(form.shape) != shapes[name]:
            raise UpdateRejected(f"{site}: {name} has shape {tuple(form.shape)}, expected {shapes[name]}")
        tensor = update.delta[name]
        ends = [abs(end.item()) for end in torch.aminmax(tensor)] if tensor.numel() else [0]
        if max(ends) > most * 2**BITS:
            raise UpdateRejected(f"{site}: {name} has a sum of {max(ends) / 2**BITS:.3g}, over the limit {most:.3g}")
    return update


def check_asked(what: str, update: Update, plan: RoundPlan, frozen: str) -> None:
    """Is it an answer to this plan, trained around the same frozen weights?

    Latents of two versions of an autoencoder, or of two scales, never mix.
    """
    site, schema = update.site, plan.schema
    if (update.run, update.phase, update.round) != (plan.run, plan.phase, plan.round):
        raise UpdateRejected(
            f"{site}: {what} for {update.run}/{update.phase}/{update.round}, "
            f"this is {plan.run}/{plan.phase}/{plan.round}"
        )
    if update.schema != schema:
        raise UpdateRejected(f"{site}: schema {update.schema[:12]} differs from the run's {schema[:12]}")
    if update.frozen != frozen:
        raise UpdateRejected(
            f"{site}: trained around frozen weights {update.frozen[:12] or 'without a hash'}, "
            f"the round's are {frozen[:12]}"
        )
