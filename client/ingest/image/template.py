"""A subject's brain laid over the reference brain: twelve parameters, coarse, by mutual information.

It answers two questions: is this a brain at all (does it fit, and are its insides where a brain's are), and where is
the cerebellum (PET uptake is counted against it). If asked, the cohort is also brought into the reference's space.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from scipy import ndimage

from client.ingest.image import atlas
from client.ingest.image.register import BINS, SEED
from client.ingest.image.resample import (
    Mask,
    Pose,
    binned,
    binned_mask,
    centre_of,
    climb,
    percentiles,
    resample,
    resample_mask,
    search,
    to_sitk,
    to_transform,
)
from shared.data.volumes import Affine, Array, Volume

LEVELS_MM, FINEST_MM = (8.0, 4.0), 2.0
RIM_MM, BLUR_MM = 8.0, 3.0  # what is compared: the insides, as smooth as a stranger's anatomy fits
MAX_SCALE = (0.6, 1.6)  # of a brain against the reference, along any axis
ITERATIONS = 60
PITCHES = (0.0, 25.0, -25.0)  # degrees, of the starts: heads nod, and are rarely turned


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """`pose` takes a point of the reference brain, mm, to the same point of the subject."""

    pose: Pose
    overlap: float  # Dice of the two outlines
    tissue: float  # share of this brain's contrast that the reference's grey, white and fluid explain


def fit(volume: Volume, brain_DHW: Mask) -> Fit:
    reference = atlas.load()
    small = binned(volume, FINEST_MM)
    brain = binned_mask(brain_DHW, volume.affine, FINEST_MM)
    low, high = percentiles(small.data_DHW[brain], (1.0, 99.0))
    inside = replace(small, data_DHW=np.where(brain, np.clip(small.data_DHW, low, high), 0).astype(np.float32))
    moving = [to_sitk(v.data_DHW, v.affine) for v in (binned(inside, mm) for mm in LEVELS_MM)]
    images = [to_sitk(v.data_DHW, v.affine) for v in (binned(reference.t1, mm) for mm in LEVELS_MM)]
    look = to_sitk(reference.near_DHW.astype(np.uint8), reference.t1.affine)
    tried = [_climb(images[0], moving[0], look, pose) for pose in _starts(reference, inside.affine, brain)]
    _, pose = min(tried, key=lambda one: one[0])
    _, pose = _climb(images[1], moving[1], look, pose)
    shape = reference.brain_DHW.shape
    there = resample_mask(brain, inside.affine, shape, reference.t1.affine, pose)
    both = 2.0 * float((there & reference.brain_DHW).sum())
    return Fit(
        pose=pose,
        overlap=both / float(max(1, there.sum() + reference.brain_DHW.sum())),
        tissue=_explained(inside, pose),
    )


def _explained(inside: Volume, pose: Pose) -> float:
    """R squared of the brain by a linear mix of the reference's tissues: any contrast of the same tissues will do.

    The rim is left out: a bright rind with a dark core, which a fruit has too, must not count as grey and white.
    """
    reference = atlas.load()
    shape, affine = reference.brain_DHW.shape, reference.t1.affine
    there = resample(inside, shape, affine, pose, sharp=False, within_DHW=reference.brain_DHW)
    core = (reference.depth_DHW > RIM_MM) & (there != 0)
    if core.sum() < 1000:
        return 0.0
    values, grey, white = (_smooth(image, core)[core] for image in (there, reference.grey_DHW, reference.white_DHW))
    columns = np.stack([np.ones_like(values), grey, white], axis=1).astype(np.float64)
    spread = float(((values - values.mean()) ** 2).sum())
    if spread <= 0:
        return 0.0
    weights, *_ = np.linalg.lstsq(columns, values.astype(np.float64), rcond=None)
    return float(1 - ((values - columns @ weights) ** 2).sum() / spread)


def _smooth(image: Array, core: Mask) -> Array:
    sigma = BLUR_MM / 2
    weight = ndimage.gaussian_filter(core.astype(np.float32), sigma)
    return cast(Array, ndimage.gaussian_filter(np.where(core, image, 0), sigma) / np.maximum(weight, 1e-3))


def is_plausible(pose: Pose) -> bool:
    """Scales between a child's and a giant's head."""
    scales = np.linalg.svd(pose[:3, :3], compute_uv=False)
    return bool(scales.min() >= MAX_SCALE[0] and scales.max() <= MAX_SCALE[1])


def cerebellum(shape_DHW: tuple[int, int, int], affine: Affine, pose: Pose) -> Mask:
    """In the grid of a subject, whose pose (`Fit.pose`) is given."""
    reference = atlas.load()
    back = np.linalg.inv(pose)
    return resample_mask(reference.cerebellum_DHW, reference.t1.affine, shape_DHW, affine, cast(Pose, back))


def _starts(reference: atlas.Atlas, affine: Affine, brain_DHW: Mask) -> Iterator[Pose]:
    """Middle on middle, as large as its volume says, level or nodding."""
    here = centre_of(reference.brain_DHW, reference.t1.affine)
    there = centre_of(brain_DHW, affine)
    volumes = [
        mask.sum() * abs(np.linalg.det(a[:3, :3]))
        for mask, a in ((brain_DHW, affine), (reference.brain_DHW, reference.t1.affine))
    ]
    scale = float(np.clip((volumes[0] / volumes[1]) ** (1 / 3), *MAX_SCALE))
    for pitch in PITCHES:
        c, s = np.cos(np.deg2rad(pitch)), np.sin(np.deg2rad(pitch))
        pose = np.eye(4)
        pose[:3, :3] = scale * np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        pose[:3, 3] = there - pose[:3, :3] @ here
        yield pose


def _climb(fixed: Any, moving: Any, look: Any, pose: Pose) -> tuple[float, Pose]:
    method = search(BINS)
    method.SetMetricFixedMask(look)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.5, SEED)
    start = to_transform(pose)
    value, better = climb(method, fixed, moving, start, step_mm=4.0, least_mm=0.02, iterations=ITERATIONS)
    return value, pose if better is None else better
