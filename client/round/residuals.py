"""An update in few bits, and what they leave unsaid, which goes into the site's next one (error feedback).

    STATE/residuals/RUN/open-0-PHASE-ROUND.safetensors   after that round: delta + rest before it - what was sent

Kept in fp64, so that all that was ever sent and the rest are exactly all that was ever learnt. A slice without a count
keeps its rest untouched. A round that is asked again takes the rest of the round before, and is answered with the same
bits. A private update's rest is of noised numbers alone (`private-0`), and never mixes with another's; nor does one of
before somebody left (`open-1`).
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from client.round.held import RUNS, keep_newest
from client.site import withdrawn
from client.site.site import Site
from shared.base.disk.tensors import Tensors, forms, lying_in, write_each
from shared.base.errors import RunFailed
from shared.base.files import remove, writing
from shared.base.owners import held_index, take
from shared.base.records import NO_REST, Cut, Owners, RoundPlan, Update
from shared.base.vocabulary import Owner, Weights
from shared.plan import packed
from shared.plan.packed import Bits, Coded, by_name

KEPT = 3  # rounds whose rests are kept, as of personal layers
log = logging.getLogger("lacuna.site")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rests:
    """What this site keeps back of one run, of updates of one kind."""

    site: Site
    run: str
    kind: str

    @staticmethod
    def of(site: Site, run: str, *, private: bool) -> "Rests":
        """To be asked for before a round's people are read: the rest of somebody who leaves meanwhile is not used."""
        gone = len(withdrawn.names(site.state))
        return Rests(site=site, run=run, kind=f"{'private' if private else 'open'}-{gone}")

    @property
    def folder(self) -> Path:
        return self.site.state / "residuals" / self.run

    def file(self, phase: str, round: int) -> Path:
        return self.folder / f"{self.kind}-{phase}-{round:06d}.safetensors"

    def rounds(self, phase: str) -> list[int]:
        start = f"{self.kind}-{phase}-"
        names = [
            path.stem.removeprefix(start) for path in self.folder.glob("*.safetensors") if path.stem.startswith(start)
        ]
        return sorted(int(name) for name in names if name.isdecimal())

    def before(self, phase: str, round: int, done: int | None) -> tuple[Tensors, int]:
        """The rest to go on from, and of which round it is; nought, and said, where that of the last one is lost.

        `done`: the last round before this that was answered here.
        """
        latest = max((n for n in self.rounds(phase) if n < round), default=NO_REST)
        if done is not None and latest < done:
            log.warning(
                "site %s: %s round %d: what few bits left unsaid in round %d is lost; it goes on from nought",
                *(self.site.name, phase, round, done),
            )
            return Tensors({}), NO_REST
        return (Tensors({}), NO_REST) if latest == NO_REST else (lying_in(self.file(phase, latest)), latest)

    def tidy(self, phase: str, round: int) -> None:
        """The last rounds of this phase stay, the one before until this one has as many, and the last few runs."""
        there = self.rounds(phase)
        past = [n for n in there if n <= round]
        kept = {self.file(phase, n) for n in past[-KEPT:]}
        for path in self.folder.glob("[!.]*"):
            other = path.name.startswith(f"{self.kind}-") and not path.name.startswith(f"{self.kind}-{phase}-")
            if path not in kept and not (other and len(past) < KEPT):
                remove(path)
        keep_newest(self.folder.parent, RUNS)


def in_bits(
    rests: Rests, plan: RoundPlan, update: Update, *, owners: Owners, whole: Weights, up: Bits, done: int | None
) -> Update:
    """The update as it travels, whose delta is emptied on the way. `whole`: tensors of which it has the held slices."""
    if up == "fp32":
        return update
    delta = dict(update.delta)
    update = replace(update, delta={})
    if up == "bf16":
        return replace(update, delta=Tensors({name: packed.cast(delta.pop(name)) for name in list(delta)}))
    told = by_name(plan.scales, owners)
    before, rest = rests.before(plan.phase, plan.round, done)
    held = [owner for owner, n in update.counts.items() if n > 0]
    found: dict[str, Coded] = {}

    def each() -> Iterator[tuple[str, Tensor]]:
        for name, form in every.items():
            kept = before[name] if name in before else torch.zeros(form.shape, dtype=torch.float64)
            if name in delta:
                kept, found[name] = _one(delta.pop(name), kept, owners[name], held, up, told.get(name))
            yield name, kept

    every = {name: _form(forms(whole)[name].shape) for name in sorted({*before, *delta})}
    try:
        with writing(rests.file(plan.phase, plan.round)) as file:
            write_each(file, every, each())
    except OverflowError as error:
        raise RunFailed(f"{update.site}: {plan.phase} round {plan.round}: {error}") from None
    rests.tidy(plan.phase, plan.round)
    return replace(update, delta=Tensors(found), rest=rest)


def _one(
    delta: Tensor, kept: Tensor, owner: Owner | Cut, held: list[Owner], up: str, told: int | None
) -> tuple[Tensor, Coded]:
    """One tensor's rest after this round, and what is sent of it: by the plan's exponent, or by its own, in int8."""
    own = take(kept, owner, held)
    assert own is not None, "what is sent is held"
    value = delta.double() + own
    largest = value.abs().max().item() if value.numel() else 0.0
    if not largest < math.inf:  # also nan
        raise OverflowError("its update is no finite numbers")
    code, exponent = ("int8", packed.exponent_for(largest, "int8")) if told is None else (up, told)
    whole = packed.quantised(value, code, exponent)
    rest = value.sub_(packed.meant(whole, exponent))
    if isinstance(owner, Cut):
        rest = kept.index_copy(owner.dim, held_index(owner, held), rest)
    return rest, packed.encoded(whole, code, exponent)


def _form(shape: torch.Size) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device="meta")
