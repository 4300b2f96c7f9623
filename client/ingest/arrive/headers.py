"""One DICOM file's header, read safely: a few megabytes at most, no voxel, and one line for whatever is wrong with it.

Every tag that a step of the ingest looks at stands in `_TAGS`; names, addresses and private tags are not read at all.
`fault` is what makes a file unusable though it is DICOM; what is no DICOM at all is a DataError. Neither line repeats
text from the file: it may name a patient.
"""

import io
import struct
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence

from client.ingest.arrive.faults import LONG, MAX_FRAMES, Encoding, Tags, encoding_fault, number, pixel_fault, tag_fault
from shared.base.errors import DataError

MAX_HEADER = 64 * 2**20  # bytes of tags that are read of one file; an enhanced series of 2000 frames has 10 MB
NEAR = 2**16  # bytes from the start, within which the voxels usually begin
MAX_WHOLE = 256 * 2**20  # bytes of a file that is read with its voxels
MAX_TEXT = 256  # characters kept of one value
Point = tuple[float, float, float]

DEFLATED = "1.2.840.10008.1.2.1.99"
DICOMDIR = "1.2.840.10008.1.3.10"
_ARCHIVES = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"\x28\xb5\x2f\xfd": "zstd",
}

# whose and what; of an MR sequence; of CT and PET; of the image
_TAGS = """
PatientID PatientAge PatientBirthDate PatientSex PatientWeight StudyInstanceUID StudyDate SeriesInstanceUID
SeriesNumber SeriesDate SeriesTime SeriesDescription ProtocolName Modality Manufacturer ImageType BodyPartExamined
BurnedInAnnotation DerivationDescription SyntheticData ScanningSequence SequenceVariant ScanOptions SequenceName
PulseSequenceName MRAcquisitionType RepetitionTime EchoTime InversionTime FlipAngle EchoTrainLength AngioFlag
ContrastBolusAgent DiffusionBValue EchoPulseSequence InversionRecovery EchoPlanarPulseSequence TimeOfFlightContrast
PhaseContrast ComplexImageComponent AcquisitionContrast ConvolutionKernel GantryDetectorTilt RescaleType Units
CorrectedImage DecayCorrection Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated NumberOfFrames
PixelSpacing ImageOrientationPatient SliceThickness SpacingBetweenSlices
""".split()
_ENHANCED = "EffectiveEchoTime InversionTimes FrameType RFEchoTrainLength RescaleSlope".split()
_PET = """
Radiopharmaceutical RadiopharmaceuticalStartTime RadiopharmaceuticalStartDateTime RadionuclideTotalDose
RadionuclideHalfLife
""".split()
# what differs from file to file of a series
_ONE_FILE = """
SOPClassUID SOPInstanceUID InstanceNumber ImagePositionPatient RescaleSlope AcquisitionDate AcquisitionTime
""".split()
_SEQUENCES = """
SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence RadiopharmaceuticalInformationSequence
ContrastBolusAgentSequence
""".split()
SEEN = (*_TAGS, *_ENHANCED, *_PET, *_ONE_FILE, *_SEQUENCES)  # all that an ingest looks at
_TAG = {word: tag_for_keyword(word) or 0 for word in SEEN}
_WANTED = [_TAG[word] for word in (*_TAGS, *_ONE_FILE, *_SEQUENCES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the ingest knows of one file."""

    path: Path
    size: int
    sop: str
    sop_class: str
    number: int | None
    positions: tuple[Point, ...]  # of each frame's first voxel, in mm; () where unknown
    acquired: str  # date and time of acquisition, YYYYMMDDHHMMSS; "" where unknown
    tags: Tags  # equal tags of many files are one object
    fault: str  # why it can't be used; "" for a good file

    def text(self, keyword: str) -> str:
        value = self.tags.get(keyword, "")
        return "\\".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def real(self, keyword: str) -> float | None:
        """The tag's number, or the first of its numbers."""
        return number(self.tags.get(keyword))

    def words(self, keyword: str) -> tuple[str, ...]:
        value = self.tags.get(keyword, ())
        return tuple(str(word).upper() for word in (value if isinstance(value, tuple) else (value,)))


# the files of a series have nearly all tags in common: each is understood once, and kept once
_seen: dict[tuple[Any, ...], Tags] = {}
_known: dict[tuple[str, bytes], Any] = {}


def read(path: Path) -> Header:
    """The header of a DICOM file; DataError for what is none."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(path, file)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror or type(error).__name__}") from None
    except MemoryError:
        raise DataError("its header does not fit in memory") from None
    except RecursionError:
        raise DataError("damaged: sequences nested without end") from None
    except Exception as error:  # a damaged header can lead a parser anywhere
        raise DataError(f"damaged DICOM header ({type(error).__name__})") from error


class _Bounded:
    """A file that gives no more than MAX_HEADER bytes in all, and notes whether it ended before what was asked."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size, self.left, self.short = file, size, MAX_HEADER, False

    def read(self, n: int = -1, /) -> bytes:
        at = self.tell()
        n = max(self.size - at, 0) if n < 0 else n
        if n > self.left:
            raise DataError(f"its header is over the limit of {MAX_HEADER // 2**20} MB")
        data = self.file.read(n)
        self.left -= len(data)
        self.short |= at > self.size or 0 < len(data) < n
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _read(path: Path, file: IO[bytes]) -> Header:
    start = file.read(512)
    size = path.stat().st_size
    _check_start(start, size)
    whole = start[128:132] == b"DICM"
    syntax, encoding = _syntax(file) if whole else ("", (None, None))
    if syntax == DEFLATED:
        raise DataError("a deflated transfer syntax, which is not unpacked here")
    dataset, short = _parse(file, size, force=not whole)
    sop_class = _text(dataset, "SOPClassUID") or str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
    if sop_class == DICOMDIR:
        raise DataError("a DICOMDIR: a table of contents, no image")
    if not sop_class:
        raise DataError("truncated in its header" if short else "not a DICOM file: it names no SOP class")
    if not _text(dataset, "SOPInstanceUID"):
        raise DataError("truncated in its header" if short else "has no SOP Instance UID")
    tags, positions = _tags(dataset)
    slope = _value(dataset, "RescaleSlope") if "RescaleSlope" in dataset else tags.get("RescaleSlope", 1.0)
    faults = (
        "truncated in its header" if short else "",
        encoding_fault(encoding, syntax),
        tag_fault(tags, slope),
        pixel_fault(dataset.original_encoding, tags, file, size, syntax),
        "its position is not three numbers" if positions is None else "",
    )
    number_ = number(_value(dataset, "InstanceNumber"))
    return Header(
        path=path,
        size=size,
        sop=_text(dataset, "SOPInstanceUID"),
        sop_class=sop_class,
        number=None if number_ is None else int(number_),
        positions=positions or (),
        acquired=_moment(dataset, "Acquisition"),
        tags=_shared(tags),
        fault=next(filter(None, faults), ""),
    )


def _parse(file: IO[bytes], size: int, *, force: bool) -> tuple[Dataset, bool]:
    """The tags wanted, the file left where its voxels begin; and whether it ended before they did."""
    file.seek(0)
    near = io.BytesIO(file.read(NEAR))
    with suppress(Exception):  # such as a sequence that is not at its end there
        dataset = pydicom.dcmread(near, stop_before_pixels=True, force=force, specific_tags=_WANTED)
        at = near.tell()
        if bytes(near.getbuffer()[at : at + 2]) in (b"\xe0\x7f", b"\x7f\xe0"):  # the usual case, and the fast one
            file.seek(at)
            return dataset, False
    bounded = _Bounded(file, size)
    bounded.seek(0)
    dataset = pydicom.dcmread(cast(BinaryIO, bounded), stop_before_pixels=True, force=force, specific_tags=_WANTED)
    return dataset, bounded.short


def _check_start(start: bytes, size: int) -> None:
    if not size:
        raise DataError("empty file")
    for magic, kind in _ARCHIVES.items():
        if start.startswith(magic) and start[128:132] != b"DICM":
            raise DataError(f"a {kind} archive: never unpacked here; unpack it first if it holds images")
    if start[257:262] == b"ustar" and start[128:132] != b"DICM":
        raise DataError("a tar archive: never unpacked here; unpack it first if it holds images")
    if start[128:132] == b"DICM":
        return
    group, element = struct.unpack("<HH", start[:4]) if len(start) >= 8 else (0, 0)
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    length = struct.unpack("<H" if explicit else "<I", start[6:8] if explicit else start[4:8])[0] if group else size
    if group not in (2, 8) or element > 0x1000 or length > min(size, 1024):
        raise DataError("not a DICOM file")


def _syntax(file: IO[bytes]) -> tuple[str, Encoding]:
    """The transfer syntax, before anything that it may ask to unpack; and how the first tag after it is really written.

    The file's own group is always explicit little endian.
    """
    file.seek(132)
    syntax = ""
    for _ in range(64):
        head = file.read(8)
        if len(head) < 8:
            break
        group, element, kind, length = struct.unpack("<HH2sH", head)
        if group != 2:
            explicit = kind.isalpha() and kind.isupper()
            return syntax, (not explicit, head[0] != 0)
        if kind in LONG:
            (length,) = struct.unpack("<I", file.read(4).ljust(4, b"\0"))
        value = file.read(min(length, 64))
        if element == 0x0010:
            syntax = value.decode("ascii", "replace").strip("\0 ")
        file.seek(length - len(value), 1)
    return syntax, (None, None)


def _value(dataset: Dataset, keyword: str) -> Any:
    """A tag's value, or None where it is absent, empty or no value of its kind."""
    try:
        value = dataset.get(keyword)
    except Exception:  # a value that is none of its kind counts as absent
        return None
    if value is None or (isinstance(value, str | bytes | MultiValue) and not len(value)):
        return None
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, MultiValue | list | tuple):
        return tuple(_plain(entry) for entry in value[:32])
    if isinstance(value, float | int) and not isinstance(value, bool):
        return float(value)
    return "".join(c for c in str(value)[:MAX_TEXT] if c.isprintable()).strip()


def _text(dataset: Dataset, keyword: str) -> str:
    value = _value(dataset, keyword)
    return "" if value is None else str(_plain(value))


def _moment(dataset: Dataset, which: str) -> str:
    day, time = _text(dataset, f"{which}Date"), _text(dataset, f"{which}Time").split(".")[0]
    return day + time.ljust(6, "0") if len(day) == 8 and day.isdigit() and time.isdigit() else ""


def _tags(dataset: Dataset) -> tuple[dict[str, Any], tuple[Point, ...] | None]:
    """The plain tags, those of an enhanced image brought to the names that a classic one uses, and the positions."""
    tags: dict[str, Any] = {}
    _add(tags, dataset, _TAGS)
    agents = _value(dataset, "ContrastBolusAgentSequence")
    if isinstance(agents, DicomSequence) and len(agents) and "ContrastBolusAgent" not in tags:
        tags["ContrastBolusAgent"] = "by code"
    tracers = _value(dataset, "RadiopharmaceuticalInformationSequence")
    if isinstance(tracers, DicomSequence) and len(tracers):
        _add(tags, tracers[0], _PET)
        code = _value(tracers[0], "RadiopharmaceuticalCodeSequence")
        if isinstance(code, DicomSequence) and len(code):
            tags["RadiopharmaceuticalCode"] = _text(code[0], "CodeValue")
            tags["RadiopharmaceuticalMeaning"] = _text(code[0], "CodeMeaning")
    frames = _value(dataset, "PerFrameFunctionalGroupsSequence")
    if not isinstance(frames, DicomSequence):
        return tags, _positions([dataset])
    shared = _value(dataset, "SharedFunctionalGroupsSequence") or []
    groups = [*shared[:1], *frames[:1]]
    for group in groups:
        for macro in group:
            if macro.VR == "SQ" and len(macro.value):
                _add(tags, macro.value[0], (*_TAGS, *_ENHANCED))
    _rename(tags, frames)
    if "MRDiffusionSequence" in frames[0] and "DiffusionBValue" not in tags:
        tags["DiffusionBValue"] = number(_value(frames[0]["MRDiffusionSequence"].value[0], "DiffusionBValue")) or 0.0
    return tags, _positions([_macro(frame, "PlanePositionSequence") for frame in frames])


def _add(tags: dict[str, Any], dataset: Dataset, keywords: Iterable[str]) -> None:
    for keyword in keywords:
        if keyword in tags or _TAG[keyword] not in dataset:
            continue
        raw: Any = dataset.get_item(_TAG[keyword])
        key = (keyword, raw.value) if isinstance(raw, RawDataElement) and isinstance(raw.value, bytes) else None
        plain = _known.get(key) if key is not None else None
        if plain is None:
            value = _value(dataset, keyword)
            plain = "" if value is None or isinstance(value, DicomSequence) else _plain(value)
            if key is not None:
                if len(_known) > 4096:
                    _known.clear()
                _known[key] = plain
        if plain != "":
            tags[keyword] = plain


def _rename(tags: dict[str, Any], frames: DicomSequence) -> None:
    for enhanced, classic in (
        ("EffectiveEchoTime", "EchoTime"),
        ("InversionTimes", "InversionTime"),
        ("RFEchoTrainLength", "EchoTrainLength"),
    ):
        value = number(tags.pop(enhanced, None))
        if value is not None:
            tags.setdefault(classic, value)
    sequence = {"SPIN": "SE", "GRADIENT": "GR", "BOTH": "SE\\GR"}.get(str(tags.get("EchoPulseSequence", "")), "")
    words = [*filter(None, sequence.split("\\"))]
    words += ["IR"] if tags.get("InversionRecovery") == "YES" else []
    words += ["EP"] if tags.get("EchoPlanarPulseSequence") == "YES" else []
    if words:
        tags.setdefault("ScanningSequence", tuple(words))
    echoes = {number(_value(_macro(frame, "MREchoSequence"), "EffectiveEchoTime")) for frame in frames[:MAX_FRAMES]}
    tags["Echoes"] = float(len(echoes - {None}) or 1)
    kinds = {
        _text(_macro(frame, "MRImageFrameTypeSequence"), "ComplexImageComponent") for frame in frames[:MAX_FRAMES]
    } - {""}
    if len(kinds) > 1:
        tags["ComplexImageComponent"] = "MIXED"


def _macro(frame: Dataset, keyword: str) -> Dataset:
    value = _value(frame, keyword)
    return value[0] if isinstance(value, DicomSequence) and len(value) else Dataset()


def _positions(frames: Iterable[Dataset]) -> tuple[Point, ...] | None:
    """() where no frame says its position; None where one of them is no point."""
    found: list[Point] = []
    for frame in frames:
        value = frame.get_item("ImagePositionPatient") if "ImagePositionPatient" in frame else None
        if value is None:
            continue
        numbers = [number(n) for n in _several(_value(frame, "ImagePositionPatient"))]
        if len(numbers) != 3 or None in numbers:
            return None
        found.append((float(numbers[0] or 0), float(numbers[1] or 0), float(numbers[2] or 0)))
    return tuple(found)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def _shared(tags: dict[str, Any]) -> Tags:
    """One object for equal tags, so that a hundred thousand files fit in memory."""
    key = tuple(sorted(tags.items(), key=lambda item: item[0]))
    if len(_seen) > 256:
        _seen.clear()
    return _seen.setdefault(key, tags)


def whole(path: Path) -> Dataset | None:
    """The file with its voxels, for who must look at them; None where it is too large or can't be read again."""
    try:
        if path.stat().st_size > MAX_WHOLE:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(path, force=True)
    except Exception:  # its fault, if it has one, is named by `read` and by the conversion
        return None
