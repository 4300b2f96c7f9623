"""Is a name written into the pixels? By what the header says, and by what writing looks like.

A suspicion, not a proof, and its absence is none either: MR, CT and PET as the scanner made them hold no text, while
screen captures, secondary captures and processed series may. What is suspected is for a person to see.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from scipy import ndimage

MOST_PIXELS = 2**27  # of a frame; more is not looked at
LEAST_LETTERS = 6  # in one line
LETTER = (6, 48)  # rows that one may be high
CAPTURED = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.77", "1.2.840.10008.5.1.4.1.1.6")  # and below them
SCREENS = ("SCREEN SAVE", "SCREENSAVE", "SCREEN", "CAPTURE", "DISPLAY", "PASTED", "REPORT", "SCAN_DOC", "PRINTER")


Decode = Callable[[], NDArray[Any] | None]


def suspect_text(dataset: Dataset, *, decode: Decode | None = None) -> str | None:
    """Why text in the pixels is suspected; None where nothing points to it.

    `decode` gives the pixels of a compression that pydicom does not know here.
    """
    return _said(dataset) or _seen(dataset, decode)


def _said(dataset: Dataset) -> str | None:
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        return "BurnedInAnnotation is YES"
    kind = str(dataset.get("SOPClassUID", ""))
    if any(kind == captured or kind.startswith(f"{captured}.") for captured in CAPTURED):
        return "SOPClassUID is of a captured image, not of an acquired one"
    if dataset.get("ConversionType"):
        return f"ConversionType is {str(dataset.ConversionType)[:16]}: it was not made by a scanner"
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric and not photometric.startswith("MONOCHROME"):
        return f"PhotometricInterpretation is {photometric[:16]}: a picture in colours"
    words = {str(word).upper().strip() for word in dataset.get("ImageType") or []}
    if found := sorted(words & set(SCREENS)):
        return f"ImageType says {found[0]}"
    if any(0x6000 <= tag.group <= 0x60FE and tag.element == 0x3000 for tag in list(dataset.keys())):
        return "it has an overlay, which may be text"
    return None


def _seen(dataset: Dataset, decode: Decode | None) -> str | None:
    pixels: NDArray[Any] | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows, columns = int(dataset.Rows), int(dataset.Columns)
            if "PixelData" not in dataset or not 0 < rows * columns <= MOST_PIXELS:
                return None
            pixels = dataset.pixel_array
    except Exception:  # a compression that is not decoded here, or damage that the conversion will name
        pixels = None if decode is None else decode()
    if pixels is None:
        return None
    frames = pixels if pixels.ndim == 3 else pixels[None] if pixels.ndim == 2 else pixels[:0]
    for i in sorted({0, len(frames) // 2, len(frames) - 1}) if len(frames) else ():
        if letters := lines_of_letters(frames[i]):
            return f"{letters} shapes like letters in a line in frame {i + 1}"
    return None


def lines_of_letters(frame_HW: NDArray[Any]) -> int:
    """How many letter-like shapes stand in the fullest line; 0 for fewer than make a word.

    Writing has one grey value, mostly the highest or the lowest there is; its strokes are separate shapes of one
    height on one line, close to each other, with nothing of that value around.
    """
    return max((_letters(frame_HW == value) for value in _flat_values(frame_HW)), default=0)


def _flat_values(frame_HW: NDArray[Any]) -> list[Any]:
    """The extremes, where more than a few pixels share them exactly."""
    low, high = frame_HW.min(), frame_HW.max()
    return [value for value in {high, low} if high > low and 40 <= (frame_HW == value).sum() <= 0.2 * frame_HW.size]


def _letters(ink_HW: NDArray[np.bool_]) -> int:
    labels, n = ndimage.label(ink_HW, np.ones((3, 3)))
    if not LEAST_LETTERS <= n <= 20_000:
        return 0
    boxes = ndimage.find_objects(labels)
    tops = np.array([box[0].start for box in boxes])
    heights = np.array([box[0].stop - box[0].start for box in boxes])
    lefts = np.array([box[1].start for box in boxes])
    widths = np.array([box[1].stop - box[1].start for box in boxes])
    ink = np.bincount(labels.ravel())[1:] / (heights * widths)
    fit = (heights >= LETTER[0]) & (heights <= LETTER[1]) & (widths <= 1.5 * heights) & (ink < 0.95)
    most = 0
    for i in np.flatnonzero(fit):
        line = (
            fit
            & (np.abs(heights - heights[i]) <= max(1, 0.15 * heights[i]))
            & (np.abs(tops + heights - tops[i] - heights[i]) <= max(1, 0.1 * heights[i]))
        )
        most = max(most, _longest_run(np.sort(lefts[line]), 3 * heights[i]))
    return most if most >= LEAST_LETTERS else 0


def _longest_run(lefts: NDArray[Any], gap: float) -> int:
    """Letters one after the other without a gap wider than that."""
    longest = run = 1
    for apart in np.diff(lefts):
        run = run + 1 if apart <= gap else 1
        longest = max(longest, run)
    return longest
