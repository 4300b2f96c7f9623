"""Sums in which nobody stands alone: what a site may send of a phase of sums, and what the coordinator may use of it.

A cell is what one count of a phase counts people in: a modality, a pair of them, a voxel, a kind of tissue. A cell that
too few are in is left out whole: the count and every sum that goes with it (`Phase.cells`). Sums travel as integers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from shared.base.errors import RunFailed
from shared.base.records import Phase

BITS = 20  # after the point
MOST = 2.0**36  # of a site's sum, whatever its images: above a thousand subjects' pixels at paper size
MOST_TOTAL = 2.0**42  # over all sites: as integers these fit in 63 bits
PRESENT = 0.5  # of a count: a person (of a kind of tissue: half a pixel), or a site, that is in the cell
SHARE = 0.5  # the most of a cell's count that one person may be

Sums = Mapping[str, Tensor]


def to_integers(sums: Sums) -> dict[str, Tensor]:
    """Fixed point: added in any order they are the same bits."""
    for name, value in sums.items():
        if not bool((value.abs() <= MOST).all()):  # also catches nan
            raise RunFailed(f"sums: {name} is beyond {MOST:g}, or no number")
    return {name: value.double().mul(2.0**BITS).round().long() for name, value in sums.items()}


def to_numbers(sums: Sums) -> dict[str, Tensor]:
    return {name: value.double().div(2.0**BITS) for name, value in sums.items()}


class Company:
    """Who is in each cell, person by person or site by site."""

    def __init__(self, phase: Phase) -> None:
        self._cells = phase.cells
        self._counts = sorted({count for count, _ in phase.cells.values()})
        self._members: dict[str, Tensor] = {}
        self._largest: dict[str, Tensor] = {}
        self._whole: dict[str, Tensor] = {}

    def meet(self, sums: Sums) -> None:
        """One more, with its own sums."""
        for name in self._counts:
            count = sums[name].double()
            if name not in self._members:
                self._members[name] = torch.zeros_like(count)
                self._largest[name], self._whole[name] = torch.zeros_like(count), torch.zeros_like(count)
            self._members[name] += count >= PRESENT
            self._largest[name] = torch.maximum(self._largest[name], count)
            self._whole[name] += count

    @staticmethod
    def told(phase: Phase, members: Sums, totals: Sums) -> "Company":
        """Of whom only the number in each cell is known."""
        company = Company(phase)
        for name in company._counts:
            company._members[name], company._whole[name] = members[name].double(), totals[name].double()
            company._largest[name] = torch.zeros_like(company._whole[name])
        return company

    def keep(self, totals: Sums, least: int, *, share: float = 1.0) -> tuple[dict[str, Tensor], int]:
        """The totals without cells that fewer than `least` are in, or one alone fills by more than `share`; and how
        many cells were left out. With a `least` of 1 there is no such cell."""
        kept, left_out = dict(totals), 0
        if least == 1:
            return kept, left_out
        for name, (count, axes) in sorted(self._cells.items()):
            alone = (self._members[count] < least) | (self._largest[count] > share * self._whole[count])
            thin = alone & (self._whole[count] >= PRESENT)
            cells = thin.flatten(axes).any(dim=-1) if thin.ndim > axes else thin
            value = totals[name]
            kept[name] = torch.where(cells.reshape(*cells.shape, *[1] * (value.ndim - cells.ndim)), 0, value)
            left_out += int(cells.sum()) if name == count else 0
        return kept, left_out
