"""Image quality on [0, 1] in a mask: pooled over a volume, and as the mean over its slices.

Why so: docs/methods/metrics.md, "Image quality".

The range is fixed at 1, on the scale of the true volume (`as_judged`): from its darkest to its brightest voxels. A
prediction is brought there by the truth's line: dividing it by its own maximum would hide intensity errors.
Slices that the mask does not reach are left out. Both forms are always given: the mean of per-slice PSNRs lies one to
two dB above the PSNR of the pooled error. LPIPS and FID are not here: they need weights from elsewhere.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.base.errors import DataError

PSNR_CAP = 60.0  # dB; identical images would be infinite and poison every mean
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # SSIM, Wang et al. 2004
NMI_BINS = 32  # over [0, 1]; few pixels in many bins look alike by chance
PATCH, PROJECTIONS, MOST_PATCHES = 5, 64, 4096  # sliced Wasserstein
FINE, BANDS = 0.25, 8  # spectrum ratio: bands from FINE to 0.5 cycles per pixel
_SLACK = 1e-3  # how far float16 or a resampling may leave [0, 1]


class Value(NamedTuple):
    volume: float  # all voxels of the mask at once
    slice: float  # mean over the slices that the mask reaches
    slices: int


Measure: TypeAlias = Callable[[Tensor, Tensor, Tensor], Value]  # (prediction_DHW, truth_DHW, mask_DHW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    measure: Measure
    best: float  # its value for two identical images
    unit: str = ""

    def __call__(self, prediction_DHW: Tensor, truth_DHW: Tensor, mask_DHW: Tensor) -> Value:
        """DataError for a prediction outside [0, 1] or an empty mask."""
        _check(prediction_DHW, truth_DHW, mask_DHW)
        reached_D = mask_DHW.flatten(1).any(dim=1)
        return self.measure(prediction_DHW[reached_D].float(), truth_DHW[reached_D].float(), mask_DHW[reached_D])


def psnr(prediction: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Of images of any shape, in dB."""
    error = (prediction.double() - truth.double())[mask].square().mean().item()
    return min(PSNR_CAP, -10 * math.log10(max(error, 1e-30)))


def as_judged(images: Tensor, line_2: Tensor) -> Tensor:
    """Images on the scale of the true volume, 0 its darkest and 1 its brightest, by that gain and offset."""
    return (images * line_2[0] + line_2[1]).clamp(0, 1)


def shares(true_DHW: Tensor, mask_DHW: Tensor) -> Value:
    """How much of the mask it is true of."""
    reached_D = mask_DHW.flatten(1).any(dim=1)
    return _adding(lambda x, _, mask: _summed(x, mask), _mean)(
        true_DHW[reached_D], mask_DHW[reached_D], mask_DHW[reached_D]
    )


# --- metrics whose parts add up over slices -------------------------------------------------------------------------


def _adding(parts: Callable[[Tensor, Tensor, Tensor], Tensor], value: Callable[[Tensor], Tensor]) -> Measure:
    """`parts` gives sums per slice, D x anything; `value` turns sums, of a slice or of all, into the metric."""

    def measure(prediction_DHW: Tensor, truth_DHW: Tensor, mask_DHW: Tensor) -> Value:
        sums = parts(prediction_DHW, truth_DHW, mask_DHW)
        value_D = value(sums)
        value_D = value_D[value_D.isfinite()]  # such as a slice too near the border for one whole window
        mean = value_D.mean().item() if len(value_D) else math.nan
        return Value(volume=value(sums.sum(0, keepdim=True)).item(), slice=mean, slices=len(value_D))

    return measure


def _summed(map_DHW: Tensor, mask_DHW: Tensor) -> Tensor:
    """D x (sum, count) in the mask."""
    inside_DHW = torch.where(mask_DHW, map_DHW.double(), 0.0)
    return torch.stack([inside_DHW.sum(dim=(1, 2)), mask_DHW.sum(dim=(1, 2)).double()], dim=1)


def _squared(p_DHW: Tensor, y_DHW: Tensor, mask_DHW: Tensor) -> Tensor:
    return _summed((p_DHW.double() - y_DHW.double()).square(), mask_DHW)


def _absolute(p_DHW: Tensor, y_DHW: Tensor, mask_DHW: Tensor) -> Tensor:
    return _summed((p_DHW.double() - y_DHW.double()).abs(), mask_DHW)


def _mean(sums_N2: Tensor) -> Tensor:
    return sums_N2[:, 0] / sums_N2[:, 1]


def _decibels(sums_N2: Tensor) -> Tensor:
    return (-10 * _mean(sums_N2).clamp(min=1e-30).log10()).clamp(max=PSNR_CAP)


def _ssim(p_DHW: Tensor, y_DHW: Tensor, mask_DHW: Tensor) -> Tensor:
    """Per slice, with what lies outside the mask blank in both; at pixels whose whole window is in the image."""
    h = WINDOW // 2
    map_DHW = ssim_map(torch.where(mask_DHW, p_DHW, 0.0), torch.where(mask_DHW, y_DHW, 0.0))
    return _summed(map_DHW, mask_DHW[:, h:-h, h:-h])


def ssim_map(x_DHW: Tensor, y_DHW: Tensor) -> Tensor:
    """Wang et al. 2004, eq. 13, Gaussian window, valid positions only."""
    if min(x_DHW.shape[1:]) < WINDOW:
        raise DataError(f"slices of {tuple(x_DHW.shape[1:])}: SSIM needs {WINDOW} pixels or more each way")
    x, y = x_DHW.double()[:, None], y_DHW.double()[:, None]
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    line = torch.exp(-(at**2) / (2 * SIGMA**2))
    line = line / line.sum()

    def smooth(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, line[None, None, :, None]), line[None, None, None, :])

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    cov = smooth(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2  # times the range squared, which is 1
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * cov + c2) / (var_x + var_y + c2))[:, 0]


def _joint_histogram(p_DHW: Tensor, y_DHW: Tensor, mask_DHW: Tensor) -> Tensor:
    D, bins = len(p_DHW), NMI_BINS
    p_DHW, y_DHW = ((x.clamp(0, 1) * bins).long().clamp(max=bins - 1) for x in (p_DHW, y_DHW))
    place_DHW = (torch.arange(D, device=p_DHW.device)[:, None, None] * bins + p_DHW) * bins + y_DHW
    return torch.bincount(place_DHW[mask_DHW], minlength=D * bins**2).reshape(D, bins, bins).double()


def _nmi(joint_NKK: Tensor) -> Tensor:
    """2 I(X; Y) / (H(X) + H(Y)) in [0, 1]; 1 for two constants, which tell all about each other."""
    joint = joint_NKK / joint_NKK.sum(dim=(1, 2), keepdim=True)
    h_x, h_y, h_xy = _entropy(joint.sum(2)), _entropy(joint.sum(1)), _entropy(joint.flatten(1))
    return torch.where(h_x + h_y > 0, 2 * (h_x + h_y - h_xy) / (h_x + h_y).clamp(min=1e-12), 1.0).clamp(0, 1)


def _entropy(p_NK: Tensor) -> Tensor:
    entropy_N: Tensor = -torch.special.xlogy(p_NK, p_NK).sum(dim=1)
    return entropy_N


def _fine_power(p_DHW: Tensor, y_DHW: Tensor, mask_DHW: Tensor) -> Tensor:
    """D x 2 x BANDS: power of prediction and truth in rings of the spectrum."""
    D, height, width = p_DHW.shape
    u_H, v_W = (torch.fft.fftfreq(n, device=p_DHW.device) for n in (height, width))
    radius_HW = (u_H[:, None] ** 2 + v_W[None, :] ** 2).sqrt()
    band_HW = ((radius_HW - FINE) / (0.5 - FINE) * BANDS).floor().long()
    used_HW = (band_HW >= 0) & (band_HW < BANDS)
    rings = p_DHW.new_zeros(D, 2, BANDS, dtype=torch.float64)
    for i, x_DHW in enumerate((p_DHW, y_DHW)):
        power_DHW = torch.fft.fft2(torch.where(mask_DHW, x_DHW.double(), 0.0)).abs().square()
        rings[:, i].index_add_(1, band_HW[used_HW], power_DHW[:, used_HW])
    return rings


def _ratio(rings_N2K: Tensor) -> Tensor:
    """Geometric mean over bands of predicted over true power: 1 as sharp, below 1 blurred, above 1 noisy."""
    log_N2K = rings_N2K.clamp(min=1e-12).log()
    return (log_N2K[:, 0] - log_N2K[:, 1]).mean(dim=1).exp()


# --- after the best gain and offset ----------------------------------------------------------------------------------


def _fitted(p_DHW: Tensor, y_DHW: Tensor, mask_DHW: Tensor) -> Value:
    """PSNR of gain * prediction + offset, both by least squares over the whole volume's mask: shapes without levels."""
    p_N, y_N = p_DHW[mask_DHW].double(), y_DHW[mask_DHW].double()
    apart_N = p_N - p_N.mean()
    spread = apart_N.square().sum()
    gain = (apart_N * y_N).sum() / spread if spread > 0 else spread
    return _PSNR(gain * (p_DHW.double() - p_N.mean()) + y_N.mean(), y_DHW, mask_DHW)


# --- sliced Wasserstein: sorted, not summed -------------------------------------------------------------------------


def _sliced_wasserstein(p_DHW: Tensor, y_DHW: Tensor, mask_DHW: Tensor) -> Value:
    value_D = [_distance(p_DHW[d : d + 1], y_DHW[d : d + 1], mask_DHW[d : d + 1]) for d in range(len(p_DHW))]
    found = [value for value in value_D if not math.isnan(value)]
    mean = sum(found) / len(found) if found else math.nan
    return Value(volume=_distance(p_DHW, y_DHW, mask_DHW), slice=mean, slices=len(found))


def _distance(p_DHW: Tensor, y_DHW: Tensor, mask_DHW: Tensor) -> float:
    """Between the two sets of PATCH x PATCH patches round the pixels of the mask, as grey levels: a shift by d gives d.

    Root mean square over random directions of the one-dimensional distances (2-Wasserstein, sorted projections).
    """
    h = PATCH // 2
    at_N3 = mask_DHW[:, h:-h, h:-h].nonzero()
    if not len(at_N3):
        return math.nan
    if len(at_N3) > MOST_PATCHES:
        at_N3 = at_N3[torch.linspace(0, len(at_N3) - 1, MOST_PATCHES, device=at_N3.device).long()]
    sorted_ = []
    for x_DHW in (p_DHW, y_DHW):
        windows = x_DHW.unfold(1, PATCH, 1).unfold(2, PATCH, 1)  # a view: D, H - 4, W - 4, PATCH, PATCH
        patches_NF = windows[tuple(at_N3.unbind(1))].flatten(1)
        sorted_.append((patches_NF @ _directions().to(patches_NF.device)).sort(dim=0).values)
    return (sorted_[0] - sorted_[1]).double().square().mean().sqrt().item()


@functools.cache
def _directions() -> Tensor:
    """The same at every call; scaled so that their mean square response to a constant is 1."""
    drawn_FK = torch.randn(PATCH**2, PROJECTIONS, generator=torch.Generator().manual_seed(0))
    unit_FK = drawn_FK / drawn_FK.norm(dim=0)
    scaled_FK: Tensor = unit_FK / unit_FK.sum(dim=0).square().mean().sqrt()
    return scaled_FK


_PSNR = _adding(_squared, _decibels)
METRICS: Mapping[str, Metric] = {
    "psnr": Metric(measure=_PSNR, best=PSNR_CAP, unit="dB"),
    "psnr_fitted": Metric(measure=_fitted, best=PSNR_CAP, unit="dB"),
    "ssim": Metric(measure=_adding(_ssim, _mean), best=1.0),
    "mse": Metric(measure=_adding(_squared, _mean), best=0.0),
    "mae": Metric(measure=_adding(_absolute, _mean), best=0.0),
    "nmi": Metric(measure=_adding(_joint_histogram, _nmi), best=1.0),
    "spectrum": Metric(measure=_adding(_fine_power, _ratio), best=1.0),
    "wasserstein": Metric(measure=_sliced_wasserstein, best=0.0),
}


def _check(prediction_DHW: Tensor, truth_DHW: Tensor, mask_DHW: Tensor) -> None:
    assert prediction_DHW.shape == truth_DHW.shape == mask_DHW.shape, "one shape for all three"
    if not bool(mask_DHW.any()):
        raise DataError("empty mask: nothing to measure")
    for name, image_DHW in (("prediction", prediction_DHW), ("truth", truth_DHW)):
        check_range(name, image_DHW, mask_DHW)


def check_range(name: str, image_DHW: Tensor, mask_DHW: Tensor) -> None:
    """DataError for what leaves [0, 1]; before `as_judged`, which cuts off what lies beyond the truth's own range."""
    inside = image_DHW[mask_DHW]
    low, high = inside.min().item(), inside.max().item()
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # also catches nan
        raise DataError(f"{name}: values from {low:.3g} to {high:.3g}; must be in [0, 1], and never rescaled to it")
