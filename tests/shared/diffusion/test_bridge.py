"""Brownian bridges against algebra and Bayes (docs/methods/mmdm.md): no coefficient of the implementation is trusted.

m, delta and the posterior are written down here once more, from the process: a Brownian bridge of rate 2 from x_0 to y.
"""

import math
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from shared.diffusion.bridge import Bridge, bridge, cross

ROUNDING = 1e-12
SD = 0.3  # of x_0 given y, in the usual case
SPREAD = {50: 0.233, 200: 0.271, 1000: 0.290}  # what eta = 1 reaches of it in so many steps


class Draw(NamedTuple):
    times: int
    t: int
    n: int
    eta: float


def m(t: int, times: int) -> float:
    return 0.001 + 0.998 * t / (times - 1)


def delta(t: int, times: int) -> float:
    return 2 * m(t, times) * (1 - m(t, times))


def close(value: float, wanted: float, within: float = ROUNDING) -> bool:
    return abs(value - wanted) < within


def draws(count: int) -> Iterator[Draw]:
    """Skips and etas nobody has seen before, both ends of the bridge among them."""
    dice = random.SystemRandom()
    for k in range(count):
        times = dice.choice([2, 3, 10, 1000, dice.randrange(4, 3000)])
        t = times - 1 if k % 7 == 0 else dice.randrange(1, times)
        n = 0 if k % 5 == 0 else t - 1 if k % 5 == 1 else dice.randrange(t)
        yield Draw(times, t, n, dice.choice([0.0, 1.0, dice.random(), dice.random()]))


def new_seed() -> int:
    return random.SystemRandom().randrange(2**31)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_tables_are_those_of_the_paper_moved_off_the_ends() -> None:
    for times in (2, 50, 1000):
        over = bridge(times)
        assert len(over) == times
        assert over.m_T.dtype == over.delta_T.dtype == torch.float64
        for t in range(times):
            assert close(over.m_T[t].item(), m(t, times), 1e-15)
            assert close(over.delta_T[t].item(), delta(t, times), 1e-15)
    assert close(bridge(1001).delta_T.max().item(), 0.5, 1e-15)  # half way


def test_every_skip_and_eta_keeps_the_marginals() -> None:
    """x_t ~ N((1 - m_t) x_0 + m_t y, delta_t) must go over into the same at n, whatever x_0 and y."""
    for draw in draws(2000):
        times, t, n, eta = draw
        step = bridge(times).step(t, n, eta)
        assert close(step.on_x * (1 - m(t, times)) + step.on_x0, 1 - m(n, times)), draw
        assert close(step.on_x * m(t, times) + step.on_y, m(n, times)), draw
        assert close(step.on_x**2 * delta(t, times) + step.variance, delta(n, times)), draw
        assert step.variance >= 0, draw


def test_eta_1_is_bayes() -> None:
    """Forward from n to t the chain is x_t = a x_n + b y + N(0, beta); x_n has its marginal as prior."""
    for draw in draws(1000):
        times, t, n, _ = draw
        m_t, m_n = m(t, times), m(n, times)
        a = (1 - m_t) / (1 - m_n)  # so that x_0 fades from 1 - m_n to 1 - m_t
        b, beta = m_t - a * m_n, delta(t, times) - a**2 * delta(n, times)
        precision = 1 / delta(n, times) + a**2 / beta
        step = bridge(times).step(t, n, 1.0)
        assert close(step.variance, 1 / precision), draw
        assert close(step.on_x, a / beta / precision), draw
        assert close(step.on_x0, (1 - m_n) / delta(n, times) / precision), draw
        assert close(step.on_y, (m_n / delta(n, times) - a * b / beta) / precision), draw


def test_eta_1_is_the_bridge_of_a_wiener_process() -> None:
    """cov(x_n, x_t) = 2 m_n (1 - m_t): the regression of the past on the present."""
    for draw in draws(1000):
        times, t, n, _ = draw
        cov = 2 * m(n, times) * (1 - m(t, times))
        step = bridge(times).step(t, n, 1.0)
        assert close(step.on_x, cov / delta(t, times)), draw
        assert close(step.variance, delta(n, times) - cov**2 / delta(t, times)), draw


def test_two_steps_of_eta_1_are_one() -> None:
    for draw in draws(1000):
        times, t, n, _ = draw
        if t - n < 2:
            continue
        via = random.SystemRandom().randrange(n + 1, t)
        over = bridge(times)
        one, two, whole = over.step(t, via, 1.0), over.step(via, n, 1.0), over.step(t, n, 1.0)
        assert close(two.on_x * one.on_x, whole.on_x), draw
        assert close(two.on_x * one.on_x0 + two.on_x0, whole.on_x0), draw
        assert close(two.on_x * one.on_y + two.on_y, whole.on_y), draw
        assert close(two.on_x**2 * one.variance + two.variance, whole.variance), draw


def test_eta_scales_the_sd_of_the_noise() -> None:
    for draw in draws(500):
        times, t, n, eta = draw
        over = bridge(times)
        assert close(over.step(t, n, eta).variance, eta**2 * over.step(t, n, 1.0).variance), draw
        assert over.step(t, n, 0.0).variance == 0


def test_noised_has_the_moments_of_the_bridge() -> None:
    seed, count, times = new_seed(), 100_000, 1000
    g = seeded(seed)
    t_B = torch.tensor([0, 1, 250, 499, 500, 998, 999])
    x0, y = torch.randn(2, len(t_B), 1, 1, generator=g, dtype=torch.float64)
    eps = torch.randn(len(t_B), count, 2, generator=g, dtype=torch.float64)
    x = bridge(times).noised(x0, y.expand_as(eps), t_B, eps).flatten(1)
    for i, t in enumerate(t_B.tolist()):
        mean = (1 - m(t, times)) * x0[i].item() + m(t, times) * y[i].item()
        var = delta(t, times)
        assert close(x[i].mean().item(), mean, 5 * math.sqrt(var / 2 / count)), (seed, t)
        assert close(x[i].var().item(), var, 5 * var / math.sqrt(count)), (seed, t)


def test_noised_counts_time_per_sample_and_keeps_the_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        x0, y, eps = torch.randn(3, 4, 3, 5, 6, dtype=dtype)
        t_B = torch.tensor([0, 13, 70, 99])
        x = bridge(100).noised(x0, y, t_B, eps)
        assert x.dtype == dtype
        for i, t in enumerate(t_B.tolist()):
            wanted = (1 - m(t, 100)) * x0[i] + m(t, 100) * y[i] + math.sqrt(delta(t, 100)) * eps[i]
            torch.testing.assert_close(x[i], wanted)


def bent(x: Tensor, t: int) -> Tensor:
    """No network, but neither linear nor blind to time; each value on its own."""
    return (x * x - x / 3 - t / 1000).clamp(-1, 1)


@pytest.mark.parametrize("steps", [3, 20])
def test_without_noise_y_alone_decides(steps: int) -> None:
    y, g = torch.randn(2, 3, 4), seeded(new_seed())
    before = g.get_state()
    one = cross(bent, y, bridge(1000), steps=steps, eta=0.0, generator=g)
    assert torch.equal(g.get_state(), before)
    for other in (None, seeded(new_seed()), [seeded(new_seed()), seeded(new_seed())]):
        assert torch.equal(one, cross(bent, y, bridge(1000), steps=steps, eta=0.0, generator=other))


def test_noise_comes_from_the_generator_alone() -> None:
    y, seed = torch.randn(2, 3, 4), new_seed()

    def run(seed: int) -> Tensor:
        return cross(bent, y, bridge(1000), steps=8, eta=1.0, generator=seeded(seed))

    torch.manual_seed(0)
    one = run(seed)
    torch.manual_seed(1)
    assert torch.equal(one, run(seed))
    assert not torch.equal(one, run(seed + 1))


def test_per_sample_generators_give_the_same_bits_in_every_batch() -> None:
    seeds, y = [new_seed() for _ in range(5)], torch.randn(5, 3, 4, 6)

    def run(rows: list[int]) -> Tensor:
        noise = [seeded(seeds[i]) for i in rows]
        return cross(bent, y[rows], bridge(1000), steps=12, eta=1.0, generator=noise)

    whole = run([0, 1, 2, 3, 4])
    for rows in ([0], [3], [4, 1], [2, 0, 3]):
        assert torch.equal(run(rows), whole[rows])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 200])
def test_who_knows_x0_gets_x0(steps: int, eta: float) -> None:
    x0, y = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.equal(cross(lambda x, t: x0, y, bridge(1000), steps=steps, eta=eta, generator=seeded(0)), x0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_chain_it_walks_has_the_marginals_of_the_bridge(eta: float) -> None:
    """With the true x_0 at hand every x_t on the way is normal about its place on the bridge."""
    seed, chains, times = new_seed(), 40_000, 1000
    seen: dict[int, Tensor] = {}

    def oracle(x: Tensor, t: int) -> Tensor:
        seen[t] = x.clone()
        return torch.full_like(x, -0.4)

    y = torch.full((chains,), 1.7, dtype=torch.float64)
    cross(oracle, y, bridge(times), steps=9, eta=eta, generator=seeded(seed))
    assert torch.equal(seen[times - 1], y)
    lead = 1.0  # what is left of the start, which is a point at y and not the marginal
    for t, n in pairwise(sorted(seen, reverse=True)):
        bayes = delta(n, times) - (2 * m(n, times) * (1 - m(t, times))) ** 2 / delta(t, times)
        lead *= math.sqrt((delta(n, times) - eta**2 * bayes) / delta(t, times))
        mean = (1 - m(n, times)) * -0.4 + m(n, times) * 1.7 + lead * (1 - m(times - 1, times)) * 2.1
        var = delta(n, times) - lead**2 * delta(times - 1, times)
        assert close(seen[n].mean().item(), mean, 5 * math.sqrt(max(var, 0) / chains) + ROUNDING), (seed, n)
        assert close(seen[n].var().item(), var, 5 * var * math.sqrt(2 / chains) + ROUNDING), (seed, n)


class Known:
    """x_0 | y ~ N(mean, sd^2), so that E[x_0 | x_t, y] is exact."""

    def __init__(self, times: int, y: float, sd: float = SD) -> None:
        self.times, self.y, self.sd = times, y, sd
        self.mean = random.SystemRandom().uniform(-0.5, 0.5)

    def gain(self, t: int) -> float:
        seen = 1 - m(t, self.times)
        return seen * self.sd**2 / (seen**2 * self.sd**2 + delta(t, self.times))

    def estimate(self, x: Tensor, t: int) -> Tensor:
        m_t = m(t, self.times)
        return self.mean + self.gain(t) * (x - (1 - m_t) * self.mean - m_t * self.y)

    def reached(self, over: Bridge, grid: tuple[int, ...], eta: float) -> float:
        """The sd at the end of the chain: all steps are affine."""
        var = 0.0
        for t, n in pairwise(grid):
            step = over.step(t, n, eta)
            var = (step.on_x + step.on_x0 * self.gain(t)) ** 2 * var + step.variance
        return self.gain(grid[-1]) * math.sqrt(var)


@pytest.mark.parametrize("steps", [2, 3, 5, 20, 50, 200, 1000])
def test_the_mean_of_a_gaussian_is_exact_in_any_number_of_steps(steps: int) -> None:
    """Affine: with the noise at its mean, 0, the chain of means is left. A start at y is not quite x_T: 5e-5 of y."""
    y = random.SystemRandom().uniform(-1, 1)
    known, over = Known(1000, y), bridge(1000)
    x, grid = torch.tensor(y, dtype=torch.float64), over.grid(steps)
    for t, n in pairwise(grid):
        step = over.step(t, n, 1.0)
        x = step.on_x * x + step.on_x0 * known.estimate(x, t) + step.on_y * y
    within = 0.001 * known.gain(999) * abs(y - known.mean) + ROUNDING
    assert close(known.estimate(x, grid[-1]).item(), known.mean, within)


@pytest.mark.parametrize("steps", SPREAD)
def test_the_spread_of_a_gaussian_grows_to_the_truth(steps: int) -> None:
    """So many times and a step for each: the usual case. The chains themselves, then the same by propagation."""
    seed, chains, y = new_seed(), 20_000, 0.8
    known, over = Known(steps, y), bridge(steps)
    start = torch.full((chains,), y, dtype=torch.float64)
    x0 = cross(known.estimate, start, over, steps=2 * steps, eta=1.0, generator=seeded(seed))
    sd = SPREAD[steps]
    assert close(x0.mean().item(), known.mean, 5 * sd / math.sqrt(chains) + 1e-4), seed
    assert close(x0.std().item(), sd, 5 * sd / math.sqrt(2 * chains)), seed
    assert close(known.reached(over, over.grid(2 * steps), 1.0), sd, 5e-4)
    assert known.reached(over, over.grid(2 * steps), 0.0) == 0


def test_more_steps_spread_more() -> None:
    known, over = Known(1000, 0.8), bridge(1000)
    reached = [known.reached(over, over.grid(steps), 1.0) for steps in (3, 5, 20, 50, 200, 1000)]
    assert reached == sorted(reached)
    assert SPREAD[200] < reached[-2] < SPREAD[1000] < SD  # 1 and 0 at the end of the grid help


def test_the_grid_of_200_steps() -> None:
    """T - 1 downwards by (T - 1) / 198, then 1 and 0."""
    grid = bridge(1000).grid(200)
    assert len(set(grid)) == len(grid) == 200
    assert grid[-2:] == (1, 0)
    assert all(0 <= 999 - k * 999 / 198 - t < 1 for k, t in enumerate(grid[:-2]))


@pytest.mark.parametrize("times", [2, 3, 10, 50, 1000])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 50, 1000, 5000])
def test_every_grid_goes_down_from_y_to_x0(times: int, steps: int) -> None:
    grid = bridge(times).grid(steps)
    assert grid[0] == times - 1
    assert all(t > n for t, n in pairwise(grid))
    assert len(grid) <= min(steps, times)
    if steps > 1:
        assert grid[-1] == 0
    if steps <= times - 2 or steps > times:
        assert len(grid) == min(steps, times)  # nothing lost to rounding


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 200])
def test_the_network_hears_the_grid_once_each(steps: int) -> None:
    heard: list[int] = []

    def listening(x: Tensor, t: int) -> Tensor:
        heard.append(t)
        return x

    cross(listening, torch.zeros(1, 2), bridge(1000), steps=steps, eta=1.0, generator=seeded(0))
    assert tuple(heard) == bridge(1000).grid(steps)
    assert len(heard) == steps


def test_several_bridges_may_share_an_estimate() -> None:
    """Three sources side by side, one x_0 for all: each chain moves with its own y."""
    y_BMHW, x0_B1HW = torch.randn(2, 3, 4, 4), torch.randn(2, 1, 4, 4)
    seen: list[Tensor] = []

    def shared(x: Tensor, t: int) -> Tensor:
        seen.append(x)
        return x0_B1HW

    assert torch.equal(cross(shared, y_BMHW, bridge(1000), steps=3, eta=0.0, generator=None), x0_B1HW)
    assert torch.equal(seen[0], y_BMHW)
    r = math.sqrt(delta(1, 1000) / delta(999, 1000))  # what is left of how far the start is off its place
    off = r * (1 - m(999, 1000)) * (y_BMHW - x0_B1HW)
    torch.testing.assert_close(seen[1], (1 - m(1, 1000)) * x0_B1HW + m(1, 1000) * y_BMHW + off)
