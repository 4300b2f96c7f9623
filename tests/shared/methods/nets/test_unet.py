from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.methods.nets.unet import UNet, UNetShape

pytestmark = pytest.mark.slow  # left out of `make fast`

SHAPES = {
    "tiny": UNetShape(base=8, mult=(1, 2), blocks=1, attention=1),
    "patched": UNetShape(base=8, mult=(1, 2), blocks=1, attention=2, patch=2),
    "deep": UNetShape(base=8, mult=(1, 2, 2), blocks=2, attention=0),
}


def awake(net: nn.Module) -> nn.Module:
    """Zero-initialised layers randomised, so that a check can see through them."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return net


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 16, 16, generator=g), torch.arange(batch) * 100


@pytest.fixture(params=SHAPES)
def net(request: pytest.FixtureRequest) -> UNet:
    torch.manual_seed(0)
    return awake(UNet(3, 2, SHAPES[request.param]))  # type: ignore[return-value]


def test_starts_as_nothing_and_keeps_the_size() -> None:
    for shape in SHAPES.values():
        x, t = inputs(2)
        out = UNet(3, 2, shape)(x, t)
        assert out.shape == (2, 2, 16, 16)
        assert not out.any()


def test_a_sample_depends_on_itself_alone(net: UNet) -> None:
    x, t = inputs(3)
    x.requires_grad_()
    net(x, t)[0].sum().backward()
    assert x.grad is not None
    assert x.grad[0].any()
    assert not x.grad[1:].any()


def test_time_is_heard(net: UNet) -> None:
    x, t = inputs(2)
    assert not torch.allclose(net(x, t), net(x, t + 50))


def test_recomputing_activations_changes_nothing() -> None:
    import dataclasses

    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = awake(UNet(3, 2, dataclasses.replace(SHAPES["deep"], checkpoint=recompute)))
        net(*inputs(2)).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


def test_house_rules(net: UNet) -> None:
    """No buffers beside parameters, zero padding, no batch statistics: what per-sample gradients need."""
    assert not list(net.buffers())
    for module in net.modules():
        assert not isinstance(module, nn.modules.batchnorm._BatchNorm)
        if isinstance(module, nn.Conv2d):
            assert module.padding_mode == "zeros"
        assert not getattr(module, "inplace", False)


def test_bf16_autocast_is_close(net: UNet) -> None:
    x, t = inputs(2)
    with torch.autocast("cpu", torch.bfloat16):
        fast = net(x, t).float()
    exact = net(x, t)
    assert (fast - exact).norm() < 0.05 * exact.norm()


def test_torch_export_takes_any_batch(net: UNet) -> None:
    net.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(net, inputs(2), dynamic_shapes=({0: batch}, {0: batch}))
    for n in (1, 5):
        torch.testing.assert_close(exported.module()(*inputs(n)), net(*inputs(n)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_agrees_with_eager(tmp_path: Path) -> None:
    import onnxruntime

    net = awake(UNet(3, 2, SHAPES["patched"])).eval()
    file = tmp_path / "net.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        net, inputs(2), file, dynamo=True, dynamic_shapes=({0: batch}, {0: batch}), verbose=False, optimize=False
    )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    x, t = inputs(3)
    names = [i.name for i in session.get_inputs()]
    out = session.run(None, dict(zip(names, (x.numpy(), t.numpy()), strict=True)))[0]
    torch.testing.assert_close(torch.from_numpy(out), net(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [{"base": 6}, {"mult": ()}, {"blocks": 0}, {"attention": 3}, {"patch": 0}])
def test_shapes_that_mean_nothing_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        UNetShape(**{"base": 8, "mult": (1, 2), **bad})  # type: ignore[arg-type]
