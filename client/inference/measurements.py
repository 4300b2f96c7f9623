"""Raw data of one modality as the sampler takes them: slice by slice, on the model's grid, in the network's scale.

A `Scan` is what was measured, from a file or made from a volume (`simulated`), in physical units and in the scanner's
field of view. `OnGrid` is the same seen from the model's grid: whichever slices fit into memory are read, their coil
maps estimated where none came, and told on [-1, 1].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from shared.base.errors import DataError
from shared.base.options import plain, require
from shared.base.randomness import generator
from shared.base.vocabulary import Modality
from shared.data.intensities import RULES, Scaling, scaling_of
from shared.data.kspace import KSpace
from shared.data.preparation import Loaded
from shared.data.trial import tried
from shared.data.volumes import Grid, Volume
from shared.diffusion.acquisition import birdcage, equispaced, random_lines, unit_maps
from shared.diffusion.coils import LEAST_LINES, espirit, with_phase
from shared.diffusion.operators import CartesianMRI, Measured, Place, measured, simulate
from shared.methods.baselines.reconstruction import cg_sense

SENSE_STRENGTH, SENSE_ITERATIONS = 1e-3, 30  # at 1e-2 the image, and so its scale, is a tenth too dark at R = 4
FAR = 3.0  # times the noise: a residual beyond it is not noise
FAR_SHARE = 0.05  # of the measurement, where it has no noise
OTSU_BINS = 256


class Slice(NamedTuple):
    y_CHW: Tensor
    maps_CHW: Tensor
    mask_HW: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    modality: Modality
    slices: int
    matrix_HW: tuple[int, int]
    image_HW: tuple[int, int]
    start_HW: tuple[int, int]  # where in the field of view the image begins
    affine: NDArray[np.float64] | None
    noise: float  # sd of a complex sample, E|n|^2 = noise^2
    facts: Mapping[str, Any]  # for the sidecar
    key: Mapping[str, Any]  # what its samples depend on, apart from files
    load: Callable[[int], Slice]

    def operator(self, part: Slice, place: Place | None = None) -> CartesianMRI:
        return CartesianMRI(maps_BCHW=part.maps_CHW[None], mask=part.mask_HW[None], sigma=self.noise, placement=place)

    def sense(self, slices: Sequence[int]) -> NDArray[np.float32]:
        """D H W of the image without any prior, 0 in the slices that are not asked for."""
        (y, x), (h, w) = self.start_HW, self.image_HW
        image_DHW = np.zeros((self.slices, h, w), np.float32)
        for z in slices:
            part = self.load(z)
            found = cg_sense(
                part.y_CHW[None], self.operator(part), strength=SENSE_STRENGTH, iterations=SENSE_ITERATIONS
            )
            image_DHW[z] = found[0, y : y + h, x : x + w].numpy()
        return image_DHW


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """How `--simulate` measures a volume."""

    acceleration: int = 4
    coils: int = 8
    acs: int = 0
    noise: float = 0.01  # of the image's range
    mask: Literal["equispaced", "random"] = "equispaced"

    def __post_init__(self) -> None:
        require(self.acceleration >= 1, "acceleration", self.acceleration, "1 or more")
        require(self.coils >= 1, "coils", self.coils, "1 or more")
        require(self.acs >= 0, "acs", self.acs, "0 or more")
        require(0 <= self.noise < 1, "noise", self.noise, "in [0, 1)")
        require(self.mask in ("equispaced", "random"), "mask", self.mask, "equispaced or random")


def from_file(path: Path, maps: Path | None, modality: Modality) -> Scan:
    """Coil maps come with the data, or in a file of their own, or are estimated from its fully measured lines."""
    raw = tried(path, maps)
    estimated = raw.maps_from is None and raw.coils > 1
    if estimated and raw.calibrated < LEAST_LINES:
        raise DataError(
            f"{path.name}: {raw.coils} coils without coil maps, and {raw.calibrated} fully measured lines round the "
            f"centre of k-space: estimating maps needs {LEAST_LINES} or more; name a file of maps for {modality}"
        )

    def load(z: int) -> Slice:
        return _slice(raw, z)

    origin = "estimated from the fully measured lines (ESPIRiT)" if estimated else "none: one coil"
    return Scan(
        modality=modality,
        slices=raw.slices,
        matrix_HW=raw.matrix_HW,
        image_HW=raw.image_HW,
        start_HW=raw.start_HW,
        affine=raw.affine,
        noise=raw.noise,
        facts={
            "Source": "measured",
            "Layout": raw.layout,
            "Acceleration": round(raw.acceleration, 3),
            "CalibrationLines": raw.calibrated,
            "Coils": raw.coils,
            "CoilMaps": origin if raw.maps_from is None else raw.maps_from.name,
            "Phase": "estimated at low resolution from a complex CG-SENSE image",
            "Noise": raw.noise,
            "NoiseFrom": "outermost samples of k-space; sd of a complex sample",
        },
        key={},
        load=load,
    )


def _slice(raw: KSpace, z: int) -> Slice:
    y_CHW, mask_HW = torch.from_numpy(raw.samples(z)), torch.from_numpy(raw.measured_DHW[z])
    given = raw.maps(z)
    try:
        if given is not None:
            maps_CHW = unit_maps(torch.from_numpy(given)[None])[0]
        elif raw.coils == 1:
            maps_CHW = torch.ones_like(y_CHW)
        else:
            maps_CHW = espirit(torch.from_numpy(raw.calibration(z)), raw.calibrated)
        return Slice(y_CHW=y_CHW, maps_CHW=with_phase(maps_CHW, y_CHW, mask_HW), mask_HW=mask_HW)
    except DataError as error:
        raise DataError(f"{raw.path.name}: slice {z}: {error}") from None


def simulated(volume: Volume, modality: Modality, scaling: Scaling, options: Simulation, seed: int) -> Scan:
    """k-space of the volume itself by coils of our own, the same lines in every slice."""
    depth, height, width = volume.data_DHW.shape
    lines = generator("cpu", seed, "simulate", modality)
    mask_W = (
        equispaced(width, options.acceleration, options.acs, offset=None)
        if options.mask == "equispaced"
        else random_lines(width, options.acceleration, options.acs, lines)
    )
    maps_CHW = birdcage(options.coils, height, width)[0]
    noise = options.noise * scaling.high
    mask_HW = mask_W.expand(height, width)
    operator = CartesianMRI(maps_BCHW=maps_CHW[None], mask=mask_W, sigma=noise)

    def load(z: int) -> Slice:
        image_BHW = torch.from_numpy(np.ascontiguousarray(volume.data_DHW[z : z + 1]))
        y_CHW = simulate(operator, image_BHW, [generator("cpu", seed, "simulate", modality, z)])[0]
        return Slice(y_CHW=y_CHW, maps_CHW=maps_CHW, mask_HW=mask_HW)

    return Scan(
        modality=modality,
        slices=depth,
        matrix_HW=(height, width),
        image_HW=(height, width),
        start_HW=(0, 0),
        affine=volume.affine,
        noise=noise,
        facts={
            "Source": "simulated from the subject's own volume, which was hidden",
            "Acceleration": round(width / int(mask_W.sum()), 3),
            "CalibrationLines": options.acs,
            "Coils": options.coils,
            "CoilMaps": "simulated (birdcage)",
            "Mask": options.mask,
            "Noise": noise,
            "NoiseFrom": f"simulated: {options.noise:g} of the image's range; sd of a complex sample",
        },
        key=plain(options),
        load=load,
    )


# --- on the model's grid --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGrid:
    """A scan as shared/model.fill takes it; `index` are slices of the grid."""

    scan: Scan
    loaded: Loaded
    scaling: Scaling

    def at(self, index: Sequence[int]) -> Measured:
        return self._measured(index, [self._load(z) for z in index])

    def residuals(self, mean_DHW: Tensor, slices: Sequence[int]) -> list[tuple[float, float | None]]:
        """Of each slice |y - A x| / |y|, and the same by what noise alone would leave; None without noise."""
        found: list[tuple[float, float | None]] = []
        for z in slices:
            part = self._load(z)
            known = self._measured([z], [part])
            assert known.y is not None
            assert isinstance(known.operator, CartesianMRI)
            inside = torch.from_numpy(self.loaded.brain_DHW[z : z + 1])
            left = known.y - known.operator.forward(2 * torch.where(inside, mean_DHW[z : z + 1], 0.0) - 1)
            samples = int(part.mask_HW.sum()) * left.shape[1]
            size = float(left.abs().square().sum().sqrt()) * (self.scaling.high - self.scaling.low) / 2
            whole, noise = float(part.y_CHW.abs().square().sum().sqrt()), self.scan.noise * samples**0.5
            found.append((size / max(whole, 1e-30), size / noise if noise > 0 else None))
        return found

    def _load(self, z: int) -> Slice:
        return self.scan.load(self.loaded.placement.z[0] + z)

    def _measured(self, index: Sequence[int], parts: Sequence[Slice]) -> Measured:
        operator = CartesianMRI(
            maps_BCHW=torch.stack([part.maps_CHW for part in parts]),
            mask=torch.stack([part.mask_HW for part in parts]),
            sigma=self.scan.noise,
            placement=self._place(),
        )
        y_BCHW = torch.stack([part.y_CHW for part in parts])
        floor_BHW = self.scaling.low * torch.from_numpy(self.loaded.brain_DHW[list(index)]).float()
        return measured(y_BCHW - operator.forward(floor_BHW), operator, self.scaling.high - self.scaling.low)

    def _place(self) -> Place:
        rows, columns = self.loaded.placement.weights_from()
        return Place(
            rows=_embedded(rows, self.scan.matrix_HW[0], self.scan.start_HW[0]),
            columns=_embedded(columns, self.scan.matrix_HW[1], self.scan.start_HW[1]),
        )


def explain(residuals: Sequence[tuple[float, float | None]]) -> str | None:
    """A plain line when the image leaves far more of the measurement unexplained than noise would."""
    far = [ratio > FAR if ratio is not None else share > FAR_SHARE for share, ratio in residuals]
    if not any(far):
        return None
    share, ratio = max(residuals, key=lambda pair: pair[0] if pair[1] is None else pair[1])
    size = f"{ratio:.3g} times the noise" if ratio is not None else f"{share:.1%} of the measurement"
    return (
        f"In {sum(far)} of {len(far)} slices the image does not explain the measurement: up to {size} is left. "
        "Signal from outside the brain, which the model does not know, motion, or unfitting coil maps do this."
    )


def scaling_from(modality: Modality, sense_DHW: NDArray[Any], brain_DHW: NDArray[np.bool_]) -> Scaling:
    """As the modality's volumes are scaled, in the brain of an image without any prior."""
    try:
        return scaling_of(RULES[modality], sense_DHW[brain_DHW])
    except DataError:
        raise DataError(f"{modality}: its k-space shows nothing inside the brain") from None


def frame_of(sense_DHW: NDArray[np.float32], affine: NDArray[np.float64], grid: Grid) -> Loaded:
    """Of a subject without any volume: the largest bright part of the image that its raw data show."""
    bright_DHW = sense_DHW > _otsu(sense_DHW)
    parts, n = ndimage.label(ndimage.binary_opening(bright_DHW, np.ones((1, 2, 2))))
    if not n:
        raise DataError("the raw data show no connected object")
    brain_DHW = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    brain_DHW = np.stack([ndimage.binary_fill_holes(plane) for plane in brain_DHW])
    placement = grid.place(brain_DHW, affine)
    inside = placement.to_grid(brain_DHW) >= 0.5
    return Loaded(
        images_MDHW=np.zeros((0, *inside.shape), np.float32),
        brain_DHW=inside,
        own_brain_DHW=brain_DHW,
        lesion_DHW=None,
        scalings={},
        judged={},
        placement=placement,
        affine=affine,
        reference=None,
    )


def _otsu(values: NDArray[np.float32]) -> float:
    """The threshold that parts the values into two classes with the least variance inside them."""
    count_N, edge_N = np.histogram(values, OTSU_BINS)
    middle_N = (edge_N[1:] + edge_N[:-1]) / 2
    below = np.cumsum(count_N)
    above = below[-1] - below
    sum_below = np.cumsum(count_N * middle_N)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (sum_below / below - (sum_below[-1] - sum_below) / above) ** 2
    return float(edge_N[1 + int(np.nan_to_num(apart).argmax())])


def _embedded(matrix: NDArray[np.float32], size: int, start: int) -> Tensor:
    whole = torch.zeros(size, matrix.shape[1])
    whole[start : start + len(matrix)] = torch.from_numpy(matrix)
    return whole
