"""Contact sheets: labelled tables of image planes, as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shared.base.files import writing

Plane: TypeAlias = NDArray[Any] | None  # H W, or H W 3, in 0..1; None where there is no image

INK, FAINT, PAPER = (235, 235, 235), (70, 70, 70), (0, 0, 0)
GAP = 4  # pixels between cells
LETTER = 13  # height of a letter, pixels


def mosaic(
    rows: Sequence[Sequence[Plane]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    *,
    cell: int = 144,
) -> Image.Image:
    """A table of planes, each fitted into a square cell. Row 0 of a plane is drawn at the bottom.

    So axial, coronal and sagittal planes of a D H W volume stand upright, with the subject's right on the right.
    """
    font = ImageFont.load_default(LETTER)
    left = GAP + max((round(font.getlength(label)) for label in row_labels), default=0) + (GAP if row_labels else 0)
    line = LETTER + 2 * GAP
    top = GAP + line * (bool(title) + bool(column_labels))
    columns = max((len(row) for row in rows), default=0)
    width = max(left + columns * (cell + GAP), round(font.getlength(title)) + 2 * GAP)
    sheet = Image.new("RGB", (width, top + len(rows) * (cell + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for number, label in enumerate(column_labels):
        draw.text((left + number * (cell + GAP) + cell / 2, top - GAP), label, fill=INK, font=font, anchor="ms")
    for i, row in enumerate(rows):
        y = top + i * (cell + GAP)
        if row_labels:
            draw.text((GAP, y + cell / 2), row_labels[i], fill=INK, font=font, anchor="lm")
        for j, plane in enumerate(row):
            x = left + j * (cell + GAP)
            if plane is None:
                draw.line((x + cell * 0.4, y + cell / 2, x + cell * 0.6, y + cell / 2), fill=FAINT, width=2)
            else:
                drawn = _drawn(plane, cell)
                sheet.paste(drawn, (x + (cell - drawn.width) // 2, y + (cell - drawn.height) // 2))
    return sheet


def three_planes(data_DHW: NDArray[Any], at_DHW: Sequence[int]) -> list[NDArray[Any]]:
    """The axial, coronal and sagittal plane through a voxel."""
    z, y, x = at_DHW
    return [data_DHW[z], data_DHW[:, y], data_DHW[:, :, x]]


def save_png(image: Image.Image, path: Path) -> None:
    """Equal pictures give equal bytes."""
    with writing(path) as file:
        image.save(file, format="PNG", optimize=True)


def _drawn(plane: NDArray[Any], cell: int) -> Image.Image:
    levels = np.nan_to_num(np.clip(plane, 0, 1) * 255).round().astype(np.uint8)
    if levels.ndim == 2:
        levels = np.repeat(levels[..., None], 3, axis=2)
    picture = Image.fromarray(np.ascontiguousarray(levels[::-1]))
    scale = cell / max(picture.size)
    size = cast(tuple[int, int], tuple(max(1, round(edge * scale)) for edge in picture.size))
    return picture.resize(size, Image.Resampling.BICUBIC)
