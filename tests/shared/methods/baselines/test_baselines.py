"""The baselines of MMDM: BBDM, conditional DDPM, pix2pix; what each of them is, beside the laws of every method."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.base.options import build
from shared.base.records import Batch
from shared.base.vocabulary import source
from shared.diffusion.bridge import bridge
from shared.diffusion.samplers import Sampler
from shared.methods import METHODS, Method
from shared.methods.angiography import seen
from shared.methods.baselines.bbdm import BbdmNet
from shared.methods.baselines.ddpm import Ddpm, DdpmNet
from shared.methods.baselines.pix2pix import SIZES, Generator, Pix2pix, Pix2pixNet
from shared.model.denoiser import export_denoiser
from shared.model.model import read_model
from tests.support.model.models import release

pytestmark = pytest.mark.slow  # left out of `make fast`

MODALITIES = ("T1", "T2", "FLAIR", "TOF")
S, N, SIDE = 3, 3, 16
BASELINES = ("bbdm", "ddpm", "pix2pix")


def make(name: str, **options: Any) -> tuple[Any, Any]:
    """A tiny one without a zero in it, which would hide what it multiplies."""
    values = {"modalities": list(MODALITIES), "size": "tiny", "slab": N, "precision": "fp32", **options}
    method: Method = build(METHODS[name], values, "method")
    net, g = method.build(0), seeded(0)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return method, net


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(*exists: tuple[int, ...]) -> Batch:
    exists_BM = torch.tensor(exists).bool()
    images = torch.rand(len(exists), len(MODALITIES), N, SIDE, SIDE, generator=seeded(9))
    images[~exists_BM] = float("nan")
    return Batch(images_BMHW=images, exists_BM=exists_BM, shown_BM=exists_BM, subject_B=torch.arange(len(exists)))


def with_images(batch: Batch, images: Tensor) -> Batch:
    return Batch(images_BMHW=images, exists_BM=batch.exists_BM, shown_BM=batch.shown_BM, subject_B=batch.subject_B)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm", "pix2pix", "bbdm"])
def test_what_a_hidden_source_holds_changes_no_bit_of_loss_and_gradient(name: str) -> None:
    method, net = make(name, drop=1.0)
    batch = batch_of(*[(1, 1, 1, 1)] * 6)
    shown_BS = method.lesson(batch, 1, seeded(4)).shown_BS  # the loss draws this first
    assert not shown_BS.all()
    results = []
    for garbage in (0.5, 0.9, float("nan")):
        images = batch.images_BMHW.clone()
        images[:, :3][~shown_BS] = garbage
        net.zero_grad(set_to_none=True)
        loss_B = method.loss(net, with_images(batch, images), method.phases[0].name, seeded(4)).loss_B
        loss_B.sum().backward()
        results.append([loss_B.detach(), *gradients(net).values()])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", BASELINES)
def test_a_subject_lacks_the_target_or_all_sources(name: str) -> None:
    method, net = make(name)
    assert "TOF" in method.lacks({"T1", "T2"}, method.phases[0].name)
    assert "T1, T2, FLAIR" in method.lacks({"TOF"}, method.phases[0].name)
    assert method.lacks({"TOF", "FLAIR"}, method.phases[0].name) is None
    losses = method.loss(net, batch_of((1, 1, 1, 0), (0, 0, 0, 1)), method.phases[0].name, seeded(0))
    assert not losses.loss_B.any()
    assert not any(gave_B.any() for gave_B in losses.gave.values())


@pytest.mark.parametrize("name", BASELINES)
def test_shown_sources_come_back_as_they_are_and_hidden_ones_are_not_made(name: str) -> None:
    method, net = make(name)
    images, shown = batch_of((1, 1, 1, 1)).images_BMHW, torch.tensor([[True, False, True, False]])
    out = method.synthesize(net, images, shown, Sampler(), seeded(1))
    assert torch.equal(out[:, [0, 2]], images[:, [0, 2]])
    assert not out[:, 1].any()
    assert out[:, 3].any()


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_exported_agrees_with_the_network(name: str, tmp_path: Path) -> None:
    options = {"modalities": ["T1", "TOF"], "size": "tiny", "slab": N, "precision": "fp32"}
    model = read_model(release(tmp_path / "final", name, options))
    said = export_denoiser(model, tmp_path)  # compares with eager, at two batch sizes
    assert ["batch", 1, N, SIDE, SIDE] in [entry["shape"] for entry in said["inputs"]]


@pytest.mark.parametrize(("name", "fits"), [("bbdm", "bridge, mean"), ("ddpm", "ddim"), ("pix2pix", "mean")])
def test_samplers_that_do_not_fit_are_refused_with_those_that_do(name: str, fits: str) -> None:
    method, net = make(name)
    with pytest.raises(ConfigError, match=f"sampler=mps: .*{fits}"):
        method.synthesize(
            net, batch_of((1, 1, 1, 1)).images_BMHW, torch.ones(1, 4).bool(), Sampler(kind="mps", steps=2), seeded(1)
        )


# --- BBDM ------------------------------------------------------------------------------------------------------------


def test_the_start_from_one_source_is_that_source_and_from_more_lies_between_them() -> None:
    method, net = make("bbdm")
    assert isinstance(net, BbdmNet)
    x = torch.randn(1, S, N, SIDE, SIDE, generator=seeded(1))
    assert torch.equal(net.start(x, torch.tensor([[False, True, False]])), x[:, 1])
    y = net.start(x, torch.tensor([[True, True, False]]))
    assert bool((y >= x[:, :2].amin(1) - 1e-6).all())
    assert bool((y <= x[:, :2].amax(1) + 1e-6).all())
    fresh = method.build(0).start(x, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(fresh, x[:, :2].mean(1))  # no opinion yet


def test_the_objective_is_the_bridges_and_gives_x0_back() -> None:
    """A network that knows the answer has no loss, and its samples are the truth from every step."""
    over = bridge(1000)
    x0, y, eps = (torch.randn(4, N, SIDE, SIDE, generator=seeded(i)).double() for i in range(3))
    t_B = torch.tensor([0, 300, 700, 999])
    x_t = over.noised(x0, y, t_B, eps)
    m, delta = (table[t_B][:, None, None, None] for table in (over.m_T, over.delta_T))
    objective = m * (y - x0) + delta.sqrt() * eps
    torch.testing.assert_close(x_t - objective, x0)

    method, _ = make("bbdm", drop=0.0)
    batch = batch_of((1, 1, 1, 1))
    truth = 2 * batch.images_BMHW[:, 3] - 1

    class Knows(BbdmNet):
        def objective(self, x_BNHW: Tensor, y_BNHW: Tensor, t_B: Tensor) -> Tensor:
            return x_BNHW - truth

    knows = Knows(method)
    loss_B = method.loss(knows, batch, "bridge", seeded(0)).loss_B
    torch.testing.assert_close(loss_B, torch.zeros(1))
    shown = torch.tensor([[True, True, False, False]])
    for sampler in (Sampler(kind="bridge", steps=7, eta=1.0), Sampler(kind="mean")):
        out = method.synthesize(knows, batch.images_BMHW, shown, sampler, seeded(1))
        torch.testing.assert_close(out[:, 3], batch.images_BMHW[:, 3])


def test_a_gate_is_not_taught_by_its_source_alone() -> None:
    method, net = make("bbdm", drop=0.0)
    for exists, taught in (((0, 1, 0, 1), []), ((1, 1, 0, 1), [0, 1])):
        net.zero_grad(set_to_none=True)
        method.loss(net, batch_of(exists), "bridge", seeded(1)).loss_B.sum().backward()
        rows = net.gate.weight.grad.reshape(S, -1).any(1)
        assert rows.nonzero().flatten().tolist() == taught


# --- DDPM ------------------------------------------------------------------------------------------------------------


def test_the_denoiser_does_not_look_at_absent_sources_and_hears_of_their_absence() -> None:
    _, net = make("ddpm")
    x_t, x = torch.randn(1, N, SIDE, SIDE, generator=seeded(1)), torch.zeros(1, S, N, SIDE, SIDE)
    shown, t_B = torch.tensor([[True, False, True]]), torch.tensor([500])
    poisoned = x.clone()
    poisoned[:, 1] = float("nan")
    assert torch.equal(net(x_t, x, shown, t_B), net(x_t, poisoned, shown, t_B))
    assert not torch.equal(net(x_t, x, shown, t_B), net(x_t, x, torch.ones(1, S).bool(), t_B))


@pytest.mark.parametrize("parameterisation", ["eps", "v"])
def test_a_denoiser_that_knows_the_answer_has_no_loss_and_draws_the_truth(parameterisation: str) -> None:
    method, _ = make("ddpm", drop=0.0, parameterisation=parameterisation)
    assert isinstance(method, Ddpm)
    batch, over = batch_of((1, 1, 1, 1)), method._schedule
    truth = 2 * batch.images_BMHW[:, 3] - 1

    class Knows(DdpmNet):
        def forward(self, x_BNHW: Tensor, x_BSNHW: Tensor, shown_BS: Tensor, t_B: Tensor) -> Tensor:
            x_t = x_BNHW if parameterisation == "eps" else x_BNHW / over.scales(t_B, x_BNHW)[0]  # of v: alpha x_t
            eps = over.eps_from_x0(x_t, t_B, truth)
            return eps if parameterisation == "eps" else over.v_of(t_B, truth, eps)

    knows = Knows(method)
    loss_B = method.loss(knows, batch, "diffusion", seeded(0)).loss_B
    torch.testing.assert_close(loss_B, torch.zeros(1), atol=1e-4, rtol=0)
    shown = torch.tensor([[True, True, False, False]])
    for kind in ("ddim", "ancestral", "multistep"):
        sampler = build(Sampler, {"kind": kind, "steps": 5}, "sampler")
        out = method.synthesize(knows, batch.images_BMHW, shown, sampler, seeded(1))
        torch.testing.assert_close(out[:, 3], batch.images_BMHW[:, 3], atol=1e-3, rtol=0)


# --- pix2pix ---------------------------------------------------------------------------------------------------------


def pieces(net: Pix2pixNet) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, x0 = torch.randn(2, S, N, SIDE, SIDE, generator=seeded(1)), torch.randn(2, N, SIDE, SIDE, generator=seeded(2))
    shown = torch.ones(2, S).bool()
    return x, shown, x0, net.generator(seen(x, shown), 0.5, seeded(3))


def test_generator_and_critic_are_taught_apart() -> None:
    method, net = make("pix2pix")
    for part, taught in (("generators", "generator."), ("critics", "critic.")):
        net.zero_grad(set_to_none=True)
        getattr(method, part)(net, *pieces(net)).sum().backward()
        grads = gradients(net)
        assert {name for name in grads if grads[name].any()} == {
            name for name, _ in net.named_parameters() if name.startswith(taught)
        }


def test_the_loss_is_both_parts_and_each_has_its_optimum() -> None:
    method, net = make("pix2pix", drop=0.0, dropout=0.0)
    batch = batch_of((1, 1, 1, 1))
    x, shown, x0 = method.lesson(batch, 1, seeded(0))
    made = net(x, shown)
    both = method.generators(net, x, shown, x0, made) + method.critics(net, x, shown, x0, made)
    torch.testing.assert_close(method.loss(net, batch, "adversarial", seeded(0)).loss_B, both)

    for opinion, fooled, fair in ((1.0, 0.0, 0.5), (0.0, 1.0, 0.5), (0.5, 0.25, 0.25)):
        with torch.no_grad():
            for p in net.critic.parameters():
                p.zero_()
            net.critic.convs[-1].bias.fill_(opinion)
        torch.testing.assert_close(method.generators(net, x, shown, x0, x0), torch.tensor([fooled]))
        torch.testing.assert_close(method.critics(net, x, shown, x0, x0), torch.tensor([fair]))


def test_dropout_comes_from_the_losss_generator_and_is_off_in_synthesis() -> None:
    method, net = make("pix2pix", drop=0.0)
    inputs = torch.randn(2, S * (N + 1), SIDE, SIDE, generator=seeded(1))
    one, same, other = (net.generator(inputs, 0.5, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    before = torch.get_rng_state()
    batch = batch_of((1, 1, 1, 1))
    method.loss(net, batch, "adversarial", seeded(1))
    outs = [
        method.synthesize(net.train(training), batch.images_BMHW, torch.ones(1, 4).bool(), Sampler(), seeded(seed))
        for training, seed in ((True, 1), (False, 2))
    ]
    assert torch.equal(*outs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("size", "height", "width"), [("tiny", 64, 56), ("small", 96, 80), ("paper", 320, 288)])
def test_every_sizes_grid_halves_evenly_down_to_the_bottom(size: str, height: int, width: int) -> None:
    multiple = 2 ** SIZES[size].downs
    assert (height % multiple, width % multiple) == (0, 0)
    with torch.device("meta"):
        net = Pix2pix(modalities=MODALITIES, size=size).build(0)  # type: ignore[arg-type]
    out = net(torch.zeros(1, S, 5, height, width, device="meta"), torch.ones(1, S, device="meta").bool())
    assert out.shape == (1, 5, height, width)


def test_a_bottom_of_one_pixel_is_fine() -> None:
    side = 2 ** SIZES["tiny"].downs
    net = Generator(2, 1, SIZES["tiny"])
    assert net(torch.randn(1, 2, side, side)).isfinite().all()


def test_critic_and_generator_see_whose_input_is_whose() -> None:
    method, net = make("pix2pix", drop=0.0)
    net.zero_grad(set_to_none=True)
    losses = method.loss(net, batch_of((1, 0, 1, 1)), "adversarial", seeded(1))
    assert not losses.gave[source("T2")].any()
    losses.loss_B.sum().backward()
    T2 = [*range(N, 2 * N), S * N + 1]  # its slices and its map
    for first in (net.generator.down[0], net.critic.convs[0]):
        assert not first.weight.grad[:, T2].any()
        rest = [c for c in range(first.in_channels) if c not in T2]
        assert first.weight.grad[:, rest].flatten(2).any(2).any(0).all()
