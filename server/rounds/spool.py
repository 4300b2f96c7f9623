"""Updates kept on disk for the strategies that need all of them, and read back one tensor at a time."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor

from server.rounds.aggregation import Mean, holding
from shared.base.checkpoint import save_tensors
from shared.base.files import make_folder
from shared.base.owners import held_index, parts
from shared.base.records import Cut, Owners, Update
from shared.base.vocabulary import Owner, SiteName, Weights

if TYPE_CHECKING:
    from server.rounds.strategies import RobustStrategy


class Spool:
    """One round's updates in a folder; memory is one tensor of each site at a time."""

    def __init__(self, folder: Path, owners: Owners, weights: Weights) -> None:
        self._folder, self._owners, self._weights = folder, owners, weights
        self._counts: dict[SiteName, dict[Owner, int]] = {}
        make_folder(folder, durable=False)
        for stale in folder.iterdir():  # of a round that was killed
            stale.unlink()

    def add(self, update: Update) -> None:
        save_tensors(self._file(update.site), update.delta, durable=False)  # a killed round begins anew
        self._counts[update.site] = {owner: update.counts[owner] for owner in holding(update)}

    def mean(self, strategy: "RobustStrategy", *, min_holders: int) -> Mean:
        """The strategy's centre of every part over its holders, among the updates that it lets speak."""
        sites = sorted(self._counts)
        counts: dict[Owner, int] = {}
        holders: dict[Owner, int] = {}
        for site in sites:
            for held_owner, n in self._counts[site].items():
                counts[held_owner] = counts.get(held_owner, 0) + n
                holders[held_owner] = holders.get(held_owner, 0) + 1
        chosen = [sites[i] for i in strategy.choose(self._distances(sites))] if sites else []
        speaking = {owner for site in chosen for owner in self._counts[site]}
        trained = frozenset(owner for owner, n in holders.items() if n >= min_holders and owner in speaking)
        delta: dict[str, Tensor] = {}
        for name, owner in self._owners.items():
            delta[name] = torch.zeros_like(self._weights[name])
            for part, dim, index in parts(owner):
                held = [site for site in chosen if part in self._counts[site]]
                if part not in trained or not held:
                    continue
                stack = torch.stack([self._part(site, name, owner, part) for site in held])
                value = strategy.centre(stack, torch.tensor([self._counts[site][part] for site in held]))
                if index is None or dim is None:
                    delta[name] = value
                else:
                    delta[name].index_copy_(dim, index, value)
        return Mean(delta=delta, trained=trained, holders=holders, counts=counts)

    def clear(self) -> None:
        for site in self._counts:
            self._file(site).unlink(missing_ok=True)

    def _distances(self, sites: list[SiteName]) -> Tensor:
        """Mean squared difference per weight that both sites hold; nan where they share nothing."""
        total = torch.zeros(len(sites), len(sites), dtype=torch.float64)
        entries = torch.zeros_like(total)
        for name, owner in self._owners.items():
            for part, _, _ in parts(owner):
                held = [i for i, site in enumerate(sites) if part in self._counts[site]]
                if not held:
                    continue
                flat = torch.stack([self._part(sites[i], name, owner, part).double().flatten() for i in held])
                square = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
                at = torch.tensor(held)
                total[at[:, None], at] += square
                entries[at[:, None], at] += flat.shape[1]
        return total / entries

    def _part(self, site: SiteName, name: str, owner: Owner | Cut, part: Owner) -> Tensor:
        with safe_open(self._file(site), framework="pt") as file:
            sent: Tensor = file.get_tensor(name)
        if not isinstance(owner, Cut):
            return sent
        sent_owners = [owner.owners[i] for i in held_index(owner, self._counts[site]).tolist()]
        index = torch.tensor([i for i, o in enumerate(sent_owners) if o == part])
        return sent.index_select(owner.dim, index)

    def _file(self, site: SiteName) -> Path:
        return self._folder / f"{site}.safetensors"
