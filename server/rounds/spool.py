"""A round's answers on disk until all are in, so that each can be held against the others; then read tensor by tensor.

Memory is one tensor, or one tensor of each site, at a time.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from server.rounds.aggregation import Fold, Mean, holding
from shared.base.disk.tensors import WorkedOut, forms
from shared.base.files import make_folder, remove
from shared.base.owners import held_index, parts
from shared.base.records import Cut, Owners, Update
from shared.base.vocabulary import Owner, SiteName, Weights

if TYPE_CHECKING:
    from server.rounds.strategies import RobustStrategy


class Shelf:
    """One round's updates, whose tensors lie in a folder: a file each, of the bytes as they came."""

    def __init__(self, folder: Path, *, keep: Collection[SiteName] = ()) -> None:
        """Empty but for the files of the sites to keep."""
        self._folder = folder
        self._updates: dict[SiteName, Update] = {}
        make_folder(folder, durable=False)
        for stale in {*folder.iterdir()} - {self.file(site) for site in keep}:  # of a round that was killed
            stale.unlink()

    @property
    def sites(self) -> list[SiteName]:
        return sorted(self._updates)

    def __getitem__(self, site: SiteName) -> Update:
        return self._updates[site]

    def file(self, site: SiteName) -> Path:
        """Where its tensors go as they come, before anything is known of them."""
        return self._folder / f"{site}.tensors"

    def add(self, update: Update) -> None:
        self._updates[update.site] = update

    def drop(self, site: SiteName) -> None:
        self.file(site).unlink(missing_ok=True)
        self._updates.pop(site, None)

    def set_aside(self, out: dict[SiteName, str]) -> dict[SiteName, str]:
        """Drop these sites' updates; gives them and why, as they came."""
        for site in out:
            self.drop(site)
        return out

    def clear(self) -> None:
        self._updates.clear()
        remove(self._folder)

    def emptied(self) -> Iterator[Update]:
        """Each once, by name; it is off the disk when the next comes."""
        for site in self.sites:
            yield self[site]
            self.drop(site)


def robust_mean(
    shelf: Shelf, strategy: "RobustStrategy", owners: Owners, weights: Weights, *, min_holders: int
) -> Mean:
    """The strategy's centre of every part over its holders, among the updates that it lets speak.

    A part with fewer holders than the strategy can outvote one of is not trained.
    """
    sites = shelf.sites
    counted = {site: {owner: shelf[site].counts[owner] for owner in holding(shelf[site])} for site in sites}
    least = max(min_holders, strategy.needs)
    counts: dict[Owner, int] = {}
    holders: dict[Owner, int] = {}
    for site in sites:
        for held_owner, n in counted[site].items():
            counts[held_owner] = counts.get(held_owner, 0) + n
            holders[held_owner] = holders.get(held_owner, 0) + 1
    chosen = [sites[i] for i in strategy.choose(_distances(shelf, owners, counted))] if sites else []
    speaking = {owner for site in chosen for owner in counted[site]}
    trained = frozenset(owner for owner, n in holders.items() if n >= least and owner in speaking)

    def centre(name: str) -> Tensor:
        owner, form = owners[name], forms(weights)[name]
        delta = torch.zeros(form.shape, dtype=form.dtype)
        for part, dim, index in parts(owner):
            held = [site for site in chosen if part in counted[site]]
            if part not in trained or not held:
                continue
            stack = torch.stack([_part(shelf[site].delta[name], owner, part, counted[site]) for site in held])
            value = strategy.centre(stack, torch.tensor([counted[site][part] for site in held]))
            if index is None or dim is None:
                delta = value
            else:
                delta.index_copy_(dim, index, value)
        return delta

    return Mean(delta=WorkedOut(owners, centre), trained=trained, holders=holders, counts=counts)


def folded(shelf: Shelf, fold: Fold, *, min_holders: int) -> Mean:
    for site in shelf.sites:
        fold.add(shelf[site])
    return fold.mean(min_holders=min_holders)


def _distances(shelf: Shelf, owners: Owners, counted: dict[SiteName, dict[Owner, int]]) -> Tensor:
    """Mean squared difference per weight that both sites hold; nan where they share nothing."""
    sites = shelf.sites
    total = torch.zeros(len(sites), len(sites), dtype=torch.float64)
    entries = torch.zeros_like(total)
    for name, owner in owners.items():
        for part, _, _ in parts(owner):
            held = [i for i, site in enumerate(sites) if part in counted[site]]
            if not held:
                continue
            flat = torch.stack(
                [_part(shelf[sites[i]].delta[name], owner, part, counted[sites[i]]).double().flatten() for i in held]
            )
            square = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
            at = torch.tensor(held)
            total[at[:, None], at] += square
            entries[at[:, None], at] += flat.shape[1]
    return total / entries


def _part(sent: Tensor, owner: Owner | Cut, part: Owner, counted: dict[Owner, int]) -> Tensor:
    if not isinstance(owner, Cut):
        return sent
    sent_owners = [owner.owners[i] for i in held_index(owner, counted).tolist()]
    index = torch.tensor([i for i, o in enumerate(sent_owners) if o == part])
    return sent.index_select(owner.dim, index)
