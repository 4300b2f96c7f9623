"""Small BIDS cohorts of random brains, written file by file so that a test can spoil any of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.data.cohort import Prepared
from shared.data.cohort import prepare as prepare_with
from shared.data.modalities import MODALITIES, bids_path
from shared.data.volumes import Grid, write

SHAPE = (10, 14, 12)
AFFINE = np.array([[2.0, 0, 0, -12], [0, 2.0, 0, -14], [0, 0, 3.0, -15], [0, 0, 0, 1]])
CENTRES = {"CT": 30.0, "FDG": 1.1, "AV45": 1.3}


def brain_mask() -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    return ((z - 4.5) / 4.4) ** 2 + ((y - 6.5) / 5.4) ** 2 + ((x - 5.5) / 4.4) ** 2 < 1


def volume(modality: str, seed: int) -> np.ndarray:
    """A brain-only volume in usual units."""
    rng = np.random.default_rng([seed, list(MODALITIES).index(modality)])
    centre = CENTRES.get(modality, 500.0)
    return np.where(brain_mask(), centre * rng.uniform(0.5, 1.5, SHAPE), 0).astype(np.float32)


def add_subject(folder: Path, subject: str, modalities: Sequence[str], *, seed: int = 0) -> None:
    for modality in modalities:
        path = folder / bids_path(subject, modality)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, volume(modality, seed), AFFINE)


def cohort_of(folder: Path, patterns: Sequence[Sequence[str]]) -> Path:
    """sub-01, sub-02, ... with these modalities."""
    for number, pattern in enumerate(patterns, start=1):
        add_subject(folder, f"sub-{number:02d}", pattern, seed=number)
    return folder


GRID = Grid(height=16, width=12)


def prepare(bids: Path, grid: Grid = GRID, **options: Any) -> Prepared:
    return prepare_with(bids, grid, **{"workers": 0, **options})


def lines(prepared: Prepared) -> dict[tuple[str, str], tuple[str, str]]:
    return {(r.subject, r.file): (r.done, r.why) for r in prepared.remarks}
