import math

import pytest
import torch

from shared.diffusion.gaussian import SCHEDULES, Schedule, cosine, evenly, evenly_in_log_snr, linear, posterior


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param](1000)


def test_tables_are_fp64_and_lose_signal_at_every_step(schedule: Schedule) -> None:
    assert schedule.abar_T.dtype == torch.float64
    assert bool((schedule.abar_T.diff() < 0).all())
    assert schedule.abar_T[0] > 0.999
    assert schedule.abar_T[-1] < 1e-4


def test_ends_of_the_published_schedules() -> None:
    assert linear(1000).abar_T[-1].item() == pytest.approx(4.04e-5, rel=1e-2)
    assert cosine(1000).abar_T[-1].item() == pytest.approx(2.43e-9, rel=1e-2)
    assert linear(100).abar_T[-1].item() == pytest.approx(linear(1000).abar_T[-1].item(), rel=0.5)


def test_eps_x0_and_v_are_three_views_of_one_thing(schedule: Schedule) -> None:
    g = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, 6, 3, 5, 5, generator=g, dtype=torch.float64)
    t_B = torch.tensor([0, 1, 250, 500, 900, 998])
    x_t = schedule.noised(x0, t_B, eps)
    v = schedule.v_of(t_B, x0, eps)
    for same, back in (
        (eps, schedule.eps_from_x0(x_t, t_B, x0)),
        (x0, schedule.x0_from_v(x_t, t_B, v)),
        (eps, schedule.eps_from_v(x_t, t_B, v)),
    ):
        torch.testing.assert_close(back, same, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(schedule.x0_from_eps(x_t, t_B, eps), x0, rtol=1e-6, atol=1e-6)  # divides by alpha


def test_what_is_known_without_a_network_is_bayes_rule(schedule: Schedule) -> None:
    """Precisions add: 1/sd^2 of the prior and alpha^2/sigma^2 of the observation."""
    g = torch.Generator().manual_seed(2)
    x_t, prior = torch.randn(2, 4, 2, 3, 3, generator=g, dtype=torch.float64)
    t_B = torch.tensor([3, 100, 600, 999])
    sd = 0.37
    mean, spread = schedule.given(x_t, t_B, prior, sd)
    abar = schedule.abar_T[t_B].reshape(-1, 1, 1, 1)
    precision = 1 / sd**2 + abar / (1 - abar)
    torch.testing.assert_close(spread.expand_as(x_t), (1 / precision.sqrt()).expand_as(x_t))
    torch.testing.assert_close(mean, (prior / sd**2 + abar.sqrt() * x_t / (1 - abar)) / precision)


def test_a_unit_prior_makes_the_whitened_residual_v(schedule: Schedule) -> None:
    g = torch.Generator().manual_seed(3)
    x0, eps = torch.randn(2, 3, 1, 4, 4, generator=g, dtype=torch.float64)
    t_B = torch.tensor([5, 400, 900])
    mean, sd = schedule.given(schedule.noised(x0, t_B, eps), t_B, 0.0, 1.0)
    torch.testing.assert_close((mean - x0) / sd, schedule.v_of(t_B, x0, eps))


@pytest.mark.parametrize("steps", [1000, 50, 7])
def test_posterior_keeps_the_marginals(schedule: Schedule, steps: int) -> None:
    """If x_t and x_0 are jointly right, so is x_next: the mean's scale and the small variance give q(x_next | x_0)."""
    for _, abar, abar_next in schedule.grid(evenly(schedule, steps)):
        step = posterior(abar, abar_next, "small")
        assert step.on_x0 + step.on_x * math.sqrt(abar) == pytest.approx(math.sqrt(abar_next), abs=1e-9)
        assert step.on_x**2 * (1 - abar) + step.variance == pytest.approx(1 - abar_next, abs=1e-9)
        assert posterior(abar, abar_next, "large").variance >= step.variance


def test_respacing_keeps_the_original_indices_and_their_abar(schedule: Schedule) -> None:
    for spacing in (evenly, evenly_in_log_snr):
        times = spacing(schedule, 20)
        assert times[0] == 999
        assert times[-1] == 0
        assert times == sorted(set(times), reverse=True)
        steps = list(schedule.grid(times))
        assert [s.abar for s in steps] == schedule.abar_T[times].tolist()
        assert [s.abar_next for s in steps] == [*schedule.abar_T[times][1:].tolist(), 1.0]
    assert evenly(schedule, 1) == [999]
    assert evenly(schedule, 1000) == list(range(999, -1, -1))


def test_log_snr_spacing_is_even_where_the_table_is_fine() -> None:
    schedule = linear(1000)
    gaps = schedule.log_snr_T[evenly_in_log_snr(schedule, 10)].diff()
    assert (gaps.max() / gaps.min()).item() < 1.4
