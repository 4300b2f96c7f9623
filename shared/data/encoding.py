"""From the lines that a scanner measured to the k-space of an axial image in the house's order of axes.

Arrays are C H W: rows H are the readout, columns W the phase-encoding lines, both centred (index n // 2 is k = 0) and
orthonormal. An image is then the inverse transform: row i is row i of a RAS volume (posterior first), column j its
column (left first), slices from the feet up. What a header says of directions is used to bring the data there; a file
that says nothing is taken to be there already.

Three spaces of ISMRMRD's header matter: the encoded one (often twice the field of view along the readout, some more
along the lines), the reconstructed one, and `matrix_HW` between them: its pixels are those of the reconstruction, its
field of view along the lines is still the encoded one, since signal beyond the image folds into it.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import DataError
from shared.data.limits import MAX_OBLIQUE, SPACING_LIMITS

Complex = NDArray[np.complex64]
Mask = NDArray[np.bool_]

MOST_XML = 2**20  # bytes
MOST_LINES = 4096  # of a matrix, each way
MOST_ACQUISITIONS = 2**22
_CALIBRATION, _CALIBRATION_TOO, _REVERSED = 1 << 19, 1 << 20, 1 << 21  # ISMRMRD's flags, which it counts from 1
_ASIDE = sum(1 << (bit - 1) for bit in (19, 23, 24, 26, 27, 28, 29))  # noise, navigators, phase correction, dummies
UNEVEN = 0.05  # of the slice distance: how far slices may lie from even steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    matrix: tuple[int, int, int]  # readout, lines, partitions
    fov_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What ISMRMRD's XML header says of its first encoding."""

    encoded: Space
    recon: Space
    centre: int | None  # kspace_encode_step_1 of k = 0; None: half of the encoded lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """Raw matrix to `matrix_HW`: the readout's oversampling cut off, unmeasured high frequencies as unsampled ones."""

    raw_HW: tuple[int, int]
    field_H: int  # readout pixels that are left of the field of view, before the change of pixel size
    matrix_HW: tuple[int, int]
    image_HW: tuple[int, int]  # the image, in the middle of the matrix

    def samples(self, raw_CHW: NDArray[Any]) -> Complex:
        kept = raw_CHW
        if self.field_H != self.raw_HW[0]:
            shifted = np.fft.ifft(np.fft.ifftshift(kept, axes=-2), axis=-2, norm="ortho")
            line = centred(np.fft.fftshift(shifted, axes=-2), (self.field_H, self.raw_HW[1]))
            kept = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(line, axes=-2), axis=-2, norm="ortho"), axes=-2)
        return np.ascontiguousarray(centred(kept, self.matrix_HW), dtype=np.complex64)

    def mask(self, mask_HW: Mask) -> Mask:
        if self.field_H != self.raw_HW[0]:  # samples of one line are mixed: it was measured whole or not at all
            mask_HW = np.broadcast_to(mask_HW.all(axis=0), (self.field_H, self.raw_HW[1]))
        return cast(Mask, centred(mask_HW, self.matrix_HW))

    def maps(self, maps_CHW: NDArray[Any]) -> Complex | None:
        """Coil maps of the matrix as they are, those of an oversampled readout cut; None for another shape."""
        shape = maps_CHW.shape[-2:]
        if shape == (self.raw_HW[0], self.matrix_HW[1]) and self.field_H == self.matrix_HW[0]:
            maps_CHW = centred(maps_CHW, self.matrix_HW)
        elif shape != self.matrix_HW:
            return None
        return np.ascontiguousarray(maps_CHW, dtype=np.complex64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Readout x lines to H x W of the house."""

    swap: bool = False  # the readout runs left to right
    flip_h: bool = False
    flip_w: bool = False

    def samples(self, y_CHW: Complex) -> Complex:
        """Exact: the mirrored image's own k-space."""
        y_CHW = y_CHW.swapaxes(-1, -2) if self.swap else y_CHW
        for axis, flip in ((-2, self.flip_h), (-1, self.flip_w)):
            if flip:
                n = y_CHW.shape[axis]
                back = (n - 1 - 2 * (n // 2)) * (np.arange(n) - n // 2) / n  # the middle of an even line moves by one
                ramp = np.exp(-2j * np.pi * back)
                y_CHW = y_CHW.take(_mirrored(n), axis) * (ramp[:, None] if axis == -2 else ramp)
        return np.ascontiguousarray(y_CHW, dtype=np.complex64)

    def mask(self, mask_HW: Mask) -> Mask:
        mask_HW = mask_HW.swapaxes(-1, -2) if self.swap else mask_HW
        for axis, flip in ((-2, self.flip_h), (-1, self.flip_w)):
            if flip:
                mask_HW = mask_HW.take(_mirrored(mask_HW.shape[axis]), axis)
        return np.ascontiguousarray(mask_HW)

    def images(self, x_CHW: NDArray[Any]) -> NDArray[Any]:
        x_CHW = x_CHW.swapaxes(-1, -2) if self.swap else x_CHW
        x_CHW = np.flip(x_CHW, -2) if self.flip_h else x_CHW
        return np.ascontiguousarray(np.flip(x_CHW, -1) if self.flip_w else x_CHW)

    def shape(self, shape_HW: tuple[int, int]) -> tuple[int, int]:
        return (shape_HW[1], shape_HW[0]) if self.swap else shape_HW

    def starts(self, matrix_HW: tuple[int, int], image_HW: tuple[int, int]) -> tuple[int, int]:
        """Where the image begins in the turned matrix."""
        flips = (self.flip_h, self.flip_w)
        sizes = zip(self.shape(matrix_HW), self.shape(image_HW), flips, strict=True)
        row, column = ((m - n - (m // 2 - n // 2) if flip else m // 2 - n // 2) for m, n, flip in sizes)
        return row, column


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where the slices lie; `order` names the file's slices from the feet up."""

    order: tuple[int, ...]
    turn: Turn
    affine: NDArray[np.float64] | None  # RAS, voxel (x, y, z) of the image to mm; None where the file does not say


def parse_header(xml: bytes) -> Header:
    if len(xml) > MOST_XML or b"<!" in xml.replace(b"<!--", b""):
        raise DataError("its XML header is over the limit or declares entities")
    try:
        root = ElementTree.fromstring(xml)  # no entities: see above
    except (ElementTree.ParseError, ValueError):
        raise DataError("its XML header can't be parsed") from None
    encoding = _child(root, "encoding")
    trajectory = (_child(encoding, "trajectory").text or "").strip()
    if trajectory != "cartesian":
        raise DataError(f"trajectory {trajectory[:20]!r}: must be cartesian")
    encoded, recon = (_space(_child(encoding, name)) for name in ("encodedSpace", "reconSpace"))
    if encoded.matrix[2] > 1:
        raise DataError(
            f"3D-encoded ({encoded.matrix[2]} partitions): must be 2D slices; transform the partitions "
            "first and save the slices"
        )
    limits = _find(_find(encoding, "encodingLimits"), "kspace_encoding_step_1")
    centre = None if limits is None else int(_number(_child(limits, "center")))
    return Header(encoded=encoded, recon=recon, centre=centre)


def reduction_of(header: Header, raw_HW: tuple[int, int]) -> Reduction:
    """DataError where the spaces contradict the data or each other."""
    e, r = header.encoded, header.recon
    if raw_HW[0] != e.matrix[0]:
        raise DataError(f"lines of {raw_HW[0]} samples: its header says {e.matrix[0]}")
    field = round(e.matrix[0] * r.fov_mm[0] / e.fov_mm[0])
    width = round(e.fov_mm[1] * r.matrix[1] / r.fov_mm[1])
    if field > e.matrix[0] or width < r.matrix[1]:
        raise DataError(
            f"its header reconstructs {r.fov_mm[0]:g} x {r.fov_mm[1]:g} mm from a smaller encoded "
            f"{e.fov_mm[0]:g} x {e.fov_mm[1]:g} mm"
        )
    if not 1 <= width <= MOST_LINES:
        raise DataError(f"its header makes {width} lines: must be 1 to {MOST_LINES}")
    return Reduction(
        raw_HW=raw_HW, field_H=max(1, field), matrix_HW=(r.matrix[0], width), image_HW=(r.matrix[0], r.matrix[1])
    )


def untouched(raw_HW: tuple[int, int]) -> Reduction:
    return Reduction(raw_HW=raw_HW, field_H=raw_HW[0], matrix_HW=raw_HW, image_HW=raw_HW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Which acquisition is what; arrays have an entry for each."""

    used_N: Mask
    imaging_N: Mask  # the others that are used serve for calibration alone
    line_N: NDArray[np.int64]  # column of the raw matrix
    slice_N: NDArray[np.int64]  # 0, 1, ... in the order of the header's numbers; -1 for none of the image
    slices: NDArray[np.int64]  # those numbers
    first: NDArray[np.int64]  # an acquisition of each slice
    coils: int


def lines_of(header: Header, head_N: NDArray[Any]) -> Lines:
    """Acquisition headers sorted out. What can't be read as 2D slices of one image is refused by its name."""
    if not 1 <= len(head_N) <= MOST_ACQUISITIONS:
        raise DataError(f"{len(head_N)} acquisitions: must be 1 to {MOST_ACQUISITIONS}")
    flags_N, idx_N = head_N["flags"], head_N["idx"]
    used_N = ((flags_N & _ASIDE) == 0) & (head_N["encoding_space_ref"] == 0)
    only_N = ((flags_N & _CALIBRATION) != 0) & ((flags_N & _CALIBRATION_TOO) == 0)
    imaging_N = used_N & ~only_N
    if not imaging_N.any():
        raise DataError("no acquisition is a line of the image")
    _check_heads(head_N[used_N], header)
    width = header.encoded.matrix[1]
    line_N = idx_N["kspace_encode_step_1"].astype(int) + width // 2
    line_N = line_N - (width // 2 if header.centre is None else header.centre)
    reached = line_N[used_N]
    if reached.min() < 0 or reached.max() >= width:
        raise DataError(f"lines {reached.min()} to {reached.max()}: its header has 0 to {width - 1}")
    number_N = idx_N["slice"].astype(int)
    slices, first = np.unique(np.where(imaging_N, number_N, -1), return_index=True)
    slices, first = slices[slices >= 0], first[slices >= 0]
    place_N = np.searchsorted(slices, number_N).clip(max=len(slices) - 1)
    return Lines(
        used_N=used_N,
        imaging_N=imaging_N,
        line_N=line_N,
        slice_N=np.where(slices[place_N] == number_N, place_N, -1),
        slices=slices,
        first=first,
        coils=int(head_N["active_channels"][imaging_N][0]),
    )


def _check_heads(head_N: NDArray[Any], header: Header) -> None:
    if (head_N["idx"]["kspace_encode_step_2"] > 0).any():
        raise DataError(
            "3D-encoded (kspace_encode_step_2): must be 2D slices; transform the partitions first and save the slices"
        )
    for name in ("contrast", "phase", "set"):
        several = np.unique(head_N["idx"][name])
        if len(several) > 1:
            raise DataError(f"{len(several)} of `{name}`: must be one image; save each in a file of its own")
    if (head_N["flags"] & _REVERSED).any():
        raise DataError("lines that run backwards (EPI): must be plain Cartesian lines")
    if len(np.unique(head_N["active_channels"])) != 1:
        raise DataError("its acquisitions differ in their number of coils")
    samples = header.encoded.matrix[0]
    if (head_N["number_of_samples"] != samples).any():
        raise DataError(f"lines of {head_N['number_of_samples'].min()} samples: its header says {samples}")
    if not np.isin(head_N["center_sample"], (0, samples // 2)).all():
        raise DataError("partial echoes: the centre sample of every line must be its middle")


def geometry_of(header: Header, image_HW: tuple[int, int], head_N: NDArray[Any]) -> Geometry:
    """From an acquisition header of each slice, in patient coordinates (left, posterior, superior)."""
    position_N3, read_N3, phase_N3, slice_N3 = (
        head_N[name] for name in ("position", "read_dir", "phase_dir", "slice_dir")
    )
    n, usual = len(position_N3), tuple(range(len(position_N3)))
    directions = np.stack([read_N3[0], phase_N3[0], slice_N3[0]]).astype(np.float64)
    if not directions.any():
        return Geometry(order=usual, turn=Turn(), affine=None)
    spread = max(float(np.abs(d - d[0]).max()) for d in (read_N3, phase_N3, slice_N3))
    if not np.isfinite(directions).all() or not np.allclose(directions @ directions.T, np.eye(3), atol=1e-2):
        raise DataError("its read, phase and slice directions are not at right angles")
    if spread > 1e-3 or not np.isfinite(position_N3).all():
        raise DataError("its slices are not parallel")
    lps = np.diag([-1.0, -1.0, 1.0])
    directions, at_N3 = directions @ lps, position_N3.astype(np.float64) @ lps
    axis = [int(np.abs(d).argmax()) for d in directions]
    angle = max(math.degrees(math.acos(min(1.0, float(np.abs(d).max())))) for d in directions)
    if axis[2] != 2 or sorted(axis) != [0, 1, 2] or angle > MAX_OBLIQUE:
        plane = ("sagittal", "coronal", "axial")[axis[2]]
        raise DataError(f"{plane}, {angle:.0f} degrees oblique: must be axial within {MAX_OBLIQUE:.0f} degrees")
    along_N = at_N3 @ directions[2] * np.sign(directions[2][2])
    order, step = (tuple(int(i) for i in np.argsort(along_N, kind="stable")), header.recon.fov_mm[2])
    steps = np.diff(along_N[list(order)])
    if n > 1 and np.ptp(along_N) > 0:
        step = float(np.median(steps))
        if step < SPACING_LIMITS[0] or np.abs(steps - step).max() > UNEVEN * step:
            raise DataError(f"its slices are {steps.min():.3g} to {steps.max():.3g} mm apart: must be even")
    elif n > 1:
        raise DataError("all its slices lie at one place")
    turn = Turn(swap=axis[0] == 0, flip_h=False, flip_w=False)
    rows, columns = (directions[1], directions[0]) if turn.swap else (directions[0], directions[1])
    turn = Turn(swap=turn.swap, flip_h=bool(rows[1] < 0), flip_w=bool(columns[0] < 0))
    pixel = (header.recon.fov_mm[0] / image_HW[0], header.recon.fov_mm[1] / image_HW[1])
    (height, width), (dy, dx) = turn.shape(image_HW), (pixel[::-1] if turn.swap else pixel)
    affine = np.eye(4)
    affine[:3, 0] = columns * dx * (-1 if turn.flip_w else 1)
    affine[:3, 1] = rows * dy * (-1 if turn.flip_h else 1)
    affine[:3, 2] = directions[2] * step * np.sign(directions[2][2])
    middle = [(s - 1 - s // 2 if flip else s // 2) for s, flip in ((width, turn.flip_w), (height, turn.flip_h))]
    affine[:3, 3] = at_N3[order[0]] - affine[:3, 0] * middle[0] - affine[:3, 1] * middle[1]
    return Geometry(order=order, turn=turn, affine=affine)


def centred(x: NDArray[Any], shape_HW: tuple[int, int]) -> NDArray[Any]:
    """The last two axes cut or padded with 0, so that index n // 2 stays the middle."""
    for axis, size in zip((-2, -1), shape_HW, strict=True):
        n = x.shape[axis]
        if size < n:
            x = x.take(np.arange(n // 2 - size // 2, n // 2 - size // 2 + size), axis)
        elif size > n:
            before = size // 2 - n // 2
            pads = [(0, 0)] * x.ndim
            pads[axis] = (before, size - n - before)
            x = np.pad(x, pads)
    return x


def calibration_width(sampled_W: Mask) -> int:
    """Neighbouring lines round k = 0 that were all measured: as many to one side as to the other."""
    c, n = len(sampled_W) // 2, 0
    for reach in itertools.count():
        if reach > c or c + reach >= len(sampled_W) or not (sampled_W[c - reach] and sampled_W[c + reach]):
            return n
        n = 2 * reach + 1
    raise AssertionError("never ends so")


def _mirrored(n: int) -> NDArray[np.intp]:
    """Of each frequency the index of its opposite."""
    return cast(NDArray[np.intp], (2 * (n // 2) - np.arange(n)) % n)


def _space(node: ElementTree.Element) -> Space:
    matrix, fov = _child(node, "matrixSize"), _child(node, "fieldOfView_mm")
    sizes = tuple(int(_number(_child(matrix, a))) for a in "xyz")
    extents = tuple(_number(_child(fov, a)) for a in "xyz")
    if not all(1 <= n <= MOST_LINES for n in sizes) or not all(0 < mm < 10_000 for mm in extents):
        raise DataError(f"its header has a matrix of {sizes} over {extents} mm")
    return Space(matrix=(sizes[0], sizes[1], sizes[2]), fov_mm=(extents[0], extents[1], extents[2]))


def _find(node: ElementTree.Element | None, name: str) -> ElementTree.Element | None:
    """The first child of that name, in whatever namespace."""
    if node is None:
        return None
    return next((child for child in node if child.tag.rpartition("}")[2] == name), None)


def _child(node: ElementTree.Element, name: str) -> ElementTree.Element:
    found = _find(node, name)
    if found is None:
        raise DataError(f"its XML header has no {name}")
    return found


def _number(node: ElementTree.Element) -> float:
    try:
        value = float(node.text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"its XML header says {(node.text or '')[:20]!r} where a number belongs")
    return value
