"""The laws every method keeps: each row of the table is tested the moment it is listed."""

import itertools
import math
import re
from typing import get_args

import pytest
import torch
from support.model.methods import (
    MODALITIES,
    SIDE,
    VOLUMES,
    M,
    batch_of,
    depth,
    gradients,
    make,
    prepared,
    sampler_of,
    trained,
)
from torch import Tensor

from shared.base.errors import ConfigError, DataError
from shared.base.options import build, plain
from shared.base.owners import named, parts
from shared.base.records import Batch
from shared.clinical import ENCODERS, FIELDS, Hearing
from shared.diffusion.samplers import Kind, Sampler
from shared.methods import METHODS, Method, Network, ReadsChart
from shared.plan import config, settings

pytestmark = pytest.mark.slow  # left out of `make fast`


ROWS = [(name, precision) for name in METHODS for precision in ("fp32", "bf16")[: 1 if name in VOLUMES else 2]]


@pytest.fixture(params=ROWS, ids="-".join)
def method(request: pytest.FixtureRequest) -> Method:
    """`auto` is one of the two (tests/shared/methods/test_precision.py)."""
    name, precision = request.param
    return make(name, precision=precision)


def test_options_survive_the_wire(method: Method) -> None:
    assert build(type(method), plain(method), "method") == method


def test_equal_seeds_build_equal_networks_and_leave_the_world_alone(method: Method) -> None:
    before = torch.get_rng_state()
    one, two, other = (method.build(seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_every_phase_names_its_trainable_tensors_with_a_fitting_owner(method: Method) -> None:
    net = method.build(0)
    shapes = {name: p.shape for name, p in net.named_parameters()}
    for phase in method.phases:
        owners = method.owners(net, phase.name)
        assert bool(owners) == (phase.kind == "train")
        for name, owner in owners.items():
            for _, dim, index in parts(owner):
                assert dim is None or index is None or int(index.max()) < shapes[name][dim]
    assert set().union(*(method.owners(net, phase) for phase in trained(method))) == set(shapes)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_configs_that_build_it(name: str) -> None:
    for size in ("tiny", "small", "paper"):
        assert type(config.load([f"method={name}", f"size={size}"]).build_method()) is METHODS[name]


def test_every_row_keeps_the_contract(method: Method) -> None:
    """What other rooms read of a method is on the contract's page, and is what it says."""
    assert isinstance(method, Method)
    assert method.size == "tiny"
    assert set(method.targets) <= set(method.modalities)
    assert method.slab >= 1
    assert set(method.reads) <= set(FIELDS)
    assert method.text in ENCODERS
    assert not method.reads or isinstance(method, ReadsChart)
    net = method.build(0)
    assert isinstance(net, Network)
    assert isinstance(net, Hearing) or method.text == "none"
    for phase in method.phases:
        assert method.lacks(MODALITIES, phase.name) is None
        assert method.lacks((), phase.name)


def test_nobody_asks_a_method_or_its_network_for_what_no_contract_names() -> None:
    """mypy knows every name that is asked for; these two ways would go past it."""
    root = settings.CONFIGS.parent
    files = [file for part in ("client", "server", "shared") for file in (root / part).rglob("*.py")]
    asks = re.compile(r"(hasattr|getattr)\((\w+\.)*_?(method|net)\b")
    assert not [str(file) for file in files if asks.search(file.read_text(encoding="utf-8"))]


def test_it_takes_the_samplers_that_it_says_and_no_others(method: Method) -> None:
    net, images = prepared(method).eval(), batch_of(method, [[1] * M]).images_BMHW
    shown = torch.tensor([[True, True, False, False]])
    for kind in get_args(Kind):
        sampler = Sampler(kind=kind, steps=1 if kind == "mean" else 2)

        def made(sampler: Sampler = sampler) -> Tensor:
            return method.synthesize(net, images, shown, sampler, torch.Generator().manual_seed(1))

        if kind in method.samplers:
            assert bool(made().isfinite().all())
        else:
            with pytest.raises(ConfigError, match=f"sampler={kind}: "):
                made()


def test_the_networks_example_is_what_its_forward_takes(method: Method) -> None:
    net = method.build(0).eval()
    example = net.example(2, SIDE, SIDE)
    assert example is not None, "a method whose network is no denoiser says so here"
    assert all(len(value) == 2 for value in example)
    with torch.no_grad():
        assert len(net(*example)) == 2


def test_the_table_and_the_configs_have_the_same_stems() -> None:
    assert {path.stem for path in (settings.CONFIGS / "method").glob("*.yaml")} == set(METHODS)


def test_owners_that_gave_are_those_that_got_gradient_and_no_others(method: Method) -> None:
    """Sample by sample, over patterns and draws: exact zero where nothing was given."""
    net = prepared(method)
    for phase in trained(method):
        owners = method.owners(net, phase)
        for seed, pattern in enumerate([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 1]]):
            net.zero_grad(set_to_none=True)
            losses = method.loss(net, batch_of(method, [pattern], seed), phase, torch.Generator().manual_seed(seed))
            losses.loss_B.sum().backward()
            assert named(owners) == set(losses.gave)
            grads, parameters = gradients(net), dict(net.named_parameters())
            for name, owner in owners.items():
                for who, dim, index in parts(owner):
                    grad = grads.get(name, torch.zeros_like(parameters[name]))
                    part = grad if dim is None or index is None else grad.index_select(dim, index)
                    assert bool(part.isfinite().all()), name
                    if not losses.gave[who].item():
                        assert not part.any(), (phase, pattern, name, who)
                    elif dim is not None:
                        assert part.any(), (phase, pattern, name, who)
            assert not set(grads) - set(owners), "what is frozen gets no gradient"


def test_one_sample_does_not_touch_anothers_loss(method: Method) -> None:
    net = prepared(method)
    for phase in trained(method):
        results = []
        for other in (1, 2):
            batch = batch_of(method, [[1, 1, 0, 1], [1, 0, 1, 1]], seed=0)
            changed = batch.images_BMHW.clone()
            changed[1] = batch_of(method, [[1, 0, 1, 1]], seed=other).images_BMHW[0]
            batch = Batch(
                images_BMHW=changed, exists_BM=batch.exists_BM, shown_BM=batch.shown_BM, subject_B=batch.subject_B
            )
            net.zero_grad(set_to_none=True)
            loss_B = method.loss(net, batch, phase, torch.Generator().manual_seed(5)).loss_B
            assert loss_B.shape == (2,)
            loss_B[0].backward()
            results.append((loss_B.detach(), {name: grad.clone() for name, grad in gradients(net).items()}))
        (one_B, one), (two_B, two) = results
        assert one_B[0] == two_B[0]
        assert (one_B[1] != two_B[1]) == (method.lacks(("T1", "T2", "FLAIR"), phase) is None)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_equal_seeds_give_equal_losses(method: Method) -> None:
    net = prepared(method)
    batch = batch_of(method, [[1, 1, 1, 1], [1, 0, 1, 1]])
    for phase in trained(method):
        one, two, other = (
            method.loss(net, batch, phase, torch.Generator().manual_seed(seed)).loss_B for seed in (1, 1, 2)
        )
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


def test_hidden_modalities_leave_every_bit_in_every_pattern(method: Method) -> None:
    net = prepared(method).eval()
    images = batch_of(method, [[1] * M]).images_BMHW
    for pattern in itertools.product([False, True], repeat=M):
        if not any(pattern):
            continue
        shown = torch.tensor([pattern])
        blind = shown[:, :, *[None] * (images.ndim - 2)]

        def made(garbage: float, shown: Tensor = shown, blind: Tensor = blind) -> Tensor:
            seen = torch.where(blind, images, garbage)
            return method.synthesize(net, seen, shown, sampler_of(method), torch.Generator().manual_seed(1))

        if len(method.targets) == 1 and not any(
            there for m, there in zip(MODALITIES, pattern, strict=True) if m not in method.targets
        ):  # the target is no source
            with pytest.raises(DataError):
                made(0.0)
            continue
        outs = [made(garbage) for garbage in (0.0, 0.5, math.nan, 1e9, -math.inf)]
        assert outs[0].shape == images.shape
        assert bool(outs[0].isfinite().all())
        assert outs[0].min() >= 0
        assert outs[0].max() <= 1
        assert all(torch.equal(outs[0], out) for out in outs[1:]), pattern


def test_what_is_shown_is_seen(method: Method) -> None:
    net = prepared(method).eval()
    images = batch_of(method, [[1] * M]).images_BMHW
    outs = [
        method.synthesize(net, images, shown, sampler_of(method), torch.Generator().manual_seed(1))
        for shown in (torch.tensor([[True, True, False, False]]), torch.tensor([[True, True, True, False]]))
    ]
    assert not torch.equal(outs[0][:, -1], outs[1][:, -1])


def test_nothing_shown_is_refused(method: Method) -> None:
    net = prepared(method)
    with pytest.raises(DataError):
        method.synthesize(
            net,
            torch.zeros(1, M, *depth(method), SIDE, SIDE),
            torch.zeros(1, M).bool(),
            Sampler(),
            torch.Generator().manual_seed(0),
        )


def test_sums_over_two_sites_are_the_sums_over_both(method: Method) -> None:
    net = method.build(0)
    exists = [[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]]
    whole = batch_of(method, exists)

    def part(rows: slice) -> Batch:
        return Batch(
            images_BMHW=whole.images_BMHW[rows],
            exists_BM=whole.exists_BM[rows],
            shown_BM=whole.shown_BM[rows],
            subject_B=whole.subject_B[rows],
        )

    for phase in method.phases:
        if phase.kind == "sums":
            together = method.sums(net, whole, phase.name)
            first, second = (method.sums(net, part(rows), phase.name) for rows in (slice(0, 2), slice(2, 4)))
            for name, value in together.items():
                assert value.dtype == torch.float64
                torch.testing.assert_close(first[name] + second[name], value)
