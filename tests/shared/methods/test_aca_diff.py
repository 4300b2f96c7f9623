"""What only ACADiff must keep (docs/methods/aca_diff.md); test_methods.py has the laws of all."""

import dataclasses
import math

import pytest
import torch
from support.model.aca import CHARTS, MODALITIES, SIDE, batch, method, net_of
from support.model.methods import awake
from torch import Tensor, nn

from server.rounds.aggregation import Fold
from shared.base.errors import ConfigError
from shared.base.options import build
from shared.base.owners import parts
from shared.clinical import Chart
from shared.data.bids import Clinical
from shared.data.missing import randomly_less
from shared.diffusion.gaussian import SCHEDULES
from shared.diffusion.samplers import Sampler
from shared.methods import aca_diff
from shared.methods.baselines.ldm import Ldm
from shared.methods.nets.aca import AcaNet
from shared.methods.nets.fusion import Fusion, pooled
from shared.methods.nets.generator import Generator, Heard
from shared.methods.nets.volumetric import VolumeShape
from shared.plan.integers import scale_bits
from shared.plan.training import PhaseTraining, train

pytestmark = pytest.mark.slow  # left out of `make fast`

# --- fusion ---------------------------------------------------------------------------------------------------------


def test_the_order_of_the_sources_does_not_matter() -> None:
    g = torch.Generator().manual_seed(1)
    one = awake(Fusion(("FDG", "AV45"), 4, 16))
    other = Fusion(("AV45", "FDG"), 4, 16)
    other.load_state_dict(one.state_dict())
    z = torch.randn(3, 2, 4, 6, 6, 6, generator=g)
    for shown in ([[1, 1]] * 3, [[1, 0]] * 3, [[1, 1], [1, 0], [0, 1]]):
        shown_BS = torch.tensor(shown).bool()
        assert torch.equal(one(z, shown_BS), other(z.flip(1), shown_BS.flip(1)))


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 7, 4), (20, 24, 20)])
def test_pooling_edge_by_edge_is_adaptive_pooling(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooled(x, (4, 4, 4)), nn.functional.adaptive_avg_pool3d(x, 4))


def test_rows_together_or_one_by_one_and_paths_skipped_or_not_are_the_same() -> None:
    net = awake(Fusion(("FDG", "AV45", "T1"), 4, 16))
    z = torch.randn(4, 3, 4, 4, 6, 8, generator=torch.Generator().manual_seed(2))
    shown = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1]]).bool()
    together = net(z, shown)
    torch.testing.assert_close(together, net(z, shown, skip=False))
    for b in range(4):
        torch.testing.assert_close(together[b : b + 1], net(z[b : b + 1], shown[b : b + 1]))


@pytest.mark.parametrize(
    ("exists", "used", "unused"),
    [
        ([1, 1, 0], ("alone.FDG",), ("alone.AV45", "beside.FDG", "beside.AV45", "cross")),
        ([1, 0, 1], ("alone.AV45",), ("alone.FDG", "beside.FDG", "beside.AV45", "cross")),
        ([1, 1, 1], ("beside.FDG", "beside.AV45", "cross"), ("alone.FDG", "alone.AV45")),
    ],
)
def test_what_is_shown_chooses_the_path_and_the_others_get_no_gradient(
    exists: list[int], used: tuple[str, ...], unused: tuple[str, ...]
) -> None:
    made = method(drop=0.0)
    net = net_of(made)
    made.loss(net, batch([exists] * 2), "generate_T1", torch.Generator().manual_seed(0)).loss_B.sum().backward()
    grads = {
        n.removeprefix("generators.T1.fusion."): p.grad
        for n, p in net.named_parameters()
        if n.startswith("generators.T1.fusion.")
    }
    for path in used:
        assert any(g is not None and g.any() for n, g in grads.items() if n.startswith(path)), path
    for path in unused:
        assert all(g is None for n, g in grads.items() if n.startswith(path)), path


def test_attention_asks_and_is_asked() -> None:
    """With one token the softmax is 1, and neither query nor key would get any gradient."""
    made = method(drop=0.0, drop_chart=0.0, drop_field=0.0)
    net = net_of(made)
    losses = made.loss(net, batch([[1, 1, 1]] * 2, clinical=CHARTS), "generate_FDG", torch.Generator().manual_seed(0))
    losses.loss_B.sum().backward()
    generator = net.generator("FDG")
    asking = [m for m in generator.modules() if hasattr(m, "query") and hasattr(m, "key_value")]
    assert len(asking) >= 4  # of the fusion, of the volume to itself, of the text in the middle and on the way up
    for layer in asking:
        query, keys = layer.query, layer.key_value
        assert isinstance(query, nn.Linear)
        assert isinstance(keys, nn.Linear)
        assert query.weight.grad is not None
        assert query.weight.grad.abs().max() > 1e-12
        assert keys.weight.grad is not None
        assert keys.weight.grad[: query.out_features].abs().max() > 1e-12  # the keys' half


# --- text -----------------------------------------------------------------------------------------------------------


def generated(net: AcaNet, heard: Heard | None) -> Tensor:
    g = torch.Generator().manual_seed(3)
    z, known = torch.randn(1, 4, 4, 4, 4, generator=g), torch.randn(1, 2, 4, 4, 4, 4, generator=g)
    with torch.no_grad():
        out: Tensor = net.generator("T1")(z, known, torch.tensor([[True, True]]), torch.tensor([500]), heard)
    return out


def test_a_dropped_prompt_is_no_prompt_bit_by_bit() -> None:
    net = net_of(method())
    tokens, held = net.encoder.encode([Chart(diagnosis="AD", mmse=20)], ["T1"], [("FDG", "AV45")])
    deaf = torch.zeros_like(held)
    null = generated(net, Heard(torch.zeros_like(tokens), deaf))
    for garbage in (tokens, torch.full_like(tokens, math.nan), torch.full_like(tokens, 1e30)):
        assert torch.equal(generated(net, Heard(garbage, deaf)), null)
    assert not torch.equal(generated(net, Heard(tokens, held)), null)


def test_every_field_of_the_chart_changes_what_is_made() -> None:
    net = net_of(method())
    usual = Chart(diagnosis="AD", mmse=20, adas13=30, cdrsb=5)
    changed = [{"mmse": 28}, {"adas13": 8}, {"cdrsb": 0.5}, {"diagnosis": "HC"}, {"mmse": None}]
    outs = [
        generated(net, Heard(*net.encoder.encode([chart], ["T1"], [("FDG", "AV45")])))
        for chart in (usual, *(dataclasses.replace(usual, **change) for change in changed))
    ]
    for i, one in enumerate(outs):
        assert all(not torch.equal(one, other) for other in outs[i + 1 :])


@pytest.mark.parametrize(
    ("options", "hears"),
    [
        ({}, True),
        ({"use_diagnosis": False}, False),
        ({"fields": ["mmse"]}, False),
        ({"text": "none"}, False),
    ],
)
def test_a_diagnosis_that_may_not_be_used_is_not_heard(options: dict[str, object], hears: bool) -> None:
    made = method(**options)
    net = net_of(made)
    images, shown = torch.rand(1, 3, SIDE, SIDE, SIDE), torch.tensor([[True, False, False]])
    outs = [
        made.synthesize(
            net,
            images,
            shown,
            Sampler(kind="ddim", steps=2),
            torch.Generator().manual_seed(0),
            clinical=[{"mmse": 20.0, "diagnosis": diagnosis}],
        )
        for diagnosis in ("AD", "HC")
    ]
    assert torch.equal(*outs) is not hears
    assert ("diagnosis" in made.reads) is hears


def test_guidance_of_one_is_none_and_of_zero_is_deaf() -> None:
    made = method()
    net = net_of(made)
    images, shown = torch.rand(1, 3, SIDE, SIDE, SIDE), torch.tensor([[True, False, False]])

    def out(guidance: float, clinical: tuple[Clinical, ...]) -> Tensor:
        sampler = Sampler(kind="ddim", steps=2, guidance=guidance)
        return made.synthesize(net, images, shown, sampler, torch.Generator().manual_seed(0), clinical=clinical)

    assert torch.equal(out(0.0, CHARTS), out(0.0, ({"mmse": 29.0},)))
    assert not torch.equal(out(1.0, CHARTS), out(1.0, ({"mmse": 29.0},)))
    assert not torch.equal(out(1.0, CHARTS), out(3.0, CHARTS))


def test_only_what_is_wanted_is_made_and_with_the_same_noise() -> None:
    made = method()
    net = net_of(made)
    images, shown = torch.rand(2, 3, SIDE, SIDE, SIDE), torch.tensor([[True, False, False]] * 2)
    sampler = Sampler(kind="ddim", steps=2)
    every, one = (
        made.synthesize(net, images, shown, sampler, torch.Generator().manual_seed(0), wanted=wanted)
        for wanted in (None, ["AV45"])
    )
    assert torch.equal(every[:, 2], one[:, 2])
    assert bool(every[:, 1].any())
    assert not one[:, 1].any()
    assert torch.equal(every[:, 0], images[:, 0])


# --- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, 100, 500, 900, 998, 999])
def test_the_clipped_consistency_is_a_multiple_of_the_loss(t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """w_t L_cons = min(1, (1 - abar) / abar) L_eps, whatever the network says."""
    monkeypatch.setattr(
        aca_diff.torch, "randint", lambda *args, device=None, **_: torch.full(args[-1], t, device=device)
    )
    net = net_of(method())
    found = [
        method(parameterisation="eps", consistency=weight, drop=0.0)
        .loss(net, batch([[1, 1, 1]]), "generate_AV45", torch.Generator().manual_seed(4))
        .loss_B.item()
        for weight in (0.0, 1.0)
    ]
    abar = SCHEDULES["cosine"](1000).abar_T[t].item()
    assert found[1] / found[0] - 1 == pytest.approx(min(1.0, (1 - abar) / abar), rel=2e-3, abs=1e-4)


def test_the_papers_weight_is_kept_for_comparison_and_only_with_its_parameterisation() -> None:
    with pytest.raises(ConfigError, match="parameterisation"):
        method(cons_weighting="paper")
    assert method(cons_weighting="paper", parameterisation="eps").cons_weighting == "paper"


def test_dropping_a_source_leaves_one_and_every_one_in_turn() -> None:
    exists = torch.ones(4000, 2).bool()
    shown = randomly_less(exists, 1.0, torch.Generator().manual_seed(0))
    assert bool((shown.sum(1) == 1).all())
    assert 0.45 < shown[:, 0].float().mean() < 0.55
    assert torch.equal(randomly_less(exists, 0.0, torch.Generator().manual_seed(0)), exists)


# --- federation -----------------------------------------------------------------------------------------------------


def test_who_can_train_which_phase() -> None:
    made = method()
    assert made.lacks(("T1",), "autoencode") is None
    assert made.lacks(("T1", "FDG"), "generate_T1") is None
    assert "AV45" in str(made.lacks(("T1", "FDG"), "generate_AV45"))
    assert "source" in str(made.lacks(("T1",), "generate_T1"))


def test_a_poisoned_path_that_is_not_a_sites_own_changes_nothing() -> None:
    """A site without AV45 has garbage in every part of the generator of T1 that AV45 owns: the mean keeps its bits."""
    made = method()
    options = PhaseTraining(rounds=1, steps=2, batch=2, lr=1e-2)
    weights = {n: p.detach().clone() for n, p in net_of(made).state_dict().items()}

    def update(poison: bool) -> dict[str, Tensor]:
        net = made.build(0)
        net.load_state_dict(weights)
        owners = made.owners(net, "generate_T1")
        if poison:
            with torch.no_grad():
                for name, p in net.named_parameters():
                    for owner, dim, index in parts(owners.get(name, "shared")):
                        if "AV45" in owner or owner == "together":
                            # a slice of a convolution meets zeros, which NaN would not survive
                            p.fill_(math.nan) if dim is None else p.index_fill_(dim, index, 1e9)
        trained = train(
            made,
            net,
            lambda n, g: batch([[1, 1, 0]] * n, int(torch.randint(99, (), generator=g))),
            phase="generate_T1",
            options=options,
            owners=owners,
            round=0,
            seed=(0, "a"),
        )
        assert "from:AV45" not in [o for o, n in trained.counts.items() if n]
        folded = Fold(owners, weights, bits=scale_bits(max_abs=64.0, max_count=8), estimator="masked")
        from shared.base.records import Update

        folded.add(
            Update(
                site="a", run="r", phase="generate_T1", round=0, schema="", delta=trained.delta, counts=trained.counts
            )
        )
        return dict(folded.mean(min_holders=1).delta)

    clean, poisoned = update(poison=False), update(poison=True)
    assert clean.keys() == poisoned.keys()
    for name, value in clean.items():
        assert torch.equal(value, poisoned[name]), name
    assert any(value.any() for value in clean.values())


def test_the_ablation_has_the_same_coders_and_neither_text_nor_fusion() -> None:
    ldm = build(
        Ldm, {"modalities": list(MODALITIES), "size": "tiny", "depth": SIDE, "height": SIDE, "width": SIDE}, "method"
    )
    one, two = net_of(ldm), net_of(method())
    assert {n for n, _ in one.autoencoders.named_parameters()} == {n for n, _ in two.autoencoders.named_parameters()}
    generator = one.generator("T1")
    assert isinstance(generator, Generator)
    assert generator.fusion is None
    assert generator.prompt is None
    assert ldm.reads == ()


def test_a_checkpointed_generator_has_the_same_gradients() -> None:
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        shape = VolumeShape(base=8, mult=(1, 2), blocks=1, checkpoint=checkpoint)
        net = awake(Generator(("FDG", "AV45"), shape, latent=4, fusion="adaptive", text=8))
        g = torch.Generator().manual_seed(1)
        heard = Heard(torch.randn(2, 6, 8, generator=g), torch.ones(2, 6).bool())
        out = net(
            torch.randn(2, 4, 4, 4, 4, generator=g),
            torch.randn(2, 2, 4, 4, 4, 4, generator=g),
            torch.ones(2, 2).bool(),
            torch.tensor([1, 900]),
            heard,
        )
        out.square().sum().backward()
        found.append({n: p.grad for n, p in net.named_parameters()})
    for name, grad in found[0].items():
        other = found[1][name]
        assert (grad is None) == (other is None), name
        if grad is not None and other is not None:
            torch.testing.assert_close(grad, other, rtol=1e-3, atol=1e-4)
