"""How like real scans the made ones are, modality by modality, on one grid and on the scale that networks see.

    python benchmarks/likeness.py --made WORLD/sites/site-a --real COHORT

quantiles   mean distance of nine quantiles of the brain (of their means over subjects)
shades      the same of the three shades that k-means finds (fluid, grey, white), inside the brain
spectrum    mean |log2| ratio of the power in six bands of spatial frequency, in the plane
AUC         of a linear discriminant of all that, slice by slice, real against made: each real subject is told apart by
            one that was fitted without it, and made ones likewise by halves. 0.5 is alike, 1 is told apart
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy import ndimage

from shared.base.vocabulary import Modality
from shared.data.cohort import Cohort, cache_folder, prepare
from shared.data.slices import Slices
from shared.data.volumes import Grid

QUANTILES = np.array([0.02, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.98])
BANDS = np.linspace(0.04, 0.5, 7)  # cycles per pixel
RIDGE = 1e-2
Array = NDArray[np.float64]


def main(
    made: Annotated[list[Path], typer.Option(help="A BIDS cohort of made subjects; repeat it.")],
    real: Annotated[list[Path], typer.Option(help="A BIDS cohort of real subjects; repeat it.")],
    spacing: float = 3.0,
    pixels: int = 64,
) -> None:
    """Print one line per modality."""
    grid = Grid(spacing_mm=spacing, slice_mm=spacing, height=pixels, width=pixels)
    modalities: tuple[Modality, ...] = ("T1", "T1CE", "T2", "FLAIR")
    ours, theirs = ([_features(folder, grid, modalities) for folder in folders] for folders in (made, real))
    print(f"{'':8}{'made':>6}{'real':>6}{'quantiles':>11}{'shades':>8}{'spectrum':>10}{'AUC':>7}")
    for m in modalities:
        a, b = ([x for cohort in cohorts for x in cohort[m]] for cohorts in (ours, theirs))
        if len(a) < 2 or not b:
            continue
        x, y = (np.mean([slices.mean(axis=0) for slices in group], axis=0) for group in (a, b))
        off = np.abs(x - y)
        told = f"{_auc(a, b):7.2f}" if len(b) > 1 else "      –"
        print(f"{m:8}{len(a):6}{len(b):6}{off[:9].mean():11.3f}{off[9:12].mean():8.3f}{off[12:].mean():10.2f}{told}")


def _features(bids: Path, grid: Grid, modalities: Sequence[Modality]) -> Mapping[Modality, list[Array]]:
    """By modality, of each subject: slices x features."""
    prepare(bids, grid)
    slices = Slices(Cohort.open(cache_folder(bids, grid)), modalities, split=None)
    found: dict[Modality, list[Array]] = {m: [] for m in modalities}
    for i, subject in enumerate(slices.subjects):
        stack = slices.volume(i)
        for row, m in enumerate(modalities):
            if not stack.exists_M[row]:
                continue
            image, brain = stack.images_MDHW[row].numpy(), stack.brain_DHW.numpy()
            found[m].append(np.stack([_slice(image[z], brain[z]) for z in subject.brain_slices[::3]]))
    return found


def _slice(image: NDArray[np.float32], brain: NDArray[np.bool_]) -> Array:
    values = image[brain].astype(np.float64)
    inside = image[ndimage.binary_erosion(brain)]
    level = np.where(brain, image - values.mean(), 0)
    power = np.abs(np.fft.fft2(level)) ** 2
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in image.shape), indexing="ij"))
    bands = [power[(radius >= low) & (radius < high)].mean() for low, high in pairwise(BANDS)]
    spectrum = np.log2(np.array(bands) / brain.sum() + 1e-9)
    return np.concatenate([np.quantile(values, QUANTILES), _shades(inside), spectrum])


def _shades(values: NDArray[np.float32]) -> Array:
    middle = np.quantile(values, (0.08, 0.45, 0.85)).astype(np.float64)
    for _ in range(20):
        nearest = np.abs(values[:, None] - middle).argmin(axis=1)
        middle = np.array([values[nearest == k].mean() if (nearest == k).any() else middle[k] for k in range(3)])
    return np.sort(middle)


def _auc(made: Sequence[Array], real: Sequence[Array]) -> float:
    """Of slices that were left out of the fit, with their subjects."""
    scores: list[tuple[float, bool]] = []
    for k, held in enumerate(real):
        seen, left = made[k % 2 :: 2], made[(k + 1) % 2 :: 2]
        x, y = np.concatenate(seen), np.concatenate([r for j, r in enumerate(real) if j != k])
        mean = (x.mean(axis=0) + y.mean(axis=0)) / 2
        spread = np.cov(np.concatenate([x - x.mean(axis=0), y - y.mean(axis=0)]).T)
        spread += RIDGE * np.diag(np.diag(spread)) + 1e-9 * np.eye(len(spread))
        line = np.linalg.solve(spread, y.mean(axis=0) - x.mean(axis=0))
        scores += [(float(s), True) for s in (held - mean) @ line]
        scores += [(float(s), False) for s in (np.concatenate(left) - mean) @ line]
    positive, negative = (np.array([s for s, is_real in scores if is_real == wanted]) for wanted in (True, False))
    return float((positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2)


if __name__ == "__main__":
    typer.run(main)
