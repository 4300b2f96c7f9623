"""Whole heads, with face, skull and neck, whose brain is known: what a network that finds brains is trained on.

In the way of SynthSeg (Billot, Medical Image Analysis 86:102789) and SynthStrip (Hoopes, NeuroImage 260:119474),
written anew: a label map is bent strongly, every label gets an intensity, by a signal equation with widely drawn
parameters or at random, and the image is spoiled as scanners spoil images. No real image is in it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from shared.base.errors import DataError
from shared.base.files import make_folder, writing
from shared.base.randomness import generator, seed_of
from shared.data import volumes
from shared.data.phantom import contrasts, scans
from shared.data.phantom.bending import field, points
from shared.data.phantom.contrasts import HEAD_LABELS, INDEX

Bytes = NDArray[np.uint8]

VERSION = 1  # of what is kept on disk
MARGIN = 6  # voxels of air around a map
FAR = 255  # mm and more
CLOSED_MM, COAT_MM = 5.0, 1.0  # sulci up to twice so wide belong to the brain, and a coat of fluid (brains.py)
_BRAIN = ("white", "cortex", "striatum", "pallidum", "thalamus", "hippocampus", "cerebellar white",
          "cerebellar cortex", "brainstem", "ventricle", "plexus")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One label map at 1 mm, RAS, D H W; distances are whole mm."""

    name: str
    class_DHW: Bytes  # index into contrasts.CLASSES
    brain_DHW: Bytes  # 1: what skull stripping is to leave
    depth_DHW: Bytes  # of brain tissue, from the fluid around it
    ventricle_DHW: Bytes  # distance to a ventricle
    skin_DHW: Bytes  # distance to air around the head
    face_DHW: Bytes  # 1 eyes, 2 nose: what must not be left
    centre_zyx: tuple[float, float, float]  # of the brain's box, in voxels


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A head on a grid of cubes, 0 to 1 but CT (HU), and what of it is brain."""

    image_DHW: Tensor
    brain_DHW: Tensor  # share of each voxel
    face_DHW: Tensor  # 1 eyes, 2 nose, where asked for
    kind: str
    ct: bool


def prepare(source: Path, cache: Path) -> list[Path]:
    """One file per whole-head label map of the folder `source`, in `cache`, made if it is not there."""
    maps = sorted([*source.glob("*.nii"), *source.glob("*.nii.gz")])
    if not maps:
        raise DataError(f"anatomy={source}: holds no .nii or .nii.gz label map")
    make_folder(cache)
    found = []
    for path in maps:
        digest = hashlib.blake2b(path.read_bytes(), digest_size=6).hexdigest()
        kept = cache / f"head-{path.name.split('.')[0]}-{digest}-v{VERSION}.npz"
        if not kept.exists():
            head = from_labels(path)
            with writing(kept) as file:
                np.savez_compressed(
                    file,
                    name=np.str_(head.name),
                    classes=head.class_DHW,
                    brain=head.brain_DHW,
                    depth=head.depth_DHW,
                    ventricle=head.ventricle_DHW,
                    skin=head.skin_DHW,
                    face=head.face_DHW,
                    centre=np.array(head.centre_zyx),
                )
        found.append(kept)
    return found


def load(path: Path) -> Head:
    with np.load(path, allow_pickle=False) as kept:
        z, y, x = (float(at) for at in kept["centre"])
        return Head(
            name=str(kept["name"]),
            class_DHW=kept["classes"],
            brain_DHW=kept["brain"],
            depth_DHW=kept["depth"],
            ventricle_DHW=kept["ventricle"],
            skin_DHW=kept["skin"],
            face_DHW=kept["face"],
            centre_zyx=(z, y, x),
        )


def from_labels(path: Path) -> Head:
    """Of a map with FreeSurfer's labels of the brain and SynthSeg's of what lies around it (502 to 530)."""
    volume = volumes.read(path)
    if np.abs(np.diag(volume.affine)[:3] - 1).max() > 0.01:
        raise DataError(f"anatomy: {path.name} has voxels of other than 1 mm")
    labels = volume.data_DHW.astype(np.int32)
    if not (np.isin(labels, (515, 516)).any() and (labels == 511).any()):
        raise DataError(f"anatomy: {path.name} holds no skull (515) or no skin (511)")
    edge = [(MARGIN, MARGIN + n % 2) for n in labels.shape]  # even, to be halved
    edge[0] = (edge[0][1] - MARGIN, MARGIN)  # the neck goes on below: no air
    table = np.full(int(labels.max()) + 1, INDEX["muscle"], np.uint8)
    table[0] = INDEX["air"]
    for name, members in HEAD_LABELS.items():
        table[[label for label in members if label < len(table)]] = INDEX[name]
    classes = np.pad(table[labels], edge)
    tissue = np.isin(classes, [INDEX[name] for name in _BRAIN])
    brain = _closed(tissue)
    fluid = ~tissue
    ventricles = classes == INDEX["ventricle"]
    around = ndimage.binary_propagation(_border(classes == 0), mask=classes == 0)
    box = [np.flatnonzero(brain.any(axis=others))[[0, -1]] for others in ((1, 2), (0, 2), (0, 1))]
    z, y, x = (float(low + high) / 2 for low, high in box)
    return Head(
        name=path.name.split(".")[0],
        class_DHW=classes,
        brain_DHW=brain.astype(np.uint8),
        depth_DHW=_whole_mm(~fluid),
        ventricle_DHW=_whole_mm(~ventricles),
        skin_DHW=_whole_mm(~around),
        face_DHW=_face(classes, box),
        centre_zyx=(z, y, x),
    )


def _border(air: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Air on the outer faces, but not below, where the neck and the throat go on."""
    edge = np.zeros_like(air)
    edge[-1] = True
    edge[:, [0, -1]] = True
    edge[:, :, [0, -1]] = True
    return edge & air


def _whole_mm(mask: NDArray[np.bool_]) -> Bytes:
    if mask.all():
        return np.full(mask.shape, FAR, np.uint8)
    return cast(Bytes, np.minimum(np.rint(ndimage.distance_transform_edt(mask)), FAR).astype(np.uint8))


def _closed(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """As brains.py closes a phantom's brain: sulci and a thin coat belong to it, holes do, islands do not."""
    grown = ndimage.distance_transform_edt(~tissue) < CLOSED_MM
    filled = ndimage.binary_fill_holes(ndimage.distance_transform_edt(grown) > CLOSED_MM - COAT_MM) | tissue
    parts, count = ndimage.label(filled)
    return cast(NDArray[np.bool_], parts == 1 + np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:]))


def _face(classes: Bytes, box: Sequence[NDArray[Any]]) -> Bytes:
    """Eyes by their label; nose: what lies in front of the eyes' middle, near the mid-plane and below the brow."""
    face = np.zeros(classes.shape, np.uint8)
    eyes = classes == INDEX["eye"]
    if not eyes.any():
        return face
    z, y, _ = (float(at.mean()) for at in np.nonzero(eyes))
    _, _, x = (float(low + high) / 2 for low, high in box)
    rows = [np.arange(n) for n in classes.shape]
    near = (rows[0] < z + 5)[:, None, None] & (rows[1] > y)[:, None] & (np.abs(rows[2] - x) < 18)
    face[near & (classes > 0) & ~eyes] = 2
    face[eyes] = 1
    return face


def halved(head: Head) -> Head:
    """For grids of 2 mm and more: of each eight voxels two opposite corners, along a first axis; less work."""

    def corners(part: Bytes) -> Bytes:
        return np.stack([part[k::2, k::2, k::2] for k in (0, 1)])

    return replace(
        head,
        class_DHW=corners(head.class_DHW),
        brain_DHW=corners(head.brain_DHW),
        depth_DHW=corners(head.depth_DHW),
        ventricle_DHW=corners(head.ventricle_DHW),
        skin_DHW=corners(head.skin_DHW),
        face_DHW=corners(head.face_DHW),
    )


def make(
    head: Head, *keys: str | int, shape: tuple[int, int, int] = (96, 96, 80), step_mm: float = 2.0, face: bool = False
) -> Made:
    """A head of its own for equal keys: bent, and imaged, on `shape` cubes of `step_mm`, somewhere about the brain."""
    seed = seed_of("head", *keys)
    rng, noise = np.random.default_rng(seed), generator("cpu", seed)
    contrast = contrasts.draw(rng)
    whole = head.class_DHW.ndim == 3
    image, brain = (torch.from_numpy(part) for part in (contrast.values_K[head.class_DHW], head.brain_DHW))
    if not whole:
        image, brain = (image[0] + image[1]) / 2, (brain[0] + brain[1]) / 2
    sizes = [n if whole else 2 * n for n in head.class_DHW.shape[-3:]]
    at = points(sizes, head.centre_zyx, shape, step_mm, rng, noise)
    within = (at[..., :2].abs() <= 1).all(dim=-1)[0] & (at[..., 2] <= 1)[0]  # below the map the neck goes on
    image = functional.grid_sample(image[None, None], at, padding_mode="border", align_corners=False)[0, 0]
    image = torch.where(within, image, float(contrast.values_K[INDEX["air"]]))
    brain = functional.grid_sample(brain.float()[None, None], at, align_corners=False)[0, 0]
    shown = torch.from_numpy(head.face_DHW if whole else head.face_DHW[0]).float()[None, None]
    shows = functional.grid_sample(shown, at, mode="nearest", align_corners=False)[0, 0] if face else torch.zeros(shape)
    image = scans.put_lesions(image, brain, contrast, step_mm, rng, noise)
    image, seen = scans.acquire(image, contrast, step_mm, rng, noise)
    return Made(
        image_DHW=image,
        brain_DHW=brain * seen,
        face_DHW=(shows * seen).to(torch.uint8),
        kind=contrast.kind,
        ct=contrast.ct,
    )


def age(head: Head, *keys: str | int) -> Head:
    """Sulci and ventricles wider, the skin's fat of another thickness, flesh of muscle and fat."""
    seed = seed_of("age", *keys)
    rng, noise = np.random.default_rng(seed), generator("cpu", seed)
    classes = head.class_DHW.copy()
    step = 1 if classes.ndim == 3 else 2
    wave = field(classes.shape[-3:], rng.uniform(20, 60) / step, noise).numpy()
    if rng.random() < 0.6:
        shrunk = rng.uniform(0, 2.6) * np.clip(1 + 0.6 * wave, 0, 2)
        at = (head.depth_DHW > 0) & (head.depth_DHW <= shrunk)
        classes[at & np.isin(classes, (INDEX["cortex"], INDEX["cerebellar cortex"]))] = INDEX["csf"]
    if rng.random() < 0.4:
        wide = rng.uniform(0, 7) * np.clip(1 + 0.4 * wave, 0, 2)
        solid = [INDEX[name] for name in ("white", "striatum", "thalamus", "hippocampus")]
        classes[(head.ventricle_DHW <= wide) & np.isin(classes, solid)] = INDEX["ventricle"]
    fat = head.skin_DHW <= rng.uniform(2, 9) * (1 + 0.3 * wave)
    fat |= wave > rng.uniform(0.2, 1.5)
    classes[fat & (classes == INDEX["muscle"])] = INDEX["fat"]
    if rng.random() < 0.3:  # sinuses full of mucus
        within = (classes == INDEX["air"]) & (head.skin_DHW > 12)
        classes[within & (wave > rng.uniform(-1, 1))] = INDEX["mucosa"]
    if rng.random() < 0.3:  # bone without marrow, or all of it
        one, other = ("marrow", "bone") if rng.random() < 0.5 else ("bone", "marrow")
        classes[(classes == INDEX[one]) & (wave > rng.uniform(-1.5, 0.5))] = INDEX[other]
    return replace(head, class_DHW=classes)
