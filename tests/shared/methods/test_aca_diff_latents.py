"""ACADiff's latents: the coder, agreed constants, the untrained generator, what is remembered."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.model.aca import batch, method, net_of
from support.model.methods import awake
from torch import Tensor, nn

from shared.base.records import Batch
from shared.diffusion.gaussian import SCHEDULES
from shared.diffusion.samplers import Guess, Sampler, draw
from shared.methods import aca_diff
from shared.methods.aca_diff import AcaDiff
from shared.methods.nets.aca import AcaNet, ways_to_tell
from shared.methods.nets.autoencoder import Autoencoder, AutoencoderShape, cosines
from shared.methods.nets.volumetric import fold, unfold

pytestmark = pytest.mark.slow  # left out of `make fast`

# --- latents --------------------------------------------------------------------------------------------------------


def test_ten_samples_of_a_gaussian_latent_come_within_a_tenth_of_its_variance() -> None:
    """An analytic score in the network's place: the mean of 10 is off by sd / sqrt(10), that of 1 by sd."""
    schedule = SCHEDULES["cosine"](1000)
    g = torch.Generator().manual_seed(0)
    mu, sd = torch.randn(1, 8, 10, 10, 10, generator=g), 0.7

    def exact(x: Tensor, t: int) -> Guess:
        abar = schedule.abar_T[t].item()
        eps = math.sqrt(1 - abar) * (x - math.sqrt(abar) * mu) / (abar * sd**2 + 1 - abar)
        x0, _ = schedule.given(x, torch.full((len(x),), t), mu, sd)
        return Guess(x0, eps)

    sampler = Sampler(kind="ddim", steps=50, clip=False)
    samples = [draw(exact, schedule, torch.randn(mu.shape, generator=g), sampler, None) for _ in range(10)]
    one, ten = ((x - mu).square().mean().sqrt().item() for x in (samples[0], torch.stack(samples).mean(0)))
    assert one == pytest.approx(sd, rel=0.05)
    assert ten == pytest.approx(sd / math.sqrt(10), rel=0.05)


def test_the_papers_volume_comes_back_in_its_shape() -> None:
    """160 x 180 x 160 is filled up to 160 x 192 x 160, whose latent is 20 x 24 x 20, and cut back."""
    net = net_of(method())
    net.coder_multiple, net.multiple = 8, 32  # of the paper's size: three halvings, and two of the U-Net
    coder = Autoencoder(AutoencoderShape(channels=(4, 4, 4, 4), blocks=1, latent=4))
    volume = torch.rand(1, 1, 160, 180, 160) * 2 - 1
    padded = net.padded(volume)
    assert padded.shape[2:] == (160, 192, 160)
    assert net.latent_shape(padded) == (4, 20, 24, 20)
    assert torch.equal(net.cropped(padded, volume.shape[2:]), volume)
    with torch.no_grad():
        z = coder.encode(padded)
        again = net.cropped(coder.decode(z), volume.shape[2:])
    assert z.shape[1:] == (4, 20, 24, 20)
    assert again.shape == volume.shape
    size = aca_diff.SIZES["paper"]
    assert (size[0].multiple, size[0].multiple * size[1].multiple) == (8, 32)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 21)] * 3))
def test_any_shape_is_filled_up_and_cut_back(shape: tuple[int, int, int]) -> None:
    net = net_of(method()) if not hasattr(test_any_shape_is_filled_up_and_cut_back, "net") else None
    net = net or test_any_shape_is_filled_up_and_cut_back.net  # type: ignore[attr-defined]
    test_any_shape_is_filled_up_and_cut_back.net = net  # type: ignore[attr-defined]
    x = torch.rand(1, 1, *shape)
    padded = net.padded(x)
    assert all(n % net.multiple == 0 and n - m < net.multiple for n, m in zip(padded.shape[2:], shape, strict=True))
    assert torch.equal(net.cropped(padded, shape), x)
    assert padded.sum() == pytest.approx(x.sum().item(), rel=1e-4)


def test_folding_is_undone() -> None:
    x = torch.rand(2, 3, 4, 6, 8)
    assert fold(x, 2).shape == (2, 24, 2, 3, 4)
    assert torch.equal(unfold(fold(x, 2), 2), x)


@pytest.mark.parametrize(("edge", "count"), [(2, 4), (3, 27), (4, 16), (8, 8)])
def test_before_training_the_coder_is_a_projection_onto_the_lowest_frequencies(edge: int, count: int) -> None:
    basis = cosines(edge, count).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(count), atol=1e-6, rtol=0)
    assert torch.allclose(basis[0], basis[0].mean().expand(edge**3))
    coder = (
        Autoencoder(AutoencoderShape(channels=(4,) * int(math.log2(edge)), blocks=1, latent=count, patch=2))
        if edge in (2, 4, 8)
        else None
    )
    if coder is not None:
        x = torch.rand(2, 1, 2 * edge, edge, 3 * edge)
        with torch.no_grad():
            once = coder.decode(coder.encode(x))
            torch.testing.assert_close(coder.decode(coder.encode(once)), once, atol=1e-5, rtol=0)
        assert (once - x).square().mean() < x.var()


@pytest.mark.parametrize("anchor", ["half", "mean", "linear"])
def test_agreed_latents_have_mean_0_and_spread_1_over_all_subjects(anchor: str) -> None:
    made = method(anchor=anchor)
    net = net_of(made)
    whole = batch([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0]], seed=5)
    made.settle(net, "standardise", made.sums(net, whole, "standardise"))
    given = net.anchor.left_out(whole.images_BMHW, whole.exists_BM).differences_BMDHW
    z = net.latents(given, whole.exists_BM, "fp32", net.seen)
    for m in range(3):
        held = z[whole.exists_BM[:, m], m].double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(held.mean(1), torch.zeros(4, dtype=torch.float64), atol=1e-4, rtol=0)
        torch.testing.assert_close(held.std(1, unbiased=False), torch.ones(4, dtype=torch.float64), atol=1e-3, rtol=0)
    assert not z[~whole.exists_BM].any()
    torch.testing.assert_close(net.seen.off(z[:1, 0], 0), net.raw_latents(given, whole.exists_BM, "fp32")[:1, 0])


def agreed(made: AcaDiff, whole: Batch) -> AcaNet:
    net = net_of(made)
    for phase in ("template", "relate", "standardise"):
        made.settle(net, phase, made.sums(net, whole, phase))
    return net


def alike(subjects: int, seed: int) -> Batch:
    """FDG and AV45 follow T1, loosely: what is made is a fraction of what is seen."""
    whole = batch([[1, 1, 1]] * subjects, seed=seed)
    for m in (1, 2):
        whole.images_BMHW[:, m] = 0.2 + 0.5 * whole.images_BMHW[:, 0] + 0.1 * whole.images_BMHW[:, m]
    return whole


def test_a_generator_works_on_latents_of_spread_1_and_its_coder_has_learnt_their_kind() -> None:
    made = method(cube=2, drop=0.0)
    whole = alike(12, seed=7)
    net = agreed(made, whole)
    left = net.anchor.left_out(whole.images_BMHW, whole.exists_BM)
    for k in range(3):
        every = [net.untold(left, k, shown) for shown in ways_to_tell(k, whole.exists_BM)]
        held = whole.exists_BM
        z = torch.cat([net.latents(volumes, held, "fp32", net.made)[:, k] for volumes in every]).transpose(0, 1)
        torch.testing.assert_close(z.flatten(1).std(1), torch.ones(4), atol=0.01, rtol=0)
        torch.testing.assert_close(z.flatten(1).mean(1), torch.zeros(4), atol=0.01, rtol=0)
    seen: list[Tensor] = []
    net.coder("FDG").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for seed in range(8):
        made.loss(net, whole, "autoencode", torch.Generator().manual_seed(seed))
    spreads = torch.cat(seen).flatten(1).std(1)
    told, what_is_left = (
        net.padded(volumes[:, 1:2]).flatten(1).std(1)
        for volumes in (left.differences_BMDHW, net.untold(left, 1, whole.exists_BM))
    )
    assert what_is_left.max() < 0.6 * told.min()
    share = (spreads < 0.8 * told.min()).float().mean().item()
    assert 0.3 < share < 0.7, "half of what a coder is taught is what is made"


def test_what_training_kept_of_its_subjects_is_wiped_and_what_is_made_stays() -> None:
    made, whole = method(cube=2), alike(12, seed=8)
    net = agreed(made, whole)
    shown = torch.tensor([[True, False, False]])

    def of_new() -> Tensor:
        images = alike(1, seed=99).images_BMHW
        return made.synthesize(net, images, shown, Sampler(kind="mean"), torch.Generator().manual_seed(0))

    before = of_new()
    net.forget()
    assert torch.equal(of_new(), before)
    for sums in (net.anchor.subjects_MDHW, net.anchor.products_PDHW, net.anchor.voxels_PDHW):
        assert not sums.any()


def test_the_template_is_the_mean_over_the_brains_and_an_untrained_generator_gives_it_back() -> None:
    made = method(anchor="mean")
    net = made.build(0)
    whole = batch([[1, 1, 1], [1, 0, 1], [0, 1, 1]], seed=6)
    whole.images_BMHW[..., :2] = 0  # outside every brain
    whole.images_BMHW[~whole.exists_BM] = math.nan
    made.settle(net, "template", made.sums(net, whole, "template"))
    for m in range(3):
        held = whole.images_BMHW[whole.exists_BM[:, m], m][..., 2:]
        usual = held.mean()
        torch.testing.assert_close(net.anchor.mean_MDHW[m, ..., 2:], (held.sum(0) + usual) / (len(held) + 1))
    shown = torch.tensor([[True, False, False]])
    out = made.synthesize(net, whole.images_BMHW[:1], shown, Sampler(kind="mean"), torch.Generator().manual_seed(0))
    brain = whole.images_BMHW[0, 0] > 0
    torch.testing.assert_close(out[0, 1][brain], net.anchor.mean_MDHW[1][brain])
    assert not out[0, 1][~brain].any()


def test_an_untrained_generator_gives_the_regression_back_and_what_it_learns_is_the_rest() -> None:
    made = method(cube=2, drop=0.0)
    net = made.build(0)
    whole = batch([[1, 1, 1]] * 12, seed=7)
    whole.images_BMHW[:, 1] = 0.2 + 0.6 * whole.images_BMHW[:, 0]  # what T1 says of FDG
    for phase in ("template", "relate"):
        made.settle(net, phase, made.sums(net, whole, phase))
    shown = torch.tensor([[True, False, False]])
    out = made.synthesize(net, whole.images_BMHW[:1], shown, Sampler(kind="mean"), torch.Generator().manual_seed(0))
    told, _ = net.anchor.differences(whole.images_BMHW[:1], torch.tensor([[True, True, True]]))
    wanted = net.anchor.mean_MDHW[1] + net.anchor.expected(1, told, shown)[0] / 2
    torch.testing.assert_close(out[0, 1], wanted.clamp(0, 1))
    mean, regression = ((x - whole.images_BMHW[0, 1]).square().mean() for x in (net.anchor.mean_MDHW[1], out[0, 1]))
    assert regression < 0.1 * mean
    spread = net.latents(told, torch.tensor([[True, True, True]]), "fp32", net.seen)[0, 1].std()
    seen: list[Tensor] = []
    net.generator("FDG").register_forward_hook(lambda module, args, out: seen.append(args[0]))
    schedule = SCHEDULES["cosine"](1000)
    assert schedule.abar_T[0] > 0.999
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            aca_diff.torch, "randint", lambda *args, device=None, **_: torch.zeros(args[-1], dtype=torch.long)
        )
        made.loss(net, whole, "generate_FDG", torch.Generator().manual_seed(0))
    assert seen[0].std() < 0.4 * spread  # with hardly any noise: the latent of what T1 does not say


def test_latents_are_remembered_by_content_and_forgotten_with_the_weights() -> None:
    coder = awake(Autoencoder(AutoencoderShape(channels=(4, 4), blocks=1, latent=4)))
    assert isinstance(coder, Autoencoder)
    x = torch.rand(2, 1, 4, 4, 4)
    asked = 0

    def counted(module: nn.Module, args: object, out: object) -> None:
        nonlocal asked
        asked += 1

    coder.coder.encoder.register_forward_hook(counted)
    first = coder.remembered(x)
    assert torch.equal(coder.remembered(x.clone()), first)
    assert asked == 2
    coder.load_state_dict(coder.state_dict())  # the same weights again, as in every round
    assert torch.equal(coder.remembered(x), first)
    assert asked == 2
    with torch.no_grad():
        next(coder.parameters()).mul_(1.5)
    assert not torch.equal(coder.remembered(x), first)
    assert asked == 4
