"""A site's part in a round whose coordinator sees sums alone: it deals, hides its update, and lets one sum be seen.

What it believes of the others is signed by keys that its own kit names; what it lets be seen is a sum of enough sites.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from client.site import vault
from client.site.keys import known_sites, own_key
from client.site.site import Site
from shared.base.disk.tensors import bytes_of
from shared.base.errors import DataError, PlanRefused
from shared.base.owners import held_index
from shared.base.records import Cut, Owners, Phase, RoundPlan, Update
from shared.base.vocabulary import LOCAL, Owner, SiteName
from shared.plan.beside import Shares
from shared.plan.integers import counted_over, weighed
from shared.plan.secure import (
    COUNTS,
    METRICS,
    Secured,
    bound_to,
    hidden_owners,
    hidden_sums,
    in_cells,
    metrics_to,
    words,
)
from shared.plan.sums import BITS, MOST, MOST_TOTAL
from shared.trust.secure import masks
from shared.trust.secure.circle import (
    EVERYBODY,
    KEY,
    SELF,
    Box,
    Card,
    Circle,
    Dealer,
    Sealed,
    opened,
)

Streams: TypeAlias = list[tuple[bytes, int]]  # keys of masks, each with its sign


def box(site: Site, run: str) -> Box:
    """What the other sites of a run seal to."""
    with vault.opened(site) as kept:
        return kept.make_box(run, lambda secret: Box.make(secret, run, site.name, own_key(site.state)))


# --- before a round


def deal(site: Site, circle: Circle) -> tuple[Card, Sealed]:
    """Fresh keys for a circle, and everybody's shares of them; PlanRefused unless all in it are sites of the kit's."""
    _check(site, circle)
    with vault.opened(site) as kept:
        own = kept.box(circle)
        dealer = Dealer(circle, site.name, kept.deal(circle))
        return dealer.card(own_key(site.state)), dealer.seal(own)


def _check(site: Site, circle: Circle) -> None:
    known, where = known_sites(site.state), f"{site.name}: {circle.phase} round {circle.round}"
    if site.name not in circle.boxes:
        raise PlanRefused(f"{where}: it is not in the circle that it is asked for")
    for other, its in circle.boxes.items():
        if other not in known:
            raise PlanRefused(
                f"{where}: {other[:80]} is no site that the installed kit names; who was admitted since comes with a "
                "new kit"
            )
        if not its.is_of(circle.run, other, known[other]):
            raise PlanRefused(f"{where}: the box of {other} is not signed by the key that the installed kit names")
    least = site.policy.min_holders
    if circle.least < least:
        raise PlanRefused(f"{where}: sums of {circle.least} sites would be seen; its policy allows {least} or more")
    for owner, holders in circle.groups.items():
        if len(holders) < circle.enough(owner):
            raise PlanRefused(
                f"{where}: group {owner[:80]} has {len(holders)} holders; a sum is of {circle.enough(owner)} or more"
            )
    if site.name not in circle.groups.get(EVERYBODY, ()):
        raise PlanRefused(f"{where}: the circle has no group of everybody with this site in it")


# --- the update


def hidden(site: Site, plan: RoundPlan, update: Update, owners: Owners, phase: Phase) -> Update:
    """The same update as numbers that mean nothing but in the sum of all that were dealt."""
    try:
        said = Secured.parse(plan.secure)
    except DataError as error:
        raise PlanRefused(f"{site.name}: the plan's {error}") from None
    circle = said.circle
    _check(site, circle)
    if (circle.run, circle.phase, circle.round) != (plan.run, plan.phase, plan.round):
        raise PlanRefused(f"{site.name}: the circle is of another round than the plan")
    _check_cards(site, said)
    held = [owner for owner, _ in circle.of(site.name) if owner == EVERYBODY or update.counts.get(owner, 0) > 0]
    if phase.kind == "sums":
        _check_sums(site, update, len(circle.boxes))
        numbers = {**update.delta, **in_cells(update.delta, phase)}
        owned, held = hidden_sums(update.delta, phase), [EVERYBODY]
    else:
        owned = hidden_owners(owners, circle.groups)
        numbers = _integers(site, said, update, owned, held)
    numbers[METRICS] = metrics_to({name: value for name, value in update.metrics.items() if name != "seconds"})
    with vault.opened(site) as kept:
        kept.hide_once(circle, {owner: _digest(numbers, owned, held, owner) for owner in held})
        dealer = Dealer(circle, site.name, kept.dealt(circle))
        bound = bound_to(plan)
        for owner in held:
            streams = list(dealer.streams(owner, said.cards, bound))
            for number, name in enumerate(sorted(owned)):
                found = _part(numbers[name], owned[name], held, owner) if name in numbers else None
                if found is not None:
                    _hide(numbers[name], owned[name], found, number, streams)
    return replace(update, delta=numbers, counts=dict.fromkeys(held, 1), metrics={})


def _check_cards(site: Site, said: Secured) -> None:
    known = known_sites(site.state)
    for other in said.circle.boxes:
        if other not in said.cards or not said.cards[other].is_of(said.circle, other, known[other]):
            where = f"{site.name}: {said.circle.phase} round {said.circle.round}"
            raise PlanRefused(f"{where}: the keys of {other[:80]} are not signed by it for this circle")


def _integers(site: Site, said: Secured, update: Update, owned: Owners, held: list[Owner]) -> dict[str, Tensor]:
    """A site's own word that it is within the limits, since nobody else can look: it sends nothing that is not."""
    mine, found, square = {owner for owner in held if owner != EVERYBODY}, dict[str, Tensor](), 0.0
    within = 2 ** (said.word - 1) // len(said.circle.boxes)
    own = {name: owner for name, owner in owned.items() if name not in (COUNTS, METRICS)}

    def weight(owner: Owner) -> int:
        return update.counts[counted_over(owner, own, said.estimator)]

    for name, owner in own.items():
        if name not in update.delta:
            continue
        value, index = update.delta[name], None
        if isinstance(owner, Cut):
            sent = held_index(owner, [o for o, n in update.counts.items() if n > 0 and o != LOCAL])
            keep = [i for i, at in enumerate(sent.tolist()) if owner.owners[at] in mine]
            if not keep:
                continue
            index, value = sent[keep], value.index_select(owner.dim, torch.tensor(keep))
        elif owner not in mine:
            continue
        largest = max(abs(end.item()) for end in torch.aminmax(value)) if value.numel() else 0.0
        if not largest <= said.entry:
            raise PlanRefused(f"{site.name}: {name} has an entry of {largest:.3g}, over the limit {said.entry:.3g}")
        square += torch.linalg.vector_norm(value, dtype=torch.float64).item() ** 2
        if largest * 2.0**said.bits * max(update.counts.values()) >= within:
            raise PlanRefused(f"{site.name}: {name} does not fit {said.word} bits at {said.bits} after the point")
        whole = weighed(value, owner, index, weight, said.bits)
        found[name] = whole.int() if said.word == 32 else whole
    if not math.sqrt(square) <= said.norm:
        raise PlanRefused(f"{site.name}: delta norm {math.sqrt(square):.3g} is over the limit {said.norm:.3g}")
    found[COUNTS] = torch.tensor([update.counts[owner] for owner in sorted(mine)], dtype=torch.int64)
    return found


def _check_sums(site: Site, update: Update, sites: int) -> None:
    most = min(MOST, MOST_TOTAL / sites)
    for name, value in update.delta.items():
        if value.numel() and value.abs().max().item() > most * 2**BITS:
            raise PlanRefused(f"{site.name}: {name} has a sum over the limit {most:.3g}")


def _part(value: Tensor, owned: Owner | Cut, held: list[Owner], owner: Owner) -> tuple[Tensor, Tensor | None] | None:
    """What of a tensor belongs to a group, and where it is from; None where nothing does."""
    if not isinstance(owned, Cut):
        return (value, None) if owned == owner else None
    sent = [owned.owners[i] for i in held_index(owned, held).tolist()]
    index = torch.tensor([i for i, one in enumerate(sent) if one == owner], dtype=torch.long)
    return (value.index_select(owned.dim, index).contiguous(), index) if len(index) else None


def _digest(numbers: Mapping[str, Tensor], owned: Owners, held: list[Owner], owner: Owner) -> str:
    """Of all that a group hides."""
    whole = hashlib.sha256()
    for name in sorted(numbers):
        found = _part(numbers[name], owned[name], held, owner)
        if found is not None:
            whole.update(f"{name} {found[0].dtype} {tuple(found[0].shape)}\n".encode())
            whole.update(bytes_of(found[0].contiguous()))
    return whole.hexdigest()


def _hide(
    value: Tensor, owned: Owner | Cut, found: tuple[Tensor, Tensor | None], number: int, streams: Streams
) -> None:
    """Add a group's masks to its part of a tensor."""
    part, index = found
    for key, sign in streams:
        masks.add(words(part), key, number, sign=sign)
    if isinstance(owned, Cut) and index is not None:
        value.index_copy_(owned.dim, index, part)


# --- after it


def reveal(site: Site, circle: Circle, survivors: Mapping[Owner, tuple[SiteName, ...]], sealed: Sealed) -> Shares:
    """One share of each holder of each group: of its own mask where its update is in the sum, of its key where
    it is not. Never both, nothing of a sum of few, and of one sum a round."""
    found: Shares = {}
    where = f"{site.name}: {circle.phase} round {circle.round}"
    _check(site, circle)
    with vault.opened(site) as kept:
        kept.dealt(circle)
        own = kept.box(circle)
        for owner, there in sorted(survivors.items()):
            holders = circle.groups.get(owner, ())
            if site.name not in holders or list(there) != sorted({*there} & {*holders}):
                raise PlanRefused(f"{where}: a sum of {owner[:80]} is asked for of others than its holders")
            if len(there) < circle.enough(owner):
                raise PlanRefused(
                    f"{where}: a sum of {owner[:80]} is asked for of {len(there)} sites; it is seen of "
                    f"{circle.enough(owner)} or more, of its {len(holders)} holders"
                )
        for owner, there in sorted(survivors.items()):
            kept.reveal_once(circle, owner, there)
            if owner != EVERYBODY:  # sums over people, which no seed changes, are limited by client/site/summed.py
                kept.see_once(circle, owner, there)
            found[owner] = {}
            for giver in circle.groups[owner]:
                share = _opened(where, circle, own, giver, site.name, owner, sealed)
                found[owner][giver] = share[SELF if giver in there else KEY]
    return found


def _opened(
    where: str, circle: Circle, own: bytes, giver: SiteName, taker: SiteName, owner: Owner, sealed: Sealed
) -> dict[str, bytes]:
    try:
        return opened(circle, own, giver, taker, owner, sealed[giver][owner])
    except (DataError, LookupError) as error:
        raise PlanRefused(f"{where}: {error}") from None
