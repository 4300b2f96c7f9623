"""Epsilon is counted as others count it: against Google's dp-accounting, and against what must hold of any count."""

import logging
import math
import warnings
from collections.abc import Iterator

import pytest

from shared.base.errors import ConfigError
from shared.trust.privacy import (
    ORDERS,
    Privacy,
    PrivacyPlan,
    Query,
    Spending,
    bound,
    epsilon,
    fits,
    noise_for,
    together,
)

pytestmark = pytest.mark.slow  # left out of `make fast`

DELTA = 1e-5
SPENDINGS: dict[str, Spending] = {
    "a short training": {Query(noise=2.0, rate=0.1): 200},
    "a long one at a small rate": {Query(noise=0.8, rate=0.01): 3000},
    "little noise": {Query(noise=1.1, rate=0.05): 1000},
    "one sum over everybody": {Query(noise=4.0, rate=1.0): 1},
    "sums and steps": {Query(noise=22.4, rate=1.0): 10, Query(noise=2.0, rate=0.1): 200},
    "several runs": {Query(noise=1.3, rate=0.02): 500, Query(noise=2.0, rate=0.1): 50, Query(noise=4.0, rate=1.0): 2},
}


@pytest.fixture(scope="module", autouse=True)
def google() -> Iterator[None]:
    """dp-accounting, whose import may warn of its own dependencies, and which logs each order that it leaves out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        pytest.importorskip("dp_accounting")
        from dp_accounting import pld, rdp  # noqa: F401
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def by_google(accountant: object, spending: Spending) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

    for query, steps in spending.items():
        accountant.compose(PoissonSampledDpEvent(query.rate, GaussianDpEvent(query.noise)), steps)  # type: ignore[attr-defined]
    return float(accountant.get_epsilon(DELTA))  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", SPENDINGS)
def test_the_gate_agrees_with_googles_rdp_within_a_hundredth(what: str) -> None:
    from dp_accounting.rdp import RdpAccountant

    google = by_google(RdpAccountant(orders=list(ORDERS)), SPENDINGS[what])
    assert bound(SPENDINGS[what], DELTA) == pytest.approx(google, rel=0.01)


@pytest.mark.parametrize("what", SPENDINGS)
def test_what_is_reported_agrees_with_googles_loss_distributions_and_is_no_less(what: str) -> None:
    """PRV adds its own bound on its error, 0.01, to what it says: below epsilon 1 that is more than a hundredth."""
    from dp_accounting.pld import PLDAccountant

    google = by_google(PLDAccountant(value_discretization_interval=1e-3), SPENDINGS[what])
    reported = epsilon(SPENDINGS[what], DELTA)
    assert google * 0.999 <= reported <= max(1.01 * google, google + 0.0101)
    assert reported <= bound(SPENDINGS[what], DELTA)


def test_more_steps_never_cost_less() -> None:
    query = Query(noise=1.5, rate=0.05)
    for count in (bound, epsilon):
        found = [count({query: steps}, DELTA) for steps in (0, 1, 2, 10, 100, 1000, 10_000)]
        assert found == sorted(found), count.__name__
        assert found[0] == 0
    found = [bound({query: steps}, DELTA) for steps in range(60)]
    assert found == sorted(found)


def test_more_noise_and_a_smaller_rate_never_cost_more() -> None:
    costs = [bound({Query(noise=noise, rate=0.05): 100}, DELTA) for noise in (0.6, 0.8, 1.0, 2.0, 5.0, 50.0)]
    assert costs == sorted(costs, reverse=True)
    costs = [bound({Query(noise=2.0, rate=rate): 100}, DELTA) for rate in (0.001, 0.01, 0.1, 0.5, 1.0)]
    assert costs == sorted(costs)


def test_a_history_put_together_by_kind_costs_what_it_does_step_by_step() -> None:
    one, other = Query(noise=2.0, rate=0.1), Query(noise=4.0, rate=1.0)
    spending: dict[Query, int] = {}
    for n in range(12):
        spending = together(spending, {one if n % 3 else other: 1})
    assert spending == {one: 8, other: 4}
    for count in (bound, epsilon):
        assert count(spending, DELTA) == pytest.approx(count({other: 4, one: 8}, DELTA), rel=1e-9)
    from opacus.accountants import RDPAccountant

    by_step = RDPAccountant()
    by_step.history = [(one.noise, one.rate, 1) if n % 3 else (other.noise, other.rate, 1) for n in range(12)]
    assert bound(spending, DELTA) == pytest.approx(by_step.get_epsilon(DELTA, alphas=list(ORDERS)), rel=1e-9)


def test_queries_that_differ_by_less_than_they_are_rounded_to_are_one_kind() -> None:
    assert Query(noise=2.0001, rate=0.1000001) == Query(noise=2.0, rate=0.1)
    assert Query(noise=1e-9, rate=1e-12) == Query(noise=0.001, rate=1e-6)  # never to nought


@pytest.mark.parametrize(("budget", "rate", "steps"), [(8.0, 0.1, 300), (3.0, 0.05, 1000), (1.0, 0.1, 50)])
def test_the_noise_for_a_budget_is_the_least_to_a_thousandth(budget: float, rate: float, steps: int) -> None:
    besides = {Query(noise=40.0, rate=1.0): 2}
    noise = noise_for(budget, DELTA, rate=rate, steps=steps, besides=besides)
    assert fits(besides, {Query(noise=noise, rate=rate): steps}, budget=budget, delta=DELTA)
    assert not fits(besides, {Query(noise=noise - 0.002, rate=rate): steps}, budget=budget, delta=DELTA)
    assert noise == round(noise, 3)


def test_a_budget_that_no_noise_can_keep_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"privacy.epsilon=1: the phases of sums alone cost .*raise privacy.sums_noise"
    ):
        noise_for(1.0, DELTA, rate=0.1, steps=10, besides={Query(noise=1.0, rate=1.0): 3})
    with pytest.raises(ConfigError, match=r"privacy.epsilon=0.01: no noise is enough for 100000000 steps at rate 1"):
        noise_for(0.01, DELTA, rate=1.0, steps=10**8)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 1e9, None, "2"])
def test_noise_that_is_no_noise_is_refused_by_name(value: object) -> None:
    with pytest.raises(ConfigError, match="noise="):
        Query(noise=value, rate=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -0.1, 1.5, math.nan, math.inf, None])
def test_a_rate_that_is_no_chance_is_refused_by_name(value: object) -> None:
    with pytest.raises(ConfigError, match="rate="):
        Query(noise=1.0, rate=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epsilon", 0.0),
        ("epsilon", math.nan),
        ("delta", 0.0),
        ("delta", 0.5),
        ("delta", math.nan),
        ("noise", 0.0),
        ("noise", math.nan),
        ("rate", 1.5),
        ("rate", 0.0),
        ("clip", 0.0),
        ("clip", math.nan),
        ("draws", 0),
        ("slices", 0),
        ("rows", -1),
        ("sums_noise", 0.0),
        ("sums_clip", -1.0),
        ("sites", {"north": 0.0}),
    ],
)
def test_a_privacy_that_makes_no_sense_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key.removeprefix("sums_")):
        Privacy(**{"noise": 1.0, key: value})  # type: ignore[arg-type]


def test_spendings_that_go_back_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps=-1"):
        bound({Query(noise=1.0, rate=0.1): -1}, DELTA)


def test_a_sites_plan_is_the_runs_mechanism_under_the_sites_budget() -> None:
    run = Privacy(mode="on", noise=1.5, rate=0.1, clip=0.2, sums_noise=5.0)
    plan = PrivacyPlan.of(run, epsilon=3.0, delta=1e-6, size=200)
    assert (plan.step, plan.sums) == (Query(noise=1.5, rate=0.1), Query(noise=5.0, rate=1.0))
    assert (plan.epsilon, plan.delta, plan.expected) == (3.0, 1e-6, pytest.approx(20.0))
    with pytest.raises(ConfigError, match=r"delta=0\.005: must be below one over the 200 subjects"):
        PrivacyPlan.of(run, epsilon=3.0, delta=0.005, size=200)
    with pytest.raises(ConfigError, match="noise=null"):
        PrivacyPlan.of(Privacy(mode="on"), epsilon=3.0, delta=1e-6, size=200)


@pytest.mark.parametrize(
    "query", [Query(noise=0.001, rate=1.0), Query(noise=0.3, rate=0.5), Query(noise=50.0, rate=0.1)]
)
def test_where_prv_would_take_all_memory_rdp_stands(query: Query) -> None:
    """A plan may ask for anything, and saying what it costs must not end the process."""
    hopeless = {query: 10**7}
    assert epsilon(hopeless, DELTA) == bound(hopeless, DELTA)
    assert math.isfinite(bound(hopeless, DELTA))


def test_what_was_never_asked_costs_nothing() -> None:
    assert epsilon({}, DELTA) == epsilon({Query(noise=1.0, rate=0.1): 0}, DELTA) == bound({}, DELTA) == 0
