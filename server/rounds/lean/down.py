"""Server to site: what a round changed, for the sites that hold the weights before it, and all of them for the others.

The step is q * 2^k in int8 and the server takes it as its own: its weights are, bit for bit, what a site makes of them,
and so average, resumption and hashes mean the same everywhere. What is left over goes into the next step; it is a state
in the checkpoint. Who holds what is known from the sites' last answers alone: after a restart all are sent everything.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from server.rounds.aggregation import keep_untrained
from shared.base.disk.tensors import File, Tensors
from shared.base.files import remove, writing
from shared.base.owners import digest
from shared.base.records import Cut, Update
from shared.base.vocabulary import Owner, SiteName, Weights
from shared.plan import packed, wire
from shared.plan.packed import Coded, Step

CODE = "int8"


@dataclass(kw_only=True)
class Down:
    file: Path  # the last step, which is sent from there
    how: Step
    held: dict[SiteName, str] = field(default_factory=dict)  # digest of the weights that a site keeps
    sent: str = ""  # digest of the weights of the last plan
    steps: dict[str, Coded | None] = field(default_factory=dict)  # what changed since; None: is sent as it is
    _writing: BinaryIO | None = None

    def offer(self, weights: Weights) -> "Offer":
        """What a round's sites are sent of these."""
        assert isinstance(weights, Tensors)
        if self.how == "fp32":
            return Offer(down=self, weights=weights, digest="", base="", steps={})
        now = digest(weights)
        offer = Offer(down=self, weights=weights, digest=now, base=self.sent, steps=self.steps)
        self.sent, self.steps = now, {}
        return offer

    def heard(self, update: Update) -> None:
        self.held[update.site] = update.holds

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Around a round's step, of which each tensor is taken."""
        if self.how == "fp32":
            yield
            return
        with writing(self.file, durable=False) as self._writing:
            yield
        self._writing = None

    def take(
        self, name: str, old: Tensor, new: Tensor, rest: Tensor, owner: Owner | Cut, trained: frozenset[Owner]
    ) -> tuple[Tensor, Tensor]:
        """The weight that the sites come to, and what its step leaves over; a slice that nobody trained stays."""
        owners, nothing = {name: owner}, {name: torch.zeros(old.shape, dtype=torch.float64)}
        wanted = keep_untrained(nothing, {name: new.double() - old + rest}, owners, trained)[name]
        largest = wanted.abs().max().item() if wanted.numel() else 0.0
        if not largest:
            return old, rest
        exponent = packed.exponent_for(largest, CODE)
        step = packed.encoded(packed.quantised(wanted, CODE, exponent), CODE, exponent)
        after = packed.stepped({name: old}, Tensors({name: step}))[name]
        left = {name: wanted.sub_(after.double() - old).float()}
        assert self._writing is not None, "within `stepping`"
        at = self._writing.tell()
        self._writing.write(step.raw())
        self.steps[name] = replace(step, source=File(self.file), at=at)
        return after, keep_untrained({name: rest}, left, owners, trained)[name]

    def changed(self, names: Collection[str]) -> None:
        """Otherwise than by a step: these are sent as they are."""
        self.steps.update(dict.fromkeys(names))

    def go_back(self) -> None:
        """Of a step that is not taken after all; the weights are those of the last plan again."""
        self.steps = {}

    def end(self) -> None:
        remove(self.file)


@dataclass(kw_only=True)
class Offer:
    """One round's weights, packed once for all that hold nothing and once for all that hold the last ones."""

    down: Down
    weights: Tensors
    digest: str
    base: str
    steps: dict[str, Coded | None]
    _packed: dict[bool, wire.Packed] = field(default_factory=dict)  # True: the step

    @property
    def named(self) -> str:
        """What the weights are known by, however they travel."""
        return self.digest or self._whole().sha256

    def to(self, site: SiteName) -> wire.Packed:
        """Held now by the site, until it answers: one that does not is sent all of them next time."""
        holds = bool(self.base) and self.down.held.pop(site, "") == self.base
        return self._step() if holds else self._whole()

    def _whole(self) -> wire.Packed:
        if False not in self._packed:
            self._packed[False] = wire.pack_weights(self.weights, digest=self.digest)
        return self._packed[False]

    def _step(self) -> wire.Packed:
        if True not in self._packed:
            every = self.weights.entries
            step = Tensors({name: step or every[name] for name, step in self.steps.items()})
            self._packed[True] = wire.pack_weights(step, digest=self.digest, base=self.base)
        return self._packed[True]
