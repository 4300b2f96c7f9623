"""How good a synthesised angiogram is: its voxels, its projections, and its vessels as a tree.

Why all three: docs/methods/metrics.md, "Angiograms".

Images are in [0, 1], D H W; all is measured inside the brain mask, and what lies outside counts as 0 in both.

Image metrics, of the volume and of each maximum intensity projection (MIP) inside the projected mask:
  psnr     -10 log10 of the mean squared error, range 1, in dB (shared/model/metrics.py)
  ssim     Wang et al. 2004 in planes: axial slices of the volume, the MIP itself (shared/model/metrics.py)
  rmse     100 sqrt(mean squared error), in percent of the range
  axial, sagittal and coronal MIPs are maxima over D, W and H.

Vessels are what one hysteresis threshold finds, the same in truth and prediction: all voxels of at least `low` whose
26-connected part reaches `high`. LOW and HIGH fit the phantoms' own artery masks best at 2 mm: mean Dice 0.864 over
nine training subjects; from 0.22 to 0.25 for LOW, and at any HIGH up to 0.4, it stays above 0.84. They are not for all
voxels: 1.0 is a percentile of the volume (shared/data/intensities.py), which coarse voxels reach with less contrast. At
3 mm the best are 0.32 and 0.44, Dice 0.862 over six subjects, where 0.23 takes tissue for vessels (0.54).
Vessel metrics, of such a mask against the truth's:
  dice      2 |P and T| / (|P| + |T|)
  cldice    harmonic mean of topology precision |S(P) and T| / |S(P)| and sensitivity |S(T) and P| / |S(T)|,
            S the skeleton (Shit et al. 2021)
  components       26-connected parts of P;  components_off: how many more or fewer than T has
  largest_share    the largest part's share of P's voxels
  largest_covered  how much of T's largest part a single part of P covers
Of an empty P all are 0, but for the counts; of an empty P and an empty T dice, cldice and largest_covered are 1.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from shared.base.options import require
from shared.model.metrics import METRICS

View: TypeAlias = Literal["axial", "sagittal", "coronal"]
Mask: TypeAlias = NDArray[np.bool_]

VIEWS: Mapping[View, int] = {"axial": 0, "sagittal": 2, "coronal": 1}  # the axis that is projected away
LOW, HIGH = 0.23, 0.33
_TOUCHING = np.ones((3, 3, 3), bool)  # 26 neighbours
_CROSS = ndimage.generate_binary_structure(3, 1)  # 6 neighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """What counts as vessel."""

    low: float = LOW
    high: float = HIGH

    def __post_init__(self) -> None:
        require(0 < self.low <= 1, "low", self.low, "above 0 and up to 1")
        require(self.low <= self.high <= 1, "high", self.high, f"from low={self.low} to 1")


def mip(volume_DHW: Tensor, view: View) -> Tensor:
    """Its maxima, seen from one side; the first axis left is drawn upwards."""
    return volume_DHW.amax(dim=VIEWS[view])


# --- images ---------------------------------------------------------------------------------------------------------


def image_scores(prediction_DHW: Tensor, truth_DHW: Tensor, brain_DHW: Tensor) -> dict[str, float]:
    """`volume psnr`, `axial ssim`, ...: every image metric of the volume and of the three projections."""
    found = {}
    for name, prediction, truth, mask in _images(prediction_DHW, truth_DHW, brain_DHW):
        found[f"{name} psnr"] = METRICS["psnr"](prediction, truth, mask).volume
        found[f"{name} ssim"] = METRICS["ssim"](prediction, truth, mask).volume
        found[f"{name} rmse"] = 100 * math.sqrt(METRICS["mse"](prediction, truth, mask).volume)
    return found


def _images(
    prediction_DHW: Tensor, truth_DHW: Tensor, brain_DHW: Tensor
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """The volume, and each projection as a volume of one slice."""
    prediction_DHW, truth_DHW = prediction_DHW * brain_DHW, truth_DHW * brain_DHW
    yield "volume", prediction_DHW, truth_DHW, brain_DHW
    for view in VIEWS:
        yield view, mip(prediction_DHW, view)[None], mip(truth_DHW, view)[None], mip(brain_DHW, view)[None]


# --- vessels --------------------------------------------------------------------------------------------------------


def vessels(image_DHW: Tensor, brain_DHW: Tensor, rule: Threshold) -> Mask:
    """The bright parts that are very bright somewhere."""
    image, brain = image_DHW.cpu().numpy(), brain_DHW.cpu().numpy()
    label, parts = _parts((image >= rule.low) & brain)
    kept = np.zeros(parts + 1, bool)
    kept[np.unique(label[(image >= rule.high) & brain])] = True
    return cast(Mask, kept[label])


def vessel_scores(prediction: Mask, truth: Mask) -> dict[str, float]:
    """Every vessel metric of one mask against another."""
    label, parts = _parts(prediction)
    true_label, true_parts = _parts(truth)
    sizes = np.bincount(label.ravel(), minlength=2)[1:]
    return {
        "dice": dice(prediction, truth),
        "cldice": cldice(prediction, truth),
        "components": float(parts),
        "components_off": float(abs(parts - true_parts)),
        "largest_share": float(sizes.max() / max(1, sizes.sum())),
        "largest_covered": _covered(label, true_label),
    }


def dice(one: Mask, other: Mask) -> float:
    total = int(one.sum()) + int(other.sum())
    return float(2 * (one & other).sum() / total) if total else 1.0


def cldice(prediction: Mask, truth: Mask) -> float:
    """Dice of centre lines: a lost twig counts by its length, not by its volume."""
    if not prediction.any() or not truth.any():
        return float(prediction.any() == truth.any())
    precision, sensitivity = (_share(skeleton(one), other) for one, other in ((prediction, truth), (truth, prediction)))
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def skeleton(mask_DHW: Mask) -> Mask:
    """What every erosion loses to the opening after it: Shit et al. 2021, algorithm 1, whose pooling this is on masks.

    Never empty for a mask that is not; beyond the volume nothing is vessel.
    """
    left = mask_DHW
    found = np.zeros_like(mask_DHW)
    while left.any():
        eroded = ndimage.binary_erosion(left, _CROSS)
        found |= left & ~ndimage.binary_dilation(eroded, _TOUCHING)
        left = eroded
    return found


def _share(part: Mask, whole: Mask) -> float:
    return float((part & whole).sum() / part.sum())


def _covered(label_DHW: NDArray[Any], true_label_DHW: NDArray[Any]) -> float:
    """How much of the largest true part the best of the predicted parts covers."""
    sizes = np.bincount(true_label_DHW.ravel(), minlength=2)[1:]
    if not sizes.max():
        return float(not label_DHW.any())
    on_it = label_DHW[true_label_DHW == 1 + sizes.argmax()]
    return float(np.bincount(on_it, minlength=2)[1:].max() / len(on_it))


def _parts(mask_DHW: Mask) -> tuple[NDArray[Any], int]:
    label, parts = ndimage.label(mask_DHW, _TOUCHING)
    return label, int(parts)
