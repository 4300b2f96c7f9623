"""What was asked of this site, and what a person said: plans in words, which rules they keep, the log of decisions."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from client.page.place import Place
from client.site import plans
from client.site.checks import check, check_samples, is_private
from client.site.plans import Plan
from client.site.policy import make_policy
from client.site.settings import read_file
from client.site.site import Site
from shared.base.chain import Entry
from shared.base.errors import ConfigError, DataError, LacunaError, PlanRefused
from shared.page.ask import Answer, Ask, NotFound, see
from shared.page.look import Look
from shared.plan.settings import RunSettings

A_PAGE = 200
MOST_WHY = 500


@dataclass(frozen=True, slots=True)
class Asked:
    place: Place
    look: Look

    def plans(self, ask: Ask) -> Answer:
        every = plans.listing(self.place.state)[::-1]
        return self.look.page(
            ask,
            "plans.html.j2",
            plans=[(one, plans.summary(one)) for one in every],
            waiting=[one for one in every if one.pending],
            short=plans.SHORT,
        )

    def plan(self, ask: Ask) -> Answer:
        found = self._find(ask)
        policy = make_policy(read_file(self.place.state).policy)
        return self.look.page(
            ask,
            "plan.html.j2",
            plan=found,
            summary=plans.summary(found),
            run=plans.printable(found.run),
            verdicts=verdicts(self.place, found),
            policy=list(policy.words()),
            said=[one for one in self._decisions()[0] if one["about"].get("plan") == found.id],
            short=plans.SHORT,
            printable=plans.printable,
            settings=json.dumps(found.settings, indent=1, sort_keys=True),
        )

    def decide(self, ask: Ask) -> Answer:
        found, word, why = self._find(ask), ask.said("word"), ask.said("why")
        if word not in ("approved", "refused"):
            raise NotFound
        if not why or len(why) > MOST_WHY:
            raise ConfigError(f"why: must say why, in at most {MOST_WHY} characters, for whoever reads it later")
        what = "approve" if word == "approved" else "refuse"
        self.place.decided.enter(ask, what, {"plan": found.id, "run": plans.printable(found.run)}, why)
        plans.decide(self.place.state, found.id, "approved" if word == "approved" else "refused")
        return see(f"/plans/{found.id}")

    def _find(self, ask: Ask) -> Plan:
        found = [one for one in plans.listing(self.place.state) if one.id == ask.where["id"]]
        if not found:
            raise NotFound
        return found[0]

    # --- decisions

    def decisions(self, ask: Ask) -> Answer:
        entries, broken = self._decisions()
        return self.look.page(ask, "decisions.html.j2", entries=entries[::-1][:A_PAGE], broken=broken)

    def _decisions(self) -> tuple[list[Entry], str]:
        found: list[Entry] = []
        try:
            found.extend(self.place.decided.entries())
        except DataError as error:
            return found, str(error).replace(str(self.place.state), "STATE")
        return found, ""


def verdicts(place: Place, plan: Plan) -> list[tuple[bool, str]]:
    """What this site would say to a plan, by the very checks of a round: kept or not, and the words of a refusal."""
    try:
        settings = RunSettings.parse(plan.config)
        method = settings.build_method()
        site = Site(
            name="here",
            cohorts=place.cohorts,
            state=place.state,
            policy=make_policy(read_file(place.state).policy),
        )
    except (LacunaError, ValueError, TypeError) as error:
        return [(False, str(error))]
    asks: list[tuple[str, Callable[[], object]]] = [
        ("methods, sizes, rounds, holders and the manifest are allowed", lambda: check(site, settings, method)),
        ("its privacy is what the policy asks for", lambda: is_private(site, settings)),
        ("enough samples are behind every update", lambda: _samples(site, settings, method)),
    ]
    found = []
    for words, ask in asks:
        try:
            ask()
            found.append((True, words))
        except PlanRefused as error:
            found.append((False, str(error).removeprefix("here: ")))
    return found


def _samples(site: Site, settings: RunSettings, method: object) -> None:
    if not is_private(site, settings):
        check_samples(site, settings, method)  # type: ignore[arg-type]
