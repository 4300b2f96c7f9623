"""What is tried around the protocol: between circles, by what is refused, with keys that are none."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hostile.secure.test_coordinator import SETTINGS, Table, changed, table
from support.rounds.five import SITES

from client.round import secure
from shared.base.errors import PlanRefused
from shared.plan.settings import Limits
from shared.trust.keys import site_signature
from shared.trust.secure.circle import EVERYBODY, Box, Card, Circle, Sealed, _box, _card

__all__ = ["table"]
SMALL_ORDER = ("00" * 32, "01" + "00" * 31, "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")


def deal(table: Table, circle: Circle) -> tuple[dict[str, Card], dict[str, Sealed]]:
    dealt = {site: secure.deal(table.sites[site], circle) for site in circle.boxes}
    return {s: card for s, (card, _) in dealt.items()}, {s: sealed for s, (_, sealed) in dealt.items()}


def circle_of(table: Table, *sites: str, **changes: Any) -> Circle:
    boxes = changes.pop("boxes", {site: table.circle.boxes[site] for site in sites})
    return changed(table.circle, boxes=boxes, groups={EVERYBODY: sites, "shared": sites}, **changes)


# --- two circles


def test_two_circles_of_a_round_do_not_open_sums_that_differ_by_one_site(table: Table) -> None:
    """{a,b,c,e} and {a,b,c,d}, in which d sends nothing. c alone lies, one of four; the sums differ by what e sent."""
    first, second = circle_of(table, "a", "b", "c", "e"), circle_of(table, "a", "b", "c", "d")
    opened = 0
    for circle, there, honest in ((first, ("a", "b", "c", "e"), "ae"), (second, ("a", "b", "c"), "bd")):
        cards, sealed = deal(table, circle)
        plan = table.plan(circle=circle, cards=cards)
        for site in there:
            table.hide(site, plan, **{"to:FLAIR": 0})
        shares = {"c": ...}  # what it has been dealt, it tells of both
        for site in honest:
            try:
                its = {giver: to[site] for giver, to in sealed.items()}
                shares[site] = secure.reveal(table.sites[site], circle, {"shared": there}, its)
            except PlanRefused:
                continue
        opened += len(shares) >= 3  # threshold(4)
    assert opened < 2


def test_who_is_left_out_of_a_sum_opens_nothing_of_it(table: Table) -> None:
    with pytest.raises(PlanRefused, match="a sum of shared without this site is opened by those in it"):
        table.reveal("e", {"shared": ("a", "b", "c", "d")})


def in_another_run(table: Table, plan: Mapping[str, Any], survivors: Mapping[str, tuple[str, ...]]) -> None:
    four = ("a", "b", "c", "d")
    boxes = {site: secure.box(table.sites[site], "again") for site in four}
    circle = circle_of(table, *four, boxes=boxes, run="again")
    cards, sealed = deal(table, circle)
    asked = table.plan(circle=circle, cards=cards, run="again", bits=plan["bits"])
    table.hide("a", asked)
    secure.reveal(table.sites["a"], circle, survivors, {giver: to["a"] for giver, to in sealed.items()})


@pytest.mark.parametrize("bits", [39, 40], ids=["of another scale", "with other groups"])
@pytest.mark.parametrize("owner", ["shared", EVERYBODY])
def test_an_update_is_not_seen_again_without_a_site(owner: str, bits: int, table: Table) -> None:
    """The coordinator chooses scale and groups: other numbers, of the very same update, or its loss."""
    table.hide("a")
    table.reveal("a", {owner: SITES})
    with pytest.raises(PlanRefused, match="this very update was seen in a sum with other sites"):
        in_another_run(table, {"bits": bits}, {owner: ("a", "b", "c", "d")})


# --- what a refusal tells


@pytest.mark.parametrize("limit", ["entry", "norm"])
def test_a_refusal_does_not_say_how_large_an_update_is(limit: str, table: Table) -> None:
    close = dataclasses.replace(SETTINGS, limits=Limits(**{limit: 1e-6}))
    with pytest.raises(PlanRefused) as small:
        table.hide("a", settings=close)
    with pytest.raises(PlanRefused) as large:
        table.hide("a", settings=close, scale=2.0)
    assert str(small.value) == str(large.value)


def test_limits_are_the_runs_and_no_plan_moves_them(table: Table) -> None:
    """Twenty questions, and the norm of one site's update is known to six digits: they are in what a warrant signs."""
    said = json.loads(table.plan().secure)
    for limits in ({"norm": 1.0}, {"entry": 1.0}, {"word": 32}):
        with pytest.raises(PlanRefused, match=r"the plan's secure: .*unknown key"):
            table.hide("a", table.plan(secure=json.dumps({**said, **limits})))


def test_the_scale_does_not_tell_how_large_an_update_is(table: Table) -> None:
    """Refused, or not, by the limits alone."""
    for scale in (1e-6, 1.0):
        with pytest.raises(PlanRefused, match="sums do not fit 64 bits with 56 after the point"):
            table.hide("a", table.plan(bits=56), scale=scale)


# --- keys of a site that wants to stop the others


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_a_key_with_which_nobody_has_a_secret_is_none(key: str, table: Table) -> None:
    """It is its own site's fault by name, and not an error of each of the others."""
    own, known = table.keys["e"], table.keys["e"].public_key()
    assert not Box(key=key, signature=site_signature(own, _box("run", "e", key)).hex()).is_of("run", "e", known)
    keys = {**table.cards["e"].keys, "shared": key}
    seals = table.cards["e"].seals
    signature = site_signature(own, _card(table.circle, "e", keys, seals)).hex()
    card = Card(keys=keys, seals=seals, signature=signature)
    assert not card.is_of(table.circle, "e", known)
    with pytest.raises(PlanRefused, match="the keys of e are not signed by it"):
        table.hide("a", table.plan(cards={**table.cards, "e": card}))
