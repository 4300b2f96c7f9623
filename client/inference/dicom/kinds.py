"""MR, CT and PET images as DICOM wants them when nothing was measured: what is unknown stays empty, never invented.

Pixels are unsigned 16 bit; `Kind.slope` and `intercept` give a stored number its value, in the unit of the volume.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from shared.base.errors import DataError
from shared.base.vocabulary import Modality
from shared.data.modalities import MODALITIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    sop_class: str
    modality: str  # DICOM's word
    slope: float
    intercept: float
    outside: int  # the stored number where there is no brain


KINDS: Mapping[str, Kind] = {
    "mr": Kind(sop_class="1.2.840.10008.5.1.4.1.1.4", modality="MR", slope=0.1, intercept=0.0, outside=0),
    "ct": Kind(sop_class="1.2.840.10008.5.1.4.1.1.2", modality="CT", slope=0.1, intercept=-1024.0, outside=0),
    "pet": Kind(sop_class="1.2.840.10008.5.1.4.1.1.128", modality="PT", slope=0.001, intercept=0.0, outside=0),
}


def kind_of(modality: Modality) -> Kind:
    return KINDS[MODALITIES[modality].kind]


def stored(kind: Kind, data: NDArray[np.float32], *, mean: bool) -> NDArray[np.uint16]:
    """The numbers that stand in the file; a value beyond them is an error."""
    intercept = kind.intercept if mean else 0.0  # a standard deviation begins at 0
    numbers = np.rint((data.astype(np.float64) - intercept) / kind.slope)
    if mean:
        numbers[data == 0] = kind.outside  # the volume's word for outside of the brain; for CT that is air, not water
        if kind.intercept == 0:
            numbers = np.maximum(numbers, 0)  # MR and PET know nothing below 0; a network may
    if not np.isfinite(numbers).all() or numbers.min() < 0 or numbers.max() > np.iinfo(np.uint16).max:
        raise DataError(f"values {data.min():g} to {data.max():g} do not fit a {kind.modality} image")
    return numbers.astype(np.uint16)


def describe(image: Dataset, modality: Modality, kind: Kind, *, mean: bool, slices: int, k: int) -> None:
    """What the image's own IOD asks for beyond what every image has."""
    if kind.modality == "MR":
        image.ScanningSequence, image.SequenceVariant = "RM", "NONE"  # research mode: no sequence was run
        image.ScanOptions = image.MRAcquisitionType = ""
        image.RepetitionTime = image.EchoTime = image.EchoTrainLength = None
    else:
        image.RescaleSlope, image.RescaleIntercept = f"{kind.slope:g}", f"{kind.intercept if mean else 0:g}"
    if kind.modality == "CT":
        image.RescaleType = "HU"
        image.KVP = image.AcquisitionNumber = None
    if kind.modality == "PT":
        _describe_pet(image, modality, slices, k)


def _describe_pet(image: Dataset, modality: Modality, slices: int, k: int) -> None:
    image.Units = "NONE"  # an uptake ratio
    image.CountsSource, image.SeriesType = "EMISSION", ["STATIC", "IMAGE"]
    image.CollimatorType, image.DecayCorrection, image.CorrectedImage = "NONE", "NONE", ""
    image.NumberOfSlices, image.ImageIndex = slices, k + 1
    image.FrameReferenceTime, image.ActualFrameDuration = 0, 1  # asked for as numbers; nothing was counted
    image.pop("PatientPosition", None)  # PET says it by codes, and has no more to say where the study had none
    image.PatientOrientationCodeSequence = []
    image.PatientGantryRelationshipCodeSequence = []
    named = MODALITIES[modality].tracer
    assert named is not None, "every PET of the table has one"
    value, scheme, meaning = named
    tracer = Dataset()
    tracer.Radiopharmaceutical = meaning.replace("^", "")
    tracer.RadionuclideCodeSequence = [code("77004003", "SCT", "^18^Fluorine")]
    tracer.RadiopharmaceuticalCodeSequence = [code(value, scheme, meaning)]
    image.RadiopharmaceuticalInformationSequence = [tracer]


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
