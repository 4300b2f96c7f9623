"""A round's answers on disk until all are in, so that each can be held against the others; then read back one by one.

Memory is one update, or one tensor of each site, at a time.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from server.rounds.aggregation import Fold, Mean, holding
from shared.base.checkpoint import save_tensors
from shared.base.files import make_folder
from shared.base.owners import held_index, parts
from shared.base.records import Cut, Owners, Update
from shared.base.vocabulary import Owner, SiteName, Weights

if TYPE_CHECKING:
    from server.rounds.strategies import RobustStrategy


class Shelf:
    """One round's updates in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._heads: dict[SiteName, Update] = {}  # without their tensors
        make_folder(folder, durable=False)
        for stale in folder.iterdir():  # of a round that was killed
            stale.unlink()

    @property
    def sites(self) -> list[SiteName]:
        return sorted(self._heads)

    def add(self, update: Update) -> None:
        save_tensors(self._file(update.site), update.delta, durable=False)  # a killed round begins anew
        self._heads[update.site] = replace(update, delta={})

    def head(self, site: SiteName) -> Update:
        return self._heads[site]

    def whole(self, site: SiteName) -> Update:
        return replace(self._heads[site], delta=load_file(self._file(site)))

    def tensor(self, site: SiteName, name: str) -> Tensor:
        with safe_open(self._file(site), framework="pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    def drop(self, site: SiteName) -> None:
        self._file(site).unlink()
        del self._heads[site]

    def set_aside(self, out: dict[SiteName, str]) -> dict[SiteName, str]:
        """Drop these sites' updates; gives them and why, as they came."""
        for site in out:
            self.drop(site)
        return out

    def clear(self) -> None:
        for site in self.sites:
            self.drop(site)
        self._folder.rmdir()

    def emptied(self) -> Iterator[Update]:
        """Each once, by name; it is off the disk when the next comes."""
        for site in self.sites:
            yield self.whole(site)
            self.drop(site)

    def _file(self, site: SiteName) -> Path:
        return self._folder / f"{site}.safetensors"


def robust_mean(
    shelf: Shelf, strategy: "RobustStrategy", owners: Owners, weights: Weights, *, min_holders: int
) -> Mean:
    """The strategy's centre of every part over its holders, among the updates that it lets speak.

    A part with fewer holders than the strategy can outvote one of is not trained.
    """
    sites = shelf.sites
    counted = {site: {owner: shelf.head(site).counts[owner] for owner in holding(shelf.head(site))} for site in sites}
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
    delta: dict[str, Tensor] = {}
    for name, owner in owners.items():
        delta[name] = torch.zeros_like(weights[name])
        for part, dim, index in parts(owner):
            held = [site for site in chosen if part in counted[site]]
            if part not in trained or not held:
                continue
            stack = torch.stack([_part(shelf.tensor(site, name), owner, part, counted[site]) for site in held])
            value = strategy.centre(stack, torch.tensor([counted[site][part] for site in held]))
            if index is None or dim is None:
                delta[name] = value
            else:
                delta[name].index_copy_(dim, index, value)
    return Mean(delta=delta, trained=trained, holders=holders, counts=counts)


def folded(shelf: Shelf, fold: Fold, *, min_holders: int) -> Mean:
    for update in shelf.emptied():
        fold.add(update)
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
                [_part(shelf.tensor(sites[i], name), owner, part, counted[sites[i]]).double().flatten() for i in held]
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
