"""A small study as a scanner leaves it, at any position, angle and order of slices; volumes as `synthesize` does."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from shared.data.modalities import MODALITIES
from shared.data.volumes import nib

CLASSES = {"MR": "1.2.840.10008.5.1.4.1.1.4", "CT": "1.2.840.10008.5.1.4.1.1.2"}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


NOW = datetime(2026, 3, 4, 5, 6, 7)
SIDECAR = {
    "Synthetic": True,
    "Description": "Synthetic image.",
    "Units": "arbitrary",
    "IntensityRange": [0, 1000],
    "Uncertainty": "standard deviation over samples, in the same units",
    "Model": "amm_diff",
    "Samples": 4,
    "Seed": 0,
    "Inputs": {"T1": {"File": "t1.nii.gz", "SHA256": "a" * 64}, "T2": {"File": "t2.nii.gz", "SHA256": "b" * 64}},
    "Bundle": {"SHA256": "d" * 64, "Run": "demo", "SignedBy": "s" * 16, "SignerTrusted": True},
    "LacunaVersion": "0.1.0",
}
SHAPE = (20, 24, 9)  # x y z
UNITS = {"mr": (0.0, 1000.0), "ct": (-20.0, 100.0), "pet": (0.0, 3.0)}


def turned(degrees: tuple[float, float, float], steps: tuple[float, float, float] = (1.0, 1.2, 3.0)) -> np.ndarray:
    """A grid turned about each axis, centred near the scanner's centre."""
    affine = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        one = np.eye(4)
        i, j = [n for n in range(3) if n != axis]
        one[[i, i, j, j], [i, j, i, j]] = [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
        affine = affine @ one
    affine = affine @ np.diag([*steps, 1.0])
    affine[:3, 3] = [7, -11, 13] - affine[:3, :3] @ (np.array(SHAPE) - 1) / 2
    return affine


def volumes(folder: Path, modality: str, affine: np.ndarray, shape: tuple[int, ...] = SHAPE) -> tuple[Path, np.ndarray]:
    """As client/inference/outputs.py leaves them: mean, spread, sidecar."""
    low, high = UNITS[MODALITIES[modality].kind]
    rng = np.random.default_rng(0)
    data = rng.uniform(low, high, shape).astype(np.float32)
    data[0] = 0  # outside of the brain
    stem = MODALITIES[modality].ending.rpartition("_")
    mean = folder / "_".join(filter(None, ["sub-1", stem[0], "desc-synthetic", f"{stem[2]}.nii.gz"]))
    mean.parent.mkdir(parents=True, exist_ok=True)
    for path, values in ((mean, data), (Path(str(mean).replace("synthetic", "uncertainty")), np.abs(data) / 9)):
        image = nib.Nifti1Image(values, affine)
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        nib.save(image, path)
    Path(str(mean).replace(".nii.gz", ".json")).write_text(json.dumps(SIDECAR))
    return mean, data


def write_study(
    folder: Path,
    affine: np.ndarray,
    data_XYZ: Sequence[np.ndarray],
    *,
    modality: str = "MR",
    study: str = "1.2.276.0.7230010.3.1.2.99",
    patient: str = "P-4711",
    names: Sequence[str] = ("T1 MPRAGE",),
    reverse: bool = False,
) -> Path:
    """One series per array, on one grid: x becomes the column, y the row, z the slice. `affine` is RAS, as NIfTI's."""
    frame = generate_uid(prefix=None)
    lps = LPS @ affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    columns, rows = lps[:3, 0] / steps[0], lps[:3, 1] / steps[1]
    for number, data in enumerate(data_XYZ, start=1):
        series = generate_uid(prefix=None)
        for k in range(data.shape[2]):
            image = FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CLASSES[modality]
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid(prefix=None)
            image.SpecificCharacterSet = "ISO_IR 100"
            image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = (
                "Müller^Änne",
                patient,
                "19500203",
                "F",
            )
            image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
            image.StudyDate, image.StudyTime, image.AccessionNumber, image.StudyID = "20250102", "101500", "ACC-1", "9"
            image.StudyDescription, image.ReferringPhysicianName = "Brain MRI", "House^G"
            image.Manufacturer, image.ManufacturerModelName, image.StationName = "ACME", "Scanner 3T", "MR1"
            image.Modality, image.ImageType = modality, ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
            image.SeriesNumber, image.SeriesDescription = number, names[(number - 1) % len(names)]
            image.PatientPosition, image.PositionReferenceIndicator = "HFS", ""
            image.InstanceNumber = data.shape[2] - k if reverse else k + 1
            place = lps @ np.array([0, 0, k, 1])
            image.ImagePositionPatient = [f"{x:.10g}" for x in place[:3]]
            image.ImageOrientationPatient = [f"{x:.10g}" for x in (*columns, *rows)]
            image.PixelSpacing = [f"{steps[1]:.10g}", f"{steps[0]:.10g}"]
            image.SliceThickness = f"{steps[2]:.10g}"
            image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
            image.Columns, image.Rows = data.shape[:2]
            image.BitsAllocated = image.BitsStored = 16
            image.HighBit, image.PixelRepresentation = 15, 0
            if modality == "MR":
                image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "GR", "SP", ""
                image.MRAcquisitionType, image.RepetitionTime, image.EchoTime, image.EchoTrainLength = "3D", 2000, 3, 1
            else:
                image.RescaleSlope, image.RescaleIntercept, image.KVP, image.AcquisitionNumber = 1, -1024, 120, 1
            image.PixelData = np.ascontiguousarray(data[:, :, k].T, "<u2").tobytes()
            path = folder / f"S{number}" / f"IM{k:04d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save_as(path, enforce_file_format=True)
    return folder


def world_of(image: Dataset) -> np.ndarray:
    """(column, row, 0, 1) to RAS mm, by the image's own header."""
    r, c = (float(x) for x in image.PixelSpacing)
    o = np.array([float(x) for x in image.ImageOrientationPatient])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = o[:3] * c, o[3:] * r
    affine[:3, 3] = [float(x) for x in image.ImagePositionPatient]
    return LPS @ affine
