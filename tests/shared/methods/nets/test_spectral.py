import torch
from torch import Tensor

from shared.methods.nets.spectral import brain, equalize, high_pass, spectral


def images(batch: int = 2, size: tuple[int, int] = (24, 20)) -> tuple[Tensor, Tensor]:
    """Blobs on an exactly blank ground, three modalities."""
    g = torch.Generator().manual_seed(3)
    x = torch.rand(batch, 3, *size, generator=g)
    x = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    x[:, :, :4] = 0
    x[:, :, :, -3:] = 0
    return x, torch.ones(batch, 3, dtype=torch.bool)


def test_the_high_pass_removes_what_is_constant() -> None:
    assert high_pass(torch.full((1, 15, 16), 0.7)).max() < 1e-6


def test_a_scanners_gain_and_offset_change_nothing() -> None:
    x, shown = images()
    plain = spectral(x, shown)
    assert torch.equal(spectral(4 * x, shown), plain)  # a power of two is exact
    inside = brain(x, shown).expand_as(x)
    edges = high_pass(x)
    for gain, offset in ((0.37, 0.0), (1.9, 0.25)):
        changed = equalize(high_pass(gain * x + offset), inside)
        # one pixel on the border between two bins may fall on the other side: 1/n
        assert (changed - equalize(edges, inside)).abs().max() < 3 / inside[0, 0].sum()


def test_blank_and_hidden_images_give_exactly_zero() -> None:
    x, shown = images()
    x[:, 1] = 0
    shown[:, 2] = False
    out = spectral(x, shown)
    assert not out[:, 1:].any()
    assert out[:, 0].any()
    for size in (15, 155, 128):
        assert not spectral(torch.zeros(1, 1, size, size), torch.ones(1, 1, dtype=torch.bool)).any()


def test_hidden_garbage_leaves_every_bit() -> None:
    x, shown = images()
    shown[0, 1] = shown[1, 2] = False
    clean = spectral(torch.where(shown[:, :, None, None], x, 0.0), shown)
    for garbage in (float("nan"), 1e9, -float("inf")):
        assert torch.equal(spectral(torch.where(shown[:, :, None, None], x, garbage), shown), clean)


def test_zero_outside_the_brain_and_spread_evenly_inside() -> None:
    x, shown = images(size=(64, 64))
    out = spectral(x, shown)
    inside = brain(x, shown).expand_as(x)
    assert not out[~inside].any()
    assert out.min() == 0
    assert out.max() == 1
    values = out[0, 0][inside[0, 0]].sort().values
    uniform = torch.linspace(0, 1, len(values))
    assert (values - uniform).abs().max() < 0.03


def test_an_image_is_equalised_by_itself_alone() -> None:
    """So it can be cached: neither its batch nor the other modalities move it, given the mask."""
    x, shown = images(batch=3)
    together = spectral(x, shown)
    for b in range(3):
        assert torch.equal(spectral(x[b : b + 1], shown[b : b + 1]), together[b : b + 1])


def test_order_is_kept() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 40, 40, generator=g) ** 3
    out = equalize(x, torch.ones_like(x, dtype=torch.bool))
    order = x.flatten().argsort()
    assert bool((out.flatten()[order].diff() >= -1e-6).all())


def test_autocast_and_autograd_stay_outside() -> None:
    x, shown = images()
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = spectral(x, shown)
    assert out.dtype == torch.float32
    assert not out.requires_grad
    assert torch.equal(out, spectral(x.detach(), shown))
