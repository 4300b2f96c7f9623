"""Foreign input that is bad, by name: what is done to a folder of good series, and what a line must say of it."""

import gzip
import io
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from support.dicom.dicoms import save, volume, write_series

from client.ingest.arrive.headers import MAX_HEADER

Spoil = Callable[[Path], None]
CASES: dict[str, tuple[Spoil, str]] = {}  # name -> what is done to the folder, and what a line must say


def case(says: str) -> Callable[[Spoil], Spoil]:
    def add(spoil: Spoil) -> Spoil:
        CASES[spoil.__name__] = (spoil, says)
        return spoil

    return add


def spoiled(modality: str = "T1", **options: Any) -> Callable[[Path], list[Path]]:
    return lambda folder: write_series(folder / "bad", modality, patient="BAD", **options)


def with_tags(says: str, name: str, modality: str = "T1", **tags: Any) -> None:
    """A whole series, each of whose files has these tags; None takes one away."""
    CASES[name] = (lambda folder: void(spoiled(modality, tags=tags)(folder)), says)


def with_change(says: str, name: str, change: Callable[[int, Dataset], None], modality: str = "T1") -> None:
    CASES[name] = (lambda folder: void(spoiled(modality, change=change)(folder)), says)


def void(_: object) -> None: ...


# Files that are none --------------------------------------------------------------------------------------------------


@case("empty file")
def empty_file(folder: Path) -> None:
    (folder / "nothing").touch()


@case("not a DICOM file")
def text_file(folder: Path) -> None:
    (folder / "README.dcm").write_text("These are not the images you are looking for.")


@case("not a DICOM file")
def random_bytes(folder: Path) -> None:
    (folder / "noise").write_bytes(np.random.default_rng(0).bytes(5000))


@case("damaged DICOM header|truncated in its header|names no SOP class")
def preamble_and_noise(folder: Path) -> None:
    (folder / "IM1").write_bytes(b"\0" * 128 + b"DICM" + np.random.default_rng(1).bytes(3000))


@case("truncated in its header|names no SOP class")
def preamble_alone(folder: Path) -> None:
    (folder / "IM1").write_bytes(b"\0" * 128 + b"DICM")


@case("a zip archive: never unpacked")
def zip_bomb(folder: Path) -> None:
    content = b"\0" * 50_000_000
    for _ in range(2):  # a bomb within an archive
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images", content)
        content = packed.getvalue()
    (folder / "images.zip").write_bytes(content)


@case("a gzip archive: never unpacked")
def gzip_bomb(folder: Path) -> None:
    (folder / "image.dcm.gz").write_bytes(gzip.compress(b"\0" * 50_000_000))


@case("a deflated transfer syntax")
def deflate_bomb(folder: Path) -> None:
    """A DICOM file that says of itself that all after its first tags must be unpacked."""
    rewrite_syntax(spoiled()(folder)[0], "1.2.840.10008.1.2.1.99")


@case("a link to nothing, or in a circle")
def dangling_link(folder: Path) -> None:
    (folder / "gone.dcm").symlink_to(folder / "was-here.dcm")


@case("read already|in a circle")
def symlink_loop(folder: Path) -> None:
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "deep" / "deeper" / "up").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")


@case("a link to a folder outside")
def link_outside(folder: Path) -> None:
    (folder / "root").symlink_to("/")


@case("not a file")
def named_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


@case("not a file")
def unix_socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("s")
    finally:
        os.chdir(here)


@case("not a DICOM file")
def non_utf8_name(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller \xff\n")).write_bytes(b"no image")


@case("more than 64 folders deep")
def endless_folders(folder: Path) -> None:
    here = folder
    for _ in range(70):
        here = here / "d"
    here.mkdir(parents=True)


@case("a DICOMDIR|names no SOP class")
def dicomdir(folder: Path) -> None:
    (path,) = write_series(folder / "bad", "T1", patient="BAD", data=volume("T1", (1, 8, 8)))
    dataset = dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    save(dataset, folder / "DICOMDIR")


# Damaged files --------------------------------------------------------------------------------------------------------


@case("truncated: [0-9]+ of [0-9]+ bytes")
def truncated_voxels(folder: Path) -> None:
    path = spoiled()(folder)[5]
    path.write_bytes(path.read_bytes()[:-700])


@case("truncated")
def truncated_header(folder: Path) -> None:
    path = spoiled()(folder)[5]
    path.write_bytes(path.read_bytes()[:900])


@case("truncated: no pixel data|no pixel data")
def no_voxels(folder: Path) -> None:
    path = spoiled()(folder)[5]
    dataset = dcmread(path)
    del dataset.PixelData
    save(dataset, path)


@case("bytes of voxels where")
def fewer_voxels(folder: Path) -> None:
    path = spoiled()(folder)[5]
    dataset = dcmread(path)
    dataset.PixelData = dataset.PixelData[:100]
    save(dataset, path)


@case("its transfer syntax and the way its tags are written differ")
def wrong_transfer_syntax(folder: Path) -> None:
    path = spoiled()(folder)[2]
    good = path.read_bytes()
    dataset = dcmread(path)
    raw = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(raw, enforce_file_format=True)
    implicit = raw.getvalue()
    first, other = good.index(b"\x08\x00\x08\x00CS"), implicit.index(b"\x08\x00\x08\x00")  # after the file's own group
    path.write_bytes(good[:first] + implicit[other:])


@case("says compressed voxels, and they are plain")
def plain_called_compressed(folder: Path) -> None:
    path = spoiled()(folder)[2]
    rewrite_syntax(path, "1.2.840.10008.1.2.4.70")


@case("none that can be converted")
def unknown_transfer_syntax(folder: Path) -> None:
    rewrite_syntax(spoiled()(folder)[2], "1.2.840.10008.1.2.4.999")


def rewrite_syntax(path: Path, syntax: str) -> None:
    """Another transfer syntax in the file's first tags; the rest stays as it was written."""
    raw = path.read_bytes()
    old, new = b"UI\x14\x001.2.840.10008.1.2.1\0", syntax.encode() + b"\0" * (len(syntax) % 2)
    assert raw.count(old) == 1
    at = raw.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    length = struct.unpack("<I", raw[at : at + 4])[0] + len(new) - 20
    raw = raw[:at] + struct.pack("<I", length) + raw[at + 4 :]
    path.write_bytes(raw.replace(old, b"UI" + struct.pack("<H", len(new)) + new))


@case("over the limit of")
def gigantic_value(folder: Path) -> None:
    """A patient's ID of 80 MB."""
    path = spoiled()(folder)[1]
    raw = path.read_bytes()
    at = raw.index(b"\x10\x00\x20\x00LO")
    length = MAX_HEADER + 2**20
    with path.open("wb") as file:
        file.write(raw[:at] + b"\x10\x00\x20\x00UN\0\0" + struct.pack("<I", length))
        file.seek(length, 1)
        file.write(raw[at + 8 + len("BAD ") :])


@case("truncated in its header|over the limit of|damaged")
def gigantic_claim(folder: Path) -> None:
    """A value that claims 4 GB in a file of some KB."""
    path = spoiled()(folder)[1]
    raw = path.read_bytes()
    at = raw.index(b"\x10\x00\x20\x00LO")
    path.write_bytes(raw[:at] + b"\x10\x00\x20\x00UN\0\0" + struct.pack("<I", 0xFFFFFFF0) + raw[at + 8 :])


@case("nested without end|damaged|over the limit|truncated")
def endless_sequences(folder: Path) -> None:
    path = spoiled()(folder)[1]
    raw = path.read_bytes()
    at = raw.index(b"\x10\x00\x20\x00LO")
    nest = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    path.write_bytes(raw[:at] + nest + raw[at:])


@case("has no SOP Instance UID")
def no_sop_uid(folder: Path) -> None:
    path = spoiled()(folder)[1]
    dataset = dcmread(path)
    del dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=False)


# Whose ----------------------------------------------------------------------------------------------------------------

with_tags("has no PatientID", "no_patient", PatientID=None)
with_tags("has no PatientID", "blank_patient", PatientID=" ")
with_tags("has no SeriesInstanceUID", "no_series", SeriesInstanceUID=None)
with_tags("has no StudyInstanceUID", "no_study", StudyInstanceUID=None)

# Geometry -------------------------------------------------------------------------------------------------------------

with_tags("must be above 0", "negative_spacing", PixelSpacing=[-1, 1])
with_tags("must be above 0", "zero_spacing", PixelSpacing=[0, 0])
with_tags("its pixel spacing is unknown", "no_spacing", PixelSpacing=None)
with_tags("pixels of 900 mm", "huge_pixels", PixelSpacing=[900, 900])
with_tags("its orientation is unknown", "no_orientation", ImageOrientationPatient=None)
with_tags("not two directions at a right angle", "skewed_axes", ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
with_tags("the place of some slices is unknown", "no_position", ImagePositionPatient=None)
with_tags("not 6 numbers", "five_cosines", ImageOrientationPatient=[1, 0, 0, 0, 1])


@case("position is not three numbers")
def nan_position(folder: Path) -> None:
    path = spoiled()(folder)[4]
    raw = path.read_bytes()
    at = raw.index(b"\x20\x00\x32\x00DS") + 8
    path.write_bytes(raw[:at] + b"NaN" + raw[at + 3 :])


def _mixed(i: int, dataset: Dataset) -> None:
    dataset.ImageOrientationPatient = [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]][i % 3]


def _sizes(i: int, dataset: Dataset) -> None:
    if i == 3:
        dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows


def _spacings(i: int, dataset: Dataset) -> None:
    dataset.PixelSpacing = [5, 5] if i < 8 else [4, 4]


def _four_d(i: int, dataset: Dataset) -> None:
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, z if i % 2 == 0 else z - 8]


def _doubled(i: int, dataset: Dataset) -> None:
    if i in (6, 9):
        dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], -16]


def _uneven(i: int, dataset: Dataset) -> None:
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, z + (3 if i % 2 else 0)]


with_change("3 orientations in one series", "mixed_orientations", _mixed)
with_change("images of 2 sizes", "mixed_sizes", _sizes)
with_change("images of 2 pixel spacings", "mixed_spacings", _spacings)
with_change("4D: 2 images at each of", "four_dimensions", _four_d)
with_change("some slices are missing or there twice", "slices_doubled", _doubled)
with_change("uneven steps", "uneven_slices", _uneven)
CASES["missing_slices"] = (lambda f: void(spoiled(skip=(5, 6))(f)), "about 2 slices are missing")
CASES["one_slice"] = (lambda f: void(spoiled(data=volume("T1", (1, 40, 36)))(f)), "1 slices: too few for a volume")
CASES["a_slab"] = (lambda f: void(spoiled(spacing=(1, 5, 5))(f)), "covers 16 mm: not a head")
CASES["few_pixels"] = (lambda f: void(spoiled(data=volume("T1", (16, 12, 12)))(f)), "fewer than 32 pixels")
CASES["a_whole_body"] = (lambda f: void(spoiled(spacing=(30, 5, 5))(f)), "covers 480 mm: not a head")


@case("more than [0-9]+ voxels|bytes of voxels where")
def gigantic_image(folder: Path) -> None:
    spoiled(tags={"Rows": 65535, "Columns": 65535})(folder)


# Values ---------------------------------------------------------------------------------------------------------------

with_tags("RescaleSlope is 0", "zero_slope", RescaleSlope=0)
CASES["blank_volume"] = (
    lambda f: void(spoiled(data=np.zeros((16, 40, 36), np.uint16))(f)),
    "blank: every voxel is 0",
)
CASES["ct_not_in_hu"] = (lambda f: void(spoiled("CT", tags={"RescaleIntercept": 0})(f)), "not in Hounsfield units")


@case("an image in colour")
def colour(folder: Path) -> None:
    def paint(_: int, dataset: Dataset) -> None:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        dataset.PixelData = bytes(dataset.Rows * dataset.Columns * 3)

    spoiled(change=paint)(folder)


@case("a secondary capture")
def secondary_capture(folder: Path) -> None:
    def capture(_: int, dataset: Dataset) -> None:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"

    spoiled(change=capture)(folder)


@case("has the SOP Instance UID of another file and other content")
def same_uid_twice(folder: Path) -> None:
    paths = spoiled()(folder)
    dataset = dcmread(paths[3])
    dataset.ImageComments = "again"
    save(dataset, folder / "again.dcm")


@case("a copy of another file")
def same_file_twice(folder: Path) -> None:
    (folder / "copy.dcm").write_bytes(spoiled()(folder)[3].read_bytes())


@case("people of 2 birth dates")
def two_people_of_one_id(folder: Path) -> None:
    write_series(folder / "bad1", "T1", patient="BAD")
    write_series(folder / "bad2", "T2", patient="BAD", study="2", tags={"PatientBirthDate": "19111111"})
