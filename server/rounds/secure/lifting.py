"""From hidden updates to their sum: the secrets of a circle put together again, and its masks taken away.

Only of groups of which enough sites' updates came. What is left of the others stays noise, and is never asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.base.errors import DataError
from shared.base.owners import held_index, parts
from shared.base.records import Cut, Owners, Update
from shared.base.vocabulary import Owner, SiteName
from shared.plan.beside import Shares
from shared.plan.secure import Secured, words
from shared.trust.secure import masks, sharing
from shared.trust.secure.circle import Circle, key_of, pair_stream, seal_of, self_stream, sign, threshold

Survivors = Mapping[Owner, tuple[SiteName, ...]]


def missing(circle: Circle, survivors: Survivors, shares: Mapping[SiteName, Shares]) -> list[tuple[Owner, SiteName]]:
    """Of whose secrets, in which groups, too few shares are here."""
    return [
        (owner, giver)
        for owner in sorted(survivors)
        for giver in circle.groups[owner]
        if len(_givers(circle, owner, giver, shares)) < threshold(len(circle.groups[owner]))
    ]


def answered(circle: Circle, owner: Owner, shares: Mapping[SiteName, Shares]) -> bool:
    """Have enough sites answered, whether or not what they were dealt opens?"""
    return sum(owner in its for its in shares.values()) >= threshold(len(circle.groups[owner]))


def _givers(circle: Circle, owner: Owner, of: SiteName, shares: Mapping[SiteName, Shares]) -> list[SiteName]:
    return [site for site in circle.groups[owner] if of in shares.get(site, {}).get(owner, {})]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifted:
    """The sums of one round."""

    owners: Owners
    forms: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    updates: Sequence[Update]
    survivors: Survivors
    streams: Mapping[Owner, Sequence[tuple[bytes, int]]]  # what stands in the sum of each group, by its key and sign

    def total(self, name: str) -> Tensor:
        """Of one tensor, as int64; nought where its group is not lifted."""
        (dtype, shape), owned = self.forms[name], self.owners[name]
        total, number = torch.zeros(shape, dtype=dtype), sorted(self.owners).index(name)
        for update in self.updates:
            if name not in update.delta:
                continue
            if isinstance(owned, Cut):
                _wrapped_add(total, update.delta[name], owned.dim, held_index(owned, update.counts))
            else:
                _wrapped_add(total, update.delta[name])
        found = torch.zeros(shape, dtype=torch.int64)
        for owner, dim, index in parts(owned):
            if owner not in self.survivors:
                continue
            whole = dim is None or index is None
            part = total if whole else total.index_select(dim, index).contiguous()  # type: ignore[arg-type]
            for key, its in self.streams[owner]:
                masks.add(words(part), key, number, sign=-its)
            if whole:
                found = part.long()
            else:
                found.index_copy_(dim, index, part.long())  # type: ignore[arg-type]
        return found

    def by_owner(self, name: str) -> dict[Owner, int]:
        """Of a tensor that has one number for each group."""
        owned = self.owners[name]
        assert isinstance(owned, Cut)
        found = zip(owned.owners, self.total(name).tolist(), strict=True)
        return {owner: n for owner, n in found if owner in self.survivors}


def streams(
    said: Secured, survivors: Survivors, shares: Mapping[SiteName, Shares], bound: str
) -> dict[Owner, list[tuple[bytes, int]]]:
    """DataError where the shares of a key don't give the key that its site had signed."""
    return {owner: list(_streams(said, owner, there, shares, bound)) for owner, there in survivors.items()}


def _streams(
    said: Secured, owner: Owner, there: tuple[SiteName, ...], shares: Mapping[SiteName, Shares], bound: str
) -> Iterator[tuple[bytes, int]]:
    circle = said.circle
    for of in circle.groups[owner]:
        secret = _secret(said, owner, of, shares, survived=of in there)
        if of in there:
            yield self_stream(circle, owner, secret, of, bound), 1
            continue
        key = key_of(secret)
        for other in there:  # each of them has hidden with it, and it has not come to take that away
            theirs = bytes.fromhex(said.cards[other].keys[owner])
            yield pair_stream(circle, owner, key, theirs, bound), sign(other, of)


def _secret(said: Secured, owner: Owner, of: SiteName, shares: Mapping[SiteName, Shares], *, survived: bool) -> bytes:
    """What a site signed for is known: where a share is a lie, others are tried, without one after the other."""
    holders, card = said.circle.groups[owner], said.cards[of]
    givers, least = _givers(said.circle, owner, of, shares), threshold(len(holders))
    for left_out in (None, *givers):
        chosen = [site for site in givers if site != left_out][:least]
        its = {holders.index(site) + 1: shares[site][owner][of] for site in chosen}
        if len(its) < least:
            break
        try:
            secret = sharing.join(its, sharing.weights(list(its)))
        except DataError:
            continue
        made = seal_of(secret) if survived else key_of(secret).public_key().public_bytes_raw().hex()
        if made == (card.seals if survived else card.keys)[owner]:
            return secret
    raise DataError(f"the shares of {of} in group {owner} are not of what it signed for")


def _wrapped_add(total: Tensor, value: Tensor, dim: int | None = None, index: Tensor | None = None) -> None:
    """Modulo 2^32 or 2^64, which numpy's words are."""
    if dim is None or index is None:
        into = words(total)
        np.add(into, words(value.contiguous()), out=into)
        return
    part = total.index_select(dim, index).contiguous()
    into = words(part)
    np.add(into, words(value.contiguous()), out=into)
    total.index_copy_(dim, index, part)
