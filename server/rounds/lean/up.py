"""Site to server: in units of which power of two a round's updates come, and whether they are what was asked for.

A tensor's unit follows from how large the sites' updates of it were in the round before; in a phase's first round each
site says its own, in int8. It falls by no more than half a round: one small update does not cut off the next.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from shared.base.disk.tensors import forms
from shared.base.errors import UpdateRejected
from shared.base.records import Update
from shared.base.vocabulary import SiteName
from shared.plan import packed
from shared.plan.packed import BFLOAT16, Bits, Coded

REACH = {"int8": 4.0, "int4": 1.5}  # the least that is not cut off, in root mean squares of the updates before
_WIDTH = {"fp32": 4, "bf16": 2, "int8": 1, "int4": 1}
_KIND = {"fp32": "float32", "bf16": BFLOAT16}


@dataclass(kw_only=True)
class Up:
    """One round's updates."""

    how: Bits
    scales: Mapping[str, int]  # by tensor, as the plan says them
    last: Mapping[SiteName, int]  # each site's last round in this phase
    lost: dict[SiteName, str] = field(default_factory=dict)  # what to say of sites that lost their rest
    _sizes: dict[SiteName, dict[str, float]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """The most bytes of a number; before there are scales it is in int8."""
        return _WIDTH[self.how]

    def check(self, update: Update) -> None:
        """UpdateRejected for numbers in other bits than the plan asks for, or that nobody writes.

        To be called when the forms are known to be right: it reads them.
        """
        site = update.site
        for name, form in forms(update.delta).items():
            kind, asked = packed.kind(form), self._asked(name)
            if kind != asked:
                raise UpdateRejected(f"{site}: {name} came as {kind}, the plan asks for {asked}")
            if not isinstance(form, Coded):
                continue
            if form.exponent != self.scales.get(name, form.exponent):
                raise UpdateRejected(
                    f"{site}: {name} is in units of 2^{form.exponent}, the plan's are 2^{self.scales[name]}"
                )
            if form.stray():
                raise UpdateRejected(f"{site}: {name} has a number out of the range of {kind}")
        if self.how in packed.MOST:
            self._sizes[site] = {name: _size(form) for name, form in forms(update.delta).items()}
            before = self.last.get(site)
            if before is not None and update.rest < before:
                self.lost[site] = f"has lost what few bits left unsaid in its update of round {before}"

    def next(self, sites: Collection[SiteName]) -> dict[str, int]:
        """The next round's scales, after these sites' updates."""
        found, sizes = dict(self.scales), [self._sizes[site] for site in sorted(sites) if site in self._sizes]
        for name in sorted({name for own in sizes for name in own}):
            each = [own[name] for own in sizes if own.get(name)]
            if each:
                wanted = packed.exponent_for(REACH[self.how] * sum(each) / len(each), self.how)
                found[name] = max(wanted, found.get(name, wanted) - 1)
        return found

    def _asked(self, name: str) -> str:
        return _KIND.get(self.how) or (self.how if name in self.scales else "int8")


def _size(form: object) -> float:
    """Root mean square."""
    assert isinstance(form, Coded)
    value = form.read()
    return float(torch.linalg.vector_norm(value, dtype=torch.float64).item()) / math.sqrt(max(value.numel(), 1))
