"""The reference brain against which a found brain is held: MNI152, at 2 mm, as it comes inside the nilearn package."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage

from client.ingest.image.resample import Mask
from shared.data.phantom.anatomy import is_cerebellum
from shared.data.volumes import Affine, Array, Volume

NAME = "MNI152NLin2009aSym"


@dataclass(frozen=True, slots=True, kw_only=True)
class Atlas:
    """The reference brain, its tissues and its regions, on one grid."""

    t1: Volume  # brain only
    brain_DHW: Mask
    near_DHW: Mask  # the brain and 10 mm around it
    depth_DHW: Array  # mm from the brain's surface, within it
    grey_DHW: Array  # share of each voxel
    white_DHW: Array
    cerebellum_DHW: Mask


@lru_cache(maxsize=1)
def load() -> Atlas:
    from nilearn import datasets  # its import costs 2 s: once per process

    images = [
        datasets.load_mni152_template(resolution=2),
        datasets.load_mni152_gm_template(resolution=2),
        datasets.load_mni152_wm_template(resolution=2),
        datasets.load_mni152_brain_mask(resolution=2),
    ]
    affine: Affine = np.asarray(images[0].affine, np.float64)
    t1, grey, white, mask = (_array(image) for image in images)
    brain = ndimage.binary_fill_holes(mask > 0.5)
    z, y, x = (np.arange(n, dtype=float) for n in t1.shape)
    at = (
        z[:, None, None] * affine[2, 2] + affine[2, 3],
        y[:, None] * affine[1, 1] + affine[1, 3],
        x * affine[0, 0] + affine[0, 3],
    )
    cerebellum = brain & is_cerebellum(*at) & (grey + white > 0.5)
    return Atlas(
        t1=Volume(data_DHW=t1 * brain, affine=affine),
        brain_DHW=brain,
        near_DHW=ndimage.binary_dilation(brain, iterations=5),
        depth_DHW=(ndimage.distance_transform_edt(brain) * abs(affine[0, 0])).astype(np.float32),
        grey_DHW=grey * brain,
        white_DHW=white * brain,
        cerebellum_DHW=ndimage.binary_erosion(cerebellum),
    )


def _array(image: Any) -> Array:
    return np.ascontiguousarray(np.asarray(image.dataobj, np.float32).transpose(2, 1, 0))
