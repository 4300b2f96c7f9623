"""The audit passes the one real engine, catches what is planted, and its canaries prove no more than is true."""

import json
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats
from support.privacy.planted import CAUGHT_BY, MORE_CAUGHT_BY, NoNoise, Pieces
from typer.testing import CliRunner

import client.cli.cli
import server.cli.cli
from client.privacy.proof import proof as audit
from client.privacy.proof.audit import audit_privacy, most
from client.privacy.proof.made_up_site import MadeUpSite, Make, engine_of, plan_of, random_unit
from client.privacy.proof.one_run import guessed, least_epsilon, proved
from client.privacy.proof.proof import Finding, caught, run_audit
from client.privacy.proof.sigmas import binomial, dispersion, sigmas
from shared.base.errors import RunFailed

pytestmark = pytest.mark.slow  # left out of `make fast`

ALL_PLANTED = {**CAUGHT_BY, **MORE_CAUGHT_BY}
CATCHES = [(engine, test) for engine, tests in ALL_PLANTED.items() for test in tests]


def maker(engine: type[Pieces]) -> Make:
    return lambda plan, charge, entropy: engine(plan=plan, charge=charge, entropy=entropy)


@contextmanager
def no_bar(title: str) -> Any:
    yield lambda done, total: None


def test_the_real_engine_passes() -> None:
    done = CliRunner().invoke(client.cli.cli.app, ["audit", "privacy", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["passed"], said["alarms"], said["failed"]) == (True, 0, {})
    assert [one["test"] for one in said["findings"]] == sorted(
        (one["test"] for one in said["findings"]), key=list(audit.TESTS).index
    )
    assert {one["test"] for one in said["findings"]} == set(audit.TESTS)


def test_twelve_engines_are_planted() -> None:
    assert len(CAUGHT_BY) == 12
    assert all(set(tests) <= set(audit.TESTS) and tests for tests in ALL_PLANTED.values())
    assert {test for tests in CAUGHT_BY.values() for test in tests} == set(audit.TESTS)


@pytest.mark.parametrize(("engine", "test"), CATCHES, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_planted_is_caught(engine: type[Pieces], test: str) -> None:
    assert caught(run_audit(maker(engine), tests=[test])) == {test}


class Silence:
    """Of these bits the noise is nearly nothing."""

    def bits(self, n: int) -> NDArray[np.uint64]:
        return np.full(n, 2**64 - 1, dtype=np.uint64)


def test_the_planted_engines_are_the_real_one_but_for_one_piece() -> None:
    """The same sum of the same subjects; and noise like its, which is drawn in any order."""
    shapes = ((5, 3), (4,))
    units = [random_unit(shapes, seed, 0.1 * 4**seed, 1 + seed % 2) for seed in range(6)]
    released = []
    for make in (engine_of, maker(Pieces)):
        site = MadeUpSite(make=make, plan=plan_of(noise=0.5, rate=0.6, size=7), shapes=shapes, source=Silence())
        site.coins = lambda n: np.arange(n) % 3 > 0
        released.append(site.step(units))
        assert len(site.charges) == 1
    assert np.linalg.norm(released[0]) > 1
    np.testing.assert_allclose(released[0], released[1], rtol=1e-6, atol=1e-6)
    assert caught(run_audit(maker(Pieces), tests=["noise", "sites", "ledger", "sampling"])) == set()


# --- canaries -------------------------------------------------------------------------------------------------------


def responses(m: int, epsilon: float, seed: int) -> tuple[int, int]:
    """Randomised response on m coins: the best guess is the answer, right as often as the mechanism lets it be."""
    truth = np.exp(epsilon) / (1 + np.exp(epsilon))
    return int(np.random.default_rng(seed).binomial(m, truth)), m


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_randomised_response_is_bounded_from_below(epsilon: float) -> None:
    found = [
        least_epsilon(*responses(1000, epsilon, seed), canaries=1000, delta=0.0, doubt=0.01) for seed in range(200)
    ]
    assert sum(one > epsilon for one in found) <= 10
    assert np.mean(found) > epsilon - 0.45


def test_more_coins_prove_nearly_all_of_it() -> None:
    means = [
        np.mean([least_epsilon(*responses(m, 1.0, s), canaries=m, delta=0.0, doubt=0.01) for s in range(20)])
        for m in (30, 300, 3000, 300_000)
    ]
    assert means == sorted(means)
    assert 0.98 < means[-1] < 1.0


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Exact (Balle and Wang 2018), for sensitivity 1."""

    def excess(epsilon: float) -> float:
        middle = 1 / (2 * sigma)
        return (
            float(
                stats.norm.cdf(middle - epsilon * sigma) - np.exp(epsilon) * stats.norm.cdf(-middle - epsilon * sigma)
            )
            - delta
        )

    return float(optimize.brentq(excess, 0.0, 30.0))


def gaussian_floor(m: int, sigma: float, delta: float, seed: int) -> float:
    rng = np.random.default_rng(seed)
    inside = rng.random(m) < 0.5
    return proved([inside + sigma * rng.normal(size=m)], inside, delta=delta, doubt=0.01)


def test_a_gaussian_is_bounded_from_below() -> None:
    delta = 1e-6
    true = gaussian_epsilon(0.7, delta)
    assert true == pytest.approx(7.6, abs=0.5)
    floors = {m: [gaussian_floor(m, 0.7, delta, seed) for seed in range(200)] for m in (100, 1000, 10_000)}
    means = [float(np.mean(found)) for found in floors.values()]
    assert all(sum(one > true for one in found) <= 10 for found in floors.values())
    assert means == sorted(means)
    assert means[-1] > 1.7


def test_a_floor_needs_doubt_and_delta_that_leave_room() -> None:
    """All coins told with chance delta, nothing otherwise, is (0, delta)-private: nothing may be proved from it."""
    assert least_epsilon(20, 20, canaries=20, delta=0.01, doubt=0.05) == 0
    assert least_epsilon(20, 20, canaries=20, delta=0.0, doubt=0.05) > 1.5
    assert least_epsilon(500, 1000, canaries=1000, delta=0.0, doubt=0.05) == 0
    by_right = [least_epsilon(v, 1000, canaries=1000, delta=1e-9, doubt=1e-3) for v in range(550, 1000, 50)]
    assert by_right == sorted(by_right)
    assert by_right[-1] > least_epsilon(950, 1000, canaries=1000, delta=1e-9, doubt=1e-6)


def test_guesses_are_the_outermost_scores() -> None:
    inside = np.array([True, False, True, False, True, False, False, True])
    scores = np.array([4.0, -4.0, 3.0, -3.0, 2.0, -2.0, -1.0, -1.5])  # the last two are the least sure, and wrong
    assert guessed(scores, inside, shares=(1.0, 0.5, 0.25)) == [(6, 8), (4, 4), (2, 2)]


# --- sigmas ---------------------------------------------------------------------------------------------------------


def test_dispersion_is_exact() -> None:
    one = dispersion([9], 16, 0.25)
    pmf = stats.binom.pmf(np.arange(17), 16, 0.25)
    squares = (np.arange(17) - 4) ** 2
    top = min(squares.max(), 60)
    assert one[1] == pytest.approx(pmf[np.minimum(squares, top) >= 25].sum())
    assert one[0] == pytest.approx(pmf[np.minimum(squares, top) <= 25].sum())
    rng = np.random.default_rng(0)
    chances = np.array([dispersion(rng.binomial(16, 0.25, 40), 16, 0.25)[1] for _ in range(400)])
    assert stats.kstest(chances, "uniform").pvalue > 1e-4


def test_sigmas_are_those_of_a_normal() -> None:
    for sd in (0.5, 2.0, 6.0):
        tails = float(stats.norm.cdf(sd)), float(stats.norm.sf(sd))
        assert sigmas(tails) == pytest.approx(sd)
    assert sigmas(binomial(50, 100, 0.5)) == 0
    assert sigmas((0.0, 1.0)) == sigmas((float("nan"), float("nan"))) == 99


# --- for a person ---------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "TESTS", {name: audit.TESTS[name] for name in ("noise", "ledger")})


@pytest.mark.usefixtures("short")
def test_both_commands_show_a_table() -> None:
    for app in (client.cli.cli.app, server.cli.cli.app):
        done = CliRunner().invoke(app, ["audit", "privacy"])
        assert done.exit_code == 0, done.output
        assert "2 of 2 tests passed: noise, ledger" in done.stdout
        assert "FAILED" not in done.stdout


@pytest.mark.usefixtures("short")
def test_a_failed_audit_says_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFailed, match="1 of 1 audits of the private engine failed: noise/repeats, noise/shape"):
        audit_privacy(repeat=1, as_json=False, bar=no_bar, make=maker(NoNoise))
    said = capsys.readouterr().out
    assert "1 of 2 tests passed: ledger" in said
    assert said.count("FAILED") == 3
    assert RunFailed.exit_code == 5


@pytest.mark.usefixtures("short")
def test_repeats_bound_the_rate_of_alarms(capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[tuple[int, int]] = []

    @contextmanager
    def bar(title: str) -> Any:
        yield lambda done, total: steps.append((done, total))

    audit_privacy(repeat=3, as_json=False, bar=bar)
    said = capsys.readouterr().out
    assert said.startswith("0 of 3 audits failed; ")
    assert "at most 63.16% fail (95 % confidence)" in said
    assert steps == [(i, 6) for i in range(1, 7)]
    with pytest.raises(RunFailed, match=r"2 of 2 audits .*noise/size \(2\)"):
        audit_privacy(repeat=2, as_json=True, bar=no_bar, make=maker(NoNoise))
    record = json.loads(capsys.readouterr().out)
    assert (record["alarms"], record["alarm_rate_at_most"]) == (2, 1.0)
    assert most(0, 200) == pytest.approx(3 / 200, rel=0.01)


def test_a_figure_that_is_no_number_has_not_passed() -> None:
    assert not Finding(test="noise", name="size", figure=float("nan"), limit=6.0, line="").passed
