"""What of a head is brain: taken as it comes where it was stripped before, else found by a rule for each kind.

MR: a surface grown from within (bet.py), or a network that the site itself supplies and pins by its SHA-256. CT: what
lies within the skull. PET: where there is uptake. Whatever finds the brain, quality.py asks whether it is one.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from scipy import ndimage

from client.ingest.image import bet
from client.ingest.image.resample import (
    Mask,
    binned,
    binned_mask,
    box_of,
    cut,
    grid_with_spacing,
    resample,
    resample_mask,
)
from shared.base.errors import ConfigError, DataError
from shared.base.options import require
from shared.base.vocabulary import Modality
from shared.data.modalities import MODALITIES
from shared.data.volumes import Volume

OTHER_FRACTIONS = (0.0, 0.1, 0.15, -0.1)  # on top of the asked: bright fat beside thin bone lets a surface through
OUTPUTS = ("probability", "logit", "distance")
BLANK_SHARE = 0.15  # of the voxels: what was stripped before has so much exact background, or more
MOST_BRAIN_ML = 2400.0  # a shown part beyond this is a head
BONE_HU, LEAST_BONE_ML = 250.0, 50.0
CT_FRACTIONS = (0.15, 0.35, 0.5)
LAYER_MM, SURFACE_MM = 2.0, 2.0  # voxels of about this size show bone, and where brain ends
NECK_MM = 6.0  # half as wide as an opening in the skull that is closed
TISSUE_HU = (-20.0, 110.0)
UPTAKE = 0.3  # of a PET image's bright end


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """How the brain is found. `sha256` is of the weight file; where the file lies is the site's own matter."""

    tool: Literal["bet", "weights"] = "bet"
    fraction: float = 0.5  # the paper's b_t: larger, a smaller brain
    sha256: str | None = None
    spacing_mm: float = 1.0  # that the network was trained on
    output: str = "probability"  # or logit, or distance: mm, below 0 inside, as SynthStrip gives it
    multiple_of: int = 32  # the network's edges

    def __post_init__(self) -> None:
        require(0.2 <= self.fraction <= 0.8, "fraction", self.fraction, "0.2 to 0.8")
        require(self.spacing_mm > 0, "spacing_mm", self.spacing_mm, "above 0 mm")
        require(self.multiple_of >= 1, "multiple_of", self.multiple_of, "1 or more")
        require(self.output in OUTPUTS, "output", self.output, f"one of {', '.join(OUTPUTS)}")
        if self.tool == "weights":
            pinned = self.sha256 is not None and len(self.sha256) == 64
            require(pinned, "sha256", self.sha256, "the weight file's SHA-256 in 64 hex digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A brain, and by what rule it was found."""

    mask_DHW: Mask
    how: str


def find_brain(volume: Volume, modality: Modality, options: Strip, weights: Path | None = None) -> Iterator[Found]:
    """The brain in a volume, and then other answers to the same question, for when the one before does not convince.

    DataError where the rule finds nothing.
    """
    before = stripped_before(volume, modality)
    if before is not None:
        yield Found(mask_DHW=before, how="stripped before")
        return
    kind = MODALITIES[modality].kind
    if kind == "ct":
        for fraction in CT_FRACTIONS:
            yield Found(mask_DHW=_within_skull(volume, fraction), how=f"within the skull, fraction {fraction:g}")
    elif kind == "pet":
        yield Found(mask_DHW=_uptake(volume), how="uptake")
    elif options.tool == "weights":
        yield Found(mask_DHW=_by_network(volume, options, weights), how="weights")
    else:
        found = 0
        for more in OTHER_FRACTIONS:
            fraction = options.fraction + more
            with contextlib.suppress(DataError):
                yield Found(mask_DHW=_by_surface(volume, fraction), how=f"surface, fraction {fraction:g}")
                found += 1
        if not found:
            raise DataError("no brain found: the surface that grows within a head collapsed or burst")


def stripped_before(volume: Volume, modality: Modality) -> Mask | None:
    """The brain of an image whose background is blank, when no skull surrounds what is shown."""
    data = volume.data_DHW
    background = float(data[0, 0, 0])
    corners = data[:: max(1, data.shape[0] - 1), :: max(1, data.shape[1] - 1), :: max(1, data.shape[2] - 1)]
    if not (corners == background).all():
        return None
    shown = data != background
    if not BLANK_SHARE <= 1 - shown.mean() < 0.99:
        return None
    part = _solid(_largest(shown))
    inside = box_of(part)
    if part.sum() * _voxel_ml(volume) > MOST_BRAIN_ML or shown[inside][part[inside]].mean() < 0.9:
        return None
    return None if _has_skull(cut(volume, inside), part[inside], modality) else part


def _has_skull(volume: Volume, part: Mask, modality: Modality) -> bool:
    """From the surface inward: scalp, then a dark layer of bone (bright in CT), then brain."""
    small, inside = binned(volume, LAYER_MM), np.pad(binned_mask(part, volume.affine, LAYER_MM), 1)
    steps = np.linalg.norm(small.affine[:3, :3], axis=0)[::-1]
    depth = ndimage.distance_transform_edt(inside, sampling=steps)
    upper = np.zeros_like(inside)
    reached = np.flatnonzero(inside.any(axis=(1, 2)))
    if not len(reached):
        return False
    upper[(reached[0] + reached[-1]) // 2 :] = True  # the face has no such layers
    values = np.pad(small.data_DHW, 1)
    if MODALITIES[modality].kind == "ct":
        rim = inside & upper & (depth < 15)
        return bool(rim.any() and (values[rim] > BONE_HU).mean() > 0.1)
    profile = [
        np.median(values[(depth > d) & (depth <= d + 2) & upper])
        for d in range(0, 24, 2)
        if ((depth > d) & (depth <= d + 2) & upper).any()
    ]
    if len(profile) < 9:
        return False
    bone = 1 + int(np.argmin(profile[1:8]))
    outside, beneath = max(profile[:bone]), float(np.median(profile[bone + 1 :]))
    return bool(profile[bone] < 0.5 * min(outside, beneath))


def _by_surface(volume: Volume, fraction: float) -> Mask:
    """At about 2 mm: finer voxels only take time, and thick slices are cut into cubes."""
    small = binned(volume, SURFACE_MM)
    shape, affine = grid_with_spacing(small, max(SURFACE_MM, float(np.linalg.norm(small.affine[:3, :3], axis=0).min())))
    data = resample(small, shape, affine, np.eye(4), sharp=False)
    cubes = Volume(data_DHW=data, affine=affine)
    points, triangles = bet.surface(cubes, bet.estimate(cubes), fraction)
    mask = bet.fill(points, triangles, volume.data_DHW.shape, volume.affine)
    if not mask.any():
        raise DataError("no brain found: the surface that grows within a head collapsed")
    return _largest(mask)


def _within_skull(volume: Volume, fraction: float) -> Mask:
    """A surface grown within the skull: with bone made as dark as air, it can't leave (Muschelli, NeuroImage 114:379).

    A small `fraction` first, because fluid is only a little darker than tissue and belongs to the brain here.
    """
    ml = _voxel_ml(volume)
    if (volume.data_DHW > BONE_HU).sum() * ml < LEAST_BONE_ML:
        raise DataError("no brain found: a CT in Hounsfield units shows a skull, this one shows no bone")
    low, high = TISSUE_HU
    soft = np.where((volume.data_DHW > low) & (volume.data_DHW < high), volume.data_DHW - low, 0).astype(np.float32)
    mask = _by_surface(replace(volume, data_DHW=soft), fraction)
    smooth = ndimage.gaussian_filter(volume.data_DHW, 0.7)
    tissue = mask & (smooth > low) & (smooth < high)
    steps = np.linalg.norm(volume.affine[:3, :3], axis=0)[::-1]
    core = _largest(ndimage.distance_transform_edt(tissue, sampling=steps) > NECK_MM)  # what leaked is thinner
    if not core.any():
        raise DataError("no brain found: nothing of a brain's density lies within the bone")
    return _solid(tissue & (ndimage.distance_transform_edt(~core, sampling=steps) <= NECK_MM + 1))


def _uptake(volume: Volume) -> Mask:
    smooth = ndimage.gaussian_filter(volume.data_DHW, 1.0)
    bright = float(np.percentile(smooth, 98))
    if not bright > 0:
        raise DataError("no brain found: there is no uptake")
    part = _largest(ndimage.binary_opening(smooth > UPTAKE * bright))
    if not part.any():
        raise DataError("no brain found: its uptake has no shape")
    return _solid(part)


def _by_network(volume: Volume, options: Strip, weights: Path | None) -> Mask:
    network = load_weights(weights, cast(str, options.sha256))
    shape, affine = grid_with_spacing(volume, options.spacing_mm)
    data = resample(volume, shape, affine, np.eye(4), sharp=False)
    low, high = np.percentile(data, (0.5, 99.5))
    unit = np.clip((data - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)
    edges = [-(-n // options.multiple_of) * options.multiple_of for n in shape]
    padded = np.pad(unit, [(0, edge - n) for edge, n in zip(edges, shape, strict=True)])
    with torch.inference_mode():
        answer = network(torch.from_numpy(padded)[None, None])
    if not isinstance(answer, torch.Tensor) or tuple(answer.shape) != (1, 1, *edges):
        got = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise ConfigError(
            f"strip.weights: the network gives {got}; must give (1, 1, D, H, W) for an input of that shape"
        )
    value = answer[0, 0, : shape[0], : shape[1], : shape[2]].float().numpy()
    inside = {"probability": value > 0.5, "logit": value > 0, "distance": value < 1.0}[options.output]
    if not inside.any():
        raise DataError("no brain found: the network marks no voxel")
    return resample_mask(_solid(_largest(inside)), affine, volume.data_DHW.shape, volume.affine, np.eye(4))


def load_weights(path: Path | None, sha256: str) -> Any:
    """A TorchScript (.pt) or torch.export (.pt2) network, after its bytes proved to be the pinned ones."""
    if path is None:
        raise ConfigError("strip.weights: name the weight file that strip.sha256 pins")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"strip.weights={path}: can't be read: {error.strerror}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256.lower():
        raise ConfigError(
            f"strip.weights={path}: its SHA-256 is {digest[:12]}..., not the pinned {sha256[:12]}...; not loaded"
        )
    return _network(path, digest)


_loaded: dict[str, Any] = {}
_jit_load: Any = torch.jit.load  # untyped


def _network(path: Path, digest: str) -> Any:
    """The network of a weight file, loaded once per process."""
    if digest not in _loaded:
        try:
            if path.suffix == ".pt2":
                _loaded[digest] = torch.export.load(path).module()
            else:
                with warnings.catch_warnings():  # TorchScript is on its way out, but it is what published tools come as
                    warnings.simplefilter("ignore", DeprecationWarning)
                    _loaded[digest] = _jit_load(str(path)).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"strip.weights={path}: no TorchScript or torch.export file ({type(error).__name__})"
            ) from None
    return _loaded[digest]


def _largest(mask: Mask) -> Mask:
    parts, n = ndimage.label(mask)
    if n <= 1:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return cast(Mask, parts == int(sizes.argmax()))


def _solid(mask: Mask) -> Mask:
    """With its holes filled: what of the rest does not reach the outside."""
    box = box_of(mask)
    rest, _ = ndimage.label(~np.pad(mask[box], 1))
    filled = mask.copy()
    filled[box] = rest[1:-1, 1:-1, 1:-1] != rest[0, 0, 0]
    return filled


def _voxel_ml(volume: Volume) -> float:
    return float(abs(np.linalg.det(volume.affine[:3, :3]))) / 1000
