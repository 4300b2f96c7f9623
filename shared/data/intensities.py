"""Values to [0, 1] and back: a fixed rule per modality, so that no site exchanges an intensity.

Why fixed: docs/methods/data.md, "Values to [0, 1]".

Input is expected brain-only with background 0. MR has no unit: so many standard deviations of the middle of the
volume's own values, which a lesion does not move. CT and PET have: fixed windows in Hounsfield units and in uptake
ratio (SUVR), the same at every site. What is made is judged on another scale, from the darkest to the brightest of the
true volume: comparable, whatever the rule.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared.base.errors import DataError
from shared.base.options import plain
from shared.base.vocabulary import Modality
from shared.data.modalities import MODALITIES, Percentiles, Rule, Spread, Window

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

MR_UNITS = 1000.0  # what 1.0 becomes when a synthesised MR volume, which has no unit, is written
AIR_HU = -200.0  # CT at or below this is outside the head, as is exactly 0 in a brain-only CT


MIDDLE = (10.0, 90.0)  # percentiles between which a Spread is measured
BRIGHTEST = Percentiles(low=0.5, high=99.5)  # what MR is judged on
RULES: Mapping[Modality, Rule] = {modality: form.values for modality, form in MODALITIES.items()}


def rules_version(modalities: Iterable[Modality]) -> str:
    """Hash the rules of just these: caches, plans, bundles and kits are not refused for what they don't hold."""
    used = {modality: RULES[modality] for modality in modalities if modality in RULES}
    return hashlib.sha256(json.dumps(plain(used), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The line between a volume's own values and [0, 1]."""

    low: float
    high: float

    def apply(self, data_DHW: NDArray[Any], brain_DHW: Mask) -> Array:
        """To [0, 1]; outside the brain exactly 0."""
        unit_DHW = np.clip((data_DHW.astype(np.float32) - self.low) / (self.high - self.low), 0, 1)
        return cast(Array, np.where(brain_DHW, unit_DHW, 0).astype(np.float32))

    def invert(self, unit_DHW: NDArray[Any], brain_DHW: Mask) -> Array:
        """Back to the volume's own values; outside the brain exactly 0."""
        data_DHW = self.low + unit_DHW.astype(np.float32) * (self.high - self.low)
        return cast(Array, np.where(brain_DHW, data_DHW, 0).astype(np.float32))

    def onto(self, other: "Scaling") -> tuple[float, float]:
        """Gain and offset from [0, 1] here to [0, 1] there."""
        width = other.high - other.low
        return (self.high - self.low) / width, (self.low - other.low) / width


def usual_scaling(modality: Modality) -> Scaling:
    """For a synthesised volume, which has no values of its own: the fixed window, or 0 to 1000 for MR."""
    rule = RULES[modality]
    if isinstance(rule, Window):
        return Scaling(low=rule.low, high=rule.high)
    return Scaling(low=0.0, high=MR_UNITS)


def find_scaling(modality: Modality, data_DHW: NDArray[Any]) -> Scaling:
    """The volume's own scaling. DataError when it is blank, flat, or plainly not in the unit of its window."""
    return scaling_of(RULES[modality], data_DHW[foreground(modality, data_DHW)])


def judged_scaling(modality: Modality, data_DHW: NDArray[Any]) -> Scaling:
    """The scale that images of this modality are judged on, this volume being the truth."""
    rule = RULES[modality]
    return scaling_of(BRIGHTEST if isinstance(rule, Spread) else rule, data_DHW[foreground(modality, data_DHW)])


def scaling_of(rule: Rule, values: NDArray[Any]) -> Scaling:
    """What a rule makes of a volume's values in the brain."""
    if not values.size:
        raise DataError("blank: no voxel differs from the background")
    if isinstance(rule, Window):
        median = float(np.median(values))
        if not rule.low <= median <= rule.high:
            raise DataError(
                f"its median is {median:.4g}, outside {rule.low:g} to {rule.high:g} {rule.unit}: must be in {rule.unit}"
            )
        return Scaling(low=rule.low, high=rule.high)
    if isinstance(rule, Spread):
        first, last = np.percentile(values, MIDDLE)
        middle = values[(values >= first) & (values <= last)].astype(np.float64)
        mean, sd = float(middle.mean()), float(middle.std())
        if not sd > 0:
            raise DataError(f"flat: four fifths of its values are {mean:.4g}")
        low, high = mean - rule.below * sd, mean + rule.above * sd
    else:
        low, high = (float(p) for p in np.percentile(values, (rule.low, rule.high)))
    if not high > low:
        raise DataError(f"flat: its values are all {low:.4g}")
    return Scaling(low=low, high=high)


def foreground(modality: Modality, data_DHW: NDArray[Any]) -> Mask:
    """What is not background. In CT the background is 0 or air, while CSF and fat lie on both sides of 0."""
    if MODALITIES[modality].kind == "ct":
        return cast(Mask, (data_DHW != 0) & (data_DHW > AIR_HU))
    return data_DHW > 0


def find_brain(volumes: Mapping[Modality, NDArray[Any]]) -> Mask:
    """The largest connected part of what any present modality shows, without holes."""
    shown = np.logical_or.reduce([foreground(modality, data) for modality, data in volumes.items()])
    parts, n = ndimage.label(shown)
    if not n:
        raise DataError("blank: no voxel differs from the background")
    sizes = np.bincount(parts.ravel())[1:]
    return _fill(parts == 1 + int(sizes.argmax()))


def _fill(mask: Mask) -> Mask:
    """Close what the outside can't reach."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    around = np.pad(~mask[box], 1, constant_values=True)
    outside, _ = ndimage.label(around)
    filled = mask.copy()
    filled[box] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return filled
