"""What changes at a site when it trains privately: less is told, and everything is charged before it is done.

Which modalities the site holds together, and about how many subjects it has, count as public; exact counts, losses and
times stay here. Counts in an update say how much of the plan's work each owner takes, not what was drawn.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from client.privacy.budget import Budget
from client.privacy.budget_files import enrolled
from client.privacy.private import Engine, shares_of, sum_private, train_private
from client.site.checks import min_cell
from client.site.ledger import Ledger
from client.site.policy import DELTA
from client.site.site import Site
from shared.base.errors import BudgetSpent, DataError, PlanRefused
from shared.base.records import Owners, Phase, RoundPlan, Spent
from shared.base.vocabulary import Modality, Owner, Weights
from shared.clinical.attach import attach_stand_in
from shared.data.cohort import Cohort
from shared.data.slices import Pool
from shared.methods import Method
from shared.plan.settings import RunSettings
from shared.plan.training import PhaseTraining, Trained
from shared.trust.privacy import PrivacyPlan, Query

Patterns = Mapping[tuple[Modality, ...], int]
SUM_ROWS = 64  # slices at a time in a phase of sums


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateSite:
    """A site's open budget and the mechanism of the run under it."""

    site: Site
    budget: Budget
    plan: PrivacyPlan
    settings: RunSettings
    go_on: Callable[[], None]  # called before each query: raises where the site's policy ends the round

    def public_patterns(self, patterns: Patterns) -> dict[tuple[Modality, ...], int]:
        """What the coordinator is told of patterns: public ones alone, each as "fewer than there are subjects"."""
        return dict.fromkeys(self._public(patterns), -(self.plan.size + 1))

    def spent(self) -> Spent:
        others = Ledger(self.site.ledger).without_privacy()
        return self.budget.spent(others=others)

    def round(self, phase: Phase) -> dict[Query, int]:
        """What one round of a phase asks of the budget."""
        if phase.kind == "sums":
            return {self.plan.sums: 1}
        return {self.plan.step: self.settings.training[phase.name].steps}

    def too_dear(self, phase: Phase) -> str | None:
        """Why not even one more round can be paid for; None if it can."""
        if not self.budget.latched and self.budget.would_fit(self.round(phase)):
            return None
        return (
            f"its privacy budget of epsilon {self.budget.budget:g} at delta {self.budget.delta:g} does not allow "
            "another round"
        )

    def check(self, plan: RoundPlan, phase: Phase) -> None:
        """Refuse a round before anything is read: a budget that went back, or one that cannot pay."""
        if plan.known is not None and not self.budget.knows(*plan.known):
            raise PlanRefused(
                f"{self.site.name}: the coordinator has seen row {plan.known[0]} of a privacy ledger that is not on "
                "this site's chain: an older copy was put back, or another site uses this name"
            )
        why = self.too_dear(phase)
        if why is not None:
            raise BudgetSpent(f"{self.site.name}: {why}")

    def train(
        self, plan: RoundPlan, method: Method, net: nn.Module, pool: Pool, owners: Owners, patterns: Patterns
    ) -> Trained:
        grid = self.settings.grid
        shares = _shares(self.settings.text(), plan.phase, self._public(patterns), (grid.height, grid.width))
        options: PhaseTraining = self.settings.training[plan.phase]
        return train_private(
            method,
            net,
            pool,
            phase=plan.phase,
            options=options,
            owners=owners,
            round=plan.round,
            engine=self._engine(plan),
            shares=shares,
        )

    def sum(self, plan: RoundPlan, method: Method, net: nn.Module, pool: Pool) -> Weights:
        return sum_private(method, net, pool, plan.phase, engine=self._engine(plan), rows=SUM_ROWS)

    def _engine(self, plan: RoundPlan) -> Engine:
        """The engine of one round, which charges every query to the site's budget."""

        def charge(query: Query) -> None:
            self.go_on()
            self.budget.charge(query, 1, run=plan.run, phase=plan.phase, round=plan.round)

        return Engine(plan=self.plan, charge=charge)

    def _public(self, patterns: Patterns) -> tuple[tuple[Modality, ...], ...]:
        least = min(min_cell(self.site, self.settings), max(patterns.values(), default=1))
        return tuple(sorted(pattern for pattern, n in patterns.items() if n >= least))


@contextmanager
def private_site(
    site: Site, settings: RunSettings, subjects: int, *, go_on: Callable[[], None] = lambda: None
) -> Iterator[PrivateSite]:
    """Open and lock the site's budget: the one that it has, or its policy's, made now; a plan makes none.

    PlanRefused where there is neither, and where all sites are to spend more than this one has.
    """
    folder, wanted, policy = site.privacy, settings.privacy, site.policy
    if enrolled(folder):
        opened = Budget.open(folder, epsilon=policy.epsilon, delta=policy.delta, size=policy.about)
    elif policy.epsilon is None:
        raise PlanRefused(
            f"{site.name}: plan.privacy.mode={wanted.mode}: this site has no privacy budget, and no plan makes one; "
            "`lacuna-site budget STATE --set-epsilon E --set-size N` does, or epsilon in its policy"
        )
    else:
        delta = DELTA if policy.delta is None else policy.delta
        size = round_figure(subjects) if policy.about is None else policy.about
        opened = Budget.open(folder, epsilon=policy.epsilon, delta=delta, size=size)
    with opened as budget:
        for key, asked, own in (("epsilon", wanted.epsilon, budget.budget), ("delta", wanted.delta, budget.delta)):
            if wanted.mode == "on" and asked > own:
                raise PlanRefused(
                    f"{site.name}: plan.privacy.{key}={asked:g}: this site's privacy budget has {key} {own:g}, and "
                    "with privacy.mode=on all spend what the plan says; privacy.mode=mixed leaves it to each"
                )
        plan = PrivacyPlan.of(wanted, epsilon=budget.budget, delta=budget.delta, size=budget.size)
        yield PrivateSite(site=site, budget=budget, plan=plan, settings=settings, go_on=go_on)


def round_figure(subjects: int) -> int:
    """Round to the nearest ten, but never to 0."""
    return max(10, 10 * ((subjects + 5) // 10))


def check_people(cohorts: Sequence[Cohort]) -> None:
    """Refuse cohorts with the same images under two names: two people with half the privacy each."""
    owner: dict[str, str] = {}
    for cohort in cohorts:
        for subject in cohort.subjects:
            if owner.setdefault(cohort.image_hash(subject), subject.name) != subject.name:
                raise DataError(
                    "two subjects of the cohort have the same images, so one person would count twice, with half the "
                    "privacy; `lacuna-site review` takes one of them out"
                )


@functools.lru_cache(maxsize=16)
def _shares(
    config: str, phase: str, patterns: tuple[tuple[Modality, ...], ...], size: tuple[int, int]
) -> dict[Owner, float]:
    """Which part of the samples trains each owner, found on a network of its own with its first weights."""
    settings = RunSettings.parse(config)
    method = settings.build_method()
    net = settings.build_net(method)
    attach_stand_in(net)
    return shares_of(method, net, phase, patterns, *size)
