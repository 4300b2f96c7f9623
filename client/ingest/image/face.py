"""What of a face is left in what was taken for brain: eyes, nose, ears, each where the reference head has it.

The reference brain (atlas.py) shows no face. Where one is beside it was measured on twelve label maps of whole heads
laid over it: eyes are 33 mm beside the mid-plane, 57 mm in front of and 42 mm below its origin, where no brain reaches.
"""

import numpy as np
from numpy.typing import NDArray

from client.ingest.image.resample import Mask, Pose, box_of
from shared.data.volumes import Affine

EYE_MM, EYE_HALF_MM = (33.5, 57.0, -42.0), (14.0, 15.0, 14.0)  # x beside the mid-plane, y, z; of the reference
NOSE_MM = (22.0, 50.0, -36.0)  # less far beside than x, further in front than y, and lower than z
EAR_MM = (84.0, 10.0)  # further beside than x, and lower than z
STEP_MM = 2.0  # voxels that are looked at, at least so far apart


def left_ml(mask_DHW: Mask, affine: Affine, pose: Pose) -> dict[str, float]:
    """Millilitres of the mask in each part; `pose` takes a point of the reference brain to the same of the subject."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    every = [max(1, int(STEP_MM / step)) for step in steps]
    box = tuple(slice(s.start, s.stop, n) for s, n in zip(box_of(mask_DHW), every, strict=True))
    at = np.argwhere(mask_DHW[box]) * every + [s.start for s in box]
    to = np.linalg.inv(pose) @ affine
    x, y, z = (at[:, ::-1] @ to[:3, :3].T + to[:3, 3]).T
    ml = float(np.prod(steps) * np.prod(every)) / 1000
    return {name: float(inside.sum()) * ml for name, inside in _parts(np.abs(x), y, z).items()}


def _parts(x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    dx, dy, dz = ((at - middle) / half for at, middle, half in zip((x, y, z), EYE_MM, EYE_HALF_MM, strict=True))
    return {
        "eyes": dx * dx + dy * dy + dz * dz < 1,
        "nose": (x < NOSE_MM[0]) & (y > NOSE_MM[1]) & (z < NOSE_MM[2]),
        "ears": (x > EAR_MM[0]) & (z < EAR_MM[1]),
    }
