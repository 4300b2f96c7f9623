"""`lacuna-site synthesize --dicom`: synthesised volumes as DICOM series of the study that they were made from.

    OUT/sub-X/dicom/FLAIR/0001.dcm ...              the mean, one image per slice
                    FLAIR-uncertainty/0001.dcm ...  its standard deviation, a series of its own
                    series.json                     which volume each was made from; whole where it says so

They name the patient, as the study does that they go back to: this folder is not de-identified, and mode 0700.
A series is marked as synthetic in its description, image type, derivation, equipment and comments, and by the one tag
that is for nothing else, SyntheticData (0008,001C). Validators older than that tag name it as one they don't know:
Debian's dciodvfy of 2022 does, and has no other fault to find.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from client.inference.dicom.geometry import Slices, best_series, is_parallel, shown_by, to_slices
from client.inference.dicom.kinds import Kind, code, describe, kind_of, stored
from client.inference.dicom.source import Frame, SourceSeries
from shared.base.errors import DataError
from shared.base.files import hash_file, new_folder, private_folder, write_json
from shared.base.vocabulary import Modality
from shared.data.volumes import read

LABEL = "SYNTHETIC - not for primary diagnosis"
FIRST_NUMBER = 9000  # of the series that are written; above a scanner's own
RECORD = "series.json"
SCHEME = "99LACUNA"
IMPLEMENTATION = "2.25.246281830193172310984526047163522101841"  # of this writer, drawn once
# Of the patient and the study: who they are is theirs to say.
COPIED = """
    PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex OtherPatientIDs PatientAge PatientSize
    PatientWeight StudyInstanceUID StudyDate StudyTime StudyID AccessionNumber ReferringPhysicianName StudyDescription
    PatientPosition PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    LongitudinalTemporalInformationModified
""".split()
NEEDED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientPosition",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One written series."""

    modality: Modality
    uncertainty: bool
    uid: str
    folder: Path
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a series that is to be written shows, of which study it will be part, and when."""

    modality: Modality
    uncertainty: bool
    number: int
    sidecar: Mapping[str, Any]
    study: Sequence[SourceSeries]
    now: datetime
    burn_in: bool

    @property
    def what(self) -> str:
        return f"{self.modality} uncertainty" if self.uncertainty else self.modality


def write_series(
    volumes: Mapping[Modality, Path],
    study: Sequence[SourceSeries],
    out: Path,
    *,
    now: datetime,
    burn_in: bool = False,
) -> tuple[Series, ...]:
    """Write each volume, and its spread where there is one, as a series below `out`; what is there and whole is kept.

    `volumes` are the means as client/inference/outputs.py wrote them, each beside its sidecar.
    """
    made = []
    for number, (modality, mean) in enumerate(sorted(volumes.items()), start=0):
        sidecar = json.loads(mean.with_name(mean.name.replace(".nii.gz", ".json")).read_text(encoding="utf-8"))
        spread = mean.with_name(mean.name.replace("_desc-synthetic_", "_desc-uncertainty_"))
        for uncertainty, path in ((False, mean), (True, spread)):
            if path.exists():
                folder = out / (f"{modality}-uncertainty" if uncertainty else modality)
                key = {"volume": hash_file(path), "study": study[0].header.StudyInstanceUID, "burn_in": burn_in}
                order = Order(
                    modality=modality,
                    uncertainty=uncertainty,
                    number=FIRST_NUMBER + 2 * number + uncertainty,
                    sidecar=sidecar,
                    study=study,
                    now=now,
                    burn_in=burn_in,
                )
                made.append(_whole(folder, key, modality, uncertainty) or _write(path, folder, key, order))
    return tuple(made)


def _whole(folder: Path, key: Mapping[str, Any], modality: Modality, uncertainty: bool) -> Series | None:
    """Find a series written before from the same volume to the same study: with its UIDs a PACS knows it again."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = {folder / name: digest for name, digest in record["files"].items()}
        if record["key"] != key or any(hash_file(path) != digest for path, digest in files.items()):
            return None
        return Series(
            modality=modality, uncertainty=uncertainty, uid=record["series"], folder=folder, files=tuple(files)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(path: Path, folder: Path, key: Mapping[str, Any], order: Order) -> Series:
    study, modality, uncertainty = order.study, order.modality, order.uncertainty
    volume = read(path)
    data_XYZ = volume.data_DHW.transpose(2, 1, 0)
    like = best_series(study, data_XYZ.shape, volume.affine)
    slices = to_slices(data_XYZ, volume.affine, like)
    kind = kind_of(modality)
    numbers_KRC = stored(kind, slices.data_KRC, mean=not uncertainty)
    top = int(numbers_KRC.max())
    if order.burn_in:
        from client.inference.dicom.burn_in import burn

        numbers_KRC = burn(numbers_KRC, LABEL, value=max(top, 1))
    uid = generate_uid(prefix=None)
    common = _common(order, like, uid)
    private_folder(folder.parent)
    os.chmod(folder.parent, 0o700)
    with new_folder(folder, mode=0o700) as made:
        digests = {}
        for k, pixels_RC in enumerate(numbers_KRC):
            image = _image(common, slices, k, pixels_RC, top, kind)
            describe(image, modality, kind, mean=not uncertainty, slices=len(numbers_KRC), k=k)
            _refer(image, study, slices, k)
            name = f"{k + 1:04d}.dcm"
            image.save_as(made / name, enforce_file_format=True)
            digests[name] = hash_file(made / name)
        write_json(made / RECORD, {"key": key, "series": uid, "files": digests})
    return Series(
        modality=modality,
        uncertainty=uncertainty,
        uid=uid,
        folder=folder,
        files=tuple(folder / name for name in digests),
    )


# --- what all images of a series say ---------------------------------------------------------------------------------


def _common(order: Order, like: SourceSeries, uid: str) -> Dataset:
    sidecar, what, now, uncertainty = order.sidecar, order.what, order.now, order.uncertainty
    image, source, kind = Dataset(), like.header, kind_of(order.modality)
    image.SpecificCharacterSet = "ISO_IR 192"
    for keyword in COPIED:
        if keyword in source:
            image[keyword] = source[keyword]
    for keyword in NEEDED:
        if keyword not in image:
            setattr(image, keyword, "")
    image.SOPClassUID, image.Modality, image.SeriesInstanceUID = kind.sop_class, kind.modality, uid
    image.ImageType = ["DERIVED", "PRIMARY", "AXIAL" if kind.modality == "CT" else "OTHER", "SYNTHETIC"]
    if uncertainty:
        image.ImageType = [*image.ImageType, "STDDEV"]
    image.SeriesNumber, image.SeriesDescription = order.number, f"{LABEL}: {what}"
    image.SyntheticData = "YES"
    image.ImageComments = f"{LABEL}. {sidecar['Description']}"
    image.FrameOfReferenceUID = like.frame_of_reference
    image.PositionReferenceIndicator = source.get("PositionReferenceIndicator", "")
    image.BodyPartExamined = "BRAIN"
    image.BurnedInAnnotation = "NO"  # it means: enough to identify the patient
    image.LossyImageCompression = "01" if str(source.get("LossyImageCompression", "")) == "01" else "00"
    day, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    image.SeriesDate = image.ContentDate = image.InstanceCreationDate = day
    image.SeriesTime = image.ContentTime = image.InstanceCreationTime = time
    if kind.modality == "PT":
        image.AcquisitionDate, image.AcquisitionTime = day, time
    image.Manufacturer, image.ManufacturerModelName = "Lacuna", f"lacuna {sidecar['Model']}"[:64]
    image.SoftwareVersions = str(sidecar["LacunaVersion"])[:64]
    _derivation(image, sidecar, what)
    image.ContributingEquipmentSequence = [_model(sidecar, what, now), *_scanners(order.study)]
    return image


def _derivation(image: Dataset, sidecar: Mapping[str, Any], what: str) -> None:
    sources = ", ".join(sidecar["Inputs"])
    spread = f"; {sidecar['Uncertainty']}" if what.endswith("uncertainty") else ""
    image.DerivationDescription = (
        f"{LABEL}. {what} computed by a generative model from {sources}; not measured{spread}. Model "
        f"{sidecar['Model']}, bundle sha256 {sidecar['Bundle']['SHA256']}, {sidecar['Samples']} sample(s), seed "
        f"{sidecar['Seed']}. Values: {sidecar['Units']}, range {sidecar['IntensityRange']}."
    )[:1024]
    image.DerivationCodeSequence = [code("SYNTH", SCHEME, "Synthesised from other modalities by a model")]
    scheme = Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = SCHEME, "Lacuna's own codes"
    scheme.CodingSchemeResponsibleOrganization = "Lacuna"
    image.CodingSchemeIdentificationSequence = [scheme]


def _model(sidecar: Mapping[str, Any], what: str, now: datetime) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code("109102", "DCM", "Processing Equipment")]
    item.Manufacturer, item.ManufacturerModelName = "Lacuna", f"lacuna {sidecar['Model']}"[:64]
    item.SoftwareVersions = str(sidecar["LacunaVersion"])[:64]
    item.DeviceSerialNumber = str(sidecar["Bundle"]["SHA256"])[:64]
    item.ContributionDateTime = now.strftime("%Y%m%d%H%M%S")
    given = "; ".join(f"{name} sha256 {fact['SHA256'][:16]}" for name, fact in sidecar["Inputs"].items())
    bundle = sidecar["Bundle"]
    trust = "the trusted key" if bundle["SignerTrusted"] else "a key that was not checked"
    item.ContributionDescription = (
        f"Synthesised {what} from {given}. Bundle sha256 {bundle['SHA256']}, of run {bundle['Run']}, signed by "
        f"{bundle['SignedBy']} ({trust})."
    )[:1024]
    return item


def _scanners(study: Sequence[SourceSeries]) -> list[Dataset]:
    """Name what took the images that it was made from."""
    items: dict[tuple[str, ...], Dataset] = {}
    for series in study:
        header, item = series.header, Dataset()
        item.PurposeOfReferenceCodeSequence = [code("109101", "DCM", "Acquisition Equipment")]
        item.Manufacturer = str(header.get("Manufacturer", "") or "unknown")
        for keyword in ("ManufacturerModelName", "InstitutionName", "StationName", "SoftwareVersions"):
            if header.get(keyword):
                item[keyword] = header[keyword]
        items.setdefault(
            tuple(str(item.get(k)) for k in ("Manufacturer", "ManufacturerModelName", "StationName")), item
        )
    return list(items.values())


# --- one image --------------------------------------------------------------------------------------------------------


def _image(common: Dataset, slices: Slices, k: int, pixels_RC: NDArray[np.uint16], top: int, kind: Kind) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(kind.sop_class), generate_uid(prefix=None)
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, UID(IMPLEMENTATION)
    meta.ImplementationVersionName = "LACUNA"
    image = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    image.update(common)
    image.SOPInstanceUID, image.InstanceNumber = meta.MediaStorageSOPInstanceUID, k + 1
    image.ImagePositionPatient = [_decimal(x) for x in slices.position(k)]
    image.ImageOrientationPatient = [_decimal(x) for x in slices.orientation]
    image.PixelSpacing = [_decimal(x) for x in slices.pixel_spacing]
    image.SliceThickness = _decimal(slices.slice_spacing)
    if common.Modality == "MR":
        image.SpacingBetweenSlices = _decimal(slices.slice_spacing)
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = pixels_RC.shape
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    low, high = _window(kind, top, mean="STDDEV" not in common.ImageType)
    image.WindowCenter, image.WindowWidth = _decimal((low + high) / 2), _decimal(max(high - low, 1e-3))
    if high - low < 1:
        image.VOILUTFunction = "LINEAR_EXACT"  # the usual one has no window narrower than 1
    image.PixelData = np.ascontiguousarray(pixels_RC, "<u2").tobytes()
    return image


def _window(kind: Kind, top: int, *, mean: bool) -> tuple[float, float]:
    """What a viewer shows at first, in what comes out of the rescaling (of MR, which has none, the stored numbers)."""
    if kind.modality == "CT" and mean:
        return -20.0, 100.0
    return 0.0, max(1, top) * (1.0 if kind.modality == "MR" else kind.slope)


def _decimal(value: float) -> str:
    """Write a number as a decimal string of at most 16 characters."""
    for digits in range(12, 3, -1):
        text = f"{float(value) + 0.0:.{digits}g}"
        if len(text) <= 16:
            return text
    raise DataError(f"{value!r} does not fit a decimal string")


def _refer(image: Dataset, study: Sequence[SourceSeries], slices: Slices, k: int) -> None:
    """Name the source slices at this place, and the series they are of."""
    reach = max(slices.slice_spacing / 2, 1e-3)
    found: list[tuple[SourceSeries, Frame]] = []
    for series in study:
        if series.frame_of_reference == image.FrameOfReferenceUID and is_parallel(series, slices.orientation):
            found += [(series, frame) for frame in shown_by(series, slices.position(k), reach)]
    if not found:  # no source slice lies here, or they cut it at an angle: then the whole series
        like = next(one for one in study if one.frame_of_reference == image.FrameOfReferenceUID)
        found = [(like, frame) for frame in like.frames]
    sources: dict[str, Dataset] = {}
    frames: dict[str, list[int]] = {}
    by_series: dict[str, dict[str, Dataset]] = {}
    for series, frame in found:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = frame.sop_class, frame.sop_instance
        by_series.setdefault(series.uid, {}).setdefault(frame.sop_instance, item)
        purposed = Dataset()
        purposed.update(item)
        purposed.PurposeOfReferenceCodeSequence = [code("121322", "DCM", "Source image for image processing operation")]
        sources.setdefault(frame.sop_instance, purposed)
        if frame.number is not None:
            frames.setdefault(frame.sop_instance, []).append(frame.number)
    for uid, numbers in frames.items():
        sources[uid].ReferencedFrameNumber = sorted(set(numbers))
    image.SourceImageSequence = list(sources.values())
    referenced = []
    for uid, items in by_series.items():
        one = Dataset()
        one.SeriesInstanceUID, one.ReferencedInstanceSequence = uid, list(items.values())
        referenced.append(one)
    image.ReferencedSeriesSequence = referenced
