"""Where one modality of a subject lies against another: rigid, by mutual information (Mattes), from several starts.

The search is coarse to fine. At the coarse level every start is tried: the scanner's own coordinates, the middles of
the two fields, the centres of the two heads. The best goes on; if what it reaches is not convincing, turned starts and
a second metric are tried. The score says how much the two images tell of each other *inside the brain*, where outlines
can't help: it is what an impossible pair can't reach. Nothing is forced: `Registration.why_not` names what is wrong.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.ingest.image.resample import (
    Image,
    Mask,
    Pose,
    binned,
    binned_mask,
    box_of,
    centre_of,
    climb,
    covered,
    cut,
    foreground,
    percentiles,
    resample,
    search,
    to_euler,
    to_sitk,
)
from shared.base.options import require
from shared.data.volumes import Volume

SEED = 20260721  # of the metric's sample points: equal images give equal poses
BINS = 32
COARSE_MM, MIDDLE_MM, SCORE_MM = 6.0, 3.0, 2.0
MARGIN_MM = 12.0  # around the brain, where the metric still looks: skull and scalp help, the neck bends
TURNS = (20.0, 40.0)  # degrees about each axis, of the fallback's starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Rigid:
    """How registration is done and when it is believed."""

    finest_mm: float = 1.0  # of the last level; a finer image is not sampled finer
    samples: int = 40_000  # voxels that a level looks at, at most
    min_score: float = 0.05  # below it two images are no pair
    good_score: float = 0.1  # below it more starts are tried, and a person is asked to look
    pet_share: float = 0.5  # of both, where PET is one of the two: it is blurred and noisy
    max_shift_mm: float = 120.0
    max_turn_deg: float = 60.0

    def __post_init__(self) -> None:
        require(0.5 <= self.finest_mm <= 4, "finest_mm", self.finest_mm, "0.5 to 4 mm")
        require(self.samples >= 1000, "samples", self.samples, "1000 or more")
        require(0 <= self.min_score <= self.good_score, "min_score", self.min_score, "0 or more, up to good_score")
        require(0 < self.pet_share <= 1, "pet_share", self.pet_share, "in (0, 1]")

    def for_pet(self) -> "Rigid":
        return replace(self, min_score=self.min_score * self.pet_share, good_score=self.good_score * self.pet_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """Where a moving volume lies: pose, how it was found, and how much it is to be believed."""

    pose: Pose  # a point of the reference, mm, to the same point of the moving volume
    score: float
    start: str
    metric: str
    shift_mm: float  # how far the middle of the brain was moved
    turn_deg: float


class Anchor:
    """A reference and its brain, as registration looks at them: made once for all that is laid on it."""

    def __init__(self, volume: Volume, brain_DHW: Mask) -> None:
        self.images = _Pyramid(volume)
        self.small = binned(volume, SCORE_MM)
        self.inside = binned_mask(brain_DHW, volume.affine, SCORE_MM)
        self.middle = centre_of(self.inside, self.small.affine)
        steps = np.linalg.norm(self.small.affine[:3, :3], axis=0)[::-1]
        box = box_of(self.inside, math.ceil(MARGIN_MM / float(steps.min())))
        near = ndimage.distance_transform_edt(~self.inside[box], sampling=steps) <= MARGIN_MM
        there = cut(self.small, box)
        self.near = to_sitk(near.astype(np.uint8), there.affine)
        self.corners = there.affine @ np.array([[*np.multiply(c, near.shape[::-1]), 1] for c in np.ndindex(2, 2, 2)]).T
        self.levels: dict[float, Image] = {}

    def level(self, spacing_mm: float) -> Image:
        """The reference at this resolution, cut to the brain and what is near it."""
        if spacing_mm not in self.levels:
            image = self.images.at(spacing_mm)
            reached = (np.linalg.inv(image.affine) @ self.corners)[2::-1]
            box = tuple(
                slice(max(0, math.floor(line.min())), min(n, math.ceil(line.max()) + 1))
                for line, n in zip(reached, image.data_DHW.shape, strict=True)
            )
            part = cut(image, box)
            self.levels[spacing_mm] = to_sitk(part.data_DHW, part.affine)
        return self.levels[spacing_mm]


class _Pyramid:
    """A volume at several resolutions, within robust limits: a few bright vessels would leave the metric's histogram
    few bins for the brain."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.low, self.high = percentiles(volume.data_DHW, (0.5, 99.5))

    def at(self, spacing_mm: float) -> Volume:
        image = binned(self.volume, spacing_mm)
        return replace(image, data_DHW=np.clip(image.data_DHW, self.low, self.high))


def register(anchor: Anchor, moving: Volume, options: Rigid) -> Registration:
    """The pose of `moving` against the anchor. Always the best found: its score judges it."""
    task = _Task(anchor, moving)
    starts = task.starts()
    found = task.climb(starts, "mutual information", options)
    if found.score < options.good_score:
        turned = list(task.turned(starts[-1][1]))
        others = (task.climb(turned, "mutual information", options), task.climb(starts, "joint histogram", options))
        found = max((found, *others), key=lambda one: one.score)
    return found


def why_not(found: Registration, options: Rigid) -> str | None:
    """Why this pair is not to be used, or None."""
    if found.score < options.min_score:
        return (
            f"registration score {found.score:.3f}, below {options.min_score:g}: "
            "the two images do not show the same head, or one shows none"
        )
    if found.shift_mm > options.max_shift_mm or found.turn_deg > options.max_turn_deg:
        return (
            f"registration moved it by {found.shift_mm:.0f} mm and {found.turn_deg:.0f} degrees: "
            f"over {options.max_shift_mm:g} mm or {options.max_turn_deg:g} degrees it is not believed"
        )
    return None


class _Task:
    """One moving volume to lay on one anchor, with what is made of it at each resolution."""

    def __init__(self, anchor: Anchor, moving: Volume) -> None:
        self.anchor, self.middle = anchor, anchor.middle
        self.images, self.small = _Pyramid(moving), binned(moving, SCORE_MM)
        self.levels: dict[float, Image] = {}

    def starts(self) -> list[tuple[str, Pose]]:
        shape, affine = self.small.data_DHW.shape, self.small.affine
        field = affine @ [*((np.array(shape[::-1]) - 1) / 2), 1.0]
        shown = foreground(self.small.data_DHW)
        mass = centre_of(shown if shown.any() else np.ones_like(shown), affine)
        return [
            ("scanner coordinates", np.eye(4)),
            ("middle of the field", _shift(field[:3] - self.middle)),
            ("centre of the head", _shift(mass - self.middle)),
        ]

    def turned(self, pose: Pose) -> Iterator[tuple[str, Pose]]:
        for degrees in TURNS:
            for axis in range(3):
                for sign in (1, -1):
                    turn = _about(self.middle, axis, math.radians(sign * degrees))
                    yield f"turned by {sign * degrees:g} degrees about {'xyz'[axis]}", pose @ turn

    def climb(self, starts: Sequence[tuple[str, Pose]], metric: str, options: Rigid) -> Registration:
        reached = []
        for name, pose in starts:
            value, better = self._step(pose, COARSE_MM, metric, samples=options.samples, step_mm=4.0, iterations=30)
            reached.append((value, name, better))
        _, name, pose = min(reached, key=lambda one: one[0])
        _, pose = self._step(pose, MIDDLE_MM, metric, samples=options.samples // 2, step_mm=1.0, iterations=40)
        _, pose = self._step(pose, options.finest_mm, metric, samples=options.samples, step_mm=0.4, iterations=40)
        moved = pose @ [*self.middle, 1.0] - [*self.middle, 1.0]
        return Registration(
            pose=pose,
            score=score(self.anchor, self.small, pose),
            start=name,
            metric=metric,
            shift_mm=float(np.linalg.norm(moved)),
            turn_deg=math.degrees(math.acos(float(np.clip((np.trace(pose[:3, :3]) - 1) / 2, -1, 1)))),
        )

    def _step(
        self, pose: Pose, spacing_mm: float, metric: str, *, samples: int, step_mm: float, iterations: int
    ) -> tuple[float, Pose]:
        """One level: the metric's value, the lower the better, and the pose that reaches it."""
        fixed, moving = self.anchor.level(spacing_mm), self._level(spacing_mm)
        method = search(BINS, metric)
        method.SetMetricFixedMask(self.anchor.near)
        share = samples / math.prod(fixed.GetSize())
        if share < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(share, SEED)
        start = to_euler(pose, self.middle)
        value, better = climb(
            method, fixed, moving, start, step_mm=step_mm, least_mm=step_mm / 400, iterations=iterations
        )
        return value, pose if better is None else better

    def _level(self, spacing_mm: float) -> Image:
        if spacing_mm not in self.levels:
            image = self.images.at(spacing_mm)
            self.levels[spacing_mm] = to_sitk(image.data_DHW, image.affine)
        return self.levels[spacing_mm]


def score(anchor: Anchor, moving: Volume, pose: Pose) -> float:
    """How much the images tell of each other inside the brain: 2 I(a, b) / (H(a) + H(b)), less what chance gives."""
    there, here = binned(moving, SCORE_MM), anchor.small
    shape = here.data_DHW.shape
    inside = ndimage.binary_erosion(anchor.inside) & covered(there, shape, here.affine, pose)
    if inside.sum() < 200:
        return 0.0
    values = resample(there, shape, here.affine, pose, sharp=False, within_DHW=inside)
    return _shared(_levels(here.data_DHW[inside]), _levels(values[inside]))


def _levels(values: NDArray[Any]) -> NDArray[np.intp]:
    """Ranks in BINS classes of equal size: the score depends on no unit and no outlier."""
    edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, values)


def _shared(one: NDArray[np.intp], other: NDArray[np.intp]) -> float:
    joint = np.bincount(one * BINS + other, minlength=BINS * BINS).reshape(BINS, BINS) / len(one)
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    entropies = _entropy(rows) + _entropy(columns)
    if entropies <= 0:
        return 0.0
    information = entropies - _entropy(joint.ravel())
    chance = (np.count_nonzero(rows) - 1) * (np.count_nonzero(columns) - 1) / (2 * len(one))  # Miller, 1955
    return max(0.0, float(2 * (information - chance) / entropies))


def _entropy(share: NDArray[np.floating[Any]]) -> float:
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def _shift(by: NDArray[np.float64]) -> Pose:
    pose = np.eye(4)
    pose[:3, 3] = by
    return pose


def _about(point: NDArray[np.float64], axis: int, angle: float) -> Pose:
    one, other = [i for i in range(3) if i != axis]
    turn = np.eye(4)
    turn[one, one] = turn[other, other] = math.cos(angle)
    turn[one, other], turn[other, one] = -math.sin(angle), math.sin(angle)
    return _shift(point) @ turn @ _shift(-point)
