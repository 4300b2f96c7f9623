"""MMDM's own laws: the choice among sources, the ablations, who is taught what."""

from typing import Any

import pytest
import torch
from torch import Tensor

from shared.base.errors import ConfigError, DataError
from shared.base.records import Batch, Cut
from shared.base.vocabulary import SHARED, beside, source
from shared.diffusion.bridge import bridge
from shared.diffusion.samplers import Sampler
from shared.methods.angiography import choice
from shared.methods.mmdm import Mmdm, MmdmNet

MODALITIES = ("T1", "T2", "FLAIR", "TOF")
S, N, SIDE = 3, 3, 16


def make(**options: Any) -> tuple[Mmdm, MmdmNet]:
    """A tiny one without a zero in it, which would hide what it multiplies."""
    method = Mmdm(**{"modalities": MODALITIES, "size": "tiny", "slab": N, "precision": "fp32", **options})
    net, g = method.build(0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return method, net


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(*exists: tuple[int, ...], slab: int = N) -> Batch:
    exists_BM = torch.tensor(exists).bool()
    images = torch.rand(len(exists), len(MODALITIES), slab, SIDE, SIDE, generator=seeded(9))
    images[~exists_BM] = float("nan")
    return Batch(images_BMHW=images, exists_BM=exists_BM, shown_BM=exists_BM, subject_B=torch.arange(len(exists)))


def inputs(shown: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t, sources, shown and times of one sample."""
    shown_BS = torch.tensor([shown])
    x, y = (torch.randn(1, S, N, SIDE, SIDE, generator=seeded(seed)) for seed in (1, 2))
    return x, torch.where(shown_BS[:, :, None, None, None], y, 0.0), shown_BS, torch.tensor([400])


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [[1, 0, 0], [0, 1, 1], [1, 1, 1]])
def test_weights_of_absent_sources_are_exactly_nothing_and_of_one_alone_exactly_one(shown: list[int]) -> None:
    shown_BS = torch.tensor([shown]).bool()
    weights = choice(torch.randn(1, S, N, 4, 4, generator=seeded(0)), shown_BS)
    assert not weights[~shown_BS].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(1, N, 4, 4))
    if sum(shown) == 1:
        assert bool((weights[shown_BS] == 1).all())


def test_from_one_source_the_fused_image_is_its_experts_and_the_residual() -> None:
    _, net = make()
    x, y, shown_BS, t_B = inputs([False, True, False])
    each, fused = net.estimate(x, y, shown_BS, t_B)
    with torch.no_grad():
        net.fusion.out.weight[-N * 4 :] = 0  # the residual's rows; 4 pixels to a channel
        net.fusion.out.bias[-N * 4 :] = 0.25
    _, without = net.estimate(x, y, shown_BS, t_B)
    assert torch.equal(without, each[:, 1] + 0.25)
    assert not torch.equal(fused, without)
    assert not each[:, [0, 2]].any()


def test_skipping_absent_experts_changes_nothing() -> None:
    _, net = make()
    for shown in ([True, False, True], [True, True, True]):
        sample = inputs(shown)
        for one, two in zip(net.estimate(*sample), net.estimate(*sample, skip=False), strict=True):
            assert torch.equal(one, two)
        assert torch.equal(net(*sample), net.estimate(*sample)[1])


# --- the loss --------------------------------------------------------------------------------------------------------


def test_without_mip_and_naws_the_loss_is_the_sum_of_four_squared_errors() -> None:
    method, net = make(mip=False, naws=False, drop=0.0)
    assert net.naws is None

    class Listening(MmdmNet):
        def estimate(self, *asked: Tensor, skip: bool = True) -> tuple[Tensor, Tensor]:
            self.asked, self.answered = asked, super().estimate(*asked, skip=skip)
            return self.answered

    listening = Listening(method)
    listening.load_state_dict(net.state_dict())
    batch = batch_of((1, 1, 1, 1), (1, 1, 1, 1))
    found_B = method.loss(listening, batch, "bridge", seeded(3)).loss_B
    (x_t, y, shown_BS, t_B), (each, fused) = listening.asked, listening.answered
    x0 = 2 * batch.images_BMHW[:, 3] - 1
    wanted_B = sum(((made - x0) ** 2).mean((1, 2, 3)) for made in (fused, *each.unbind(1)))
    torch.testing.assert_close(found_B, wanted_B)

    assert bool(shown_BS.all())
    assert torch.equal(y, 2 * batch.images_BMHW[:, :3] - 1)
    over = bridge(method.times)
    m, delta = (table[t_B][:, None, None, None, None] for table in (over.m_T, over.delta_T))
    eps = (x_t - (1 - m) * x0[:, None] - m * y) / delta.sqrt()
    assert abs(eps.mean().item()) < 0.1
    assert abs(eps.std().item() - 1) < 0.1


def test_naws_is_there_or_not_and_projections_add_to_the_loss() -> None:
    names = {naws: {name for name, _ in make(naws=naws)[1].named_parameters() if "rho" in name} for naws in (0, 1)}
    assert names[0] == set()
    assert names[1] == {f"naws.rho.{name}" for name in ("T1", "T2", "FLAIR", "fused")}
    plain, with_mip = (
        method.loss(net, batch_of((1, 1, 1, 1)), "bridge", seeded(3)).loss_B
        for method, net in (make(mip=mip, naws=False) for mip in (False, True))
    )
    assert bool((with_mip > plain).all())


def test_slices_and_slabs_of_one_slice_teach_the_same() -> None:
    method, net = make(slab=1)
    slabs = batch_of((1, 1, 1, 1), (1, 0, 1, 1), slab=1)
    slices = Batch(
        images_BMHW=slabs.images_BMHW[:, :, 0],
        exists_BM=slabs.exists_BM,
        shown_BM=slabs.shown_BM,
        subject_B=slabs.subject_B,
    )
    one, two = (method.loss(net, batch, "bridge", seeded(3)).loss_B for batch in (slabs, slices))
    assert torch.equal(one, two)


def test_what_a_hidden_source_holds_changes_no_bit_of_loss_and_gradient() -> None:
    method, net = make(drop=1.0)
    batch = batch_of(*[(1, 1, 1, 1)] * 6)
    results = []
    for garbage in (None, 0.9, float("nan")):
        gave = method.loss(net, batch, "bridge", seeded(4)).gave
        hidden_BS = ~torch.stack([gave[source(m)] for m in MODALITIES[:3]], dim=1)
        assert hidden_BS.any(), "the draw hides nothing"
        images = batch.images_BMHW.clone()
        if garbage is not None:
            images[:, :3][hidden_BS] = garbage
        poisoned = Batch(
            images_BMHW=images, exists_BM=batch.exists_BM, shown_BM=batch.shown_BM, subject_B=batch.subject_B
        )
        net.zero_grad(set_to_none=True)
        loss_B = method.loss(net, poisoned, "bridge", seeded(4)).loss_B
        loss_B.sum().backward()
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        results.append([loss_B.detach(), *grads])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


# --- who is taught what ----------------------------------------------------------------------------------------------


def test_experts_are_their_sources_and_gates_are_taught_by_two() -> None:
    method, net = make()
    owners = method.owners(net, "bridge")
    for m in method.sources:
        assert {owner for name, owner in owners.items() if name.startswith(f"experts.{m}.")} == {source(m)}
        assert owners[f"naws.rho.{m}"] == source(m)
    assert owners["naws.rho.fused"] == SHARED
    rows, stem = owners["fusion.out.weight"], owners["fusion.stem.weight"]
    assert isinstance(rows, Cut)
    assert isinstance(stem, Cut)
    assert set(rows.owners) == {SHARED, *map(beside, method.sources)}
    assert set(stem.owners) == set(map(source, method.sources))
    gave = method.loss(net, batch_of((0, 1, 0, 1), (1, 1, 0, 1)), "bridge", seeded(0)).gave
    assert gave[source("T2")][0]
    assert not gave[beside("T2")][0]
    assert not gave[source("FLAIR")].any()


def test_a_subject_lacks_the_target_or_all_sources() -> None:
    method, _ = make()
    assert "TOF" in (method.lacks({"T1", "T2"}, "bridge") or "")
    assert "T1, T2, FLAIR" in (method.lacks({"TOF", "CT"}, "bridge") or "")
    assert method.lacks({"TOF", "FLAIR"}, "bridge") is None


# --- inference and options -------------------------------------------------------------------------------------------


def test_without_eta_nothing_is_random_and_with_it_something_is() -> None:
    method, net = make()
    images, shown = batch_of((1, 1, 1, 1)).images_BMHW, torch.tensor([[True, True, False, False]])
    outs = {
        (eta, seed): method.synthesize(net, images, shown, Sampler(kind="bridge", steps=4, eta=eta), seeded(seed))
        for eta in (0.0, 1.0)
        for seed in (1, 2)
    }
    assert torch.equal(outs[0.0, 1], outs[0.0, 2])
    assert not torch.equal(outs[1.0, 1], outs[1.0, 2])


def test_shown_sources_come_back_as_they_are_and_hidden_ones_are_not_made() -> None:
    method, net = make()
    images, shown = batch_of((1, 1, 1, 1)).images_BMHW, torch.tensor([[True, False, True, False]])
    out = method.synthesize(net, images, shown, Sampler(kind="bridge", steps=2), seeded(1))
    assert torch.equal(out[:, [0, 2]], images[:, [0, 2]])
    assert not out[:, 1].any()


def test_the_target_is_no_source() -> None:
    method, net = make()
    with pytest.raises(DataError, match="T1, T2, FLAIR"):
        method.synthesize(
            net, batch_of((1, 1, 1, 1)).images_BMHW, torch.tensor([[False] * 3 + [True]]), Sampler(), seeded(1)
        )


def test_sizes_that_do_not_fit_are_refused() -> None:
    method, net = make(slab=5)
    with pytest.raises(ConfigError, match=r"method\.slab=5: was given 3"):
        method.loss(net, batch_of((1, 1, 1, 1), slab=3), "bridge", seeded(1))
    shown = torch.ones(1, 4).bool()
    with pytest.raises(ConfigError, match="grid=16x18: this network needs multiples of 4"):
        method.synthesize(net, torch.zeros(1, 4, 5, 16, 18), shown, Sampler(), seeded(1))
    with pytest.raises(ConfigError, match=r"sampler=ddim.*bridge, mean"):
        method.synthesize(net, torch.zeros(1, 4, 5, 16, 16), shown, Sampler(kind="ddim", steps=2), seeded(1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "CT"}, "target"),
        ({"modalities": ("TOF",)}, "modalities"),
        ({"modalities": ("T1", "T1", "TOF")}, "modalities"),
        ({"slab": 0}, "slab"),
        ({"times": 1}, "times"),
        ({"tau": 0.0}, "tau"),
        ({"drop": 1.5}, "drop"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}="):
        Mmdm(**{"modalities": MODALITIES, **options})
