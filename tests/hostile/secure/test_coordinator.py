"""A coordinator that wants to see one site's update: the site refuses each way in one line, and nothing leaves."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from support.rounds.five import SITES

from client.round import secure
from client.site import vault, withdrawn
from client.site.policy import Policy
from client.site.site import Site
from shared.base.errors import ConfigError, PlanRefused
from shared.base.files import canonical, private_folder, write_bytes
from shared.base.owners import taken_shape
from shared.base.records import Cut, Owners, Phase, RoundPlan, Update
from shared.data.volumes import Grid
from shared.plan.secure import EVERYBODY, Secured
from shared.plan.settings import Choice, RunSettings
from shared.plan.training import PhaseTraining
from shared.trust.keys import new_site_key, open_site_key, parse_site_key, site_line
from shared.trust.secure.circle import KEY, SELF, Box, Card, Circle, Dealer, Sealed, new_secret, opened
from shared.trust.warrant import OWN_KEY
from shared.trust.warrant import SITES as KNOWN

GROUPS = {EVERYBODY: SITES, "shared": SITES, "to:FLAIR": ("a", "b", "c")}
OWNERS: Owners = {"body": "shared", "head": Cut(dim=0, owners=("to:T1", "to:FLAIR", "to:FLAIR"))}
PHASE = Phase(name="fit")
SETTINGS = RunSettings(
    method=Choice(name="probe"),
    training={"fit": PhaseTraining(rounds=2, steps=2, batch=8, lr=0.01, ema=0.0)},
    grid=Grid(height=8, width=8),
    seed=0,
    keep_local=(),
    min_cell=5,
    min_holders=3,
    secure=True,
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Five sites' disks, and what a coordinator has of an honest beginning."""

    sites: Mapping[str, Site]
    keys: Mapping[str, ec.EllipticCurvePrivateKey]
    circle: Circle
    cards: Mapping[str, Card]
    sealed: Mapping[str, Sealed]

    def plan(self, **changes: Any) -> RoundPlan:
        said = Secured(
            circle=changes.pop("circle", self.circle),
            cards=changes.pop("cards", self.cards),
            bits=changes.pop("bits", 40),
        )
        whole = {"run": "run", "phase": "fit", "round": 0, "config": "{}", "schema": "s", "weights": {}, "sha256": "w"}
        return RoundPlan(**{**whole, "secure": said.text(), **changes})

    def hide(
        self,
        site: str,
        plan: RoundPlan | None = None,
        *,
        scale: float = 1.0,
        settings: RunSettings = SETTINGS,
        **counts: int,
    ) -> Update:
        there = {"shared": 8, "to:FLAIR": 8 if site in "abc" else 0, **counts}
        generator = torch.Generator().manual_seed(SITES.index(site))
        shapes = {"body": (64,), "head": (3, 2)}
        held = [owner for owner, n in there.items() if n]
        delta = {
            name: scale * torch.randn(shape, generator=generator)
            for name, whole in shapes.items()
            if (shape := taken_shape(whole, OWNERS[name], held)) is not None
        }
        update = Update(site=site, run="run", phase="fit", round=0, schema="s", delta=delta, counts=there)
        return secure.hidden(self.sites[site], plan or self.plan(), update, OWNERS, PHASE, settings)

    def reveal(self, site: str, survivors: Mapping[str, tuple[str, ...]], circle: Circle | None = None) -> Any:
        sealed = {giver: its[site] for giver, its in self.sealed.items() if site in its}
        return secure.reveal(self.sites[site], circle or self.circle, survivors, sealed)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    keys = {site: parse_site_key(new_site_key(), site) for site in SITES}
    known = canonical({site: site_line(key.public_key()) for site, key in keys.items()})
    sites = {}
    for site, key in keys.items():
        state = tmp_path / site
        private_folder((state / OWN_KEY).parent)
        write_bytes(state / OWN_KEY, open_site_key(key), mode=0o600)
        write_bytes(state / KNOWN, known)
        sites[site] = Site(name=site, cohorts=(), state=state, policy=Policy())
    boxes = {site: secure.box(own, "run") for site, own in sites.items()}
    circle = Circle(run="run", phase="fit", round=0, least=3, boxes=boxes, groups=GROUPS)
    dealt = {site: secure.deal(own, circle) for site, own in sites.items()}
    return Table(
        sites=sites,
        keys=keys,
        circle=circle,
        cards={site: card for site, (card, _) in dealt.items()},
        sealed={site: sealed for site, (_, sealed) in dealt.items()},
    )


def changed(circle: Circle, **changes: Any) -> Circle:
    return dataclasses.replace(circle, **changes)


def made_up(table: Table, *names: str) -> dict[str, Box]:
    """Boxes of sites that nobody knows, with keys of the coordinator's own."""
    found = {}
    for name in names:
        found[name] = Box.make(new_secret(), "run", name, parse_site_key(new_site_key(), name))
    return found


# --- circles


def with_made_up_sites(table: Table) -> Circle:
    boxes = {"a": table.circle.boxes["a"], **made_up(table, "x", "y", "z")}
    return changed(table.circle, boxes=boxes, groups={EVERYBODY: ("a", "x", "y", "z")})


def with_a_box_of_its_own(table: Table) -> Circle:
    return changed(table.circle, boxes={**table.circle.boxes, "b": made_up(table, "b")["b"]})


def with_a_box_of_another_run(table: Table) -> Circle:
    other = Box.make(new_secret(), "other", "b", table.keys["b"])
    return changed(table.circle, boxes={**table.circle.boxes, "b": other})


def with_a_group_of_two(table: Table) -> Circle:
    return changed(table.circle, groups={**GROUPS, "to:T1": ("a", "b")})


def with_sums_of_two(table: Table) -> Circle:
    return changed(table.circle, least=2)


def without_this_site(table: Table) -> Circle:
    boxes = {site: box for site, box in table.circle.boxes.items() if site != "a"}
    return changed(table.circle, boxes=boxes, groups={EVERYBODY: ("b", "c", "d", "e")})


def without_a_group_of_everybody(table: Table) -> Circle:
    return changed(table.circle, groups={"shared": SITES})


CIRCLES: dict[str, tuple[Callable[[Table], Circle], str]] = {
    "sites that were made up": (with_made_up_sites, "a: fit round 0: x is no site that the installed kit names"),
    "a box of the coordinator's own": (with_a_box_of_its_own, "the box of b is not signed by the key"),
    "a box of another run": (with_a_box_of_another_run, "the box of b is not signed by the key"),
    "a group of two": (with_a_group_of_two, "group to:T1 has 2 holders; a sum is of 3 or more"),
    "sums of two": (with_sums_of_two, "sums of 2 sites would be seen; its policy allows 3 or more"),
    "a circle without it": (without_this_site, "it is not in the circle that it is asked for"),
    "no group of everybody": (without_a_group_of_everybody, "the circle has no group of everybody"),
}


@pytest.mark.parametrize("name", CIRCLES)
def test_in_such_a_circle_nothing_is_dealt_hidden_or_seen(name: str, table: Table) -> None:
    make, why = CIRCLES[name]
    circle = make(table)
    survivors = {owner: its for owner, its in circle.groups.items() if "a" in its}
    for ask in (
        lambda: secure.deal(table.sites["a"], circle),
        lambda: table.hide("a", table.plan(circle=circle)),
        lambda: table.reveal("a", survivors, circle),
    ):
        with pytest.raises(PlanRefused, match=why) as refused:
            ask()
        assert "\n" not in str(refused.value)


def test_a_stricter_policy_asks_for_more(table: Table) -> None:
    strict = dataclasses.replace(table.sites["a"], policy=Policy(min_holders=4))
    with pytest.raises(PlanRefused, match="sums of 3 sites would be seen; its policy allows 4 or more"):
        secure.deal(strict, table.circle)


# --- keys


def test_a_key_that_another_site_did_not_sign_hides_nothing(table: Table) -> None:
    """With its own key in b's place a coordinator would know the mask between a and b."""
    own = Dealer(table.circle, "b", b"k" * 32).card(parse_site_key(new_site_key(), "b"))
    with pytest.raises(PlanRefused, match="the keys of b are not signed by it for this circle"):
        table.hide("a", table.plan(cards={**table.cards, "b": own}))


def test_a_key_of_an_earlier_circle_hides_nothing(table: Table) -> None:
    """A replayed card, to whose key the shares were seen."""
    before = changed(table.circle, round=7)
    old = secure.deal(table.sites["b"], before)[0]
    with pytest.raises(PlanRefused, match="the keys of b are not signed by it for this circle"):
        table.hide("a", table.plan(cards={**table.cards, "b": old}))


def test_cards_that_are_missing_hide_nothing(table: Table) -> None:
    with pytest.raises(PlanRefused, match="the keys of e are not signed"):
        table.hide("a", table.plan(cards={site: card for site, card in table.cards.items() if site != "e"}))


def test_a_circle_of_another_round_hides_nothing(table: Table) -> None:
    with pytest.raises(PlanRefused, match="the circle is of another round than the plan"):
        table.hide("a", table.plan(round=1))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"bits": 1}', '{"circle": {}}'])
def test_a_plan_that_says_nothing_of_it_is_refused(text: str, table: Table) -> None:
    with pytest.raises(PlanRefused, match="the plan's secure"):
        table.hide("a", table.plan(secure=text))


# --- sums


ALL = {EVERYBODY: SITES, "shared": SITES}


def without(site: str, *owners: str) -> dict[str, tuple[str, ...]]:
    return {owner: tuple(one for one in its if one != site or owner not in owners) for owner, its in ALL.items()}


def test_two_sums_of_a_round_are_never_seen(table: Table) -> None:
    """Their difference is e's update."""
    table.hide("a")
    table.reveal("a", ALL)
    table.reveal("a", ALL)  # the same again, after a kill
    for other in (without("e", "shared"), without("e", "shared", EVERYBODY), {"shared": ("a", "b", "c", "d")}):
        with pytest.raises(PlanRefused, match=r"another sum of .* was seen already; two of one round would tell"):
            table.reveal("a", other)


def test_nor_in_a_circle_that_is_dealt_anew(table: Table) -> None:
    """As when the round is done again without e."""
    table.reveal("a", ALL)
    four = ("a", "b", "c", "d")
    circle = changed(
        table.circle,
        boxes={site: table.circle.boxes[site] for site in four},
        groups={EVERYBODY: four, "shared": four},
    )
    dealt = {site: secure.deal(table.sites[site], circle) for site in four}
    sealed = {site: its["a"] for site, (_, its) in dealt.items()}
    with pytest.raises(PlanRefused, match=r"another sum of .* was seen already"):
        secure.reveal(table.sites["a"], circle, {EVERYBODY: four, "shared": four}, sealed)


@pytest.mark.parametrize("there", [("a", "b"), ("a", "b", "c"), ()])
def test_a_sum_of_few_is_never_seen(there: tuple[str, ...], table: Table) -> None:
    """Of five, four: two thirds and more, so that no two answers open both secrets of one site."""
    with pytest.raises(
        PlanRefused, match=rf"asked for of {len(there)} sites; it is seen of 4 or more, of its 5 holders"
    ):
        table.reveal("a", {"shared": there})
    with pytest.raises(PlanRefused, match="seen of 3 or more, of its 3 holders"):
        table.reveal("a", {"to:FLAIR": tuple(site for site in there if site != "c")})


@pytest.mark.parametrize(
    "survivors",
    [
        {"shared": ("a", "a", "b", "c")},
        {"shared": ("b", "a", "c", "d")},
        {"shared": ("a", "b", "c", "x")},
        {"to:T2": ("a", "b", "c")},
        {"to:FLAIR": ("a", "b", "d")},
    ],
    ids=["twice the same", "in disorder", "a stranger", "a group that is none", "of no holder"],
)
def test_a_sum_of_others_than_its_holders_is_never_seen(survivors: dict[str, tuple[str, ...]], table: Table) -> None:
    with pytest.raises(PlanRefused, match="is asked for of others than its holders"):
        table.reveal("a", survivors)


def test_of_nobody_both_secrets_are_opened(table: Table) -> None:
    """Whatever is asked of all five in whatever order, of each holder one kind of share comes from each."""
    four = ("a", "b", "c", "d")
    asked = [ALL, {"shared": four, EVERYBODY: four}]
    for i, site in enumerate(SITES):
        seen: dict[tuple[str, str], set[str]] = {}
        for survivors in (asked[i % 2], asked[(i + 1) % 2]):
            try:
                found = table.reveal(site, survivors)
            except PlanRefused:
                continue
            for owner, its in found.items():
                for giver in its:
                    kind = SELF if giver in survivors[owner] else KEY
                    seen.setdefault((owner, giver), set()).add(kind)
                    with vault.opened(table.sites[site]) as kept:
                        own = opened(
                            table.circle, kept.box(table.circle), giver, site, owner, table.sealed[giver][site][owner]
                        )
                    assert its[giver] == own[kind]
        assert seen
        assert all(len(kinds) == 1 for kinds in seen.values())


def test_of_a_group_its_own_holders_alone_have_shares(table: Table) -> None:
    """d and e, who hold no FLAIR, have nothing that could help to see it."""
    for giver, to in table.sealed.items():
        for taker, its in to.items():
            assert ("to:FLAIR" in its) == ({giver, taker} <= {"a", "b", "c"})
    for site in "de":
        with pytest.raises(PlanRefused, match="of others than its holders"):
            table.reveal(site, {"to:FLAIR": ("a", "b", "c")})


def test_the_same_update_is_not_seen_in_sums_of_two_runs_with_other_sites(table: Table) -> None:
    """A run of the same seed and weights, once with e and once without: their difference is e's update."""
    table.hide("a")
    table.reveal("a", ALL)
    four = ("a", "b", "c", "d")
    boxes = {site: secure.box(table.sites[site], "again") for site in four}
    circle = changed(table.circle, run="again", boxes=boxes, groups={EVERYBODY: four, "shared": four})
    dealt = {site: secure.deal(table.sites[site], circle) for site in four}
    cards, sealed = (
        {site: card for site, (card, _) in dealt.items()},
        {site: its["a"] for site, (_, its) in dealt.items()},
    )
    table.hide("a", table.plan(circle=circle, cards=cards, run="again"), **{"to:FLAIR": 0})
    with pytest.raises(PlanRefused, match="this very update was seen in a sum with other sites"):
        secure.reveal(table.sites["a"], circle, {"shared": four}, sealed)


# --- updates


def test_what_was_hidden_once_is_hidden_once(table: Table) -> None:
    """Two updates under the same masks: their difference is bare."""
    table.hide("a")
    table.hide("a")  # the same, asked again
    with pytest.raises(PlanRefused, match=r"another update was hidden in circle .* none is hidden by the same masks"):
        table.hide("a", scale=1.5)
    with pytest.raises(PlanRefused, match="another update was hidden"):
        table.hide("a", shared=9)


def test_what_was_sent_goes_again_until_somebody_leaves(table: Table) -> None:
    sent, site = table.hide("a"), table.sites["a"]
    again = secure.again(site, table.plan())
    assert again is not None
    assert all(torch.equal(again.delta[name], value) for name, value in sent.delta.items())
    assert secure.again(site, table.plan(sha256="other")) is None
    withdrawn.withdraw(site.state, "001", "asked to")
    assert secure.again(site, table.plan()) is None


def test_for_other_weights_masks_are_others(table: Table) -> None:
    """A coordinator that sends each site its own weights gets a sum in which nothing cancels."""
    one, other = table.hide("a"), table.hide("a", table.plan(sha256="other"))
    same = (one.delta["body"] == other.delta["body"]).sum()
    assert same == 0


def test_what_leaves_says_nothing_but_what_it_is_of(table: Table) -> None:
    sent = table.hide("a")
    assert sent.metrics == {}
    assert sent.counts == {EVERYBODY: 1, "shared": 1, "to:FLAIR": 1}
    assert set(sent.delta) == {"(counts)", "(metrics)", "body", "head"}
    assert sent.delta["(counts)"].abs().min() > 2**32  # 8 samples each, hidden
    assert sent.delta["head"].shape == (2, 2)  # of T1, whose group has no circle, nothing leaves
    assert table.hide("d").delta.keys() == {"(counts)", "(metrics)", "body"}


@pytest.mark.parametrize(
    ("scale", "why"),
    [(50.0, "has an entry over the limit 64"), (1e3, "norm is over the limit"), (float("nan"), "norm")],
)
def test_a_site_holds_itself_to_the_limits(scale: float, why: str, table: Table) -> None:
    with pytest.raises(PlanRefused, match=why):
        table.hide("a", scale=scale)


def test_without_a_kit_that_names_the_sites_nothing_is_done(table: Table) -> None:
    (table.sites["a"].state / KNOWN).unlink()
    with pytest.raises(ConfigError, match=r"sites\.json: missing; a newer kit of the federation brings it"):
        secure.deal(table.sites["a"], table.circle)


def test_secrets_of_a_round_are_gone_with_the_next(table: Table) -> None:
    """What was recorded on the way can't be opened with a disk that is stolen later."""
    secure.deal(table.sites["a"], changed(table.circle, round=1))
    with pytest.raises(PlanRefused, match=r"dealt nothing in circle .* or its round is over"):
        table.hide("a")
    with pytest.raises(PlanRefused, match="or its round is over"):
        table.reveal("a", ALL)
