"""DICOM series made for tests: whole ones of every modality, and a way to spoil any tag or byte of them.

paths = write_series(folder, "T1", patient="A")              a whole series of small slices
paths = write_series(folder, "CT", change=lambda i, ds: ...) the same, with slice i's tags changed before writing
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian

SLICES, ROWS, COLUMNS = 16, 40, 36
MR, CT, PET = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.128"
Change = Callable[[int, Dataset], None]

MADE: Mapping[str, Mapping[str, Any]] = {  # what a scanner writes about each modality
    "T1": {
        "ScanningSequence": ["GR", "IR"],
        "SequenceVariant": "MP",
        "MRAcquisitionType": "3D",
        "RepetitionTime": 2300,
        "EchoTime": 2.98,
        "InversionTime": 900,
        "FlipAngle": 9,
        "SeriesDescription": "t1_mprage_sag",
    },
    "T1CE": {
        "ScanningSequence": "SE",
        "SequenceVariant": "SK",
        "MRAcquisitionType": "2D",
        "RepetitionTime": 600,
        "EchoTime": 9,
        "FlipAngle": 90,
        "ContrastBolusAgent": "Gadovist",
        "SeriesDescription": "t1 se tra +gd",
    },
    "T2": {
        "ScanningSequence": "SE",
        "SequenceVariant": "SK",
        "MRAcquisitionType": "2D",
        "RepetitionTime": 5200,
        "EchoTime": 98,
        "FlipAngle": 150,
        "SeriesDescription": "t2_tse_tra",
    },
    "FLAIR": {
        "ScanningSequence": ["SE", "IR"],
        "SequenceVariant": "SK",
        "MRAcquisitionType": "2D",
        "RepetitionTime": 9000,
        "EchoTime": 120,
        "InversionTime": 2500,
        "SeriesDescription": "t2_flair",
    },
    "T2S": {
        "ScanningSequence": "GR",
        "SequenceVariant": "SP",
        "MRAcquisitionType": "2D",
        "RepetitionTime": 620,
        "EchoTime": 20,
        "FlipAngle": 20,
        "SeriesDescription": "t2*_fl2d",
    },
    "TOF": {
        "ScanningSequence": "GR",
        "SequenceVariant": "SP",
        "MRAcquisitionType": "3D",
        "RepetitionTime": 22,
        "EchoTime": 3.6,
        "FlipAngle": 18,
        "AngioFlag": "Y",
        "SeriesDescription": "tof_3d",
    },
    "CT": {"ConvolutionKernel": "H31s", "KVP": 120, "RescaleType": "HU", "SeriesDescription": "Schaedel 3.0 H31s"},
    "FDG": {
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["DECY", "ATTN", "SCAT", "RAN"],
        "SeriesDescription": "PET brain",
        "PatientWeight": 70,
    },
    "AV45": {
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "SeriesDescription": "PET amyloid",
        "PatientWeight": 62,
    },
}
_CLASS = {"CT": CT, "FDG": PET, "AV45": PET}
_NAME = {MR: "MR", CT: "CT", PET: "PT"}
_TRACER = {"FDG": "Fluorodeoxyglucose F^18^", "AV45": "Florbetapir F^18^"}


def uid(*words: object) -> str:
    """The same UID for the same words."""
    return "2.25." + str(int(hashlib.sha256(repr(words).encode()).hexdigest()[:30], 16))


def volume(modality: str, shape: tuple[int, int, int] = (SLICES, ROWS, COLUMNS), *, seed: int = 0) -> np.ndarray:
    """A head-like ball in the stored values of its modality."""
    grid = np.indices(shape) / np.maximum(np.array(shape).reshape(3, 1, 1, 1) - 1, 1) * 2 - 1
    inside = (grid**2).sum(0) < 0.8
    noise = np.random.default_rng(seed).integers(0, 60, shape)
    if modality == "CT":
        return np.where(inside, 1024 + 30 + noise, 24).astype(np.uint16)  # stored; the intercept is -1024
    return np.where(inside, 500 + noise, noise // 8).astype(np.uint16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Whose series it is, when and how it was taken."""

    modality: str
    patient: str = "PAT-1"
    study: str = "study"
    number: int = 1
    day: str = "20240102"
    spacing: tuple[float, float, float] = (8.0, 5.0, 5.0)  # between slices, rows, columns
    tilt: float = 0.0  # mm that each slice lies further back than the last


def write_series(
    folder: Path,
    modality: str = "T1",
    *,
    data: np.ndarray | None = None,
    tags: Mapping[str, Any] | None = None,
    change: Change | None = None,
    skip: Sequence[int] = (),
    name: str = "{:03d}.dcm",
    **scan: Any,
) -> list[Path]:
    """One file per slice, from foot to head; `scan` is what `Scan` says of the series."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = Scan(modality=modality, **scan)
    values = volume(modality, seed=taken.number) if data is None else data
    paths = []
    for i in range(len(values)):
        if i in skip:
            continue
        dataset = image(taken, values[i], i, len(values))
        for keyword, value in (tags or {}).items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        if change is not None:
            change(i, dataset)
        paths.append(folder / name.format(i))
        save(dataset, paths[-1])
    return paths


def image(scan: Scan, pixels: np.ndarray, i: int, count: int) -> FileDataset:
    """One slice with the tags that a scanner gives it."""
    modality, number, spacing = scan.modality, scan.number, scan.spacing
    patient, study = scan.patient, scan.study
    sop_class = _CLASS.get(modality, MR)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid(patient, study, number, i)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.Manufacturer = _NAME[sop_class], "SIEMENS"
    ds.PatientName, ds.PatientID, ds.PatientSex, ds.PatientAge = "Made^Up", patient, "F", "061Y"
    ds.PatientBirthDate = "19630101"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(patient, study), uid(patient, study, number)
    ds.FrameOfReferenceUID = uid(patient, study, "frame")
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = scan.day
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = "110000"
    ds.SeriesNumber, ds.InstanceNumber = number, i + 1
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M", "ND"]
    ds.BodyPartExamined = "HEAD"
    for keyword, value in MADE[modality].items():
        setattr(ds, keyword, value)
    if modality in _TRACER:
        tracer = Dataset()
        tracer.Radiopharmaceutical = _TRACER[modality]
        tracer.RadiopharmaceuticalStartTime, tracer.RadionuclideTotalDose = "100000", 3.7e8
        tracer.RadionuclideHalfLife = 6586.2
        ds.RadiopharmaceuticalInformationSequence = DicomSequence([tracer])
    ds.SliceThickness, ds.PixelSpacing = spacing[0], [spacing[1], spacing[2]]
    rows, columns = pixels.shape
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [
        -columns * spacing[2] / 2,
        -rows * spacing[1] / 2 + scan.tilt * i,
        (i - count / 2) * spacing[0],
    ]
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024 if modality == "CT" else 0
    ds.PixelData = np.ascontiguousarray(pixels, "<u2").tobytes()
    return ds


def save(dataset: Dataset, path: Path) -> None:
    dataset.save_as(path, enforce_file_format=True)


def write_study(folder: Path, patient: str, modalities: Sequence[str], **options: Any) -> None:
    """Several whole series of one patient, each in a folder of its own."""
    for number, modality in enumerate(modalities, start=1):
        write_series(folder / modality, modality, patient=patient, number=number, **options)
