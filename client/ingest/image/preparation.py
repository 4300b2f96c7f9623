"""One subject's images into one space: the steps, each with its parameters, and one hash over all of them.

    RAS -> shading (N4) -> brain of the reference -> each other modality onto it (rigid, scored) -> grid -> brain only

The reference is the subject's first modality in `Preparation.order` that shows a brain; its own grid is kept unless a
spacing or the reference brain's space is asked for. A modality that can't be used costs itself alone. Intensities stay
in the scanner's unit: their rule, the brain's box and the cache belong to `lacuna-site prepare` (shared/data). PET
alone is counted against the cerebellum (SUVR), because that takes the anatomy that is at hand here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.ingest.image import atlas, bias, brain, quality, register, template
from client.ingest.image.bias import N4
from client.ingest.image.brain import Strip
from client.ingest.image.quality import BrainFigures, ImageFigures, Limits
from client.ingest.image.register import Rigid
from client.ingest.image.resample import Mask, Pose, covered, foreground, grid_with_spacing, resample, resample_mask
from shared.base.errors import DataError
from shared.base.options import plain, require
from shared.base.vocabulary import Modality
from shared.data.limits import SPACING_LIMITS
from shared.data.modalities import MODALITIES, in_order
from shared.data.preparation import hash_json
from shared.data.volumes import Affine, Array, Volume, read

VERSION = "3"  # raise it when the same options would give other images
MOST_CUT = 0.02  # of the brain's surface on the edge of the field, before a person is told
CONVINCING = 0.4  # share of a found brain that tissues explain; below it the brain is looked for again
LEAST = 1e-3  # of the brain's usual value: the background alone is 0 (shared/data/intensities.py)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Everything that decides what the images become. Equal digests: images that may be trained on together."""

    order: tuple[Modality, ...] | None = None  # in which they are tried as reference; None: as MODALITIES has it
    spacing_mm: float | None = None  # None: the reference's own
    to_template: bool = False  # affine, to MNI152
    n4: N4 | None = field(default_factory=N4)
    rigid: Rigid = field(default_factory=Rigid)
    strip: Strip = field(default_factory=Strip)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        everything = self.order is None or sorted(self.order) == sorted(MODALITIES)
        require(everything, "order", self.order, f"each of {', '.join(MODALITIES)} once")
        if self.spacing_mm is not None:
            low, high = SPACING_LIMITS
            require(low <= self.spacing_mm <= high, "spacing_mm", self.spacing_mm, f"{low} to {high} mm, or nothing")

    def rank(self, modality: Modality) -> int:
        """The lowest that a subject has is tried first."""
        return MODALITIES[modality].reference if self.order is None else self.order.index(modality)

    @property
    def digest(self) -> str:
        """Equal at sites with other modalities: the usual order is the table's, and VERSION says when that changed."""
        return hash_json({"version": VERSION, "template": atlas.NAME, **plain(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What the quality page shows of a subject."""

    brain: BrainFigures | None
    images: Mapping[Modality, ImageFigures]
    reference: Modality | None
    how: str  # the brain was found
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A subject's volumes on one grid, brain only."""

    volumes: Mapping[Modality, Array]
    brain_DHW: Mask
    affine: Affine
    quality: Quality
    left: Mapping[Modality, str]  # modality -> why it is not among the volumes
    why: str | None  # the subject as a whole is not to be used
    steps: Mapping[Modality, Mapping[str, Any]] = field(default_factory=dict)  # what was done, for the sidecars


def prepare(
    inputs: Mapping[Modality, Path],
    options: Preparation,
    *,
    weights: Path | None = None,
    accepted: bool = False,
) -> Ready:
    """All steps for one subject. `accepted`: a person looked, so the limits of quality warn and do not exclude."""
    left: dict[Modality, str] = {}
    volumes = _read_all(inputs, options, left)
    reference, found, fit, figures, why = _choose_reference(volumes, options, weights, left, accepted)
    anchor = volumes[reference]
    images = {reference: _figures(reference, anchor, found.mask_DHW, 1.0)}
    poses: dict[Modality, Pose] = {reference: np.eye(4)}
    warnings = [f"a person accepted it though: {why}"] if accepted and why else []
    if why is None or accepted:
        laid_on = register.Anchor(anchor, found.mask_DHW)
        for modality in (m for m in volumes if m != reference):
            rule = _rule(options, modality, reference)
            pose = _register(volumes[modality], modality, laid_on, rule, options, accepted, images, left, warnings)
            if pose is not None:
                poses[modality] = pose
    if figures.cut > MOST_CUT:
        warnings.append(f"{figures.cut:.0%} of the brain's surface lies on the edge of the field: it may be cut")
    shape, affine, onto = _grid(anchor, fit, options)
    mask = found.mask_DHW if onto is None else resample_mask(found.mask_DHW, anchor.affine, shape, affine, onto)
    ready: dict[Modality, Array] = {}
    for modality in in_order(poses):
        pose = poses[modality] if onto is None else poses[modality] @ onto
        sharp = _kind(modality) == "mr"
        data = resample(volumes.pop(modality), shape, affine, pose, sharp=sharp, within_DHW=mask)
        try:
            ready[modality] = _finished(modality, data, mask, shape, affine, fit, onto)
        except DataError as error:
            left[modality] = str(error)
    excluded = None if accepted else why
    if not ready:
        excluded = excluded or "no modality can be used: " + "; ".join(f"{m}: {w}" for m, w in left.items())
    return Ready(
        volumes=ready,
        brain_DHW=mask,
        affine=affine,
        quality=Quality(brain=figures, images=images, reference=reference, how=found.how, warnings=tuple(warnings)),
        left=left,
        why=excluded,
        steps={m: _steps(m, reference, found.how, images[m], options) for m in ready},
    )


def _rule(options: Preparation, *pair: Modality) -> Rigid:
    return options.rigid.for_pet() if "pet" in map(_kind, pair) else options.rigid


def _register(
    volume: Volume,
    modality: Modality,
    anchor: register.Anchor,
    rule: Rigid,
    options: Preparation,
    accepted: bool,
    images: dict[Modality, ImageFigures],
    left: dict[Modality, str],
    warnings: list[str],
) -> Pose | None:
    """Where a modality lies on the reference, with its figures; None, and why in `left`, when it is not to be used."""
    before = f"{left.pop(modality)}; " if modality in left else ""  # why it was no reference
    try:
        lies = register.register(anchor, volume, rule)
    except (DataError, RuntimeError) as error:  # RuntimeError: SimpleITK's own
        left[modality] = before + _line(error)
        return None
    seen = covered(volume, anchor.inside.shape, anchor.small.affine, lies.pose)
    share = float((seen & anchor.inside).sum() / max(1, anchor.inside.sum()))
    images[modality] = _figures(modality, volume, None, share, lies)
    no_pair = register.why_not(lies, rule)
    no_use = quality.why_not(images[modality], options.limits)
    if no_pair or (no_use and not accepted):
        left[modality] = before + (no_pair or str(no_use))
        return None
    if no_use:
        warnings.append(f"{modality}: a person accepted it though it {no_use}")
    if lies.score < rule.good_score:
        warnings.append(f"{modality}: registration score {lies.score:.3f} is low; look at its edges")
    if before:
        warnings.append(f"{modality}: not the reference: {before.removesuffix('; ')}")
    return lies.pose


def _read_all(
    inputs: Mapping[Modality, Path], options: Preparation, left: dict[Modality, str]
) -> dict[Modality, Volume]:
    """RAS and without shading, in the order of reference."""
    volumes: dict[Modality, Volume] = {}
    for modality in sorted(inputs, key=options.rank):
        try:
            volume = read(inputs[modality])
            if min(volume.data_DHW.shape) < 4:
                raise DataError(f"shape {volume.data_DHW.shape}: a volume needs 4 slices or more")
            if not volume.data_DHW.max() > volume.data_DHW.min():
                raise DataError("blank: all its voxels are alike")
            if options.n4 is not None and _kind(modality) == "mr" and MODALITIES[modality].shading:
                volume = bias.correct(volume, options.n4)
            volumes[modality] = volume
        except (DataError, MemoryError, RuntimeError) as error:  # RuntimeError: SimpleITK's own
            left[modality] = _line(error)
    if not volumes:
        raise DataError("no modality can be read: " + "; ".join(f"{m}: {w}" for m, w in left.items()))
    return volumes


def _choose_reference(
    volumes: Mapping[Modality, Volume],
    options: Preparation,
    weights: Path | None,
    left: dict[Modality, str],
    accepted: bool,
) -> tuple[Modality, brain.Found, template.Fit, BrainFigures, str | None]:
    """The first modality that shows a brain; those before it are left. Where none does: the first, and why not."""
    first = None
    reasons: dict[Modality, str] = {}
    for modality, volume in volumes.items():
        try:
            found, fit = _find_brain(volume, modality, options, weights)
        except (DataError, RuntimeError) as error:
            reasons[modality] = _line(error)
            continue
        figures = quality.of_brain(volume, found.mask_DHW, fit)
        own = _figures(modality, volume, found.mask_DHW, 1.0)
        why = quality.why_no_brain(figures, options.limits) or quality.why_not(own, options.limits)
        if why is None or accepted:
            left.update(reasons)
            return modality, found, fit, figures, why
        first = first or (modality, found, fit, figures, why)
        reasons[modality] = why
    if first is None:
        raise DataError("; ".join(f"{m}: {w}" for m, w in reasons.items()))
    left.update({m: w for m, w in reasons.items() if m != first[0]})
    return first


def _find_brain(
    volume: Volume, modality: Modality, options: Preparation, weights: Path | None
) -> tuple[brain.Found, template.Fit]:
    """The first answer that convinces, or the one that the reference's tissues explain best."""
    best: tuple[brain.Found, template.Fit] | None = None
    for found in brain.find_brain(volume, modality, options.strip, weights):
        fit = template.fit(volume, found.mask_DHW)
        if best is None or fit.tissue > best[1].tissue:
            best = (found, fit)
        if fit.tissue >= CONVINCING:
            break
    assert best is not None  # find_brain raises rather than give nothing
    return best


def _figures(
    modality: Modality,
    volume: Volume,
    mask: Mask | None,
    coverage: float,
    lies: register.Registration | None = None,
) -> ImageFigures:
    x, y, z = (float(s) for s in np.linalg.norm(volume.affine[:3, :3], axis=0))
    data = volume.data_DHW
    return ImageFigures(
        voxel_mm=(x, y, z),
        snr=quality.snr(data, foreground(data) if mask is None else mask),
        ghost=quality.ghost(data) if _kind(modality) == "mr" else None,
        coverage=coverage,
        registration=None if lies is None else lies.score,
        shift_mm=None if lies is None else lies.shift_mm,
        turn_deg=None if lies is None else lies.turn_deg,
        start="" if lies is None else f"{lies.start}; {lies.metric}",
    )


def _grid(anchor: Volume, fit: template.Fit, options: Preparation) -> tuple[tuple[int, int, int], Affine, Pose | None]:
    """Shape, affine, and the pose of the reference on it; None for the reference's own grid."""
    if options.to_template:
        there = grid_with_spacing(atlas.load().t1, options.spacing_mm or 1.0)
        return (*there, fit.pose)
    if options.spacing_mm is None:
        depth, height, width = anchor.data_DHW.shape
        return (depth, height, width), anchor.affine, None
    return (*grid_with_spacing(anchor, options.spacing_mm), np.eye(4))


def _finished(
    modality: Modality,
    data: Array,
    mask: Mask,
    shape: tuple[int, int, int],
    affine: Affine,
    fit: template.Fit,
    onto: Pose | None,
) -> Array:
    """Brain only, in the unit that the intensity rules expect; the background alone is 0."""
    kind = _kind(modality)
    if kind == "ct":
        return np.where(mask, np.where(np.rint(data) == 0, 1, np.rint(data)), 0).astype(np.float32)
    if kind == "pet":
        here = fit.pose if onto is None else np.linalg.inv(onto) @ fit.pose
        region = template.cerebellum(shape, affine, here) & mask & (data > 0)
        if region.sum() * abs(np.linalg.det(affine[:3, :3])) < 5000:
            raise DataError("the cerebellum, against which uptake is counted, is not in its field")
        data = data / np.float32(data[region].mean())
    usual = float(np.median(data[mask])) if mask.any() else 0.0
    if not usual > 0:
        raise DataError("shows nothing where the brain is")
    return np.where(mask, np.maximum(data, LEAST * usual), 0).astype(np.float32)


def _steps(
    modality: Modality, reference: Modality, how: str, figures: ImageFigures, options: Preparation
) -> dict[str, Any]:
    """For the sidecar: what was done to this image."""
    return {
        "SkullStripped": True,
        "LacunaPreparation": options.digest,
        "LacunaReference": reference,
        "LacunaBrainFound": how,
        "LacunaRegistrationScore": figures.registration,
        "LacunaAcquiredVoxelSize": [round(v, 4) for v in figures.voxel_mm],
    }


def _kind(modality: Modality) -> str:
    return MODALITIES[modality].kind


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "not enough memory"
