"""Whoever drops out, at either step: a sum is that of those who came, to the bit, or nobody can have it."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from server.rounds.secure.lifting import Lifted, missing, streams
from shared.base.records import Owners, Update
from shared.plan.secure import Secured, words
from shared.trust.keys import new_site_key, parse_site_key
from shared.trust.secure import masks
from shared.trust.secure.circle import EVERYBODY, KEY, SELF, Box, Circle, Dealer, opened

SITES = ("a", "b", "c", "d", "e")
GROUPS = {EVERYBODY: SITES, "to:FLAIR": ("a", "b", "c")}
OWNERS: Owners = {"all": EVERYBODY, "flair": "to:FLAIR"}


def subsets(of: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(of, n) for n in range(len(of) + 1))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_every_pattern_of_dropouts_is_lifted_to_the_bit_or_not_at_all(dtype: torch.dtype) -> None:
    """All 32 sets of sites whose updates come, and of each all sets of those that answer when the sum is asked for."""
    keys = {site: parse_site_key(new_site_key(), site) for site in SITES}
    secrets = {site: masks.derive(b"box", site) for site in SITES}
    boxes = {site: Box.make(secrets[site], "run", site, keys[site]) for site in SITES}
    circle = Circle(run="run", phase="fit", round=0, least=3, boxes=boxes, groups=GROUPS)
    dealers = {site: Dealer(circle, site, masks.derive(b"deal", site)) for site in SITES}
    cards = {site: dealer.card(keys[site]) for site, dealer in dealers.items()}
    said = Secured(circle=circle, cards=cards, bits=20)
    sealed = {site: dealer.seal(secrets[site]) for site, dealer in dealers.items()}
    opens = {
        (taker, owner, giver): opened(circle, secrets[taker], giver, taker, owner, sealed[giver][taker][owner])
        for owner, holders in GROUPS.items()
        for giver in holders
        for taker in holders
    }
    open_ = {site: numbers(site, dtype) for site in SITES}
    hidden = {site: hide(dealers[site], cards, open_[site]) for site in SITES}
    lifted = refused = 0
    for came in subsets(SITES):
        there = {o: tuple(site for site in holders if site in came) for o, holders in GROUPS.items()}
        survivors = {o: its for o, its in there.items() if len(its) >= circle.enough(o)}
        for answers in subsets(came):
            shares = {
                taker: {
                    owner: {of: opens[taker, owner, of][SELF if of in its else KEY] for of in GROUPS[owner]}
                    for owner, its in survivors.items()
                    if taker in its
                }
                for taker in answers
            }
            if EVERYBODY not in survivors or missing(circle, survivors, shares):
                refused += 1
                continue
            lifted += 1
            sums = Lifted(
                owners=OWNERS,
                forms=dict.fromkeys(OWNERS, (dtype, (7,))),
                updates=[update(site, hidden[site]) for site in came],
                survivors=survivors,
                streams=streams(said, survivors, shares, "bound"),
            )
            for name, owner in OWNERS.items():
                of = survivors.get(str(owner), ())
                wanted = sum((open_[site][name].long() for site in of), torch.zeros(7, dtype=torch.int64))
                assert torch.equal(sums.total(name), wanted)
    # all five came, and all answer, or all but d or e, who hold no FLAIR; or four came, and all of them answer
    assert (lifted, refused) == (3 + 5, 243 - 8)


def numbers(site: str, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SITES.index(site))
    found = torch.randint(-(2**28), 2**28, (2, 7), generator=generator).to(dtype)
    return {"all": found[0], "flair": found[1]} if site in GROUPS["to:FLAIR"] else {"all": found[0]}


def hide(dealer: Dealer, cards: dict[str, object], own: dict[str, Tensor]) -> dict[str, Tensor]:
    hidden = {name: value.clone() for name, value in own.items()}
    for number, name in enumerate(sorted(OWNERS)):
        if name in hidden:
            for key, sign in dealer.streams(str(OWNERS[name]), cards, "bound"):  # type: ignore[arg-type]
                masks.add(words(hidden[name]), key, number, sign=sign)
        assert name not in hidden or not torch.equal(hidden[name], own[name])
    return hidden


def update(site: str, delta: dict[str, Tensor]) -> Update:
    counts = {EVERYBODY: 1, **({"to:FLAIR": 1} if "flair" in delta else {})}
    return Update(site=site, run="run", phase="fit", round=0, schema="", delta=delta, counts=counts)
