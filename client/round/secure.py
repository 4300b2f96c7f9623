"""A site's part in a round whose coordinator sees sums alone: it deals, hides its update, and lets one sum be seen.

What it believes of the others is signed by keys that its own kit names; what it lets be seen is a sum of enough sites.
"""

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from client.site import vault, withdrawn
from client.site.keys import known_sites, own_key
from client.site.site import Site
from shared.base.disk.tensors import bytes_of
from shared.base.errors import DataError, PlanRefused
from shared.base.files import canonical, sha256
from shared.base.options import build, plain
from shared.base.owners import held_index
from shared.base.records import Cut, Owners, Phase, RoundPlan, Spent, Update
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
from shared.plan.settings import RunSettings
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

log = logging.getLogger("lacuna.site")
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


def _read(site: Site, plan: RoundPlan) -> Secured:
    try:
        said = Secured.parse(plan.secure)
    except DataError as error:
        raise PlanRefused(f"{site.name}: the plan's {error}") from None
    _check(site, said.circle)
    if (said.circle.run, said.circle.phase, said.circle.round) != (plan.run, plan.phase, plan.round):
        raise PlanRefused(f"{site.name}: the circle is of another round than the plan")
    _check_cards(site, said)
    return said


def again(site: Site, plan: RoundPlan) -> Update | None:
    """What was sent for this very plan, if it was: the same masks hide nothing else, and noise is not drawn twice."""
    said = _read(site, plan)
    with vault.opened(site) as kept:
        found = kept.reply(said.circle, _asked(site, bound_to(plan, said)))
    if found is None:
        return None
    head, numbers = found
    spent = head.pop("spent")
    return Update(**head, delta=numbers, spent=None if spent is None else build(Spent, spent, "spent"))


def hidden(site: Site, plan: RoundPlan, update: Update, owners: Owners, phase: Phase, settings: RunSettings) -> Update:
    """The same update as numbers that mean nothing but in the sum of all that were dealt."""
    said = _read(site, plan)
    circle = said.circle
    held = [owner for owner, _ in circle.of(site.name) if owner == EVERYBODY or update.counts.get(owner, 0) > 0]
    if phase.kind == "sums":  # over people, which no seed changes: client/site/summed.py limits them
        _check_sums(site, update, len(circle.boxes))
        numbers, learnt = {**update.delta, **in_cells(update.delta, phase)}, dict[Owner, str]()
        owned, held = hidden_sums(update.delta, phase), [EVERYBODY]
    else:
        learnt = _learnt(update, owners, held)
        owned = hidden_owners(owners, circle.groups)
        numbers = _integers(site, said, update, owned, held, settings)
    numbers[METRICS] = metrics_to({name: value for name, value in update.metrics.items() if name != "seconds"})
    sent = replace(update, delta=numbers, counts=dict.fromkeys(held, 1), metrics={})
    digest = _digest(numbers)
    with vault.opened(site) as kept:
        dealer = Dealer(circle, site.name, kept.dealt(circle))
        bound = bound_to(plan, said)
        for owner in held:
            streams = list(dealer.streams(owner, said.cards, bound))
            for number, name in enumerate(sorted(owned)):
                found = _part(numbers[name], owned[name], held, owner) if name in numbers else None
                if found is not None:
                    _hide(numbers[name], owned[name], found, number, streams)
        head = {key: plain(getattr(sent, key)) for key in Update.__dataclass_fields__ if key != "delta"}
        with kept.at_once():
            kept.hide_once(circle, digest, learnt)
            kept.keep_reply(circle, _asked(site, bound), head, numbers)
    return sent


def _asked(site: Site, bound: str) -> str:
    """Of what a reply is kept: of whom somebody has left since, it does not go again."""
    return f"{bound} {len(withdrawn.names(site.state))}"


def _learnt(update: Update, owners: Owners, held: list[Owner]) -> dict[Owner, str]:
    """Of which update each group's numbers are, before it is scaled as the coordinator says; nought is none."""
    counted = [owner for owner, n in sorted(update.counts.items()) if n > 0]
    every: dict[Owner, str] = {}
    for owner in counted:
        parts = {n: p[0] for n, v in update.delta.items() if (p := _part(v, owners[n], counted, owner)) is not None}
        if any(bool(part.any()) for part in parts.values()):
            every[owner] = _digest(parts)
    found = {owner: every[owner] for owner in held if owner in every}
    return {**found, EVERYBODY: sha256(canonical(every))}


def _check_cards(site: Site, said: Secured) -> None:
    known = known_sites(site.state)
    for other in said.circle.boxes:
        if other not in said.cards or not said.cards[other].is_of(said.circle, other, known[other]):
            where = f"{site.name}: {said.circle.phase} round {said.circle.round}"
            raise PlanRefused(f"{where}: the keys of {other[:80]} are not signed by it for this circle")


def _integers(
    site: Site, said: Secured, update: Update, owned: Owners, held: list[Owner], settings: RunSettings
) -> dict[str, Tensor]:
    """A site's own word that it is within the limits, since nobody else can look: it sends nothing that is not.

    They are the run's, and a refusal says no more than that: by limits that move, or by how far, one reads an update.
    """
    mine, found = {owner for owner in held if owner != EVERYBODY}, dict[str, Tensor]()
    limits, word, samples = settings.limits, settings.word, settings.training[update.phase].samples
    own = {name: owner for name, owner in owned.items() if name not in (COUNTS, METRICS)}
    if limits.entry * 2.0**said.bits * samples * len(said.circle.boxes) >= 2.0 ** (word - 1):
        raise PlanRefused(f"{site.name}: sums do not fit {word} bits with {said.bits} after the point")
    norm = math.hypot(*(torch.linalg.vector_norm(v, dtype=torch.float64).item() for v in update.delta.values()))
    if not norm <= limits.norm:
        raise PlanRefused(f"{site.name}: the delta's norm is over the limit {limits.norm:.3g}")

    def weight(owner: Owner) -> int:
        return update.counts[counted_over(owner, own, settings.estimator)]

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
        if not largest <= limits.entry:
            raise PlanRefused(f"{site.name}: {name} has an entry over the limit {limits.entry:.3g}")
        whole = weighed(value, owner, index, weight, said.bits)
        found[name] = whole.int() if word == 32 else whole
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


def _digest(numbers: Mapping[str, Tensor]) -> str:
    whole = hashlib.sha256()
    for name in sorted(numbers):
        whole.update(f"{name} {numbers[name].dtype} {tuple(numbers[name].shape)}\n".encode())
        whole.update(bytes_of(numbers[name].contiguous()))
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
            if site.name not in there:  # else who is left out of two circles would open the second (decision 0036)
                raise PlanRefused(f"{where}: a sum of {owner[:80]} without this site is opened by those in it")
        for owner, there in sorted(survivors.items()):
            kept.reveal_once(circle, owner, there)
            kept.see_once(circle, owner, there)
            found[owner] = {}
            for giver in circle.groups[owner]:
                try:
                    share = opened(circle, own, giver, site.name, owner, sealed[giver][owner])
                except (DataError, LookupError) as error:  # whoever dealt garbage stops nobody else
                    log.warning("%s: %s", where, error)
                    continue
                found[owner][giver] = share[SELF if giver in there else KEY]
    return found
