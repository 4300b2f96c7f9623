"""Who hides what with whom in a round, agreed before it; which sums may be seen, asked for after it.

RUN/secure.json has both from the moment on at which a sum is asked for, until the round is done: a coordinator that is
killed between the two asks for the very same sum again, since sites let no other be seen.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from server.journal.facts import SiteFacts
from server.rounds.roster import Roster
from server.rounds.secure.asking import Asking
from server.rounds.secure.lifting import Survivors, answered, missing
from shared.base.errors import ConfigError, DataError, RunFailed, UpdateRejected
from shared.base.files import remove, write_json
from shared.base.options import build, plain
from shared.base.records import RoundPlan
from shared.base.vocabulary import Owner, SiteName
from shared.plan.beside import Deal, Dealt, Reveal, Shares, read_shares
from shared.plan.config import Federation
from shared.plan.secure import Secured
from shared.trust.secure.circle import EVERYBODY, Box, Card, Circle, Sealed
from shared.trust.warrant import Leader

FILE = "secure.json"
BESIDE = 2**16  # bytes of an answer beside its keys and shares
SHARE = 512  # bytes of one key or sealed share, with its names


class Garbage(RunFailed):
    """What a site dealt is of no use: the round is lost, whoever is asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """A circle that all its sites have dealt in."""

    circle: Circle
    cards: Mapping[SiteName, Card]
    sealed: Mapping[SiteName, Sealed]  # by who dealt
    left_out: Mapping[SiteName, SiteFacts]  # who did not


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """All that a round needs once its sums are asked for, but the hidden updates themselves."""

    phase: str
    round: int
    bound: str
    said: Secured
    sealed: Mapping[SiteName, Mapping[SiteName, Mapping[Owner, str]]]
    survivors: Mapping[Owner, tuple[SiteName, ...]]
    heads: Mapping[SiteName, Mapping[str, Any]]  # of the updates
    facts: Mapping[SiteName, SiteFacts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Circles:
    asking: Asking
    federation: Federation
    leader: Leader
    config: str
    folder: Path  # the run's

    # --- before a round

    def agree(self, plan: RoundPlan, sites: Sequence[SiteName], owners: Sequence[Owner], roster: Roster) -> Agreed:
        """Ask for keys and shares. Who does not deal has no part in the round, and the others deal anew without it."""
        why = self._boxless(sites, plan.run, roster)
        left = sorted({*sites} - why.keys())
        while True:
            circle = self._circle(plan, left, owners, roster)
            least = circle.enough(EVERYBODY)
            if len(left) < max(least, self.federation.min_sites):
                said = _words(why) or "no more are drawn"
                raise RunFailed(
                    f"{plan.phase} round {plan.round}: {len(left)} sites would hide their updates, "
                    f"{max(least, self.federation.min_sites)} are needed ({said}); nothing was changed"
                )
            dealt: dict[SiteName, Dealt] = {}
            silent = self._deal(circle, roster, dealt)
            if not silent:
                cards = {site: one.card for site, one in dealt.items()}
                sealed = {site: one.sealed for site, one in dealt.items()}
                return Agreed(circle=circle, cards=cards, sealed=sealed, left_out=why)
            why |= silent
            left = [site for site in left if site not in silent]

    def _boxless(self, sites: Sequence[SiteName], run: str, roster: Roster) -> dict[SiteName, SiteFacts]:
        """Whose box is none, or not signed: all others would refuse a circle with it, and who is at fault be unsaid."""
        found = {}
        for site in sites:
            box = roster.inventories[site].box
            if not box or not Box.parse(box).is_of(run, site, self.asking.lead.sites[site]):
                found[site] = SiteFacts(status="rejected", reason=f"{site}: its box is not one that it signed")
        return found

    def _circle(self, plan: RoundPlan, sites: Sequence[SiteName], owners: Sequence[Owner], roster: Roster) -> Circle:
        boxes = {site: Box.parse(roster.inventories[site].box) for site in sites}
        groups = {owner: tuple(site for site in sites if _holds(roster, site, owner)) for owner in owners}
        circle = Circle(
            run=plan.run,
            phase=plan.phase,
            round=plan.round,
            least=self.federation.min_holders,
            boxes=boxes,
            groups=groups,
        )
        enough = {owner: its for owner, its in groups.items() if owner == EVERYBODY or len(its) >= circle.enough(owner)}
        return replace(circle, groups=enough)

    def _deal(self, circle: Circle, roster: Roster, dealt: dict[SiteName, Dealt]) -> dict[SiteName, SiteFacts]:
        def hear(site: SiteName, content: RecordDict) -> None:
            found = Dealt.read(content, circle, site)
            if not found.card.is_of(circle, site, self.asking.lead.sites[site]):
                raise UpdateRejected(f"{site}: its keys are not signed by it for this circle")
            dealt[site] = found

        until = self.asking.until()
        questions = {
            site: Deal(config=self.config, circle=circle).pack(self.leader, to=site, until=until)
            for site in circle.boxes
        }
        most = BESIDE + 2 * SHARE * sum(len(holders) for _, holders in circle.groups.items())
        return self.asking.ask(circle, questions, roster.nodes, most=most, hear=hear)

    # --- after it

    def reveal(self, saved: Saved, roster: Roster) -> dict[SiteName, Shares]:
        """Shares enough to lift every sum; RunFailed without, and the run goes on from here."""
        shares: dict[SiteName, Shares] = {}
        circle, survivors = saved.said.circle, saved.survivors

        def hear(site: SiteName, content: RecordDict) -> None:
            shares[site] = read_shares(content, _asked(survivors, site), circle, site)

        def enough() -> bool:
            return not missing(circle, survivors, shares)

        why: dict[SiteName, SiteFacts] = {}
        for _ in range(self.federation.retries + 1):
            sites = [site for site in circle.boxes if site not in shares and site in roster.nodes]
            questions = {site: self._question(saved, site) for site in sites if _asked(survivors, site)}
            most = BESIDE + SHARE * sum(len(holders) for holders in circle.groups.values())
            why = self.asking.ask(circle, questions, roster.nodes, most=most, hear=hear, enough=enough)
            if enough():
                return shares
        lacking = missing(circle, survivors, shares)
        bad = sorted({giver for owner, giver in lacking if answered(circle, owner, shares)})
        if bad:
            raise Garbage(
                f"{saved.phase} round {saved.round}: what {', '.join(bad)} dealt does not open at those who were to "
                "open it: no sum with it is ever seen. Leave it out (`federation.without`), or revoke it; nothing was "
                "changed"
            )
        said, groups = _words(why) or "no more sites are here", ", ".join(sorted({owner for owner, _ in lacking}))
        raise RunFailed(
            f"{saved.phase} round {saved.round}: too few sites let the sum be seen, of {groups} ({said}); nothing was "
            "changed, and nothing is known of any update. Resumed, the run asks them again"
        )

    def _question(self, saved: Saved, site: SiteName) -> RecordDict:
        circle = saved.said.circle
        asked = _asked(saved.survivors, site)
        sealed = {
            giver: {owner: its for owner, its in to[site].items() if owner in asked}
            for giver, to in saved.sealed.items()
            if site in to
        }
        question = Reveal(config=self.config, circle=circle, survivors=asked, sealed=sealed)
        return question.pack(self.leader, to=site, until=self.asking.until())

    # --- what a kill must not lose

    def save(self, saved: Saved) -> None:
        write_json(self.folder / FILE, plain(saved))

    def saved(self, phase: str, round: int) -> Saved | None:
        """Of this very round, if it was killed after its sums were first asked for."""
        path = self.folder / FILE
        if not path.exists():
            return None
        try:
            found = build(Saved, json.loads(path.read_text()), FILE)
        except (OSError, ValueError, TypeError, ConfigError) as error:
            raise DataError(
                f"{path}: damaged: {str(error)[:200]}; without it this round's sums can't be asked for"
            ) from None
        return found if (found.phase, found.round) == (phase, round) else None

    def done(self) -> None:
        remove(self.folder / FILE)


def _asked(survivors: Survivors, site: SiteName) -> Survivors:
    """Of the sums that it is in itself: no other does a site open."""
    return {owner: there for owner, there in survivors.items() if site in there}


def _words(facts: Mapping[SiteName, SiteFacts]) -> str:
    return "; ".join(f"{site}: {one.status} {one.reason}" for site, one in facts.items())


def _holds(roster: Roster, site: SiteName, owner: Owner) -> bool:
    """By its inventory; who holds a modality and trains nothing of it in a round is missing in that group alone."""
    _, of, modality = owner.partition(":")
    return not of or any(modality in pattern for pattern in roster.inventories[site].patterns)
