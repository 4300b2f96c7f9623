"""What makes a DICOM file unusable, seen from its tags and its size alone: one line each, "" for a good file."""

import math
import struct
from collections.abc import Mapping
from typing import IO, Any

NATIVE = {  # transfer syntax -> (implicit, little endian)
    "1.2.840.10008.1.2": (True, True),
    "1.2.840.10008.1.2.1": (False, True),
    "1.2.840.10008.1.2.2": (False, False),
}
COMPRESSED = {
    f"1.2.840.10008.1.2.{end}" for end in ("4.50", "4.51", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91", "5")
}
LONG = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN"}  # value representations with a length of four bytes
MAX_FRAMES = 20_000

Tags = Mapping[str, Any]  # keyword -> text, number, tuple of these; a tag that is absent or empty is not there
Encoding = tuple[bool | None, bool | None]  # implicit, little endian


def encoding_fault(encoding: Encoding, syntax: str) -> str:
    if not syntax or encoding[0] is None:
        return ""
    implicit, little = encoding
    if syntax in NATIVE:
        if (implicit, little) != NATIVE[syntax]:
            return "its transfer syntax and the way its tags are written differ"
    elif syntax not in COMPRESSED:
        return "its transfer syntax is none that can be converted"
    elif (implicit, little) != (False, True):
        return "its transfer syntax and the way its tags are written differ"
    return ""


def tag_fault(tags: Tags, slope: Any) -> str:
    for keyword, count in (("PixelSpacing", 2), ("ImageOrientationPatient", 6)):
        if keyword in tags:
            values = tags[keyword]
            values = values if isinstance(values, tuple) else (values,)
            if len(values) != count or any(number(v) is None for v in values):
                return f"{keyword} is not {count} numbers"
    spacing = tags.get("PixelSpacing", (1.0, 1.0))
    if min(spacing) <= 0:
        return f"PixelSpacing {spacing[0]:g} x {spacing[1]:g} mm: must be above 0"
    thickness = number(tags.get("SliceThickness", 1.0))
    if thickness is None or thickness < 0:
        return "SliceThickness: must be 0 or more"
    if number(slope) is None or number(slope) == 0:
        return "RescaleSlope is 0 or no number: every voxel would be the same"
    orientation = tags.get("ImageOrientationPatient")
    if orientation is not None:
        row, column = orientation[:3], orientation[3:]
        lengths = [math.hypot(*row), math.hypot(*column)]
        dot = sum(a * b for a, b in zip(row, column, strict=True))
        if any(abs(length - 1) > 0.01 for length in lengths) or abs(dot) > 0.01:
            return "ImageOrientationPatient is not two directions at a right angle"
    if (number(tags.get("NumberOfFrames", 1.0)) or 1) > MAX_FRAMES:
        return f"more than {MAX_FRAMES} frames"
    return ""


def pixel_fault(encoding: Encoding, tags: Tags, file: IO[bytes], size: int, syntax: str) -> str:
    """Compare what the header promises with what follows it, without reading a voxel."""
    shape = [number(tags.get(key, default)) for key, default in _SHAPE]
    if any(n is None or n < 1 for n in shape[:2]):
        return "no image: it has no rows and columns"
    rows, columns, samples, bits, frames = (int(n or 1) for n in shape)
    start = file.tell()
    head = file.read(12)
    if len(head) < 8:
        return "truncated: no pixel data" if start >= size else "no pixel data"
    implicit, little = encoding
    order = "<" if little else ">"
    if implicit or head[4:6] not in LONG:
        length, start = struct.unpack(f"{order}I", head[4:8])[0], start + 8
    else:
        length, start = struct.unpack(f"{order}I", head[8:12])[0] if len(head) == 12 else 0, start + 12
    needed = rows * columns * samples * frames * bits // 8
    if length == 0xFFFFFFFF:
        if syntax in NATIVE:
            return "its transfer syntax says plain voxels, and they are compressed"
        file.seek(max(start, size - 4096))
        return "" if b"\xfe\xff\xdd\xe0" in file.read() else "truncated: its compressed voxels have no end"
    if syntax in COMPRESSED:
        return "its transfer syntax says compressed voxels, and they are plain"
    if start + length > size:
        return f"truncated: {max(size - start, 0)} of {length} bytes of voxels"
    return f"holds {length} bytes of voxels where {needed} are needed" if length < needed else ""


_SHAPE = (("Rows", None), ("Columns", None), ("SamplesPerPixel", 1), ("BitsAllocated", 16), ("NumberOfFrames", 1))


def number(value: Any) -> float | None:
    """A finite number, or None; the first of several."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
