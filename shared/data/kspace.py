"""Raw MR measurements from HDF5, slice by slice.

    fastMRI   `kspace` (slices, coils, H, W) complex, or (slices, H, W) of one coil; optional `mask` (W,) or (H, W),
              `sensitivity_maps` (slices, coils, H, W) or (coils, H, W), `ismrmrd_header` (XML)
    ISMRMRD   a group with `xml` and `data`, the acquisitions as the scanner made them: sorted into lines and slices,
              averages and repetitions averaged, the readout's oversampling cut; measured is what has a line

Rows H are the anterior-posterior index of the house's D H W arrays (encoding.py says how they run); what was not
measured is exactly 0. `read` looks at every sample once, so that a fault is known before anything is computed; after
that at most one slice is in memory. Messages name the file and the fault.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import DataError
from shared.data.encoding import (
    MOST_LINES,
    Complex,
    Geometry,
    Mask,
    Reduction,
    Turn,
    calibration_width,
    geometry_of,
    lines_of,
    parse_header,
    reduction_of,
    untouched,
)
from shared.data.hdf5 import File, content, dataset, groups, named, opened

MOST_SLICES, MOST_COILS = 2048, 256
MOST_SAMPLES = 2**27  # of one slice: a gigabyte
AT_ONCE = 64  # acquisitions
MAPS = ("sensitivity_maps", "maps")  # what their dataset may be called
OUTER = 0.75  # of the way to the highest frequency: beyond it there is little but noise

Raw: TypeAlias = tuple[NDArray[Any], Mask]  # samples C H W and what of H W was measured, as the file has them
Load: TypeAlias = Callable[[File, int, bool], Raw]  # (file, slice, lines for calibration alone too?)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    layout: Literal["fastMRI", "ISMRMRD"]
    coils: int
    reduction: Reduction
    geometry: Geometry
    load: Load
    reference: bool  # are there lines for calibration alone?


@dataclass(frozen=True, slots=True, kw_only=True)
class KSpace:
    """One modality of a subject as the scanner measured it, slices from the feet up."""

    path: Path
    measured_DHW: Mask
    calibrated: int  # lines round k = 0 that every slice has, those for calibration alone included
    noise: float  # sd of a complex sample, E|n|^2 = noise^2, from the outermost frequencies
    maps_from: Path | None  # the file that coil maps came with
    _source: _Source
    _maps: "_Maps | None"

    @property
    def layout(self) -> str:
        return self._source.layout

    @property
    def slices(self) -> int:
        return len(self.measured_DHW)

    @property
    def coils(self) -> int:
        return self._source.coils

    @property
    def matrix_HW(self) -> tuple[int, int]:
        """Of the k-space, and of the field of view that it sees."""
        return self._source.geometry.turn.shape(self._source.reduction.matrix_HW)

    @property
    def image_HW(self) -> tuple[int, int]:
        """Of the image, which is part of the field of view or all of it."""
        return self._source.geometry.turn.shape(self._source.reduction.image_HW)

    @property
    def start_HW(self) -> tuple[int, int]:
        """Where in the field of view the image begins."""
        return self._source.geometry.turn.starts(self._source.reduction.matrix_HW, self._source.reduction.image_HW)

    @property
    def affine(self) -> NDArray[np.float64] | None:
        """Of the image, as volumes.py has them; None where the file does not say."""
        return self._source.geometry.affine

    @property
    def acceleration(self) -> float:
        """Samples of the matrix over those that were measured."""
        return self.measured_DHW.size / int(self.measured_DHW.sum())

    def samples(self, z: int) -> Complex:
        """C H W of slice z."""
        return np.where(self.measured_DHW[z], self._slice(z, False)[0], 0)

    def calibration(self, z: int) -> Complex:
        """As `samples`, with the lines that were measured for calibration alone."""
        y_CHW, measured_HW = self._slice(z, True)
        return np.where(measured_HW, y_CHW, 0)

    def maps(self, z: int) -> Complex | None:
        """Coil maps of slice z on the matrix, as they came with the data; None where none came."""
        if self._maps is None:
            return None
        maps_CHW = self._source.reduction.maps(self._maps.read(self._source.geometry.order[z]))
        assert maps_CHW is not None, "checked when it was read"
        return np.ascontiguousarray(self._source.geometry.turn.images(maps_CHW), dtype=np.complex64)

    def _slice(self, z: int, calibration: bool) -> tuple[Complex, Mask]:
        with opened(self.path) as file:
            raw = self._source.load(file, self._source.geometry.order[z], calibration)
        return _turned(raw, self._source)


def read(path: Path, maps: Path | None = None) -> KSpace:
    """A file in either layout, its every sample looked at; `maps`: coil maps of another file, HDF5 or npy."""
    with opened(path) as file:
        source = _fastmri(file) if "kspace" in file else _ismrmrd(file)
        own = _maps_name(file)
        looked_at = [_look(file, source, z) for z in source.geometry.order]
    measured_DHW = np.stack([look.measured_HW for look in looked_at])
    if source.layout == "fastMRI":  # columns that no slice has anything in were filled up with 0
        empty_W = ~np.logical_or.reduce([look.loud_HW.any(axis=0) for look in looked_at])
        measured_DHW &= ~empty_W
    with named(path):
        if not any(look.loud_HW.any() for look in looked_at):
            raise DataError("blank: every sample is 0")
        unmeasured = np.flatnonzero(~measured_DHW.any(axis=(1, 2)))
        if len(unmeasured):
            raise DataError(f"slice {unmeasured[0]} of {len(measured_DHW)} has no measured line")
    coil_maps = None
    if maps is not None or own is not None:
        coil_maps = _Maps.find(maps or path, source)
    return KSpace(
        path=path,
        measured_DHW=measured_DHW,
        calibrated=min(look.calibrated for look in looked_at),
        noise=float(np.quantile([look.noise for look in looked_at], 0.25)),
        maps_from=None if coil_maps is None else coil_maps.path,
        _source=source,
        _maps=coil_maps,
    )


# --- fastMRI --------------------------------------------------------------------------------------------------------


def _fastmri(file: File) -> _Source:
    kspace = dataset(file, "kspace")
    if not np.issubdtype(kspace.dtype, np.complexfloating):
        raise DataError(f"`kspace` of type {kspace.dtype}: must be complex numbers")
    if kspace.ndim not in (3, 4):
        raise DataError(f"`kspace` of shape {kspace.shape}: must be (slices, coils, H, W)")
    slices, coils = kspace.shape[0], kspace.shape[1] if kspace.ndim == 4 else 1
    height, width = kspace.shape[-2:]
    _check_size(slices, coils, height, width)
    reduction = untouched((height, width))
    if "ismrmrd_header" in file:
        xml = dataset(file, "ismrmrd_header")
        if xml.shape != ():
            raise DataError(f"`ismrmrd_header` of shape {xml.shape}: must be one text")
        reduction = reduction_of(parse_header(content(xml[()])), (height, width))
    given_HW = _fastmri_mask(file, height, width)

    def load(file: File, z: int, calibration: bool) -> Raw:
        y_CHW = file["kspace"][z].reshape(coils, height, width)
        with np.errstate(invalid="ignore"):  # damaged bytes may be a signalling nan; later it is refused
            return y_CHW, (y_CHW != 0).any(axis=(0, 1))[None].repeat(height, 0) if given_HW is None else given_HW

    geometry = Geometry(order=tuple(range(slices)), turn=Turn(), affine=None)
    return _Source(layout="fastMRI", coils=coils, reduction=reduction, geometry=geometry, load=load, reference=False)


def _fastmri_mask(file: File, height: int, width: int) -> Mask | None:
    if "mask" not in file:
        return None
    mask = dataset(file, "mask")
    if mask.shape not in ((width,), (height, width)):
        raise DataError(f"`mask` of shape {mask.shape}: must be ({width},) or ({height}, {width}), as `kspace` has")
    values = mask[()]
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise DataError("`mask`: must hold 0 and 1 only")
    if not values.any():
        raise DataError("`mask`: no line is measured")
    return np.broadcast_to(values.astype(bool), (height, width))


# --- ISMRMRD --------------------------------------------------------------------------------------------------------


def _ismrmrd(file: File) -> _Source:
    found = [name for name in groups(file) if {"xml", "data"} <= set(file[name])]
    if len(found) != 1:
        none = "no dataset `kspace` (fastMRI) and no group with `xml` and `data` (ISMRMRD)"
        raise DataError(none if not found else f"{len(found)} ISMRMRD groups; must be one")
    group = found[0]
    xml, data = dataset(file, f"{group}/xml"), dataset(file, f"{group}/data")
    if xml.size != 1:
        raise DataError(f"its `xml` holds {xml.size} headers: must be one")
    header = parse_header(content(xml[()] if xml.shape == () else xml[0]))
    if data.ndim != 1 or data.dtype.names is None or not {"head", "data"} <= set(data.dtype.names):
        raise DataError(f"its `data` of type {str(data.dtype)[:40]}: must be a list of ISMRMRD acquisitions")
    lines = lines_of(header, data["head"])
    height, width, _ = header.encoded.matrix
    _check_size(len(lines.slices), lines.coils, height, width)
    shape_CH = lines.coils, height

    def load(file: File, z: int, calibration: bool) -> Raw:
        sum_CHW, count_W = np.zeros((*shape_CH, width), np.complex64), np.zeros(width, int)
        wanted = np.flatnonzero((lines.used_N if calibration else lines.imaging_N) & (lines.slice_N == z))
        values_of = file[f"{group}/data"].fields("data")
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            for n, values in zip(some, values_of[some], strict=True):
                if values.size != 2 * lines.coils * height:
                    raise DataError(f"acquisition {n} holds {values.size} numbers, not 2 x {lines.coils} x {height}")
                samples = np.ascontiguousarray(values, np.float32).view(np.complex64)
                sum_CHW[..., lines.line_N[n]] += samples.reshape(shape_CH)
                count_W[lines.line_N[n]] += 1
        return sum_CHW / np.maximum(count_W, 1), np.broadcast_to(count_W > 0, (height, width))

    reduction = reduction_of(header, (height, width))
    geometry = geometry_of(header, reduction.image_HW, data["head"][lines.first])
    reference = bool((lines.used_N & ~lines.imaging_N).any())
    return _Source(
        layout="ISMRMRD", coils=lines.coils, reduction=reduction, geometry=geometry, load=load, reference=reference
    )


# --- what both share ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    measured_HW: Mask
    loud_HW: Mask  # not 0
    calibrated: int
    noise: float


def _look(file: File, source: _Source, z: int) -> _Look:
    raw = source.load(file, z, False)
    whole = source.load(file, z, True) if source.reference else raw
    broken = whole[0].size - int(np.isfinite(whole[0]).sum())
    if broken:
        raise DataError(f"{broken} of {whole[0].size} samples of slice {z} are NaN or infinite")
    y_CHW, measured_HW = _turned(raw, source)
    calibrated_HW = source.reduction.mask(whole[1])
    return _Look(
        measured_HW=measured_HW,
        loud_HW=(y_CHW != 0).any(axis=0) & measured_HW,
        calibrated=calibration_width(np.logical_and.reduce(calibrated_HW[calibrated_HW.any(axis=1)])),
        noise=_noise(y_CHW, measured_HW),
    )


def _noise(y_CHW: Complex, measured_HW: Mask) -> float:
    """Robust sd of the samples that are outermost in both directions, or in one where both leave too few."""
    v, u = (np.abs(np.arange(n) - n // 2) >= OUTER * (n // 2) for n in measured_HW.shape)
    outer_HW = measured_HW & v[:, None] & u
    if outer_HW.sum() < 16:
        outer_HW = measured_HW & (v[:, None] | u)
    outer = y_CHW[:, outer_HW]
    parts = np.concatenate([outer.real, outer.imag])
    return float(np.sqrt(2) * np.median(np.abs(parts)) / 0.6745) if parts.size else 0.0


def _turned(raw: Raw, source: _Source) -> tuple[Complex, Mask]:
    y_CHW, mask_HW = raw
    turn, reduction = source.geometry.turn, source.reduction
    return turn.samples(reduction.samples(y_CHW)), turn.mask(reduction.mask(mask_HW))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maps:
    """Coil maps in a file: a dataset of HDF5, or a whole npy file."""

    path: Path

    @classmethod
    def find(cls, path: Path, source: _Source) -> "_Maps":
        """Every value looked at; DataError for another shape than the data's, NaN or infinity, real numbers."""
        found = cls(path=path)
        with found._array() as array:
            shape, slices = array.shape, len(source.geometry.order)
            if not np.issubdtype(array.dtype, np.complexfloating):
                raise DataError(f"coil maps of type {array.dtype}: must be complex numbers")
            fits = len(shape) in (3, 4) and shape[-3] == source.coils and shape[:-3] in ((), (slices,))
            probe = np.broadcast_to(np.complex64(0), shape[-2:]) if fits else None
            if probe is None or source.reduction.maps(probe[None]) is None:
                h, w = source.reduction.matrix_HW
                raise DataError(
                    f"coil maps of shape {shape}: the k-space needs ({slices}, {source.coils}, {h}, {w}) "
                    f"or ({source.coils}, {h}, {w})"
                )
            for z in range(slices if len(shape) == 4 else 1):
                values = array[z] if len(shape) == 4 else array[()]
                if not np.isfinite(values).all():
                    raise DataError(f"coil maps of slice {z} hold NaN or infinite values")
                if not values.any():
                    raise DataError(f"coil maps of slice {z} are 0 everywhere")
        return found

    def read(self, z: int) -> NDArray[Any]:
        with self._array() as array:
            return np.array(array[z] if array.ndim == 4 else array[()])

    @contextlib.contextmanager
    def _array(self) -> Iterator[Any]:
        if self.path.suffix == ".npy":
            with named(self.path):
                try:
                    yield np.load(self.path, mmap_mode="r", allow_pickle=False)
                except FileNotFoundError:
                    raise DataError("no such file") from None
                except (ValueError, OSError, EOFError):
                    raise DataError("not a whole npy file") from None
            return
        with opened(self.path) as file:
            name = _maps_name(file)
            if name is None:
                raise DataError(f"no dataset of coil maps; it must be called {' or '.join(f'`{n}`' for n in MAPS)}")
            yield dataset(file, name)


def _maps_name(file: File) -> str | None:
    return next((name for name in MAPS if name in file), None)


def _check_size(slices: int, coils: int, height: int, width: int) -> None:
    limits = ((slices, MOST_SLICES), (coils, MOST_COILS), (height, MOST_LINES), (width, MOST_LINES))
    if not all(1 <= n <= most for n, most in limits) or coils * height * width > MOST_SAMPLES:
        raise DataError(
            f"{slices} slices of {coils} coils x {height} x {width} samples: must be at least 1 each, and "
            f"at most {MOST_SAMPLES} samples a slice"
        )
