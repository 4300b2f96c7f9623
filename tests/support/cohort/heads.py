"""Heads to prepare: the reference brain in any contrast, bare or within a skull, moved; and what is no brain."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from client.ingest.image import atlas
from client.ingest.image.register import _about, _shift
from client.ingest.image.resample import Pose, resample
from shared.data.volumes import Volume, write

LEVELS = {  # fluid, grey, white; skull, scalp
    "T1": (0.25, 0.65, 1.0, 0.08, 0.75),
    "T1CE": (0.27, 0.70, 1.0, 0.08, 0.75),
    "T2": (1.6, 0.75, 0.5, 0.08, 0.5),
    "FLAIR": (0.2, 1.0, 0.75, 0.08, 0.5),
    "CT": (8.0, 38.0, 29.0, 900.0, 10.0),
    "FDG": (0.4, 6.0, 2.0, 0.1, 0.3),  # SUV, not yet a ratio
}


@lru_cache(maxsize=16)
def head(modality: str, *, seed: int = 0, bare: bool = True, shading: float = 0.0) -> Volume:
    """The reference brain at 2 mm as a scan; with `bare=False` within skull and scalp, and for CT in air."""
    reference = atlas.load()
    rng = np.random.default_rng([seed, list(LEVELS).index(modality)])
    fluid, grey, white, bone, scalp = LEVELS[modality]
    brain = reference.brain_DHW
    share = np.clip(1 - reference.grey_DHW - reference.white_DHW, 0, 1) * brain
    image = fluid * share + grey * reference.grey_DHW + white * reference.white_DHW
    unit = 1.0 if modality in ("CT", "FDG") else 500.0
    if not bare:
        pad = [(4, 6), (6, 6), (6, 6)]
        image, brain = (np.pad(part, pad) for part in (image, brain))
        away = ndimage.distance_transform_edt(~brain) * 2
        image = np.where(away > 0, np.select([away <= 3, away <= 8, away <= 15], [fluid, bone, scalp], 0), image)
    air = -1000.0 if modality == "CT" and not bare else 0.0
    outside = ndimage.distance_transform_edt(~brain) * 2 > 15 if not bare else ~brain
    if shading:
        z, y, x = (np.linspace(-1, 1, n) for n in image.shape)
        image = image * np.exp(shading * (z[:, None, None] + 0.5 * y[:, None] * x))
    noise = 2.0 if modality == "CT" else 0.02 * max(grey, white)
    image = image + noise * rng.standard_normal(image.shape)
    data = np.where(outside, air, image if modality == "CT" else np.maximum(image, 0.01)) * unit
    if not bare and modality != "CT":
        data = np.hypot(data, 0.006 * unit * rng.standard_normal(data.shape))
    affine = reference.t1.affine.copy()
    if not bare:
        affine[:3, 3] -= affine[:3, :3] @ [6, 6, 4]
    return Volume(data_DHW=data.astype(np.float32), affine=affine)


def bare_mask(volume: Volume) -> np.ndarray:
    """Where the brain of `head(..., bare=False)` is."""
    reference = atlas.load().brain_DHW
    return np.pad(reference, [(4, 6), (6, 6), (6, 6)]) if volume.data_DHW.shape != reference.shape else reference


def random_pose(rng: np.random.Generator, *, mm: float = 15.0, degrees: float = 15.0) -> Pose:
    pose = _shift(rng.uniform(-mm, mm, 3))
    for axis in range(3):
        pose = pose @ _about(np.zeros(3), axis, np.radians(rng.uniform(-degrees, degrees)))
    return pose


def moved(volume: Volume, pose: Pose) -> Volume:
    """What a scanner would have made of it, had the head lain elsewhere: a point p of `volume` is now at pose @ p."""
    data = resample(volume, volume.data_DHW.shape, volume.affine, np.linalg.inv(pose), sharp=True)
    return Volume(data_DHW=data, affine=volume.affine)


def target_error(found: Pose, true: Pose, brain: np.ndarray, affine: np.ndarray) -> float:
    """Mean distance over the brain, mm."""
    at = np.argwhere(brain)[::29, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    both = (np.c_[at, np.ones(len(at))] @ (found - true).T)[:, :3]
    return float(np.linalg.norm(both, axis=1).mean())


def fruit(seed: int = 0) -> Volume:
    """As large as a brain, a rind, flesh, and a few pips."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices((75, 90, 75)) - np.array([37, 45, 37])[:, None, None, None]
    away = np.sqrt((z / 30) ** 2 + (y / 38) ** 2 + (x / 31) ** 2)
    image = np.where(away < 1, 500.0, 0) + np.where((away > 0.93) & (away < 1), 400, 0)
    for _ in range(6):
        at = rng.uniform(-0.3, 0.3, 3) * (30, 38, 31)
        near = (z - at[0]) ** 2 + (y - at[1]) ** 2 + (x - at[2]) ** 2 < 30
        image[near] = 1200
    image = np.where(away < 1, image + 10 * rng.standard_normal(image.shape), 0)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = (-75, -90, -75)
    return Volume(data_DHW=image.astype(np.float32), affine=affine)


def grid_phantom() -> Volume:
    """Plates in a box of water."""
    z, y, x = np.indices((70, 96, 80))
    box = (abs(z - 35) < 28) & (abs(y - 48) < 38) & (abs(x - 40) < 32)
    image = np.where(box & (z % 8 > 1) & (y % 8 > 1) & (x % 8 > 1), 800.0, 0)
    noise = np.abs(5 * np.random.default_rng(0).standard_normal(image.shape))
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = (-80, -96, -70)
    return Volume(data_DHW=(image + noise).astype(np.float32), affine=affine)


def put(volume: Volume, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, volume.data_DHW, volume.affine)
    return path
