"""What is AMM-Diff's own (docs/methods/amm_diff.md)."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from shared.base.errors import ConfigError
from shared.base.records import Batch, Cut
from shared.base.vocabulary import SHARED, source, target
from shared.diffusion.samplers import SAMPLERS, Sampler
from shared.methods.amm_diff import AmmDiff, AmmDiffNet, Condition
from shared.methods.anchors.mixture import Mixture
from shared.methods.nets.iffn import IFFN

pytestmark = pytest.mark.slow  # left out of `make fast`

MODALITIES = ("T1", "T1CE", "T2", "FLAIR")
VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {"anchor": "mixture", "components": 4, "iterations": 2, "noisiest": 0.5},
    "around the ridge": {"anchor": "ridge", "noisiest": 0.5},
    "paper": {"parameterisation": "eps"},
    "eps beside the anchor": {"anchor": "ridge", "parameterisation": "eps"},
    "plain encoder": {"encoder": "unet", "pretext": False},
    "cosine": {"outside": 0.1, "schedule": "cosine"},
    "recomputing": {"checkpoint": True},
}


def make(**options: Any) -> AmmDiff:
    return AmmDiff(modalities=MODALITIES, size="tiny", **options)


def batch_of(exists: list[list[int]], seed: int = 0, side: int = 16) -> Batch:
    exists_BM = torch.tensor(exists).bool()
    g = torch.Generator().manual_seed(seed)
    images = 0.05 + 0.9 * torch.rand(len(exists), len(MODALITIES), side, side, generator=g)
    images[:, :, :2] = 0
    images[~exists_BM] = float("nan")
    return Batch(images_BMHW=images, exists_BM=exists_BM, shown_BM=exists_BM, subject_B=torch.arange(len(exists)))


def awake(net: AmmDiffNet) -> AmmDiffNet:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return net


def prepared(method: AmmDiff) -> AmmDiffNet:
    net = awake(method.build(0))
    for phase in method.phases:
        for _ in range(phase.rounds if phase.kind == "sums" else 0):
            method.settle(net, phase.name, method.sums(net, batch_of([[1] * 4] * 4, seed=9), phase.name))
    return net


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_zero_gradients_are_exact_in_every_variant(options: dict[str, Any]) -> None:
    method = make(**options)
    net = prepared(method)
    for phase in method.phases:
        if phase.kind == "sums":
            continue
        owners = method.owners(net, phase.name)
        for seed in range(3):
            net.zero_grad(set_to_none=True)
            for name, p in net.named_parameters():
                p.requires_grad_(name in owners)
            losses = method.loss(net, batch_of([[1, 0, 1, 1]], seed), phase.name, torch.Generator().manual_seed(seed))
            losses.loss_B.sum().backward()
            gave = {who for who, gave_B in losses.gave.items() if bool(gave_B)}
            assert SHARED in gave
            assert not {source("T1CE"), target("T1CE")} & gave
            for name, p in net.named_parameters():
                owner = owners.get(name)
                if isinstance(owner, Cut):
                    assert p.grad is not None
                    for i, who in enumerate(owner.owners):
                        assert bool(p.grad.select(owner.dim, i).any()) == (who in gave), (phase.name, name, who)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_sampler_gives_finite_images_in_every_variant(kind: str, options: dict[str, Any]) -> None:
    method = make(**options)
    if kind not in method.samplers:  # with eps there is no `mean`: test_mean.py
        return
    net = prepared(method).eval()
    batch = batch_of([[1, 0, 1, 1], [0, 0, 0, 1]])
    sampler = Sampler(kind=kind, steps=1 if kind == "mean" else 3)  # type: ignore[arg-type]
    outs = [
        method.synthesize(net, batch.images_BMHW, batch.shown_BM, sampler, torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert bool(outs[0].isfinite().all())
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2]) == (kind == "mean")  # the conditional mean needs no noise


def test_phases_follow_the_options() -> None:
    for anchor, rounds in (("ridge", 1), ("mixture", 8)):
        phases = make(anchor=anchor, iterations=7).phases
        assert [p.name for p in phases] == ["anchor", "pretext", "translate"]
        assert phases[0].rounds == rounds
    assert [p.name for p in make(pretext=False).phases] == ["translate"]
    assert make().phases[0].collapse == ("feature_std", 0.1)


def test_pretext_leaves_the_translator_frozen_and_translate_the_predictor() -> None:
    method = make()
    net = method.build(0)
    assert {name.split(".")[0] for name in method.owners(net, "pretext")} == {"encoder", "predictor"}
    assert {name.split(".")[0] for name in method.owners(net, "translate")} == {"encoder", "unet"}


def test_reconstructing_all_gives_gradient_to_shown_rows_too() -> None:
    method = make()
    net = prepared(method)
    method.loss(
        net, batch_of([[1, 1, 1, 1]] * 3), "translate", torch.Generator().manual_seed(0)
    ).loss_B.sum().backward()
    assert net.unet.out.weight.grad is not None
    assert bool(net.unet.out.weight.grad.flatten(1).any(1).all())


def test_permuting_the_modalities_with_the_weights_permutes_the_output() -> None:
    order = [2, 0, 3, 1]
    method, moved = (
        make(anchor="ridge"),
        AmmDiff(modalities=tuple(MODALITIES[i] for i in order), size="tiny", anchor="ridge"),
    )
    net = prepared(method).eval()
    other = moved.build(0).eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    area, levels, C = net.unet.shape.patch**2, net.encoder.shape.levels, net.map_channels
    maps = torch.tensor(order)

    def spread(index: torch.Tensor, n: int) -> torch.Tensor:
        return (index[:, None] * n + torch.arange(n)).flatten()

    stem = torch.cat([spread(torch.cat([maps, 4 + maps, 8 + maps]), area), 12 * area + torch.arange(C)])
    rows = spread(maps, area)
    eyes = torch.cat([maps, 4 + spread(maps, levels), 4 + 4 * levels + maps])
    state["encoder.spatial_stem.weight"] = state["encoder.spatial_stem.weight"][:, eyes]
    state["encoder.spectral_stem.weight"] = state["encoder.spectral_stem.weight"][:, order]
    state["unet.stem.weight"] = state["unet.stem.weight"][:, stem]
    state["unet.out.weight"], state["unet.out.bias"] = state["unet.out.weight"][rows], state["unet.out.bias"][rows]
    other.load_state_dict(state)
    batch = batch_of([[1] * 4] * 4, seed=9)
    moved_batch = Batch(
        images_BMHW=batch.images_BMHW[:, order],
        exists_BM=batch.exists_BM,
        shown_BM=batch.shown_BM,
        subject_B=batch.subject_B,
    )
    moved.settle(other, "anchor", moved.sums(other, moved_batch, "anchor"))
    shown = torch.tensor([[True, False, True, False]])
    one = method.synthesize(net, batch.images_BMHW[:1], shown, Sampler(), torch.Generator())
    two = moved.synthesize(other, moved_batch.images_BMHW[:1], shown[:, order], Sampler(), torch.Generator())
    assert (one[:, order] - two).abs().max() < 2e-2  # sums in another order, in bf16


class Constant(IFFN):
    """The collapsed encoder: one map for everything."""

    def forward(self, images_BMHW: torch.Tensor, spectral_BMHW: torch.Tensor, shown_BM: torch.Tensor) -> torch.Tensor:
        return super().forward(images_BMHW, spectral_BMHW, shown_BM) * 0 + 1


def test_a_constant_encoder_is_the_best_of_the_pretext_and_the_monitor_sees_it() -> None:
    method = make()
    net = method.build(0)
    batch = batch_of([[1, 1, 1, 1]] * 3)
    healthy = method.loss(net, batch, "pretext", torch.Generator().manual_seed(0))
    net.encoder.__class__ = Constant
    assert net.predictor is not None
    nn.init.zeros_(net.predictor.second.weight)
    nn.init.ones_(net.predictor.second.bias)
    collapsed = method.loss(net, batch, "pretext", torch.Generator().manual_seed(0))
    assert collapsed.loss_B.abs().max() < 1e-6
    assert healthy.loss_B.min() > 0.05
    watched, fraction = method.phases[0].collapse or ("", 0.0)
    assert collapsed.watch[watched] < fraction * healthy.watch[watched]


@pytest.mark.parametrize("anchor", ["ridge", "mixture"])
def test_with_a_silent_network_the_mean_is_the_anchor(anchor: str) -> None:
    """Training starts at the anchor, not below it."""
    method = make(anchor=anchor, components=3, precision="fp32")
    net = method.build(0)
    batch = batch_of([[1, 1, 1, 1]] * 4)
    for _ in range(4):
        method.settle(net, "anchor", method.sums(net, batch, "anchor"))
    shown = torch.tensor([[True, True, False, False]]).expand(4, -1)
    assert net.anchor is not None
    out = method.synthesize(net, batch.images_BMHW, shown, Sampler(), torch.Generator())
    torch.testing.assert_close(out, net.anchor(batch.images_BMHW, shown), rtol=0, atol=1e-4)


def test_with_a_silent_network_samples_spread_as_the_mixture_tells() -> None:
    """Pixel by pixel: what the mixture is less sure of differs more from sample to sample."""
    method = make(anchor="mixture", components=3, precision="fp32")
    net = method.build(0)
    full = batch_of([[1, 1, 1, 1]] * 4)
    images = torch.where(full.images_BMHW > 0, 0.4 + 0.2 * full.images_BMHW, 0.0)  # far from 0 and 1: nothing is cut
    batch = dataclasses.replace(full, images_BMHW=images)
    for _ in range(4):
        method.settle(net, "anchor", method.sums(net, batch, "anchor"))
    shown = torch.tensor([[True, True, False, False]]).expand(4, -1)
    assert isinstance(net.anchor, Mixture)
    told = net.anchor.tell(batch.images_BMHW, shown)
    sampler = Sampler(kind="multistep", steps=20, clip=False)
    made = torch.stack(
        [method.synthesize(net, batch.images_BMHW, shown, sampler, torch.Generator().manual_seed(k)) for k in range(60)]
    )
    inside = (told.sd_BMHW > 0.03) & (told.mean_BMHW > 0.35)
    assert inside.sum() > 100
    ratio = (made.std(0) / told.sd_BMHW)[inside]
    assert ratio.median() == pytest.approx(1, abs=0.08)
    assert (ratio - 1).abs().quantile(0.9) < 0.25


def test_a_perfect_network_is_without_loss_and_gives_the_truth_back() -> None:
    """The target of the loss and the reading of the output are the same thing, in every variant."""
    for options in VARIANTS.values():
        method = make(**{**options, "precision": "fp32"})
        g = torch.Generator().manual_seed(0)
        x0, eps, anchor, wide = torch.randn(4, 5, 4, 8, 8, generator=g, dtype=torch.float64)
        t_B = torch.tensor([0, 10, 300, 700, 950])
        x_t = method._schedule.noised(x0, t_B, eps)
        plain, told = Condition(map=x0), Condition(map=x0, anchor=anchor, error=0.05 + wide.abs())
        for b in (plain, told):
            guess = method._guess(x_t, t_B, method._wanted(x_t, t_B, x0, eps, b), b)
            torch.testing.assert_close(guess.x0, x0, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(guess.eps, eps, rtol=1e-4, atol=1e-4)


def test_a_site_that_shows_less_is_obeyed() -> None:
    """`shown` is what a network may see; the rest exists as ground truth alone."""
    method = make()
    net = prepared(method)
    batch = batch_of([[1, 1, 1, 1]] * 8)
    shown = torch.tensor([[True, True, False, False]]).expand(8, -1)
    limited = Batch(images_BMHW=batch.images_BMHW, exists_BM=batch.exists_BM, shown_BM=shown, subject_B=batch.subject_B)
    gave = method.loss(net, limited, "translate", torch.Generator().manual_seed(0)).gave
    assert not gave[source("T2")].any()
    assert bool(gave[target("T2")].all())


def test_an_image_of_the_wrong_size_is_named() -> None:
    method = make()
    with pytest.raises(ConfigError, match="multiples of 4"):
        method.loss(method.build(0), batch_of([[1] * 4], side=18), "translate", torch.Generator())


@pytest.mark.parametrize(
    "bad",
    [
        {"modalities": ("T1",)},
        {"modalities": ("T1", "T1")},
        {"noisiest": 1.5},
        {"ridge_patch": 4},
        {"components": 0},
        {"iterations": 0},
        {"times": 1},
        {"mask_ratio": -0.1},
    ],
)
def test_bad_options_fail_when_made(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AmmDiff(**{"modalities": MODALITIES, "size": "tiny", **bad})


@pytest.mark.parametrize("anchor", ["none", "ridge", "mixture"])
def test_the_denoiser_exports_with_any_batch(anchor: str) -> None:
    net = prepared(make(anchor=anchor)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    example = net.example(2, 16, 16)
    exported = torch.export.export(net, example, dynamic_shapes=tuple({0: batch} for _ in example))
    inputs = tuple(torch.rand(i.shape) if i.is_floating_point() else i for i in net.example(3, 16, 16))
    torch.testing.assert_close(exported.module()(*inputs), net(*inputs), rtol=1e-4, atol=1e-4)
