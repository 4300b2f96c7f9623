"""Coins and noise of a private step: exact distributions, and keys that nobody shares. Bands are six sigmas wide."""

import math
import os

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from client.privacy.private import Secret, draw, normal
from client.privacy.proof.sigmas import binomial, dispersion, likeness, normal_shape, normal_size, sigmas


class Fixed:
    """Bits that a test has written down."""

    def __init__(self, bits: NDArray[np.uint64]) -> None:
        self._bits = bits

    def bits(self, n: int) -> NDArray[np.uint64]:
        given, self._bits = self._bits[:n], self._bits[n:]
        assert len(given) == n
        return given.copy()


def values(n: int) -> NDArray[np.float64]:
    return normal(Secret(), (n,)).double().numpy()


def test_noise_is_standard_normal() -> None:
    x = values(1_000_001)
    assert sigmas(normal_size(x)) < 6
    assert normal_shape(x[:300_000]) < 6
    for power, mean, spread in ((3, 0.0, math.sqrt(15)), (4, 3.0, math.sqrt(96))):
        assert abs((x**power).mean() - mean) < 6 * spread / math.sqrt(len(x))


def test_its_tails_are_there_beyond_six_sigmas() -> None:
    """Of the radii only the longest in 2**17 are made: a million values stand for a hundred thousand million."""
    n, rare = 1_000_000, 17
    half = n // 2
    bits = Secret().bits(half + half // 2 + 1)
    bits[:half] >>= np.uint64(rare)
    x = normal(Fixed(bits), (n,)).numpy()
    for sd in (5.0, 5.5, 6.0):
        wanted = 2 * stats.norm.sf(sd) * 2**rare
        assert sigmas(binomial(int((np.abs(x) > sd).sum()), n, wanted)) < 6
    longest = normal(Fixed(np.zeros(2, dtype=np.uint64)), (2,))
    assert float(longest.norm()) == pytest.approx(math.sqrt(2 * 54 * math.log(2)), rel=1e-6)
    shortest = normal(Fixed(np.full(2, 2**64 - 1, dtype=np.uint64)), (2,))
    assert bool(shortest.isfinite().all())


def test_no_value_knows_another() -> None:
    x, y = values(400_000), values(400_000)
    half = len(x) // 2
    for a, b in ((x, y), (x[:-1], x[1:]), (x[:half], x[half:]), (x[:half] ** 2, x[half:] ** 2), (x[::2], x[1::2])):
        assert likeness(a, b) < 6


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (5,), (3, 7), (2, 3, 4, 5)])
def test_every_shape_is_filled(shape: tuple[int, ...]) -> None:
    x = torch.stack([normal(Secret(), shape) for _ in range(60)])
    assert x.shape == (60, *shape)
    assert x.dtype == torch.float32
    assert bool((x.reshape(60, -1).std(dim=0) > 0.4).all())


@pytest.mark.parametrize("rate", [0.02, 0.25, 0.9])
def test_coins_are_independent_and_fair_to_their_rate(rate: float) -> None:
    secret, steps, n = Secret(), 1000, 100
    drawn = np.zeros((steps, n), dtype=bool)
    for step in range(steps):
        heads = draw(secret, n, rate)
        assert heads == sorted(set(heads))
        drawn[step, heads] = True
    assert sigmas(binomial(int(drawn.sum()), steps * n, rate)) < 6
    assert sigmas(dispersion(drawn.sum(axis=1), n, rate)) < 6
    assert sigmas(dispersion(drawn.sum(axis=0), steps, rate)) < 6
    assert likeness(drawn[:-1].astype(float), drawn[1:].astype(float)) < 6


def test_a_coin_is_heads_just_below_its_rate() -> None:
    at = [0, 2**63 - 2**11, 2**63, 2**64 - 1]  # 0, just below a half, a half, just below one
    coins = np.array(at, dtype=np.uint64)
    assert draw(Fixed(coins), 4, 0.5) == [0, 1]
    assert draw(Fixed(coins), 4, 1.0) == [0, 1, 2, 3]
    assert draw(Fixed(coins), 4, 1e-6) == [0]
    assert draw(Secret(), 0, 0.5) == []


def test_two_secrets_share_nothing() -> None:
    one, two = Secret(), Secret()
    assert not set(one.bits(1000).tolist()) & set(two.bits(1000).tolist())
    assert not set(one.bits(1000).tolist()) & set(one.bits(1000).tolist())
    assert likeness(normal(one, (200_000,)).double().numpy(), normal(two, (200_000,)).double().numpy()) < 6


def test_a_secret_does_not_come_back_with_its_process_or_a_seed() -> None:
    """Neither a copy of the process nor the same seeds everywhere else make an equal one."""
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.default_rng(0)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, Secret().bits(32).tobytes())
            os._exit(0)
        os.waitpid(child, 0)
        found.append(np.frombuffer(os.read(read, 256), dtype=np.uint64))
        os.close(read)
        os.close(write)
    found.append(Secret().bits(32))
    assert len(set(np.concatenate(found).tolist())) == 3 * 32
