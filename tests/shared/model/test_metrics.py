"""Laws of the metrics, and SSIM against MONAI's."""

import math

import numpy as np
import pytest
import torch

from shared.base.errors import DataError
from shared.model import metrics
from shared.model.metrics import METRICS, PSNR_CAP, psnr, ssim_map


def images(seed: int = 0, shape: tuple[int, int, int] = (5, 24, 28)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Truth, a prediction near it, and a mask that leaves two slices out."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.avg_pool2d(torch.rand(shape, generator=g), 3, 1, 1)
    near = (truth + 0.05 * torch.randn(shape, generator=g)).clamp(0, 1)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[1:4, 4:20, 5:22] = True
    return near, truth, mask


@pytest.mark.parametrize("name", METRICS)
def test_identical_images_score_the_best_value(name: str) -> None:
    _, truth, mask = images()
    score = METRICS[name](truth, truth, mask)
    assert score.volume == pytest.approx(METRICS[name].best, abs=1e-9)
    assert score.slice == pytest.approx(METRICS[name].best, abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_what_lies_outside_the_mask_is_ignored(name: str) -> None:
    near, truth, mask = images()
    if name == "wasserstein":  # its patches reach over the border of the mask by two pixels
        reach = torch.nn.functional.max_pool2d(mask.float(), 5, 1, 2) > 0
    else:
        reach = mask
    garbage = torch.where(reach, near, torch.rand(near.shape))
    assert METRICS[name](garbage, truth, mask) == METRICS[name](near, truth, mask)


@pytest.mark.parametrize("name", METRICS)
def test_more_noise_is_worse(name: str) -> None:
    near, truth, _ = images(shape=(5, 48, 48))
    mask = torch.ones_like(truth, dtype=torch.bool)
    far = (truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 1)
    best = METRICS[name].best
    for one, other in zip(METRICS[name](near, truth, mask)[:2], METRICS[name](far, truth, mask)[:2], strict=True):
        assert abs(one - best) < abs(other - best)


@pytest.mark.parametrize("name", METRICS)
def test_a_slice_that_the_mask_does_not_reach_changes_nothing(name: str) -> None:
    near, truth, mask = images()
    whole, cut = METRICS[name](near, truth, mask), METRICS[name](near[1:4], truth[1:4], mask[1:4])
    assert whole == cut
    assert whole.slices == 3


@pytest.mark.parametrize("name", METRICS)
def test_one_slice_is_its_own_volume(name: str) -> None:
    near, truth, mask = (x[1:2] for x in images())
    score = METRICS[name](near, truth, mask)
    assert score.volume == pytest.approx(score.slice, rel=1e-12)


@pytest.mark.parametrize(("name", "value"), [("mse", 0.01), ("mae", 0.1), ("psnr", 20.0), ("wasserstein", 0.1)])
def test_a_shift_by_a_tenth(name: str, value: float) -> None:
    _, truth, mask = images()
    truth = truth * 0.8
    assert METRICS[name](truth + 0.1, truth, mask).volume == pytest.approx(value, rel=1e-4)


def test_psnr_after_a_gain_and_offset_is_that_of_what_no_line_explains() -> None:
    """Against numpy's least squares; a wrong gain and offset cost nothing, and a shift of one slice alone does."""
    near, truth, mask = images()
    gain, offset = np.polyfit(near[mask].double().numpy(), truth[mask].double().numpy(), 1)
    left = (gain * near.double() + offset - truth)[mask].square().mean().item()
    found = METRICS["psnr_fitted"](near, truth, mask)
    assert found.volume == pytest.approx(-10 * math.log10(left), abs=1e-6)
    assert METRICS["psnr_fitted"](0.4 * near + 0.3, truth, mask).volume == pytest.approx(found.volume, abs=1e-4)
    assert METRICS["psnr_fitted"](1 - truth, truth, mask).volume == pytest.approx(PSNR_CAP, abs=1e-9)
    assert METRICS["psnr"](near, truth, mask).volume < found.volume
    one_slice = torch.where(torch.arange(5)[:, None, None] == 2, 0.5 * truth, truth)
    assert METRICS["psnr_fitted"](one_slice, truth, mask).volume < 35
    flat = torch.full_like(truth, 0.2)  # nothing to fit: the mean of the truth
    assert METRICS["psnr_fitted"](flat, truth, mask).volume == pytest.approx(
        -10 * math.log10(truth[mask].double().var(correction=0).item()), abs=1e-6
    )


def test_per_slice_psnr_lies_above_the_pooled_one() -> None:
    """Jensen: -log is convex, so the mean of the logs is at least the log of the mean; equal for equal errors."""
    near, truth, mask = images()
    near = torch.where(torch.arange(5)[:, None, None] == 1, truth, near)
    score = METRICS["psnr"](near, truth, mask)
    assert score.slice > score.volume + 1
    shifted = METRICS["psnr"](truth * 0.8 + 0.1, truth * 0.8, mask)
    assert shifted.slice == pytest.approx(shifted.volume, abs=1e-4)


def test_pooled_mse_weighs_slices_by_their_pixels() -> None:
    _, truth, mask = images()
    mask[1, 4:12] = False
    step = torch.tensor([0, 0.3, 0.1, 0.1, 0])[:, None, None]
    score = METRICS["mse"](truth * 0.5 + step, truth * 0.5, mask)
    assert score.volume == pytest.approx((0.09 * 8 + 0.01 * 16 * 2) / 40, rel=1e-5)
    assert score.slice == pytest.approx((0.09 + 0.01 * 2) / 3, rel=1e-5)


def test_ssim_is_monais() -> None:
    from monai.metrics.regression import SSIMMetric

    near, truth, _ = images(shape=(4, 40, 36))
    theirs = SSIMMetric(spatial_dims=2, data_range=1.0)(near[:, None], truth[:, None]).flatten()
    ours = ssim_map(near, truth).mean(dim=(1, 2))
    assert torch.allclose(ours.float(), theirs, atol=2e-6)
    score = METRICS["ssim"](near, truth, torch.ones_like(truth, dtype=torch.bool))
    assert score.slice == pytest.approx(theirs.mean().item(), abs=2e-6)


def test_nmi_is_0_for_strangers_and_1_for_a_relabelling() -> None:
    g = torch.Generator().manual_seed(1)
    x, y = torch.rand(40, 64, 64, generator=g), torch.rand(40, 64, 64, generator=g)
    mask = torch.ones_like(x, dtype=torch.bool)
    nmi = METRICS["nmi"]
    assert 0 <= nmi(x, y, mask).volume < 0.01
    levels = (x * 8).floor() / 8
    assert nmi(1 - levels - 0.125, levels, mask).volume == pytest.approx(1.0)
    assert nmi(x, y, mask).volume == pytest.approx(nmi(y, x, mask).volume)
    flat = torch.full_like(x, 0.5)
    assert nmi(flat, flat, mask).volume == 1.0
    assert nmi(flat, x, mask).volume == pytest.approx(0.0, abs=1e-9)


def test_blur_lowers_the_spectrum_ratio_and_noise_raises_it() -> None:
    near, truth, _ = images(shape=(3, 48, 48))
    mask = torch.ones_like(truth, dtype=torch.bool)
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    assert METRICS["spectrum"](blurred, truth, mask).volume < 0.5
    assert METRICS["spectrum"](near, truth, mask).volume > 1.5
    assert METRICS["spectrum"](truth * 0.5, truth, mask).volume == pytest.approx(0.25)


def test_wasserstein_does_not_mind_where_a_patch_lies() -> None:
    """A distribution metric: a mirrored image has mirrored patches, nearly the same law, though each pixel is wrong."""
    _, truth, _ = images(shape=(3, 48, 48))
    mask = torch.ones_like(truth, dtype=torch.bool)
    distance, error = METRICS["wasserstein"](truth.flip(2), truth, mask), METRICS["mse"](truth.flip(2), truth, mask)
    assert distance.volume < 0.1 * math.sqrt(error.volume)


def test_rescaling_a_prediction_by_its_own_maximum_is_not_forgiven() -> None:
    """pFLSynth's way of scoring calls half the intensity perfect (docs/methods/metrics.md, "Image quality")."""
    _, truth, mask = images()
    half = truth / 2
    assert psnr(half / half.max(), truth / truth.max(), mask) == PSNR_CAP
    assert METRICS["psnr"](half, truth, mask).volume < 15


def test_psnr_of_any_shape_is_the_table_s() -> None:
    near, truth, mask = images()
    assert psnr(near, truth, mask) == pytest.approx(METRICS["psnr"](near, truth, mask).volume)


@pytest.mark.parametrize("bad", [torch.nan, 1.5, -0.5])
def test_a_prediction_outside_the_range_is_refused(bad: float) -> None:
    near, truth, mask = images()
    near[2, 10, 10] = bad
    with pytest.raises(DataError, match=r"prediction: values from .* must be in"):
        METRICS["mae"](near, truth, mask)
    with pytest.raises(DataError, match="empty mask"):
        METRICS["mae"](truth, truth, torch.zeros_like(mask))


def test_wasserstein_of_two_noises_is_that_of_two_gaussians() -> None:
    """Patches of white noise of sd a: a projection is normal, of sd a |direction|; W2 is the gap of sds."""
    g = torch.Generator().manual_seed(0)
    one, two = (0.5 + sd * torch.randn(4, 64, 64, generator=g) for sd in (0.05, 0.11))
    length = metrics._directions().norm(dim=0).square().mean().sqrt().item()
    mask = torch.ones(4, 64, 64).bool()
    assert METRICS["wasserstein"](one, two, mask).volume == pytest.approx(0.06 * length, rel=0.05)
    again = 0.5 + 0.05 * torch.randn(4, 64, 64, generator=g)
    assert METRICS["wasserstein"](one, again, mask).volume < 0.006 * length
    assert METRICS["wasserstein"](one, one, mask).volume == 0


def test_a_sample_keeps_texture_where_a_mean_keeps_decibels() -> None:
    """The posterior of a texture that nothing tells: its mean is smooth, a sample of it is as good a texture as any."""
    g = torch.Generator().manual_seed(0)
    mean = 0.5 + 0.2 * torch.linspace(-1, 1, 64).expand(4, 64, 64)
    truth, sample = (mean + 0.06 * torch.randn(4, 64, 64, generator=g) for _ in range(2))
    mask = torch.ones(4, 64, 64).bool()

    def value(metric: str, made: torch.Tensor) -> float:
        return METRICS[metric](made, truth, mask).volume

    assert value("wasserstein", sample) < 0.3 * value("wasserstein", mean)
    assert value("psnr", mean) - value("psnr", sample) == pytest.approx(10 * math.log10(2), abs=0.2)
