"""The mixture as a denoiser against closed forms: its own densities, images that are told, noise that hides all."""

import math

import pytest
import torch
from torch import Tensor

from shared.methods.anchors.mixture import Mixture, features
from shared.methods.anchors.noisy import FAR, OUTSIDE, Expected, _level, _one, expected, in_images

M = 2


def mixture(components: int = 3) -> Mixture:
    """Components whose features are any; no image has such a mean over 3 x 3, and no formula asks."""
    g = torch.Generator().manual_seed(0)
    made = Mixture(M, components)
    root = 0.1 * torch.randn(components, 2 * M, 2 * M, generator=g)
    made.mean_KD.copy_(0.3 + 0.4 * torch.rand(components, 2 * M, generator=g))
    made.cov_KDD.copy_(root @ root.transpose(1, 2) + 1e-3 * torch.eye(2 * M))
    made.weight_K.copy_(torch.softmax(torch.randn(components, generator=g), 0))
    return made


def by_density(made: Mixture, x_D: Tensor, noise_M: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd of the intensities, component by component with torch's own densities."""
    one = torch.tensor([[1.0, 1 / 9], [1 / 9, 1 / 9]], dtype=torch.float64)
    noise = torch.block_diag(*(s**2 * one for s in noise_M.double()))  # type: ignore[no-untyped-call]
    weights = [*(made.weight_K.double() * (1 - OUTSIDE)), torch.tensor(OUTSIDE).double()]
    means = [*made.mean_KD.double(), torch.zeros(2 * M).double()]
    covs = [*made.cov_KDD.double(), 0.02**2 * torch.eye(2 * M).double()]
    logs, firsts, seconds = [], [], []
    for weight, mean, cov in zip(weights, means, covs, strict=True):
        seen = torch.distributions.MultivariateNormal(mean, cov + noise)
        gain = cov @ torch.linalg.inv(cov + noise)
        first = mean + gain @ (x_D.double() - mean)
        logs.append(weight.log() + seen.log_prob(x_D.double()))
        firsts.append(first[::2])
        seconds.append(first[::2] ** 2 + (cov - gain @ cov).diagonal()[::2])
    share_K1 = torch.softmax(torch.stack(logs), 0)[:, None]
    first = (share_K1 * torch.stack(firsts)).sum(0)
    return first, ((share_K1 * torch.stack(seconds)).sum(0) - first**2).clamp(min=0).sqrt()


def look(made: Mixture, images: Tensor, noise: list[float]) -> Expected:
    return expected(made, images, torch.tensor([noise]))


@pytest.mark.parametrize("noise", [[0.0, 0.1], [0.3, 0.05], [2.0, 2.0], [0.1, FAR]])
def test_a_pixel_is_expected_as_its_components_densities_say(noise: list[float]) -> None:
    made = mixture()
    images = torch.rand(1, M, 6, 6, generator=torch.Generator().manual_seed(1))
    heard = images * (torch.tensor(noise) < FAR)[None, :, None, None]
    said = look(made, images, noise)
    for y, x in [(0, 0), (2, 3), (5, 1)]:
        first, sd = by_density(made, features(heard)[0, :, y, x], torch.tensor(noise))
        torch.testing.assert_close(said.mean_BMHW[0, :, y, x].double(), first, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(said.sd_BMHW[0, :, y, x].double(), sd, rtol=1e-2, atol=1e-3)


def test_what_is_told_comes_back_and_far_noise_leaves_the_prior() -> None:
    made = mixture()
    images = torch.rand(1, M, 8, 8, generator=torch.Generator().manual_seed(1))
    told = look(made, images, [0.0, FAR])
    torch.testing.assert_close(told.mean_BMHW[:, 0], images[:, 0], rtol=0, atol=1e-3)
    blind = look(made, images, [FAR, FAR])
    prior = (1 - OUTSIDE) * (made.weight_K[:, None] * made.mean_KD[:, ::2]).sum(0)
    torch.testing.assert_close(blind.mean_BMHW[0, :, 3, 3], prior, rtol=1e-3, atol=1e-4)


def test_it_is_the_conditional_mean_of_what_it_describes() -> None:
    """No other guess has a smaller error: draws of the mixture, noised; its own sd is the error."""
    made = mixture()
    g = torch.Generator().manual_seed(2)
    kinds = torch.multinomial(made.weight_K, 20_000, replacement=True, generator=g)
    root = torch.linalg.cholesky(made.cov_KDD)
    clean = made.mean_KD[kinds] + (root[kinds] @ torch.randn(20_000, 2 * M, 1, generator=g))[..., 0]
    noise = torch.tensor([0.15, 0.3])
    one = torch.linalg.cholesky(torch.tensor([[1.0, 1 / 9], [1 / 9, 1 / 9]]))
    seen = clean + (noise[:, None] * (torch.randn(20_000, M, 2, generator=g) @ one.T)).flatten(1)
    mean, sd = _one(_level(made, noise.double()), seen.T.contiguous())
    off = mean.T - clean[:, ::2]
    assert off.square().mean().sqrt() == pytest.approx(sd.square().mean().sqrt().item(), rel=0.05)
    for other in (seen[:, ::2], seen[:, 1::2], 0.9 * mean.T + 0.05):
        assert off.square().mean() < (other - clean[:, ::2]).square().mean()


def test_levels_of_a_batch_are_each_samples_own_and_gradients_go_through() -> None:
    made = mixture()
    images = torch.rand(3, M, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    levels = torch.tensor([[0.1, 0.2], [0.0, FAR], [0.1, 0.2]])
    together = expected(made, images, levels)
    for b in range(3):
        alone = expected(made, images[b : b + 1], levels[b : b + 1])
        assert torch.equal(alone.mean_BMHW[0], together.mean_BMHW[b])
    together.mean_BMHW.sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert not images.grad[1, 1].any()  # what is not there tells nothing


def test_noise_in_images_is_half_of_that_in_x() -> None:
    alpha, sigma = torch.tensor([1.0, 0.6, 0.0]), torch.tensor([0.0, 0.8, 1.0])
    assert in_images(alpha, sigma).tolist() == pytest.approx([0, 0.8 / 1.2, 4 * FAR])
    assert math.isfinite(FAR)


def test_before_the_first_sums_all_is_black() -> None:
    said = expected(Mixture(M, 3), torch.rand(1, M, 8, 8), torch.zeros(1, M))
    assert not said.mean_BMHW.any()
