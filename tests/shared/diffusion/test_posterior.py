"""MDS and mds_fast against a Gaussian stack whose score is known (docs/methods/any2all.md, "MDS").

tests/support/model/gaussians.py derives every step anew, as an affine map; here samplers are held against those maps
on the same noise, and 10 000 chains against the propagated mean and covariance. MPS is in test_mps.py.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support.model.gaussians import (
    Affine,
    Dense,
    Seen,
    Stack,
    decomposition,
    follow,
    propagate,
    rederived,
    second_order,
    standard_errors,
)
from support.model.operators import SuperResolution
from torch import Tensor

from shared.base.errors import ConfigError
from shared.diffusion.gaussian import SPACINGS, Grid, Schedule, cosine, evenly, linear
from shared.diffusion.operators import Measured
from shared.diffusion.posterior import POSTERIORS, mds, mds_fast, restore
from shared.diffusion.samplers import GUIDED, Guess, Sampler, ddim

pytestmark = pytest.mark.slow  # left out of `make fast`

MIXTURES = (["none", "clean"], ["none", "linear"], ["clean", "linear", "none"], ["linear", "none", "linear", "clean"])
GAMMA = 5.0


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chosen(schedule: Schedule, steps: int, spacing: str = "even") -> tuple[Grid, list[float]]:
    """The grid for the sampler, and the bare numbers for the reference."""
    times = SPACINGS[spacing](schedule, steps)
    return schedule.grid(times), schedule.abar_T[times].tolist()


def mixed_subject() -> tuple[Stack, list[Seen]]:
    """One of the mixtures in some order, its operators real or complex."""
    kinds = random.SystemRandom().choice(MIXTURES)
    stack = Stack(len(kinds))
    order = torch.randperm(len(kinds), generator=stack.random).tolist()
    return stack, stack.seen([kinds[m] for m in order], complex_rows=bool(stack.seed % 2))


def known(seen: Sequence[Seen], batch: int) -> list[Measured]:
    return [one.measured(batch) for one in seen]


@pytest.mark.parametrize("schedule", [linear(1000), cosine(1000)], ids=["linear", "cosine"])
@pytest.mark.parametrize(
    ("eta", "convention"), [(0.0, "ddim"), (0.85, "ddim"), (1.0, "ddim"), (0.15, "dds"), (0.85, "dds"), (1.0, "dds")]
)
def test_mds_is_the_affine_map_that_the_spec_says(schedule: Schedule, eta: float, convention: str) -> None:
    stack, seen = mixed_subject()
    options = Sampler(kind="mds", steps=30, eta=eta, eta_convention=convention, gamma=GAMMA, clip=False)  # type: ignore[arg-type]
    grid, abars = chosen(schedule, 30)
    steps = decomposition(stack, seen, abars, eta=eta, gamma=GAMMA, convention=convention)
    run(stack, seen, steps, grid, options)


def test_a_weight_of_null_follows_the_noise_of_the_measurement_and_of_the_step() -> None:
    stack, seen = mixed_subject()
    sigma = random.SystemRandom().uniform(0.05, 0.5)
    seen = [one if one.operator is None else Seen(one.y, Dense(one.operator.a_KN, sigma)) for one in seen]
    grid, abars = chosen(cosine(1000), 30)
    steps = decomposition(stack, seen, abars, eta=1.0, gamma=lambda abar: max(1 - abar, 0.1**2) / sigma**2)
    run(stack, seen, steps, grid, Sampler(kind="mds", steps=30, eta=1.0, gamma=None, clip=False))


@pytest.mark.parametrize("schedule", [linear(1000), cosine(1000)], ids=["linear", "cosine"])
@pytest.mark.parametrize("spacing", ["log_snr", "mixed"])
def test_mds_fast_is_the_affine_map_of_its_solver(schedule: Schedule, spacing: str) -> None:
    stack, seen = mixed_subject()
    options = Sampler(kind="mds_fast", steps=15, gamma=GAMMA, clip=False)
    grid, abars = chosen(schedule, 15, spacing)
    run(stack, seen, second_order(stack, seen, abars, gamma=GAMMA), grid, options)


def run(stack: Stack, seen: Sequence[Seen], steps: Sequence[Affine], grid: Grid, options: Sampler) -> None:
    """On the same noise the same images; over 10 000 chains the propagated law, within 5 standard errors."""
    denoise = stack.denoiser({step.t: step.abar for step in grid})
    x = stack.noise(10_000)
    out = POSTERIORS[options.kind](denoise, known(seen, len(x)), x, grid, options, seeded(stack.seed))
    # CG stops at a residual of 1e-6
    torch.testing.assert_close(out, follow(steps, x, seeded(stack.seed)), rtol=0, atol=1e-4, msg=str(stack.seed))
    assert standard_errors(out, *propagate(steps, stack.dim)) < 5, stack.seed
    for m, one in enumerate(seen):
        if one.y is not None and one.operator is None:
            assert torch.equal(out[:, m, 0], one.y.expand(len(x), -1)), stack.seed


def conditional_error(stack: Stack, seen: Sequence[Seen], steps: Sequence[Affine]) -> float:
    """Of the mean of what is hidden."""
    truth, _ = stack.conditional(seen)
    off = stack.shape(propagate(steps, stack.dim)[0] - truth)[0]
    return float(torch.stack([off[m] for m, one in enumerate(seen) if one.y is None]).norm())


@pytest.mark.parametrize("make", [linear, cosine])
def test_mds_finds_the_conditional_mean_as_steps_grow_and_rederived_noise_never_does(
    make: Callable[[int], Schedule],
) -> None:
    stack = Stack()
    seen = stack.seen(["none", *["clean"] * (stack.modalities - 1)])
    errors, wrong = [], []
    for times, count in ((1000, 50), (1000, 150), (1000, 1000), (5000, 5000)):
        grid, abars = chosen(make(times), count)
        steps = decomposition(stack, seen, abars, eta=1.0, gamma=1.0)
        errors.append(conditional_error(stack, seen, steps))
        if count in (50, 1000):
            wrong.append(conditional_error(stack, seen, rederived(stack, seen, abars, eta=1.0, gamma=1.0)))
        if count < 5000:  # so these are the errors of the sampler itself
            x = stack.noise(3)
            options = Sampler(kind="mds", steps=count, eta=1.0, clip=False)
            out = mds(stack.denoiser(make(times).abar_T), known(seen, 3), x, grid, options, seeded(5))
            torch.testing.assert_close(out, follow(steps, x, seeded(5)), rtol=0, atol=1e-9, msg=str(stack.seed))
    assert errors[0] > errors[1] > errors[2] > errors[3], (errors, stack.seed)
    assert wrong[1] > 0.25 * wrong[0], (wrong, stack.seed)
    assert wrong[1] > 2 * errors[2], (wrong, errors, stack.seed)


def test_dds_convention_of_eta_distorts_the_prior() -> None:
    """docs/methods/any2all.md, "MDS": 3 % of covariance at 150 steps and eta .85 against 24-29 %."""
    stack = Stack()
    hidden = [Seen()] * stack.modalities
    _, abars = chosen(cosine(1000), 150)
    found = {}
    for convention in ("ddim", "dds"):
        _, cov = propagate(decomposition(stack, hidden, abars, eta=0.85, gamma=1.0, convention=convention), stack.dim)
        found[convention] = ((cov - stack.cov).norm() / stack.cov.norm()).item()
    assert found["ddim"] < 0.1 < 0.15 < found["dds"], (found, stack.seed)


def test_mds_fast_is_of_second_order_where_nothing_is_measured() -> None:
    stack = Stack()
    hidden = [Seen()] * stack.modalities

    def error(steps: int, fast: bool) -> float:
        _, abars = chosen(cosine(1000), steps, "mixed")
        maps = (
            second_order(stack, hidden, abars, gamma=1.0)
            if fast
            else decomposition(stack, hidden, abars, eta=1.0, gamma=1.0)
        )
        return float((propagate(maps, stack.dim)[1] - stack.cov).norm())

    assert error(40, fast=True) > 8 * error(160, fast=True), stack.seed
    assert error(40, fast=False) < 6 * error(160, fast=False), stack.seed
    assert error(160, fast=True) < 0.5 * error(160, fast=False), stack.seed


@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
@pytest.mark.parametrize("kind", ["none", "linear"])
def test_mds_without_weight_on_measurements_is_the_unconditional_sampler_bit_by_bit(kind: str, eta: float) -> None:
    stack = Stack()
    seen = stack.seen([kind] * stack.modalities)
    grid, _ = chosen(linear(1000), 12)
    x, denoise = stack.noise(4), stack.denoiser(linear(1000).abar_T)
    free = ddim(denoise, x, grid, Sampler(kind="ddim", steps=12, eta=eta, clip=False), seeded(stack.seed))
    for gamma in (0.0, 1e-200):
        options = Sampler(kind="mds", steps=12, eta=eta, gamma=gamma, clip=False)
        out = mds(denoise, known(seen, 4), x, grid, options, seeded(stack.seed))
        assert torch.equal(out, free), stack.seed


@pytest.mark.parametrize("kind", ["mds", "mds_fast"])
def test_an_infinite_weight_and_an_invertible_operator_give_its_inverse(kind: str) -> None:
    stack = Stack()
    x_M1W = stack.noise(1)[0]
    seen = []
    for image in x_M1W:
        left, right = (torch.linalg.qr(stack.normal(stack.width, stack.width)).Q for _ in range(2))
        singular = 0.5 + torch.rand(stack.width, generator=stack.random, dtype=torch.float64)
        a = left @ torch.diag(singular) @ right
        seen.append(Seen(a @ image[0], Dense(a)))
    grid, _ = chosen(cosine(1000), 10)
    options = Sampler(kind=kind, steps=10, gamma=1e7, cg=2 * stack.width, clip=False)  # type: ignore[arg-type]
    x, denoise = stack.noise(5), stack.denoiser(cosine(1000).abar_T)
    out = POSTERIORS[kind](denoise, known(seen, 5), x, grid, options, seeded(stack.seed))
    torch.testing.assert_close(out, x_M1W.expand_as(out), rtol=0, atol=1e-4, msg=str(stack.seed))


@pytest.mark.parametrize("eta", [0.0, 0.85])
def test_a_step_of_a_missing_modality_is_the_unconditional_step_bit_by_bit(eta: float) -> None:
    """The second image that the network hears is what the first step made."""
    stack = Stack()
    missing = int(torch.randint(stack.modalities, (1,), generator=stack.random))
    kinds = ["clean", "linear", "clean", "linear"][: stack.modalities]
    kinds[missing] = "none"
    seen, x, denoise = stack.seen(kinds), stack.noise(4), stack.denoiser(linear(1000).abar_T)
    grid = linear(1000).grid([600, 300])
    mds(denoise, known(seen, 4), x, grid, Sampler(kind="mds", steps=2, eta=eta, clip=False), seeded(7))
    ddim(denoise, x, grid, Sampler(kind="ddim", steps=2, eta=eta, clip=False), seeded(7))
    (_, guided), (_, free) = stack.heard[1], stack.heard[3]
    assert torch.equal(guided[:, missing], free[:, missing]), stack.seed
    assert not torch.equal(guided, free), stack.seed


@pytest.mark.parametrize("algorithm", [mds, mds_fast])
def test_one_clean_modality_comes_back_bit_by_bit(algorithm: Any) -> None:
    stack = Stack(1)
    y = stack.noise(6)
    grid, _ = chosen(cosine(1000), 20)
    options = Sampler(kind=algorithm.__name__, steps=20, clip=False)
    out = algorithm(
        stack.denoiser(cosine(1000).abar_T), [Measured("clean", y[:, 0])], stack.noise(6), grid, options, None
    )
    assert torch.equal(out, y), stack.seed


def pointwise(x: Tensor, t: int) -> Guess:
    """A network without matrix products: its bits cannot depend on the size of the batch."""
    x0 = 0.5 * x + 0.3 * x.roll(1, dims=1) + t / 4000
    return Guess(x0, x - 0.2 * x0)


def restored(kind: str, index: list[int], seed: int) -> Tensor:
    """These samples of a batch of four, each with a generator of its own."""
    images = torch.randn(4, 3, 4, 6, generator=seeded(seed), dtype=torch.float64)
    operator = SuperResolution(factor=2, sigma=0.1)
    measured = [
        Measured("clean", images[:, 0]),
        Measured("none"),
        Measured("linear", operator.forward(images[:, 2]), operator),
    ]
    noise = [seeded(seed + 1 + i) for i in index]
    x = torch.stack([torch.randn(3, 4, 6, generator=g, dtype=torch.float64) for g in noise])
    options = Sampler(kind=kind, steps=7)  # type: ignore[arg-type]
    return restore(pointwise, cosine(1000), x, [one.at(index) for one in measured], options, noise)


@pytest.mark.parametrize("kind", GUIDED)
def test_a_sample_has_its_bits_whatever_its_batch_and_equal_seeds_give_equal_bits(kind: str) -> None:
    seed = random.SystemRandom().randrange(2**31)
    whole = restored(kind, [0, 1, 2, 3], seed)
    assert torch.equal(whole, restored(kind, [0, 1, 2, 3], seed)), seed
    assert torch.equal(whole[[2, 0]], restored(kind, [2, 0], seed)), seed
    assert torch.equal(whole[3:], restored(kind, [3], seed)), seed
    assert not torch.equal(whole, restored(kind, [0, 1, 2, 3], seed + 10)), seed


@pytest.mark.parametrize("kind", ["mds", "mds_fast"])
def test_clipping_keeps_every_estimate_in_range_and_the_noise_raw(kind: str) -> None:
    """One step by hand with a network that shouts: no outcome of its noise is clipped or made anew."""
    heard = []

    def wild(x: Tensor, t: int) -> Guess:
        heard.append(x)
        return Guess(100 * x, 3 * x)

    schedule, x = linear(1000), torch.randn(5, 2, 1, 3, generator=seeded(1), dtype=torch.float64)
    measured = [Measured("clean", 0.5 * torch.ones(5, 1, 3, dtype=torch.float64)), Measured("none")]
    options = Sampler(kind=kind, steps=2, spacing="even", eta=0.0)  # type: ignore[arg-type]
    out = restore(wild, schedule, x, measured, options, seeded(2))
    assert out.abs().max() <= 1
    a, b = schedule.abar_T[999].item(), schedule.abar_T[0].item()
    clean = b**0.5 * 0.5 + 0 * x[:, 0]
    free = b**0.5 * (100 * x[:, 1]).clamp(-1, 1)
    if kind == "mds":
        on_eps, spread, free = (1 - b) ** 0.5, 0.0, free + (1 - b) ** 0.5 * 3 * x[:, 1]
    else:  # eta 1; the solver goes from x and the clipped estimate
        spread = ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
        on_eps = (1 - b - spread**2) ** 0.5
        free = free + on_eps / (1 - a) ** 0.5 * (x[:, 1] - a**0.5 * (100 * x[:, 1]).clamp(-1, 1))
    z = torch.randn(x.shape, generator=seeded(2), dtype=torch.float64)
    expected = torch.stack([clean + on_eps * 3 * x[:, 0], free], 1) + spread * z
    torch.testing.assert_close(heard[1], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", GUIDED)
@pytest.mark.parametrize("spacing", [None, *SPACINGS])
def test_the_network_hears_original_indices(kind: str, spacing: str | None) -> None:
    stack = Stack()
    seen = stack.seen(["clean"] + ["none"] * (stack.modalities - 1))
    options = Sampler(kind=kind, steps=9, spacing=spacing, clip=False)  # type: ignore[arg-type]
    restore(stack.denoiser(cosine(1000).abar_T), cosine(1000), stack.noise(2), known(seen, 2), options, None)
    times = [t for t, _ in stack.heard]
    assert (times[0], times[-1]) == (999, 0)
    assert times == sorted(set(times), reverse=True)
    assert len(times) in (8, 9)  # of two wished-for log-SNRs that lie nearest to one time, it takes one
    if spacing == "even" or (spacing is None and kind != "mds_fast"):
        assert times == evenly(cosine(1000), 9)


def test_the_table_and_the_options_name_the_same_samplers() -> None:
    assert set(GUIDED) == set(POSTERIORS)


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "mds", "steps": 0},
        {"kind": "mds", "eta": 1.5},
        {"kind": "mds", "eta": -0.1},
        {"kind": "mds_fast", "eta": 0.5},
        {"kind": "mps", "eta": 0.5},
        {"kind": "mps", "eta_convention": "dds"},
        {"kind": "mds_fast", "eta_convention": "dds"},
        {"kind": "ddim", "eta_convention": "dds"},
        {"kind": "mds", "anneal": True},
        {"kind": "mps", "zeta": 0.0},
        {"kind": "mps", "zeta": -1.0},
        {"kind": "mps", "zeta": float("nan")},
        {"kind": "mps", "zeta": float("inf")},
        {"kind": "mds", "gamma": -1.0},
        {"kind": "mds", "gamma": float("nan")},
        {"kind": "mds", "gamma": float("inf")},
        {"kind": "mds", "cg": 0},
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sampler(**bad)
