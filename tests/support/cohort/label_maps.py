"""Label maps of heads like balls: brain in fluid in bone in flesh in skin, with eyes and a nose."""

from pathlib import Path

import numpy as np

from shared.data import volumes


def ball_head(edge: int = 96) -> np.ndarray:
    z, y, x = (axis - (edge - 1) / 2 for axis in np.ogrid[:edge, :edge, :edge])
    radius = np.sqrt(z * z + y * y + x * x)
    labels = np.zeros((edge,) * 3, np.int16)
    for reach, label in ((43, 511), (41, 507), (38, 515), (34, 24), (32, 3), (26, 2), (7, 4)):
        labels[radius < reach] = label
    for side in (-1, 1):
        labels[(z + 26) ** 2 + (y - 28) ** 2 + (x - 14 * side) ** 2 < 25] = 506
    labels[(np.abs(x) < 4) & (z < -26) & (z > -32) & (y > 28) & (radius < 47)] = 511
    return labels


def write_heads(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        volumes.write(folder / f"head-{number}.nii.gz", ball_head(96 + 4 * number), np.eye(4), dtype=np.int16)
    return folder
