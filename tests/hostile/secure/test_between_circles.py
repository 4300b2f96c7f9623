"""What is tried around the protocol: between circles, by what is refused, with keys that are none."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from hostile.secure.test_coordinator import Table, changed, table
from support.rounds.five import SITES

from client.round import secure
from shared.base.errors import PlanRefused
from shared.base.records import RoundPlan
from shared.plan.secure import Secured
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
    said = Secured(circle=circle, cards=cards, word=64, estimator="masked", entry=64.0, norm=1e3, bits=plan["bits"])
    asked = dataclasses.replace(table.plan(circle=circle, cards=cards, run="again"), secure=said.text())
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


def limited(table: Table, **limits: float) -> RoundPlan:
    said = Secured.parse(table.plan().secure)
    return dataclasses.replace(table.plan(), secure=dataclasses.replace(said, **limits).text())


@pytest.mark.parametrize("limit", ["entry", "norm"])
def test_a_refusal_does_not_say_how_large_an_update_is(limit: str, table: Table) -> None:
    with pytest.raises(PlanRefused) as small:
        table.hide("a", limited(table, **{limit: 1e-6}))
    with pytest.raises(PlanRefused) as large:
        table.hide("a", limited(table, **{limit: 1e-6}), scale=2.0)
    assert str(small.value) == str(large.value)


def test_limits_are_not_moved_until_one_is_met(table: Table) -> None:
    """Twenty questions, and the norm of one site's update is known to six digits."""
    table.hide("a")
    for norm in (1.0, 10.0, 100.0):
        with pytest.raises(PlanRefused, match="the limits of run run are no longer those it began with"):
            table.hide("a", limited(table, norm=norm))


def test_the_scale_does_not_tell_how_large_an_update_is(table: Table) -> None:
    """Refused, or not, by the limits alone."""
    for scale in (1e-6, 1.0):
        with pytest.raises(PlanRefused, match="does not fit 64 bits"):
            table.hide("a", limited(table, bits=56), scale=scale)


# --- keys of a site that wants to stop the others


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_a_key_with_which_nobody_has_a_secret_is_none(key: str, table: Table) -> None:
    """It is its own site's fault by name, and not an error of each of the others."""
    own, known = table.keys["e"], table.keys["e"].public_key()
    assert not Box(key=key, signature=site_signature(own, _box("run", "e", key)).hex()).is_of("run", "e", known)
    keys = {**table.cards["e"].keys, "shared": key}
    card = Card(keys=keys, signature=site_signature(own, _card(table.circle, "e", keys)).hex())
    assert not card.is_of(table.circle, "e", known)
    with pytest.raises(PlanRefused, match="the keys of e are not signed by it"):
        table.hide("a", table.plan(cards={**table.cards, "e": card}))
