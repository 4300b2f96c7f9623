"""The warning written into the pixels themselves, for viewers that show nothing else of an image."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shared.base.errors import DataError

SIZES = (14, 12, 11, 10, 9, 8)  # of the letters in pixels, the largest that fits
LEAST = 8
MARGIN = 2


def burn(data_KRC: NDArray[np.uint16], text: str, *, value: int) -> NDArray[np.uint16]:
    """Write the text into the upper left corner of each slice, in as many lines as its width needs."""
    _, rows, columns = data_KRC.shape
    mask_RC = _drawn(text, rows, columns)
    return np.where(mask_RC, np.uint16(value), data_KRC)


def _drawn(text: str, rows: int, columns: int) -> NDArray[np.bool_]:
    canvas = Image.new("1", (columns, rows))
    draw = ImageDraw.Draw(canvas)
    for size in SIZES:
        font = ImageFont.load_default(size)
        lines = _wrapped(text, lambda line, font=font: draw.textlength(line, font) <= columns - 2 * MARGIN)
        if lines and len(lines) * (size + MARGIN) + MARGIN <= rows / 2:
            for i, line in enumerate(lines):
                draw.text((MARGIN, MARGIN + i * (size + MARGIN)), line, fill=1, font=font)
            return np.array(canvas, bool)
    raise DataError(
        f"--burn-in: slices of {rows} x {columns} pixels are too small for {text!r} in {LEAST}-pixel letters"
    )


def _wrapped(text: str, fits) -> list[str]:  # type: ignore[no-untyped-def]
    """Lines of whole words; none where a word alone is too wide."""
    lines: list[str] = []
    for word in text.split():
        if not fits(word):
            return []
        if lines and fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
