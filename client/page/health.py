"""How the site is: its privacy budget, by run and over time, and what the doctor says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.node import doctor
from client.page.place import Place
from client.privacy import budget_view
from client.privacy.budget import Budget
from client.privacy.budget_files import enrolled
from shared.page.ask import Answer, Ask
from shared.page.look import Look
from shared.trust import privacy

ORDER = ("fail", "warn", "ok")


@dataclass(frozen=True, slots=True)
class Health:
    place: Place
    look: Look

    def budget(self, ask: Ask) -> Answer:
        folder = self.place.state / "privacy"
        if not enrolled(folder):
            return self.look.page(ask, "budget.html.j2", said=None)
        with Budget.look(folder) as here:
            said = budget_view.facts(here)
            together = _together(here)
        return self.look.page(
            ask,
            "budget.html.j2",
            said=said,
            together=together,
            up=budget_view.up,
            down=budget_view.down,
            when=budget_view.when,
        )

    def doctor(self, ask: Ask) -> Answer:
        """The page at once; its lines when they are found, which takes seconds."""
        if not ask.part:
            return self.look.page(ask, "doctor.html.j2")
        checks = doctor.examine(self.place.state, self.place.cohorts or None, offline=ask.query.get("way") != "all")
        return self.look.page(ask, "checks.html.j2", checks=checks, order=ORDER)


def _together(here: Budget) -> list[Mapping[str, Any]]:
    """What was spent in all, after each run: in the order in which they ended."""
    spent: dict[Any, int] = {}
    found: list[Mapping[str, Any]] = []
    for one in sorted(here.by_run(), key=lambda run: run.last):
        spent = dict(privacy.together(spent, one.spending))
        found.append({"run": one.run, "last": one.last, "epsilon": privacy.epsilon(spent, here.delta)})
    return found
