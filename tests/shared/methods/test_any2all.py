"""Any2all: laws of its own beside those that every method keeps (test_methods.py)."""

import itertools
import math
import random

import pytest
import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError, DataError
from shared.base.records import Batch
from shared.diffusion.acquisition import birdcage, equispaced
from shared.diffusion.operators import CartesianMRI, Measured, clean, measured, none
from shared.diffusion.samplers import GUIDED, Sampler
from shared.methods.any2all import ABSENT, Any2all, Prior

NAMES = ("T1", "FLAIR", "T2S", "CT", "AV45")
M, SIDE = len(NAMES), 16
FAST = Sampler(kind="mds_fast", steps=3)


def make(**options: object) -> Any2all:
    return Any2all(**{"modalities": NAMES, "size": "tiny", "precision": "fp32", "times": 50, **options})  # type: ignore[arg-type]


def awake(method: Any2all) -> Prior:
    net = method.build(0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.05 * torch.randn(p.shape, generator=noise)
    return net.eval()


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, M, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def batch_of(exists: list[list[int]]) -> Batch:
    exists_BM = torch.tensor(exists).bool()
    stack = images(len(exists))
    stack[~exists_BM] = math.nan
    return Batch(images_BMHW=stack, exists_BM=exists_BM, shown_BM=exists_BM, subject_B=torch.arange(len(exists)))


def raw_of(image01_BHW: Tensor, acceleration: int = 2) -> Measured:
    operator = CartesianMRI(maps_BCHW=birdcage(4, SIDE, SIDE), mask=equispaced(SIDE, acceleration))
    return measured(operator.forward(image01_BHW), operator, 1.0)


def test_an_absent_modality_is_silent() -> None:
    """Whatever stands in its channel, and as if its part of the network were not there."""
    net = awake(make())
    x = torch.randn(1, M, SIDE, SIDE)
    t = torch.tensor([[7, 7, ABSENT, 7, 7]])
    out = net(x, t)
    for garbage in (math.nan, 1e9, 0.0):
        other = x.clone()
        other[:, 2] = garbage
        assert torch.equal(net(other, t), out)
    area, base = net.unet.shape.patch**2, net.unet.shape.base
    with torch.no_grad():
        net.unet.stem.weight[:, 2 * area : 3 * area] = 1e6
        assert net.unet.time is not None
        net.unet.time.first.weight[:, 2 * base : 3 * base] = 1e6
    assert torch.equal(net(x, t), out)
    assert not torch.allclose(net(x, torch.full((1, M), 7)), out)


def test_each_modality_hears_its_own_noise_level() -> None:
    net = awake(make())
    x = torch.randn(1, M, SIDE, SIDE)
    same = net(x, torch.full((1, M), 20))
    for m in range(M):
        t = torch.full((1, M), 20)
        t[0, m] = 3
        assert not torch.allclose(net(x, t), same), m


def test_told_modalities_stand_at_level_zero_and_one_is_always_left_to_make() -> None:
    seed = random.SystemRandom().randrange(2**31)
    method = make(told=0.6, independent=0.2)
    exists = torch.rand(4000, M, generator=torch.Generator().manual_seed(seed)) < 0.7
    exists[:, 0] = True
    t_BM, told_BM = method._times(exists, torch.Generator().manual_seed(seed))
    assert not bool((told_BM & ~exists).any()), seed
    assert bool((t_BM[told_BM] == 0).all())
    assert bool((exists & ~told_BM).any(1).all()), seed
    shared = torch.tensor(
        [
            len({t for t, told in zip(*row, strict=True) if not told}) == 1
            for row in zip(t_BM.tolist(), told_BM.tolist(), strict=True)
        ]
    )
    share = 1 - shared.float().mean().item()
    assert abs(share - 0.2) < 0.03, (seed, share)  # 4 sd of 4000 draws
    assert 0.3 < told_BM.any(1).float().mean().item() < 0.6


def test_the_papers_prior_has_one_noise_level_and_tells_nothing() -> None:
    t_BM, told_BM = make(told=0.0, independent=0.0)._times(torch.ones(50, M).bool(), torch.Generator().manual_seed(0))
    assert not told_BM.any()
    assert bool((t_BM == t_BM[:, :1]).all())


@pytest.mark.parametrize("parameterisation", ["v", "eps"])
def test_a_perfect_network_has_no_loss(parameterisation: str) -> None:
    """The target, written out: eps, or alpha eps - sigma x0, of every modality at its own level; v hears alpha x_t."""
    method = make(parameterisation=parameterisation, told=0.5)
    batch = batch_of([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1]])
    abar = method._schedule.abar_T

    class Perfect(Prior):
        def forward(self, x_BMHW: Tensor, t_BM: Tensor) -> Tensor:
            a = abar[t_BM.clamp(min=0)].float()[:, :, None, None]
            x0 = 2 * batch.images_BMHW.nan_to_num() - 1
            x_t = x_BMHW if parameterisation == "eps" else x_BMHW / a.sqrt()
            eps = (x_t - a.sqrt() * x0) / (1 - a).sqrt()
            return eps if parameterisation == "eps" else a.sqrt() * eps - (1 - a).sqrt() * x0

    for seed in range(5):
        losses = method.loss(Perfect(method), batch, "prior", torch.Generator().manual_seed(seed))
        assert losses.loss_B.max() < 1e-6
        wrong = method.loss(awake(method), batch, "prior", torch.Generator().manual_seed(seed))
        assert wrong.loss_B.min() > 1e-2


SAMPLERS = [
    Sampler(kind="mean"),
    Sampler(kind="ddim", steps=3, eta=0.5),
    Sampler(kind="mps", steps=3),
    Sampler(kind="mds", steps=3, eta=0.85),
    FAST,
    Sampler(kind="mds_fast", steps=3, told=True),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{s.kind}{'-told' if s.told else ''}")
def test_what_is_clean_comes_back_bit_by_bit(sampler: Sampler) -> None:
    method = make()
    net, stack = awake(method), images()
    for pattern in ([1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 1, 1]):
        shown = torch.tensor(pattern).bool().expand(2, -1)
        out = method.synthesize(net, stack, shown, sampler, torch.Generator().manual_seed(0))
        assert torch.equal(out[shown], stack[shown])
        assert out.min() >= 0
        assert out.max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS[2:], ids=lambda s: f"{s.kind}{'-told' if s.told else ''}")
def test_a_sample_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    """Patterns differ within the batch; each sample brings its own noise."""
    method = make()
    net, stack = awake(method), images(3)
    shown = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()

    def noise(rows: list[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(100 + row) for row in rows]

    together = method.synthesize(net, stack, shown, sampler, noise([0, 1, 2]))
    for row in range(3):
        alone = method.synthesize(net, stack[[row]], shown[[row]], sampler, noise([row]))
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


def test_a_fully_measured_modality_is_itself_and_half_measured_data_pull_towards_it() -> None:
    method = make()
    net, stack = awake(method), images()
    known = [clean(stack[:, 0]), raw_of(stack[:, 1], 1), raw_of(stack[:, 2], 2), none(), none()]
    sampler = Sampler(kind="mds", steps=4, gamma=1e4, cg=60)
    out = method.restore(net, known, sampler, torch.Generator().manual_seed(0), like_BMHW=stack)
    torch.testing.assert_close(out[:, 1], stack[:, 1], rtol=0, atol=2e-3)
    without = method.restore(net, [known[0], *[none()] * 4], sampler, torch.Generator().manual_seed(0), like_BMHW=stack)
    assert (out[:, 2] - stack[:, 2]).norm() < 0.7 * (without[:, 2] - stack[:, 2]).norm()


@pytest.mark.parametrize("kind", GUIDED)
def test_what_the_network_says_of_a_told_modality_moves_nothing(kind: str) -> None:
    """It was never trained to say anything of it."""
    method, stack = make(), images()
    known = [clean(stack[:, 0]), raw_of(stack[:, 1]), none(), clean(stack[:, 3]), none()]
    sampler = Sampler(kind=kind, steps=4, told=True)  # type: ignore[arg-type]
    outs = []
    for louder in (0.0, 5.0):
        net = awake(method)
        with torch.no_grad():
            net.unet.out.bias[: net.unet.shape.patch**2] += louder
        outs.append(method.restore(net, known, sampler, torch.Generator().manual_seed(0), like_BMHW=stack))
    assert torch.equal(*outs)


def test_raw_data_need_a_sampler_that_can_take_them() -> None:
    method = make()
    stack = images()
    known = [raw_of(stack[:, 0]), *[none()] * 4]
    with pytest.raises(ConfigError, match="mds_fast"):
        method.restore(awake(method), known, Sampler(), torch.Generator().manual_seed(0), like_BMHW=stack)


def test_with_everything_missing_it_makes_complete_sets_that_differ() -> None:
    method = make()
    like = torch.zeros(2, M, SIDE, SIDE)
    sampler = Sampler(kind="ancestral", steps=5)
    sets = method.restore(awake(method), [none()] * M, sampler, torch.Generator().manual_seed(0), like_BMHW=like)
    assert not torch.equal(sets[0], sets[1])
    assert all(not torch.equal(sets[:, a], sets[:, b]) for a, b in itertools.combinations(range(M), 2))


def test_nothing_shown_is_no_task() -> None:
    with pytest.raises(DataError, match="nothing"):
        make().synthesize(nn.Identity(), images(), torch.zeros(2, M).bool(), FAST, torch.Generator())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"modalities": ()}, "modalities"),
        ({"modalities": ("T1", "T1")}, "modalities"),
        ({"told": 1.5}, "told"),
        ({"told": 0.8, "independent": 0.5}, "told"),
        ({"times": 1}, "times"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(**options)


def test_a_grid_that_does_not_fit_is_refused() -> None:
    method = make()
    with pytest.raises(ConfigError, match="multiples of 4"):
        method.restore(awake(method), [none()] * M, FAST, torch.Generator(), like_BMHW=torch.zeros(1, M, 18, 15))
