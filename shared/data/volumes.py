"""NIfTI files to arrays and back, and the grid in millimetres that every subject is brought onto.

A volume is held as D H W of a RAS array (vocabulary.py), whatever the order and direction of its axes on disk.
A `Placement` is the exact geometry between one subject's volumes and the grid, in both directions.
Messages name the fault and never the file: the caller knows whether its report may name a subject.
"""

import contextlib
import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import DTypeLike, NDArray

from shared.base.errors import DataError
from shared.base.files import writing
from shared.base.options import require
from shared.data.limits import MAX_OBLIQUE, SPACING_LIMITS

Array = NDArray[np.float32]
Affine = NDArray[np.float64]
nib: Any = nibabel  # half of it is untyped

MAX_VOXELS = 2**28  # 645 cubed; a header that asks for more is damaged or hostile
MAX_SHRINK = 1.25  # how much coarser than asked a subject's spacing may get for a large brain to fit
MAX_OFFSET = 2**26  # bytes of header extensions before the voxels
LEAST_SHARE = 0.05  # of a voxel that must be brain for its mean to say something
_SAME = 1e-3  # of a voxel: two sizes this near are one, and nothing is blurred for a header's rounding
_SLACK = 2**20  # bytes that may follow the voxels


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    data_DHW: Array
    affine: Affine  # of the RAS array: voxel (x, y, z) to mm


def read(path: Path) -> Volume:
    """A whole NIfTI volume, put to RAS by its affine. DataError with one line for anything that can't be used."""
    with _faults():
        image = _open(path)
        _check_header(image)
        image = type(image).from_bytes(_all_bytes(path, image))
        with np.errstate(all="ignore"):  # a float64 beyond float32 becomes inf, and is refused below
            data_XYZ = image.get_fdata(dtype=np.float32, caching="unchanged")
    data_XYZ = data_XYZ.reshape(data_XYZ.shape[:3])
    broken = data_XYZ.size - int(np.isfinite(data_XYZ).sum())
    if broken:
        raise DataError(f"{broken} of {data_XYZ.size} voxels are NaN or infinite")
    orientation = nib.io_orientation(image.affine)
    affine = image.affine @ nib.orientations.inv_ornt_aff(orientation, data_XYZ.shape)
    data_XYZ = nib.apply_orientation(data_XYZ, orientation)
    return Volume(data_DHW=np.ascontiguousarray(data_XYZ.transpose(2, 1, 0), dtype=np.float32), affine=affine)


def read_stored(path: Path) -> NDArray[Any]:
    """The voxels of a NIfTI file in its own order, the last axis first, for who looks at slices as they were stored."""
    with _faults():
        image = _open(path)
        _check_header(image)
        data_XYZ = np.asarray(image.dataobj)
    return np.ascontiguousarray(data_XYZ.reshape(data_XYZ.shape[:3]).T)


def shape_and_affine(path: Path) -> tuple[tuple[int, int, int], Affine]:
    """Shape (D, H, W) and RAS affine as `read` would give them, from the header alone."""
    with _faults():
        image = _open(path)
        _check_header(image)
    orientation = nib.io_orientation(image.affine)
    shape_XYZ = image.shape[:3]
    affine = image.affine @ nib.orientations.inv_ornt_aff(orientation, shape_XYZ)
    x, y, z = (shape_XYZ[int(np.flatnonzero(orientation[:, 0] == axis)[0])] for axis in range(3))
    return (z, y, x), affine


def write(path: Path, data_DHW: NDArray[Any], affine: Affine, *, dtype: DTypeLike = np.float32) -> None:
    """A .nii or .nii.gz in RAS order; equal data give equal bytes, and no half-written file is ever seen."""
    _write(path, data_DHW.transpose(2, 1, 0), affine, dtype)


def nifti(data_DHW: NDArray[Any], affine: Affine) -> bytes:
    """The bytes of a .nii in RAS order, for whoever sends them on."""
    return _packed(data_DHW.transpose(2, 1, 0), affine, np.float32)


def write_like(path: Path, data_DHW: NDArray[Any], like: Path, *, dtype: DTypeLike = np.float32) -> None:
    """As `write`, but in the axis order, directions and affine of the file `like`, which data_DHW was made from."""
    with _faults():
        image = _open(like)
        _check_header(image)
    ras = nib.orientations.axcodes2ornt(("R", "A", "S"))
    back = nib.orientations.ornt_transform(ras, nib.io_orientation(image.affine))
    data_XYZ = nib.apply_orientation(data_DHW.transpose(2, 1, 0), back)
    if data_XYZ.shape != image.shape[:3]:
        raise DataError(f"shape {data_XYZ.shape} differs from the input's {image.shape[:3]}")
    _write(path, data_XYZ, image.affine, dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The grid of a run: so many pixels in the plane, and slices as far up and down as the brain reaches."""

    spacing_mm: float | None = None  # of a pixel; None: each subject's own
    slice_mm: float | None = None  # from one slice to the next; None: each subject's own
    height: int
    width: int

    def __post_init__(self) -> None:
        require(self.height >= 1, "height", self.height, "1 or more")
        require(self.width >= 1, "width", self.width, "1 or more")
        low, high = SPACING_LIMITS
        for key, value in (("spacing_mm", self.spacing_mm), ("slice_mm", self.slice_mm)):
            require(value is None or low <= value <= high, key, value, f"null or {low} to {high} mm")

    @property
    def name(self) -> str:
        spacing = "native" if self.spacing_mm is None else f"{self.spacing_mm:g}mm"
        slices = "" if self.slice_mm is None else f"-slices-{self.slice_mm:g}mm"
        return f"{spacing}-{self.height}x{self.width}{slices}"

    def slices(self, depth: int, affine: Affine) -> int:
        """At most so many hold a volume of that depth."""
        return depth if self.slice_mm is None else _count((0, depth), _step(self.slice_mm, _sizes(affine)[2]))

    def place(self, brain_DHW: NDArray[np.bool_], affine: Affine, *, grow: bool = False) -> "Placement":
        """Centre the brain's box in the plane, and keep the slices that the brain reaches.

        `grow`: a brain too large for the grid gets a larger one of the same spacing, and is not shrunk to fit.
        """
        z, y, x = extents = tuple(_extent(brain_DHW, axis) for axis in range(3))
        dx, dy, dz = _sizes(affine)
        step = 1.0 if self.slice_mm is None else _step(self.slice_mm, dz)
        height, width = self.height, self.width
        if grow:
            steps = (1.0, 1.0) if self.spacing_mm is None else (_step(self.spacing_mm, dy), _step(self.spacing_mm, dx))
            height, width = max(height, _count(y, steps[0])), max(width, _count(x, steps[1]))
        else:
            steps = self._steps(y[1] - y[0], x[1] - x[0], dy, dx)
        grid, steps_zyx = (_count(z, step), height, width), (step, *steps)
        starts = [_start(*each) for each in zip(extents, grid, steps_zyx, strict=True)]
        return Placement(
            shape_DHW=cast(tuple[int, int, int], brain_DHW.shape),
            grid_DHW=grid,
            start_zyx=(starts[0], starts[1], starts[2]),
            step_zyx=steps_zyx,
        )

    def _steps(self, height: int, width: int, dy: float, dx: float) -> tuple[float, float]:
        """Voxels from one grid row, and column, to the next."""
        if self.spacing_mm is None:
            if height > self.height or width > self.width:
                raise DataError(
                    f"the brain needs {height} x {width} voxels: more than grid {self.name}; "
                    "take a larger grid, or set grid.spacing_mm"
                )
            return 1.0, 1.0
        needed = max(height * dy / self.height, width * dx / self.width)
        if needed > MAX_SHRINK * self.spacing_mm:
            raise DataError(
                f"the brain is {height * dy:.0f} x {width * dx:.0f} mm: far more than grid {self.name}; "
                f"take a larger grid, or a grid.spacing_mm of {math.ceil(100 * needed) / 100:g} or more"
            )
        spacing = max(self.spacing_mm, needed)
        return _step(spacing, dy), _step(spacing, dx)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a subject's volume lies on the grid: its index i along an axis is the voxel start + i * step."""

    shape_DHW: tuple[int, int, int]  # of the subject's whole volume
    grid_DHW: tuple[int, int, int]
    start_zyx: tuple[float, float, float]
    step_zyx: tuple[float, float, float]

    @property
    def z(self) -> tuple[int, int]:
        """The volume's slices that are the grid's, from and up to; where slices keep their own distance."""
        assert self.step_zyx[0] == 1.0, "slices of another distance are no slices of the volume"
        first = int(self.start_zyx[0])
        return first, first + self.grid_DHW[0]

    def slice_at(self, z: int) -> int:
        """The volume's slice that is nearest to one of the grid."""
        return min(self.shape_DHW[0] - 1, max(0, round(self.start_zyx[0] + z * self.step_zyx[0])))

    def to_grid(self, data_DHW: NDArray[Any]) -> Array:
        """Volume to grid: exact where voxels keep their size, else linear with antialiasing; beyond the image is 0."""
        rows, columns = self._weights_to(1), self._weights_to(2)
        if self.step_zyx[0] == 1.0:
            part_DHW = data_DHW[..., slice(*self.z), :, :].astype(np.float32)
        else:
            part_DHW = _along_slices(self._weights_to(0), data_DHW)
        return cast(Array, rows @ part_DHW @ columns.T)

    def labels_to_grid(self, labels_DHW: NDArray[Any]) -> NDArray[np.uint8]:
        """As `to_grid` for a map of small whole numbers: each pixel takes the label that covers most of it."""
        values = np.union1d(np.zeros(1, labels_DHW.dtype), np.unique(labels_DHW))
        covered = np.stack([self.to_grid(labels_DHW == value) for value in values])
        covered[values == 0] = 1 - covered[values != 0].sum(axis=0)  # beyond the image is 0 too
        return cast(NDArray[np.uint8], values.astype(np.uint8)[covered.argmax(axis=0)])

    def from_grid(self, stack_DHW: NDArray[Any]) -> Array:
        """Grid to the subject's whole volume, 0 where the grid does not reach."""
        rows, columns = self.weights_from()
        part_DHW = cast(Array, rows @ stack_DHW.astype(np.float32) @ columns.T)
        if self.step_zyx[0] != 1.0:
            return _along_slices(self._weights_from(0), part_DHW)
        data_DHW = np.zeros((*stack_DHW.shape[:-3], *self.shape_DHW), np.float32)
        data_DHW[..., slice(*self.z), :, :] = part_DHW
        return data_DHW

    def weights_from(self) -> tuple[Array, Array]:
        """`from_grid` in the plane, as matrices: image = rows @ grid @ columns.T."""
        return self._weights_from(1), self._weights_from(2)

    def _weights_to(self, axis: int) -> Array:
        start, step = self.start_zyx[axis], self.step_zyx[axis]
        return _weights(start + step * np.arange(self.grid_DHW[axis]), self.shape_DHW[axis], step)

    def _weights_from(self, axis: int) -> Array:
        start, step = self.start_zyx[axis], self.step_zyx[axis]
        return _weights((np.arange(self.shape_DHW[axis]) - start) / step, self.grid_DHW[axis], 1 / step)


def within(values: Array, share: Array) -> Array:
    """Means over the brain alone, of what was resampled with 0 outside of it; `share`: its mask, resampled too."""
    return np.divide(values, share, out=np.zeros_like(values), where=share > LEAST_SHARE)


def _weights(at_N: NDArray[np.floating[Any]], size: int, step: float) -> Array:
    """Rows that resample a line of `size` values at the positions `at_N`: a triangle, widened when it must average."""
    reach = max(1.0, step)
    near_NK = np.floor(at_N)[:, None] + np.arange(-math.ceil(reach), math.ceil(reach) + 2)
    weight_NK = np.clip(1 - np.abs(near_NK - at_N[:, None]) / reach, 0, None)
    weight_NK /= weight_NK.sum(axis=1, keepdims=True)  # before the cut below: what lies outside counts as 0
    row_NK, inside_NK = np.indices(near_NK.shape)[0], (near_NK >= 0) & (near_NK < size)
    matrix = np.zeros((len(at_N), size), np.float32)
    matrix[row_NK[inside_NK], near_NK[inside_NK].astype(int)] = weight_NK[inside_NK]
    return matrix


def _along_slices(weights: Array, data_DHW: NDArray[Any]) -> Array:
    """The slices of a volume, or of several, resampled."""
    *several, depth, height, width = data_DHW.shape
    lines = data_DHW.reshape(*several, depth, height * width).astype(np.float32)
    return cast(Array, (weights @ lines).reshape(*several, len(weights), height, width))


def _extent(mask_DHW: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    reached = np.flatnonzero(mask_DHW.any(axis=tuple(a for a in range(3) if a != axis)))
    if not len(reached):
        raise DataError("no voxel of the brain")
    return int(reached[0]), int(reached[-1]) + 1


def _sizes(affine: Affine) -> tuple[float, float, float]:
    """Of a voxel, x, y and z in mm."""
    dx, dy, dz = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return dx, dy, dz


def _step(wanted_mm: float, own_mm: float) -> float:
    """Voxels from one index of the grid to the next."""
    step = wanted_mm / own_mm
    return 1.0 if abs(step - 1) <= _SAME else step


def _count(extent: tuple[int, int], step: float) -> int:
    """So many steps reach over an extent."""
    return math.ceil((extent[1] - extent[0]) / step - _SAME)


def _start(extent: tuple[int, int], size: int, step: float) -> float:
    """Voxel at grid index 0 that centres the extent; a whole voxel where voxels keep their size: nothing is blurred."""
    start = (extent[0] + extent[1] - 1) / 2 - step * (size - 1) / 2
    return float(math.ceil(start)) if step == 1.0 else start


def _open(path: Path) -> Any:
    """Header only; the voxels stay on disk."""
    if path.stat().st_size == 0:
        raise DataError("empty file")
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise DataError(f"not a NIfTI file (it is {type(image).__name__})")
    return image


def _check_header(image: Any) -> None:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) > 3 and all(n == 1 for n in shape[3:]):
        shape = shape[:3]
    if len(shape) != 3:
        raise DataError(f"{len(shape)}D with shape {shape}: one 3D volume is needed")
    if min(shape) < 1:
        raise DataError(f"shape {shape} holds no voxel")
    if math.prod(shape) > MAX_VOXELS:
        raise DataError(f"shape {shape} is over the limit of {MAX_VOXELS} voxels")
    if image.dataobj.offset > MAX_OFFSET:
        raise DataError(f"its voxels begin at byte {image.dataobj.offset}: over the limit of {MAX_OFFSET}")
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(f"voxels of type {image.get_data_dtype()}: must be one real number each")
    if image.header["qform_code"] == 0 and image.header["sform_code"] == 0:
        raise DataError("its orientation is unknown: qform_code and sform_code are both 0")
    affine = np.asarray(image.affine, np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-3 * math.prod(spacing):
        raise DataError("its affine has no inverse")
    if spacing.min() < SPACING_LIMITS[0] or spacing.max() > SPACING_LIMITS[1]:
        raise DataError(
            f"voxels of {' x '.join(f'{s:.3g}' for s in spacing)} mm: "
            f"must be {SPACING_LIMITS[0]} to {SPACING_LIMITS[1]} mm"
        )
    angle = math.degrees(float(nib.affines.obliquity(affine).max()))
    if angle > MAX_OBLIQUE:
        raise DataError(f"its axes are {angle:.0f} degrees oblique; the limit is {MAX_OBLIQUE:.0f}")


def _all_bytes(path: Path, image: Any) -> bytes:
    """The file up to its end, so that gzip's checksum is verified, but never more than its header promised."""
    expected = int(image.dataobj.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize
    unpack = gzip.open if path.name.endswith(".gz") else open
    with cast(IO[bytes], unpack(path, "rb")) as stream:
        content = stream.read(expected)
        if len(content) < expected:
            raise DataError(f"truncated: {len(content)} of {expected} bytes")
        if len(stream.read(_SLACK)) == _SLACK:
            raise DataError(f"holds far more than the {expected} bytes that its header promises")
    return content


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Every way that a foreign file can fail, as one line."""
    try:
        with LoggingOutputSuppressor():  # nibabel's own lines name neither the file nor a remedy
            yield
    except DataError:
        raise
    except EOFError:
        raise DataError("truncated: the compressed data end early") from None
    except (gzip.BadGzipFile, zlib.error):
        raise DataError("corrupt: its compressed data can't be unpacked") from None
    except ImageFileError:
        raise DataError("not a NIfTI file") from None
    except FileNotFoundError:
        raise DataError("no such file") from None
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror or type(error).__name__}") from None
    except Exception as error:  # a damaged header can lead nibabel anywhere
        raise DataError(f"damaged header ({type(error).__name__})") from error


def _packed(data_XYZ: NDArray[Any], affine: Affine, dtype: DTypeLike) -> bytes:
    wanted = np.dtype(dtype)
    if wanted.kind in "iu":
        data_XYZ = np.rint(data_XYZ)
        limits = np.iinfo(wanted)
        if data_XYZ.min() < limits.min or data_XYZ.max() > limits.max:
            raise DataError(f"values {data_XYZ.min():g} to {data_XYZ.max():g} do not fit {wanted}")
    image = nib.Nifti1Image(data_XYZ.astype(wanted), affine)
    image.header.set_slope_inter(1, 0)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if not np.allclose(image.get_qform(), affine, atol=1e-3):
        image.set_qform(affine, code=0)  # a sheared affine has no quaternion; the sform says it all
    return bytes(image.to_bytes())


def _write(path: Path, data_XYZ: NDArray[Any], affine: Affine, dtype: DTypeLike) -> None:
    content = _packed(data_XYZ, affine, dtype)
    with writing(path, durable=False) as file:  # synced with the folder that it is written into
        if path.name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
                packed.write(content)
        else:
            file.write(content)
