"""A stack of modalities that is Gaussian: its score is known, and every guided step is an affine map to be followed.

Written from the formulas in docs/methods (diffusion.md, any2all.md) alone: of shared/diffusion it has but the words.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shared.diffusion.operators import Measured
from shared.diffusion.samplers import Denoiser, Guess


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


@dataclass(frozen=True)
class Dense:
    """Any matrix as an operator on images of 1 x W; `a_KN` may be complex."""

    a_KN: Tensor
    sigma: float = 0.1

    def forward(self, x_BHW: Tensor) -> Tensor:
        return x_BHW.flatten(1).to(self.a_KN.dtype) @ self.a_KN.T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.a_KN.conj()).real.reshape(len(y), 1, -1)

    def normal(self, x_BHW: Tensor) -> Tensor:
        return self.adjoint(self.forward(x_BHW))

    def at(self, index: Sequence[int]) -> "Dense":
        return self

    def to(self, device: object) -> "Dense":
        return self


class Seen(NamedTuple):
    """What is known of one modality, in this file's own words: a clean image has no operator, a hidden one no y."""

    y: Tensor | None = None
    operator: Dense | None = None

    @property
    def rows(self) -> Tensor:
        assert self.y is not None
        a = eye(len(self.y)) if self.operator is None else self.operator.a_KN
        return torch.cat([a.real, a.imag]) if a.is_complex() else a

    @property
    def values(self) -> Tensor:
        assert self.y is not None
        return torch.cat([self.y.real, self.y.imag]) if self.y.is_complex() else self.y

    def measured(self, batch: int) -> Measured:
        if self.y is None:
            return Measured("none")
        if self.operator is None:
            return Measured("clean", self.y.expand(batch, 1, -1))
        return Measured("linear", self.y.expand(batch, -1), self.operator)


class Affine(NamedTuple):
    """s' = K s + k, and sd z onto its first entries, the flattened stack; the others are what a solver recalls."""

    K: Tensor
    k: Tensor
    sd: float = 0.0


class Stack:
    """x ~ N(mean, cov) over M modalities of 1 x W pixels, dimensions and values drawn when the test runs."""

    def __init__(self, modalities: int | None = None, seed: int | None = None) -> None:
        self.seed = random.SystemRandom().randrange(2**31) if seed is None else seed
        self.random = g = torch.Generator().manual_seed(self.seed)
        self.modalities = modalities or int(torch.randint(2, 5, (1,), generator=g))
        self.width = int(torch.randint(2, 4, (1,), generator=g))
        self.dim = self.modalities * self.width
        spread = eye(self.dim) + 0.7 * self.normal(self.dim, self.dim)
        cov = spread @ spread.T
        scale = 1 / cov.diagonal().sqrt()
        self.cov = 0.25 * (0.85 * scale[:, None] * cov * scale + 0.15 * eye(self.dim))  # every pixel has sd 0.5
        self.mean = 0.5 * self.normal(self.dim)
        self.values, self.vectors = torch.linalg.eigh(self.cov)
        self.heard: list[tuple[int, Tensor]] = []
        self._known: dict[float, tuple[Affine, Affine]] = {}

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def noise(self, batch: int) -> Tensor:
        return self.normal(batch, self.modalities, 1, self.width)

    def columns(self, modality: int) -> slice:
        return slice(modality * self.width, (modality + 1) * self.width)

    def shape(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.modalities, 1, self.width)

    def score(self, abar: float) -> tuple[Affine, Affine]:
        """x0hat and eps of x_t."""
        if abar not in self._known:
            E = self.vectors * (math.sqrt(1 - abar) / (abar * self.values + 1 - abar)) @ self.vectors.T
            e = -math.sqrt(abar) * E @ self.mean
            P = (eye(self.dim) - math.sqrt(1 - abar) * E) / math.sqrt(abar)
            self._known[abar] = Affine(P, -math.sqrt(1 - abar) / math.sqrt(abar) * e), Affine(E, e)
        return self._known[abar]

    def denoiser(self, abar_T: Tensor | Mapping[int, float]) -> Denoiser:
        """The score as the network of this chain, which writes down what it hears."""

        def denoise(x: Tensor, t: int) -> Guess:
            self.heard.append((t, x.detach().clone()))
            (P, p, _), (E, e, _) = self.score(float(abar_T[t]))
            flat = x.flatten(1)
            return Guess((flat @ P.T + p).reshape(x.shape), (flat @ E.T + e).reshape(x.shape))

        return denoise

    def seen(self, kinds: Sequence[str], complex_rows: bool = False) -> list[Seen]:
        """A subject drawn from the stack, and what is known of it: a random dense operator for each `linear`."""
        root = torch.linalg.cholesky(self.cov)
        x = (self.mean + root @ self.normal(self.dim)).reshape(self.modalities, self.width)
        return [self._seen(kind, x_m, complex_rows) for kind, x_m in zip(kinds, x, strict=True)]

    def _seen(self, kind: str, x: Tensor, complex_rows: bool) -> Seen:
        if kind == "none":
            return Seen()
        if kind == "clean":
            return Seen(x)
        rows = int(torch.randint(1, self.width + 2, (1,), generator=self.random))
        a = self.normal(rows, self.width)
        y = a @ x + 0.1 * self.normal(rows)
        if complex_rows:
            b = self.normal(rows, self.width)
            a, y = torch.complex(a, b), torch.complex(y, b @ x + 0.1 * self.normal(rows))
        return Seen(y, Dense(a))

    def conditional(self, seen: Sequence[Seen], sigma: float = 0.0) -> tuple[Tensor, Tensor]:
        """The true posterior: clean slices exactly, linear ones with noise of sd `sigma` per real row."""
        A, y, V = self.likelihood(seen, sigma)
        gain = self.cov @ A.T @ torch.linalg.inv(A @ self.cov @ A.T + V)
        return self.mean + gain @ (y - A @ self.mean), self.cov - gain @ A @ self.cov

    def likelihood(self, seen: Sequence[Seen], sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """All that was measured as one y = A x + n with real rows; n ~ N(0, V)."""
        A, y, V = [], [], []
        for m, one in enumerate(seen):
            if one.y is not None:
                rows = torch.zeros(len(one.rows), self.dim, dtype=torch.float64)
                rows[:, self.columns(m)] = one.rows
                A.append(rows)
                y.append(one.values)
                V += [0.0 if one.operator is None else sigma**2] * len(rows)
        return torch.cat(A), torch.cat(y), torch.diag(torch.tensor(V, dtype=torch.float64))


def pairs(abars: Sequence[float]) -> Iterable[tuple[float, float]]:
    return zip(abars, [*abars[1:], 1.0], strict=True)


def decomposition(
    stack: Stack,
    seen: Sequence[Seen],
    abars: Sequence[float],
    *,
    eta: float,
    gamma: float | Callable[[float], float],
    convention: str = "ddim",
) -> list[Affine]:
    """MDS: x0 is replaced or solved for, the network's raw eps is kept. `gamma` may follow abar."""
    steps = []
    for abar, ahead in pairs(abars):
        D, c = replacement(stack, seen, gamma(abar) if callable(gamma) else gamma)
        x0, eps = stack.score(abar)
        sigma, on_eps = spread(abar, ahead, eta, convention)
        K = math.sqrt(ahead) * D @ x0.K + on_eps * eps.K
        steps.append(Affine(K, math.sqrt(ahead) * (D @ x0.k + c) + on_eps * eps.k, sigma))
    return steps


def rederived(stack: Stack, seen: Sequence[Seen], abars: Sequence[float], *, eta: float, gamma: float) -> list[Affine]:
    """The wrong MDS: eps made to agree with the replaced x0."""
    D, c = replacement(stack, seen, gamma)
    steps = []
    for abar, ahead in pairs(abars):
        x0, _ = stack.score(abar)
        sigma, on_eps = spread(abar, ahead, eta, "ddim")
        E = (eye(stack.dim) - math.sqrt(abar) * D @ x0.K) / math.sqrt(1 - abar)
        e = -math.sqrt(abar) / math.sqrt(1 - abar) * (D @ x0.k + c)
        steps.append(
            Affine(math.sqrt(ahead) * D @ x0.K + on_eps * E, math.sqrt(ahead) * (D @ x0.k + c) + on_eps * e, sigma)
        )
    return steps


def second_order(stack: Stack, seen: Sequence[Seen], abars: Sequence[float], *, gamma: float) -> list[Affine]:
    """What is hidden by SDE-DPM-Solver++(2M), derived from the integral over log-SNR; what is measured by MDS at eta 1.

    d(x / sigma) over exp(-2 lambda) x0 is integrated exactly for a constant x0; its slope comes from the step before.
    The state is the stack and the estimate before.
    """
    D, c = replacement(stack, seen, gamma)
    hidden = torch.tensor([one.y is None for one in seen]).repeat_interleave(stack.width)[:, None]
    nothing = torch.zeros(stack.dim, stack.dim, dtype=torch.float64)
    steps, before = [], None
    for (abar, ahead), first in zip(pairs(abars), decomposition(stack, seen, abars, eta=1.0, gamma=gamma), strict=True):
        K, k = D @ stack.score(abar)[0].K, D @ stack.score(abar)[0].k + c
        if ahead == 1:
            free, recalled, constant = K, nothing, k
        else:
            h = 0.5 * math.log(ahead / (1 - ahead) * (1 - abar) / abar)
            reach = math.sqrt(ahead) * (1 - math.exp(-2 * h))
            slope = 0.0 if before is None else h / (2 * before)
            free = math.sqrt((1 - ahead) / (1 - abar)) * math.exp(-h) * eye(stack.dim) + reach * (1 + slope) * K
            recalled, constant = -reach * slope * eye(stack.dim), reach * (1 + slope) * k
            before = h
        top = [torch.where(hidden, free, first.K), torch.where(hidden, recalled, nothing)]
        down = torch.cat([torch.where(hidden[:, 0], constant, first.k), k])
        steps.append(Affine(torch.cat([torch.cat(top, 1), torch.cat([K, nothing], 1)]), down, first.sd))
    return steps


def spread(abar: float, ahead: float, eta: float, convention: str) -> tuple[float, float]:
    """sigma, and what multiplies eps: as DDIM has it, or as the code of DDS has it."""
    if convention == "dds":
        return eta * math.sqrt(1 - ahead), math.sqrt(1 - ahead) * math.sqrt(1 - eta**2)
    sigma = eta * math.sqrt((1 - ahead) / (1 - abar)) * math.sqrt(1 - abar / ahead)
    return sigma, math.sqrt(max(1 - ahead - sigma**2, 0.0))


def replacement(stack: Stack, seen: Sequence[Seen], gamma: float) -> tuple[Tensor, Tensor]:
    """xt0 = D x0 + c."""
    D, c = eye(stack.dim), torch.zeros(stack.dim, dtype=torch.float64)
    for m, one in enumerate(seen):
        at = stack.columns(m)
        if one.y is None:
            continue
        if one.operator is None:
            D[at, at], c[at] = 0.0, one.y
        else:
            solved = torch.linalg.inv(eye(stack.width) + gamma * one.rows.T @ one.rows)
            D[at, at], c[at] = solved, solved @ (gamma * one.rows.T @ one.values)
    return D, c


def ancestral(abar: float, ahead: float, variance: str) -> tuple[float, float, float]:
    """On x0, on x, and the sd."""
    alpha = abar / ahead
    beta = 1 - alpha
    v = beta * (1 - ahead) / (1 - abar) if variance == "small" else beta
    return (
        beta * math.sqrt(ahead) / (1 - abar),
        (1 - ahead) * math.sqrt(alpha) / (1 - abar),
        math.sqrt(v) if ahead < 1 else 0.0,
    )


def exact_push(stack: Stack, seen: Sequence[Seen], sigma: float, abar: float, ahead: float) -> Affine:
    """-beta / sqrt(alpha) grad log p(y | x_t) as an affine map of x_t: what exact guidance subtracts."""
    A, y, V = stack.likelihood(seen, sigma)
    G = stack.score(abar)[0].K
    left = stack.cov - math.sqrt(abar) * G @ stack.cov
    weigh = (1 - abar / ahead) / math.sqrt(abar / ahead) * G.T @ A.T @ torch.linalg.inv(V + A @ left @ A.T)
    x0 = stack.score(abar)[0]
    return Affine(weigh @ A @ x0.K, weigh @ (A @ x0.k - y))


def exactly_guided(
    stack: Stack, seen: Sequence[Seen], abars: Sequence[float], *, sigma: float, variance: str = "large"
) -> list[Affine]:
    steps = []
    for abar, ahead in pairs(abars):
        on_x0, on_x, sd = ancestral(abar, ahead, variance)
        x0, push = stack.score(abar)[0], exact_push(stack, seen, sigma, abar, ahead)
        steps.append(Affine(on_x0 * x0.K + on_x * eye(stack.dim) - push.K, on_x0 * x0.k - push.k, sd))
    return steps


def propagate(steps: Sequence[Affine], dim: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what comes out when N(0, I) goes in."""
    stack = torch.diag((torch.arange(len(steps[0].k)) < dim).to(torch.float64))
    m, C = torch.zeros_like(steps[0].k), stack
    for K, k, sd in steps:
        m, C = K @ m + k, K @ C @ K.T + sd**2 * stack
    return m[:dim], C[:dim, :dim]


def follow(steps: Sequence[Affine], x: Tensor, generator: torch.Generator) -> Tensor:
    """The same maps on given noise: one normal draw in the shape of x wherever a step has noise."""
    dim, size = x[0].numel(), len(steps[0].k)
    state = torch.nn.functional.pad(x.flatten(1), (0, size - dim))
    for K, k, sd in steps:
        state = state @ K.T + k
        if sd > 0:
            state[:, :dim] += sd * torch.randn(x.shape, generator=generator, dtype=x.dtype).flatten(1)
    return state[:, :dim].reshape(x.shape)


def standard_errors(x: Tensor, m: Tensor, C: Tensor) -> float:
    """The largest distance of these chains' mean and covariance from (m, C), in standard errors."""
    n, flat = len(x), x.flatten(1)
    of_mean = (C.diagonal() / n).sqrt()
    of_cov = ((C.diagonal()[:, None] * C.diagonal() + C**2) / n).sqrt()
    distances = [((flat.mean(0) - m).abs(), of_mean), ((flat.T.cov() - C).abs(), of_cov)]
    return max(((d - 1e-9).clamp(min=0) / (e + 1e-12)).max().item() for d, e in distances)
