import itertools

import pytest
import torch
from torch import Tensor

from shared.methods.nets.iffn import IFFN, IffnShape, PlainEncoder, Predictor, soft_levels
from shared.methods.nets.spectral import spectral

SHAPES = {
    "paper": (IffnShape(width=8, out=8, depth=(1, 1, 1, 1)), 1),
    "small": (IffnShape(width=8, out=8, depth=(0, 1, 1, 1), levels=3), 2),
}
ENCODERS = {"iffn": IFFN, "unet": PlainEncoder}
M = 3


def see(encoder: IFFN | PlainEncoder, images: Tensor, shown: Tensor) -> Tensor:
    images = torch.where(shown[:, :, None, None], images, 0.0)
    out: Tensor = encoder(images, spectral(images, shown), shown)
    return out


@pytest.fixture(params=[(name, shape) for name in ENCODERS for shape in SHAPES], ids=str)
def encoder(request: pytest.FixtureRequest) -> IFFN | PlainEncoder:
    torch.manual_seed(0)
    name, shape = request.param
    return ENCODERS[name](M, SHAPES[shape][0], patch=SHAPES[shape][1])


def test_one_map_at_the_size_of_the_diffusion_networks_first_layer(encoder: IFFN | PlainEncoder) -> None:
    out = see(encoder, torch.rand(2, M, 32, 48), torch.ones(2, M, dtype=torch.bool))
    assert out.shape == (2, 8, 32 // encoder.patch, 48 // encoder.patch)
    assert out.std() > 0.1


def test_every_pattern_gives_its_own_map(encoder: IFFN | PlainEncoder) -> None:
    images = torch.rand(1, M, 16, 16)
    maps = [
        see(encoder, images, torch.tensor([pattern]))
        for pattern in itertools.product([False, True], repeat=M)
        if any(pattern)
    ]
    for one, two in itertools.combinations(maps, 2):
        assert not torch.allclose(one, two)


def test_stem_slices_of_hidden_modalities_get_exactly_no_gradient(encoder: IFFN | PlainEncoder) -> None:
    shown = torch.tensor([[True, False, True], [False, False, True]])
    see(encoder, torch.rand(2, M, 16, 16), shown).square().sum().backward()
    parameters = dict(encoder.named_parameters())
    for name, seen in encoder.sources(["a", "b", "c"]).items():
        grad = parameters[name].grad
        assert grad is not None
        assert grad.shape[1] == len(seen)
        for i, modality in enumerate(seen):
            assert bool(grad[:, i].any()) == (modality != "b")


def test_the_predictor_looks_at_one_position_at_a_time() -> None:
    predictor = Predictor(8)
    h = torch.rand(1, 8, 4, 4, requires_grad=True)
    predictor(h)[0, :, 1, 2].sum().backward()
    assert h.grad is not None
    assert h.grad.abs().sum(1).nonzero().tolist() == [[0, 1, 2]]


def test_levels_of_a_blank_are_exactly_nothing_and_of_the_rest_whole() -> None:
    levels = 5
    x = torch.rand(1, 2, 6, 6) * 0.8 + 0.2
    x[:, 1] = 0
    coded = soft_levels(x, levels).unflatten(1, (2, levels))
    assert not coded[:, 1].any()
    torch.testing.assert_close(coded[:, 0].sum(1), torch.ones(1, 6, 6))  # above the first level
    centres = torch.arange(1, levels + 1) / levels
    torch.testing.assert_close((coded[:, 0] * centres[:, None, None]).sum(1), x[:, 0])  # linear in between
    assert soft_levels(x, 0).shape[1] == 0
