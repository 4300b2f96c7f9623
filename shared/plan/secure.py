"""A round whose coordinator sees sums alone: what its plan says, and how an update becomes numbers to be hidden.

The protocol: decision 0036. Every number of an update is a part of some group: a tensor of its owner's (or, cut, of
its slices'), the counts of samples each of its own, and what is known of the round of the group of everybody.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.base.disk.tensors import bytes_of
from shared.base.errors import ConfigError, DataError
from shared.base.files import canonical, sha256
from shared.base.options import build, plain
from shared.base.owners import named
from shared.base.records import RELEASED, Cut, Owners, Phase, RoundPlan
from shared.base.vocabulary import LOCAL, Owner, SiteName
from shared.plan.sums import BITS, PRESENT
from shared.trust.secure.circle import EVERYBODY, Card, Circle
from shared.trust.secure.masks import Words

COUNTS, METRICS, SITES = "(counts)", "(metrics)", "(sites)"  # beside a network's tensors, whose names are no such
LARGEST = 2.0**42  # of a metric, times 2^BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Secured:
    """What the plan of such a round says besides, to each site the same."""

    circle: Circle
    cards: Mapping[SiteName, Card]
    bits: int  # after the point

    @staticmethod
    def parse(text: str) -> "Secured":
        """DataError for anything else."""
        try:
            return build(Secured, json.loads(text), "secure")
        except (ConfigError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"secure: {str(error)[:200]}") from None

    def text(self) -> str:
        return json.dumps(plain(self), sort_keys=True)


def bound_to(plan: RoundPlan, said: Secured) -> str:
    """What masks are good for, and nothing else: with other weights, settings or keys they are others.

    Signatures are left out: dealt again, a card has the same keys and another signature.
    """
    asked = [plan.run, plan.phase, plan.round, plan.schema, plan.config, plan.named, *plan.hidden]
    keys = {site: [dict(card.keys), dict(card.seals)] for site, card in said.cards.items()}
    return sha256(canonical({"plan": asked, "circle": said.circle.digest, "keys": keys, "bits": said.bits}))


def hidden_owners(owners: Owners, groups: Collection[Owner]) -> Owners:
    """Who owns each tensor of a hidden update; parts of groups that nobody hides are not sent."""
    sent = {name: owner for name, owner in owners.items() if owner != LOCAL}
    cut = Cut(dim=0, owners=tuple(sorted(owner for owner in groups if owner != EVERYBODY)))
    return {**sent, COUNTS: cut, METRICS: EVERYBODY}


def hidden_sums(names: Collection[str], phase: Phase) -> Owners:
    """The same of a phase of sums, which is everybody's."""
    cells = {count for count, _ in phase.cells.values()}
    return dict.fromkeys([*names, *(f"{SITES} {count}" for count in sorted(cells)), METRICS], EVERYBODY)


def in_cells(sums: Mapping[str, Tensor], phase: Phase) -> dict[str, Tensor]:
    """Where this site has anybody, so that sites can be counted cell by cell; of sums in integers."""
    cells = {count for count, _ in phase.cells.values()}
    return {f"{SITES} {count}": (sums[count] >= PRESENT * 2.0**BITS).long() for count in sorted(cells)}


def groups_of(owners: Owners) -> list[Owner]:
    return sorted((named(owners) - {LOCAL}) | {EVERYBODY})


def words(value: Tensor) -> Words:
    """A tensor's own memory, as numbers that wrap around."""
    kind: type[np.uint32] | type[np.uint64] = np.uint32 if value.dtype == torch.int32 else np.uint64
    found: Words = np.frombuffer(bytes_of(value), dtype=kind)  # type: ignore[assignment]  # of one of the two
    return found


# --- metrics, of which only sums are told


def metrics_to(metrics: Mapping[str, float]) -> Tensor:
    """By name whether it is told, and its value; the loss is that of all samples together."""
    rows = []
    for name in RELEASED:
        value = metrics.get(name)
        if name == "loss" and value is not None:
            value = value * metrics["samples"] if "samples" in metrics else None
        told = value is not None and abs(value) * 2.0**BITS < LARGEST
        rows.append([int(told), round((value or 0.0) * 2.0**BITS) if told else 0])
    return torch.tensor(rows, dtype=torch.int64)


def metrics_from(total: Tensor) -> dict[str, float]:
    """The means over the sites; of the loss over samples."""
    found = {}
    for name, (n, value) in zip(RELEASED, total.tolist(), strict=True):
        if n > 0:
            found[name] = value / 2.0**BITS / n
    samples = total[RELEASED.index("samples")].tolist()
    if "loss" in found and samples[1] > 0:
        found["loss"] = total[RELEASED.index("loss"), 1].item() / samples[1]
    return found
