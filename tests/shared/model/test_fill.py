"""Monte-Carlo samples: in pairs whose noise is each other's mirror image."""

import pytest
import torch
from torch import Tensor, nn

from shared.base.randomness import Mirror, Noise, generator, normal
from shared.data.volumes import Grid
from shared.diffusion.samplers import Sampler
from shared.methods.amm_diff import AmmDiff
from shared.model.fill import Filled, Filling, fill
from shared.model.model import Model

NAMES = ("T1", "FLAIR")


class Answers(AmmDiff):
    """Answers to noise linearly: half grey and a tenth of it."""

    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        return 0.5 + 0.1 * normal(images_BMHW, generator)


def filled(samples: int) -> Filled:
    method = Answers(modalities=NAMES, size="tiny", precision="fp32")
    grid = Grid(spacing_mm=None, height=16, width=16)
    model = Model(name="amm_diff", method=method, net=method.build(0), grid=grid, sampler=Sampler(), record={})
    how = Filling(sampler=Sampler(kind="multistep", steps=2, samples=samples), keys=("k",), device=torch.device("cpu"))
    return fill(model, torch.rand(2, 40, 16, 16), torch.tensor([True, False]), range(40), how)


def test_a_mirror_image_is_the_same_numbers_with_their_signs_changed() -> None:
    like = torch.empty(2, 3, 4)
    plain = normal(like, [generator("cpu", "a"), generator("cpu", "b")])
    turned = normal(like, [Mirror(generator("cpu", "a")), generator("cpu", "b")])
    assert torch.equal(turned[0], -plain[0])
    assert torch.equal(turned[1], plain[1])


@pytest.mark.parametrize("samples", [2, 4, 8])
def test_what_answers_to_noise_linearly_leaves_the_mean_and_not_the_spread(samples: int) -> None:
    made = filled(samples)
    assert made.sd_MDHW is not None
    torch.testing.assert_close(made.mean_MDHW, torch.full_like(made.mean_MDHW, 0.5), rtol=0, atol=1e-6)
    assert made.sd_MDHW.square().mean().sqrt() == pytest.approx(0.1, rel=0.03)


def test_an_odd_sample_counts_and_the_spread_stays_true() -> None:
    made = filled(3)
    assert made.sd_MDHW is not None
    assert (made.mean_MDHW - 0.5).square().mean().sqrt() == pytest.approx(0.1 / 3, rel=0.05)
    assert made.sd_MDHW.square().mean().sqrt() == pytest.approx(0.1, rel=0.03)
