"""Conjugate gradients against a dense solve (docs/methods/reconstruction.md), on systems drawn when the test runs."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shared.diffusion import conjugate
from shared.diffusion.acquisition import birdcage, equispaced
from shared.diffusion.operators import CartesianMRI

F64, C128 = torch.float64, torch.complex128
Normal = Callable[[Tensor], Tensor]


@pytest.fixture
def g() -> torch.Generator:
    """Its seed is printed where a test fails."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def uniform(g: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=g, dtype=F64).item()


def reconstruction(g: torch.Generator, side: int = 12) -> tuple[Normal, Tensor, float]:
    """I + gamma A^T A on side x side, as a function and as a matrix; and gamma."""
    gamma = uniform(g, 0.5, 20)
    coils = int(torch.randint(1, 6, (), generator=g))
    operator = CartesianMRI(maps_BCHW=birdcage(coils, side, side, dtype=C128), mask=equispaced(side, 3))

    def normal(x: Tensor) -> Tensor:
        return x + gamma * operator.normal(x)

    return normal, normal(torch.eye(side**2, dtype=F64).reshape(-1, side, side)).flatten(1), gamma


def hermitian(g: torch.Generator, size: int, dtype: torch.dtype, spread: float = 30) -> Tensor:
    """A matrix with eigenvalues from 1 to `spread`."""
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=g, dtype=dtype))
    values = torch.linspace(1, spread, size, dtype=F64)
    return (basis * values) @ basis.mH


def applied(matrix: Tensor) -> Normal:
    return lambda x: (matrix @ x.reshape(len(x), -1, 1)).reshape(x.shape)


def test_it_is_the_dense_solution(g: torch.Generator) -> None:
    normal, matrix, _ = reconstruction(g)
    b, x = torch.randn(2, 3, 12, 12, generator=g, dtype=F64)
    found = conjugate.solve(normal, b, x, iterations=500, tolerance=1e-13)
    exact = torch.linalg.solve(matrix, b.flatten(1).T).T.reshape(b.shape)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


def test_the_error_falls_with_every_iteration_and_at_least_as_fast_as_it_must(g: torch.Generator) -> None:
    """In the energy norm, |e|_N <= 2 ((sqrt(k) - 1) / (sqrt(k) + 1))^n with k <= 1 + gamma."""
    normal, matrix, gamma = reconstruction(g)
    b, x = torch.randn(2, 2, 12, 12, generator=g, dtype=F64)
    exact = torch.linalg.solve(matrix, b.flatten(1).T).T.reshape(b.shape)

    def energy(iterations: int) -> Tensor:
        error = conjugate.solve(normal, b, x, iterations=iterations, tolerance=0) - exact
        return (error * normal(error)).sum((1, 2)).clamp(min=0).sqrt()

    energies = torch.stack([energy(n) for n in range(25)])
    assert bool((energies[1:] <= energies[:-1] * (1 + 1e-9) + 1e-12).all()), energies
    root = (1 + gamma) ** 0.5
    bound = 2 * ((root - 1) / (root + 1)) ** torch.arange(25)[:, None]
    assert bool((energies <= bound * energies[0] + 1e-12).all()), energies / energies[0]


def test_the_residual_reaches_1e_12_in_fp64(g: torch.Generator) -> None:
    normal, _, _ = reconstruction(g)
    b = torch.randn(4, 12, 12, generator=g, dtype=F64)
    x = conjugate.solve(normal, b, torch.zeros_like(b), iterations=200, tolerance=1e-12)
    residual = (b - normal(x)).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
    assert residual.max() < 2e-12, residual


def test_complex_unknowns_need_the_hermitian_product_and_get_it(g: torch.Generator) -> None:
    """With r^T r in place of r^H r it stalls, once at 3e-3: docs/methods/reconstruction.md, "Conjugate gradients"."""
    matrix = hermitian(g, 30, C128)
    b = torch.randn(3, 5, 6, generator=g, dtype=C128)
    x = conjugate.solve(applied(matrix), b, torch.zeros_like(b), iterations=300, tolerance=1e-13)
    exact = torch.linalg.solve(matrix, b.reshape(3, 30).T).T.reshape(b.shape)
    torch.testing.assert_close(x, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_n_different_eigenvalues_need_n_iterations(g: torch.Generator, dtype: torch.dtype) -> None:
    basis, _ = torch.linalg.qr(torch.randn(40, 40, generator=g, dtype=dtype))
    values = torch.tensor([1.0, 3.0, 10.0], dtype=F64).repeat(14)[:40]
    b = torch.randn(2, 40, generator=g, dtype=dtype)
    N = (basis * values) @ basis.mH
    left = [
        (b - applied(N)(conjugate.solve(applied(N), b, 0 * b, iterations=n, tolerance=0))).norm().item() for n in (2, 3)
    ]
    assert left[0] > 1e-2
    assert left[1] < 1e-11


def test_a_hard_sample_does_not_change_an_easy_ones_bits(g: torch.Generator) -> None:
    """The same neighbour easy, hard, indefinite, broken: the first sample's bits are the same."""
    easy, hard = hermitian(g, 25, F64, spread=3), hermitian(g, 25, F64, spread=1e6)
    b, x = torch.randn(2, 2, 5, 5, generator=g, dtype=F64)
    both = [
        conjugate.solve(applied(torch.stack([easy, other])), b, x, iterations=200, tolerance=1e-8)
        for other in (torch.eye(25, dtype=F64), easy, hard, -easy, hard * float("nan"))
    ]
    results = [pair[0] for pair in both]
    assert torch.equal(both[-1][1], x[1])  # the broken one stays at its first guess
    for result in results[1:]:
        assert torch.equal(result, results[0])
    left = b[0] - applied(easy[None])(results[0][None])[0]
    assert left.norm() <= 1e-8 * b[0].norm() * 1.01


def test_a_sample_stops_when_it_is_done_while_others_go_on(g: torch.Generator) -> None:
    """N = 2 I is solved in one iteration; what rounding leaves after it is not chased."""
    hard = hermitian(g, 16, F64, spread=1e4)
    both = applied(torch.stack([2 * torch.eye(16, dtype=F64), hard]))
    b = torch.randn(2, 16, generator=g, dtype=F64)
    once, often = (conjugate.solve(both, b, 0 * b, iterations=n) for n in (1, 300))
    assert torch.equal(once[0], often[0])
    assert not torch.equal(once[1], often[1])
    residual = (b - both(often)).norm(dim=1)
    assert bool((residual <= 1.01e-6 * b.norm(dim=1)).all())


def test_a_loose_tolerance_saves_applications(g: torch.Generator) -> None:
    matrix = hermitian(g, 36, F64, spread=1e3)
    b = torch.randn(1, 36, generator=g, dtype=F64)
    calls: list[int] = []
    for tolerance in (1e-2, 1e-8):
        count = 0

        def counted(x: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return applied(matrix)(x)

        x = conjugate.solve(counted, b, 0 * b, iterations=1000, tolerance=tolerance)
        calls.append(count)
        assert (b - applied(matrix)(x)).norm() <= 1.1 * tolerance * b.norm()
    assert calls[0] < calls[1] < 1000


def test_the_solution_as_first_guess_comes_back_bit_by_bit(g: torch.Generator) -> None:
    x = torch.randn(2, 9, generator=g, dtype=F64)
    matrix = 4 * torch.eye(9, dtype=F64)
    assert torch.equal(conjugate.solve(applied(matrix), 4 * x, x, iterations=5), x)
    zero = torch.zeros_like(x)
    assert torch.equal(conjugate.solve(applied(matrix), zero, zero, iterations=5), zero)
    assert torch.equal(conjugate.solve(applied(matrix), 4 * x + 1, x, iterations=0), x)


def test_where_nothing_bends_it_stays_where_it_is(g: torch.Generator) -> None:
    b, x = torch.randn(2, 2, 9, generator=g, dtype=F64)
    for matrix in (torch.zeros(9, 9, dtype=F64), -torch.eye(9, dtype=F64)):
        assert torch.equal(conjugate.solve(applied(matrix), b, x, iterations=7), x)


def test_fp32_is_enough_for_1e_5_and_autocast_changes_no_bit(g: torch.Generator) -> None:
    matrix = hermitian(g, 25, F64, spread=5)
    b = torch.randn(2, 25, generator=g)
    normal = applied(matrix.float())
    x = conjugate.solve(normal, b, 0 * b, iterations=60)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), torch.linalg.solve(matrix, b.double().T).T, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conjugate.solve(normal, b, 0 * b, iterations=60), x)
