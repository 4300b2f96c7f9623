"""bf16 against fp32, forced, so that it is looked at on every processor: what is multiplied in bf16 is multiplied well,
and what a CPU does badly in bf16 it does in fp32 (decision 0018)."""

from collections.abc import Iterable, Mapping

import pytest
import torch
from support.model.methods import VOLUMES, batch_of, gradients, make, prepared, sampler_of, trained
from torch import Tensor, nn

from shared.base.records import Batch
from shared.methods import METHODS, Method
from shared.methods.nets.precision import Precision, autocast, autocast_volumes

pytestmark = pytest.mark.slow  # left out of `make fast`

PATTERNS = [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]]
OF_ALL, OF_EACH = 0.15, 0.3  # largest share of a gradient that bf16 may change: of all of it, of one tensor
SIDE = 32  # pix2pix at small halves a slice five times


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("name", METHODS)
def test_losses_and_every_gradient_in_bf16_are_those_in_fp32(name: str, size: str) -> None:
    exact, rough = (make(name, size=size, precision=precision) for precision in ("fp32", "bf16"))
    net = prepared(exact)
    batch = batch_of(exact, PATTERNS, side=16 if name in VOLUMES else SIDE)
    for phase in trained(exact):
        loss, true = differentiated(exact, net, batch, phase)
        loss_16, found = differentiated(rough, net, batch, phase)
        if name in VOLUMES:
            assert torch.equal(loss, loss_16), phase
            assert all(torch.equal(true[tensor], found[tensor]) for tensor in true), phase
            continue
        torch.testing.assert_close(loss_16, loss, rtol=0.05, atol=0.01)
        assert found.keys() == true.keys()
        whole = norm(true.values())
        assert norm(found[tensor] - true[tensor] for tensor in true) < OF_ALL * whole, phase
        for tensor, gradient in true.items():
            least = 0.01 * whole  # what is smaller is rounding of what cancels out
            off = norm([found[tensor] - gradient]) / max(norm([gradient]), least)
            assert off < OF_EACH, (phase, tensor, off)


@pytest.mark.parametrize("name", METHODS)
def test_auto_is_one_of_the_two_to_the_bit(name: str) -> None:
    made = {precision: make(name, precision=precision) for precision in ("auto", "fp32", "bf16")}
    net = prepared(made["fp32"])
    batch = batch_of(made["fp32"], PATTERNS)
    fast = "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
    for phase in trained(made["auto"]):
        loss, gradient = differentiated(made["auto"], net, batch, phase)
        same, found = differentiated(made[fast], net, batch, phase)
        assert torch.equal(loss, same)
        assert all(torch.equal(gradient[tensor], found[tensor]) for tensor in gradient)


@pytest.mark.parametrize("name", VOLUMES)
def test_what_is_made_of_volumes_is_the_same_bits_in_both(name: str) -> None:
    exact, rough = (make(name, precision=precision) for precision in ("fp32", "bf16"))
    net = prepared(exact)
    batch = batch_of(exact, PATTERNS)
    shown = batch.exists_BM.clone()
    shown[:, -1] = False
    made = [
        method.synthesize(net, batch.images_BMHW, shown, sampler_of(method), torch.Generator().manual_seed(0))
        for method in (exact, rough)
    ]
    assert torch.equal(*made)
    assert made[0].std() > 0


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_volumes_are_fp32_on_a_cpu_whatever_is_asked_for(precision: Precision) -> None:
    conv, x = nn.Conv3d(16, 16, 3, padding=1), torch.zeros(2, 16, 2, 4, 4)
    with autocast_volumes(torch.device("cpu"), precision):
        assert conv(x).dtype == torch.float32
    with autocast(torch.device("cpu"), "bf16"):
        assert conv(x).dtype == torch.bfloat16, "the control: slices may be multiplied in bf16"


def differentiated(method: Method, net: nn.Module, batch: Batch, phase: str) -> tuple[Tensor, Mapping[str, Tensor]]:
    net.zero_grad(set_to_none=True)
    loss_B = method.loss(net, batch, phase, torch.Generator().manual_seed(0)).loss_B
    loss_B.mean().backward()
    return loss_B.detach(), {name: gradient.clone() for name, gradient in gradients(net).items()}


def norm(parts: Iterable[Tensor]) -> float:
    return float(torch.stack([part.double().square().sum() for part in parts]).sum().sqrt())
