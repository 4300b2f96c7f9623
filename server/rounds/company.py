"""One site's answer held against the others' of the same round: from three on, one that lies can't hide among them.

Limits of what an update may be by itself: server/rounds/admission.py. What three sites say here is relative: norms to
their median, sums to the median of the sites' means, and what a person weighs to what it weighs elsewhere.
"""

import math
from collections.abc import Mapping
from statistics import median

import torch
from torch import Tensor

from server.rounds.spool import Shelf
from shared.base.records import Inventory, Phase
from shared.base.vocabulary import SiteName
from shared.plan.settings import Limits
from shared.plan.sums import to_numbers

LEAST = 3  # of two that differ nobody can tell which one lies


def out_of_norm(shelf: Shelf, limits: Limits) -> dict[SiteName, str]:
    """Which updates are larger than the round's median allows, and why; private ones are held against private ones."""
    norms = {site: _norm(shelf, site) for site in shelf.sites}
    found: dict[SiteName, str] = {}
    for like in _alike(shelf):
        middle = median(norms[site] for site in like)
        for site in like:
            if norms[site] > limits.relative * middle > 0:
                found[site] = (
                    f"{site}: delta norm {norms[site]:.3g} is {norms[site] / middle:.3g} times the round's median "
                    f"{middle:.3g}, over the limit {limits.relative:g}"
                )
    return found


def out_of_sums(
    shelf: Shelf, phase: Phase, inventories: Mapping[SiteName, Inventory], limits: Limits
) -> dict[SiteName, str]:
    """The same for sums of sites that add no noise: what a site's people weigh, and how far its means lie off."""
    sites = [site for site in shelf.sites if shelf[site].spent is None]
    if len(sites) < LEAST:
        return {}
    found = _overweight(shelf, phase, sites, inventories, limits.weight)
    for count in sorted({count for count, _ in phase.cells.values()}):
        names = sorted(name for name, (own, _) in phase.cells.items() if own == count and name != count)
        square, whole = dict.fromkeys(sites, 0.0), dict.fromkeys(sites, 0.0)
        for name in names:
            means, counts = _means(shelf, name, count, phase.cells[name][1], sites)
            there = counts > 0
            middle, usual = (value.masked_fill(~there, torch.nan).nanmedian(dim=0).values for value in (means, counts))
            compared = there & (there.sum(dim=0) >= LEAST)
            for i, site in enumerate(sites):  # a cell weighs as much as it usually holds
                square[site] += _square(((means[i] - middle) * usual)[compared[i]])
                whole[site] += _square((middle * usual)[compared[i]])
        for site in sites:
            apart = math.sqrt(square[site] / whole[site]) if whole[site] else 0.0
            if apart > limits.apart:
                found.setdefault(
                    site,
                    f"{site}: its sums ({', '.join(names)} by {count}) lie {apart:.3g} times as far from the median of "
                    f"the sites' means as that from nought, over the limit {limits.apart:g}",
                )
    return found


def most_people(inventory: Inventory) -> int:
    """As many as an inventory can mean: a cell of -5 is 1 to 4."""
    return max(1, sum(n if n > 0 else -n - 1 for n in inventory.patterns.values()))


def _alike(shelf: Shelf) -> list[list[SiteName]]:
    kinds = [[site for site in shelf.sites if (shelf[site].spent is None) is open_] for open_ in (True, False)]
    return [kind for kind in kinds if len(kind) >= LEAST]


def _norm(shelf: Shelf, site: SiteName) -> float:
    return math.sqrt(sum(_square(value) for value in shelf[site].delta.values()))


def _square(value: Tensor) -> float:
    return torch.linalg.vector_norm(value, dtype=torch.float64).item() ** 2 if value.numel() else 0.0


def _overweight(
    shelf: Shelf, phase: Phase, sites: list[SiteName], inventories: Mapping[SiteName, Inventory], limit: float
) -> dict[SiteName, str]:
    found: dict[SiteName, str] = {}
    for count in sorted({count for count, _ in phase.cells.values()}):
        each = {site: _number(shelf, site, count).abs().sum().item() / most_people(inventories[site]) for site in sites}
        middle = median(each.values())
        for site in sites:
            if each[site] > limit * middle > 0:
                found.setdefault(
                    site,
                    f"{site}: by its inventory each of its people counts for {each[site]:.3g} in {count}, "
                    f"{each[site] / middle:.3g} times the median of the sites, over the limit {limit:g}",
                )
    return found


def _means(shelf: Shelf, name: str, count: str, axes: int, sites: list[SiteName]) -> tuple[Tensor, Tensor]:
    """Each site's sum over its count, cell by cell, and the count."""
    means, counts = [], []
    for site in sites:
        value, n = _number(shelf, site, name), _number(shelf, site, count)
        n = n.flatten(axes).sum(dim=-1) if n.ndim > axes else n
        n = n.reshape(*n.shape, *[1] * (value.ndim - n.ndim)).expand(value.shape)
        means.append(value / n.masked_fill(n == 0, 1.0))
        counts.append(n)
    return torch.stack(means), torch.stack(counts)


def _number(shelf: Shelf, site: SiteName, name: str) -> Tensor:
    return to_numbers({name: shelf[site].delta[name]})[name]
