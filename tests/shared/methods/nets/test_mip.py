"""The running soft maximum against its definition in O(N^2) and against `cummax` (docs/methods/mmdm.md)."""

import math
import random

import pytest
import torch
from scipy.special import lambertw
from torch import Tensor

from shared.methods.nets.mip import Gumbel, mip_loss, soft_maximum

TAUS = [1e-3, 1e-2, 0.05, 0.5]
LADDER = [0.0, 0.2, 0.4, 1.0]  # the case of docs/methods/mmdm.md: softmax gives the highest .4227


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """In [0, 1], other values at every run."""
    g = torch.Generator().manual_seed(random.SystemRandom().randrange(2**31))
    return torch.rand(shape, generator=g, dtype=dtype)


def apart(depth: int, *more: int) -> Tensor:
    """Slices 1 / depth apart in every pixel, in an order of its own."""
    return drawn(1, depth, *more).argsort(1).double() / depth


def soft_mip(x_BDHW: Tensor, *, tau: float) -> Tensor:
    return soft_maximum(x_BDHW, x_BDHW / tau)


def naive(x_BDHW: Tensor, logits_BDHW: Tensor) -> Tensor:
    """Every prefix's softmax by itself."""
    ends = range(1, x_BDHW.shape[1] + 1)
    return torch.stack([(logits_BDHW[:, :i].softmax(1) * x_BDHW[:, :i]).sum(1) for i in ends], 1)


def hard(x_BDHW: Tensor) -> Tensor:
    return x_BDHW.cummax(1).values


def hard_loss(made: Tensor, truth: Tensor) -> Tensor:
    """From the first slice and from the last, in a loop."""
    total = torch.zeros(len(made), dtype=made.dtype)
    depth = made.shape[1]
    for i in range(depth):
        for part in (slice(0, i + 1), slice(i, depth)):
            off = made[:, part].amax(1) - truth[:, part].amax(1)
            total += off.square().mean((1, 2)) / depth
    return total


def gap(depth: int, tau: float) -> float:
    """The most that a soft maximum of so many values can stay below the hard one: tau W((depth - 1) / e)."""
    return tau * float(lambertw((depth - 1) / math.e).real)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("depth", [1, 2, 7, 60])
def test_the_scan_is_the_definition_forwards_and_backwards(depth: int, tau: float) -> None:
    x, upstream = drawn(2, depth, 3, 4).requires_grad_(), drawn(2, depth, 3, 4) - 0.5
    scanned, written = soft_mip(x, tau=tau), naive(x, x / tau)
    assert (scanned - written).abs().max() < 4e-15
    (one,), (two,) = (torch.autograd.grad((y * upstream).sum(), x) for y in (scanned, written))
    assert (one - two).norm() < 2e-12 * two.norm()


def test_any_logits_are_the_definition_too() -> None:
    """Not only x / tau: the Gumbel form needs values and logits apart."""
    x, upstream = drawn(2, 30, 3, 4).requires_grad_(), drawn(2, 30, 3, 4) - 0.5
    logits = (40 * drawn(2, 30, 3, 4) - 20).requires_grad_()
    pairs = (torch.autograd.grad((f(x, logits) * upstream).sum(), (x, logits)) for f in (soft_maximum, naive))
    torch.testing.assert_close(soft_maximum(x, logits), naive(x, logits), rtol=0, atol=1e-14)
    for one, two in zip(*pairs, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-13)


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("depth", [1, 2, 9])
def test_gradcheck(depth: int, spread: float) -> None:
    x, logits = drawn(1, depth, 2, 2).requires_grad_(), (spread * drawn(1, depth, 2, 2)).requires_grad_()
    assert torch.autograd.gradcheck(soft_maximum, (x, logits))
    assert torch.autograd.gradcheck(lambda x: soft_mip(x, tau=0.1), (x,))


def test_a_gradient_may_be_asked_of_either_input_alone() -> None:
    x, logits = drawn(1, 5, 2, 2), drawn(1, 5, 2, 2)
    both = [v.clone().requires_grad_() for v in (x, logits)]
    on_x, on_logits = torch.autograd.grad(soft_maximum(*both).square().sum(), both)
    alone = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(soft_maximum(alone, logits).square().sum(), alone)[0], on_x)
    alone = logits.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(soft_maximum(x, alone).square().sum(), alone)[0], on_logits)


@pytest.mark.parametrize("depth", [2, 4, 64, 213])
def test_a_small_tau_is_cummax(depth: int) -> None:
    x = drawn(2, depth, 12, 12)
    for tau in (0.05, 1e-3, 1e-4):
        below = hard(x) - soft_mip(x, tau=tau)
        assert below.min() > -1e-14
        assert below.max() <= gap(depth, tau) + 1e-14, tau


def test_the_error_at_a_small_tau_is_of_the_stated_size() -> None:
    x = drawn(4, 64, 16, 16)
    at = {tau: (soft_mip(x, tau=tau) - hard(x)).square().mean().sqrt().item() for tau in (1e-3, 1e-4, 1e-5)}
    assert at[1e-3] < 1.6e-4
    assert at[1e-4] < 1.1e-5
    assert at[1e-5] < 1.1e-6
    assert at[1e-3] > 0


def test_the_hard_prefix_never_falls_but_the_soft_one_may() -> None:
    x = torch.tensor([1.0, 0.0, 0.0]).double().reshape(1, 3, 1, 1)
    assert (soft_mip(x, tau=0.5).diff(dim=1) < 0).all()
    assert (soft_mip(x, tau=1e-3).diff(dim=1) >= -1e-15).all()
    values = apart(40, 6, 6)
    assert (soft_mip(values, tau=1e-4).diff(dim=1) >= -1e-15).all()


@pytest.mark.parametrize("tau", TAUS)
def test_both_ways_end_in_the_same_full_projection(tau: float) -> None:
    x = drawn(2, 50, 5, 5)
    there, back = soft_mip(x, tau=tau)[:, -1], soft_mip(x.flip(1), tau=tau)[:, -1]
    torch.testing.assert_close(there, back, rtol=0, atol=1e-14)
    if tau == 1e-3:
        assert (there - x.amax(1)).abs().max() <= gap(50, tau)


@pytest.mark.parametrize("tau", TAUS)
def test_the_order_of_slices_matters_to_all_but_the_full_projection(tau: float) -> None:
    x = apart(20, 4, 4)
    there, mixed = (soft_mip(v, tau=tau)[:, -1] for v in (x, x[:, torch.randperm(20)]))
    torch.testing.assert_close(there, mixed, rtol=0, atol=1e-14)
    rising = x.sort(dim=1).values
    up, down = soft_mip(rising, tau=tau), soft_mip(rising.flip(1), tau=tau)
    torch.testing.assert_close(up[:, -1], down[:, -1], rtol=0, atol=1e-14)
    assert ((down - up)[:, :-1] > 0.01).all()


@pytest.mark.parametrize("tau", TAUS)
def test_one_slice_and_equal_slices_are_themselves(tau: float) -> None:
    one = drawn(2, 1, 4, 4)
    assert torch.equal(soft_mip(one, tau=tau), one)
    torch.testing.assert_close(soft_mip(one.expand(2, 30, 4, 4), tau=tau), one.expand(2, 30, 4, 4), rtol=0, atol=1e-15)


@pytest.mark.parametrize("tau", [*TAUS, 1e-5])
def test_equal_slices_share_the_gradient_equally(tau: float) -> None:
    x = drawn(1, 1, 3, 3).expand(1, 25, 3, 3).clone().requires_grad_()
    (g,) = torch.autograd.grad(soft_mip(x, tau=tau)[:, -1].sum(), x)
    torch.testing.assert_close(g, torch.full_like(g, 1 / 25), rtol=0, atol=1e-8)


def test_a_small_tau_hands_the_gradient_to_the_maximum() -> None:
    x = apart(30, 5, 5).requires_grad_()
    (g,) = torch.autograd.grad(soft_mip(x, tau=1e-4)[:, -1].sum(), x)
    wanted = torch.nn.functional.one_hot(x.argmax(1), 30).movedim(-1, 1).double()
    torch.testing.assert_close(g, wanted, rtol=0, atol=1e-9)
    (g,) = torch.autograd.grad(soft_mip(x, tau=1e-4).sum(), x)  # every prefix its own
    wanted = torch.nn.functional.one_hot(x.cummax(1).indices, 30).sum(1).movedim(-1, 1).double()
    torch.testing.assert_close(g, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("tau", TAUS)
def test_a_shift_of_all_slices_shifts_the_projection(tau: float) -> None:
    x = drawn(1, 20, 3, 3)
    torch.testing.assert_close(soft_mip(x + 3, tau=tau), soft_mip(x, tau=tau) + 3, rtol=0, atol=1e-12)


def test_fp32_is_accurate_at_a_small_tau() -> None:
    """The form by logcumsumexp of shifted values is off by 8e-5."""
    x = drawn(1, 213, 8, 8, dtype=torch.float32).requires_grad_()
    exact = x.detach().double().requires_grad_()
    fast, slow = soft_mip(x, tau=1e-3), naive(exact, exact / 1e-3)
    assert fast.dtype == torch.float32
    assert (fast - slow).abs().max() < 3e-6
    upstream = drawn(1, 213, 8, 8) - 0.5
    (one,) = torch.autograd.grad((fast * upstream.float()).sum(), x)
    (two,) = torch.autograd.grad((slow * upstream).sum(), exact)
    assert (one - two).norm() < 1e-3 * two.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [1e-3, 0.05])
def test_extreme_values_stay_finite_and_between_the_slices(tau: float, dtype: torch.dtype) -> None:
    signs = 2 * (drawn(1, 40, 4, 4) > 0.5) - 1
    rows = [
        1e4 * signs,
        torch.full((1, 40, 4, 4), 1e4),
        torch.full((1, 40, 4, 4), -1e4),
        torch.zeros(1, 40, 4, 4),
        1e4 * (2 * drawn(1, 40, 4, 4) - 1),
        -1e4 * torch.ones(1, 40, 4, 4).cumsum(1) / 40,
    ]
    x = torch.cat([row.to(dtype) for row in rows]).requires_grad_()
    y = soft_mip(x, tau=tau)
    (g,) = torch.autograd.grad(y.square().sum(), x)
    assert bool(y.isfinite().all())
    assert bool(g.isfinite().all())
    assert (y <= hard(x)).all()
    assert (y >= -hard(-x)).all()
    assert (hard(x) - y).max() <= gap(40, tau) + 2e-3  # a bit of 1e4 in fp32
    loss = mip_loss(x, x.flip(1), tau=tau)
    assert bool(loss.isfinite().all())


def test_the_loss_at_a_small_tau_is_that_of_hard_projections_both_ways() -> None:
    made, truth = drawn(3, 12, 5, 4), drawn(3, 12, 5, 4)
    wanted = hard_loss(made, truth)
    torch.testing.assert_close(mip_loss(made, truth, tau=1e-5).double(), wanted, rtol=1e-4, atol=0)
    torch.testing.assert_close(mip_loss(made.flip(1), truth.flip(1), tau=1e-5).double(), wanted, rtol=1e-4, atol=0)
    assert (mip_loss(truth, truth, tau=1e-5) < 1e-9).all()


@pytest.mark.parametrize("tau", TAUS)
def test_the_loss_is_its_definition_at_any_tau(tau: float) -> None:
    """Soft prefixes of what was made against hard ones of the truth; the gradient is of both ways together."""
    made, truth = drawn(2, 15, 4, 3).requires_grad_(), drawn(2, 15, 4, 3)
    ways = ((made, truth), (made.flip(1), truth.flip(1)))
    wanted = sum((naive(x, x / tau) - hard(y)).square().mean((1, 2, 3)) for x, y in ways)
    assert isinstance(wanted, Tensor)
    loss = mip_loss(made, truth, tau=tau)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-4, atol=1e-7)
    (one,), (two,) = (torch.autograd.grad(v.sum(), made) for v in (loss, wanted))
    assert (one - two).norm() < 1e-3 * two.norm()


def test_the_loss_counts_every_sample_by_itself() -> None:
    made, truth = drawn(3, 9, 4, 4, dtype=torch.float32).requires_grad_(), drawn(3, 9, 4, 4, dtype=torch.float32)
    whole = mip_loss(made, truth, tau=0.05)
    assert whole.shape == (3,)
    for i in range(3):
        torch.testing.assert_close(mip_loss(made[i : i + 1], truth[i : i + 1], tau=0.05)[0], whole[i])
    (g,) = torch.autograd.grad(whole[1], made)
    assert g[1].any()
    assert not g[0].any()
    assert not g[2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_touch_the_loss(dtype: torch.dtype) -> None:
    truth = drawn(2, 30, 4, 4).to(dtype)
    results = []
    for enabled in (False, True):
        made = torch.linspace(0, 1, 960).sin().reshape(2, 30, 4, 4).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = mip_loss(made, truth, tau=1e-3)
            (g,) = torch.autograd.grad(loss.sum(), made)
        assert loss.dtype == torch.float32
        results.append((loss, g))
    made = torch.linspace(0, 1, 960).sin().reshape(2, 30, 4, 4).to(dtype).float()
    assert torch.equal(results[0][0], mip_loss(made, truth.float(), tau=1e-3))
    for off, on in zip(*results, strict=True):
        assert torch.equal(off, on)


def full_projections(count: int, tau: float, gumbel: Gumbel) -> Tensor:
    """Sum of the picks of all prefixes, backwards, and of the whole ladder, forwards: 5 where the whole picks 1.

    Read off two losses with equal noise: (s - a)^2 - (s - 0)^2 with a the truth's hard prefixes, 0 0 0 1 and 1 1 1 1.
    """
    made = torch.tensor(LADDER).reshape(1, 4, 1, 1).expand(count, 4, 1, 1)
    seed = random.SystemRandom().randrange(2**31)
    one, zero = (
        mip_loss(made, truth, tau=tau, gumbel=gumbel, generator=torch.Generator().manual_seed(seed))
        for truth in (torch.tensor([0.0, 0, 0, 1]).reshape(1, 4, 1, 1).expand_as(made), torch.zeros_like(made))
    )
    return (5 - 4 * (one - zero)) / 2


@pytest.mark.parametrize("tau", [1e-3, 1e-5])
def test_literal_gumbel_picks_by_the_softmax_whatever_tau(tau: float) -> None:
    """So the highest of the ladder wins 42 % of the time only: why it is not the default."""
    count, rate = 60_000, torch.tensor(LADDER).softmax(0)[-1].item()
    assert abs(rate - 0.4227) < 5e-5
    picked = (full_projections(count, tau, "paper_literal") - 5).abs() < 0.1
    assert abs(picked.double().mean().item() - rate) < 5 * math.sqrt(rate * (1 - rate) / count)


def test_literal_gumbel_has_the_mean_of_the_softmax() -> None:
    """.553 on the whole ladder where the hard projection is 1; here of every prefix, squared, both ways."""
    count, x = 60_000, torch.tensor(LADDER)
    assert abs((x.softmax(0) * x).sum().item() - 0.553) < 1e-3
    made = x.reshape(1, 4, 1, 1).expand(count, 4, 1, 1)
    loss = mip_loss(made, torch.zeros_like(made), tau=1e-5, gumbel="paper_literal").double()
    ways = (x, x.flip(0))
    wanted = sum((v[: i + 1].softmax(0) * v[: i + 1].square()).sum().item() / 4 for v in ways for i in range(4))
    assert abs(loss.mean().item() - wanted) < 5 * loss.std().item() / math.sqrt(count)


def test_added_gumbel_fades_with_tau() -> None:
    count = 20_000
    made = torch.tensor(LADDER).reshape(1, 4, 1, 1).expand(count, 4, 1, 1)
    off = []
    for tau in (0.1, 1e-2, 1e-3):
        off.append(mip_loss(made, made, tau=tau, gumbel="added").mean().item())
    assert off[0] > 10 * off[1]
    assert off[2] < 1e-9
    picked = (full_projections(count, 1e-3, "added") - 5).abs() < 1e-4
    assert picked.all()


def test_added_gumbel_at_tau_1_picks_as_the_noise_is_distributed() -> None:
    """At tau = 1 both forms are the same; a logit of x + R has the mean weight E[softmax(x + R)]."""
    made, truth = drawn(2, 9, 3, 3), drawn(2, 9, 3, 3)
    seed = random.SystemRandom().randrange(2**31)
    kinds: tuple[Gumbel, ...] = ("added", "paper_literal")
    one, two = (
        mip_loss(made, truth, tau=1.0, gumbel=kind, generator=torch.Generator().manual_seed(seed)) for kind in kinds
    )
    torch.testing.assert_close(one, two)
    assert not torch.allclose(one, mip_loss(made, truth, tau=1.0))


@pytest.mark.parametrize("gumbel", ["added", "paper_literal"])
def test_noise_comes_from_the_generator_alone_and_passes_gradients(gumbel: Gumbel) -> None:
    made, truth = drawn(2, 9, 3, 3, dtype=torch.float32).requires_grad_(), drawn(2, 9, 3, 3, dtype=torch.float32)

    def loss(seed: int) -> Tensor:
        return mip_loss(made, truth, tau=0.05, gumbel=gumbel, generator=torch.Generator().manual_seed(seed))

    torch.manual_seed(0)
    one = loss(5)
    torch.manual_seed(1)
    assert torch.equal(one, loss(5))
    assert not torch.equal(one, loss(6))
    (g,) = torch.autograd.grad(one.sum(), made)
    assert bool(g.isfinite().all())
    assert g.any()


def test_no_noise_is_drawn_when_gumbel_is_off() -> None:
    made, g = drawn(1, 5, 3, 3), torch.Generator().manual_seed(3)
    before = g.get_state()
    mip_loss(made, made, tau=0.05, generator=g)
    assert torch.equal(g.get_state(), before)
