"""The two floors of methods that see whole volumes: the mean volume, and a linear regression at every voxel.

Both come from sums over subjects alone, so sites can pool them exactly. Like the patch ridge's, the regression's
moments are kept per *pair* of modalities, over the subjects whose brain reaches the voxel and that have both, each pair
with its own count: sites with different missing patterns add up to the whole covariance. A dozen subjects do not make a
regression at one voxel, so its covariance is drawn toward that of its neighbourhood, and this one toward the brain's.

Volumes lie as slabs do: from slice 0 on, filled up with zeros at the end. The brain of a volume that is to be filled is
where any shown image is above 0; outside it all is exactly 0.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.base.errors import DataError
from shared.base.vocabulary import Modality
from shared.data.bids import Clinical
from shared.data.cohort import Cohort
from shared.data.slices import Slices

MEAN_VOLUME, VOXELWISE = "mean volume", "voxelwise regression"
NEAR = 5  # voxels along each edge of a neighbourhood
AT_ONCE = 2**16  # voxels whose equations are solved together

Fill: TypeAlias = Callable[[Tensor, Tensor, tuple[str | int, ...], Clinical], Tensor]  # an evaluation's Filler


class MeanVolume:
    """The mean of each modality at each voxel, whatever is shown."""

    def __init__(self) -> None:
        self.mean_MDHW = torch.zeros(0)

    def sums(self, images_MDHW: Tensor, exists_M: Tensor) -> dict[str, Tensor]:
        """Total one subject: fp64 sum and count of every modality at the voxels of the brain."""
        x_MDHW, inside_DHW = _inside(images_MDHW, exists_M)
        there_MDHW = exists_M[:, None, None, None] & inside_DHW
        return {"image": x_MDHW, "subjects": there_MDHW.double()}

    def settle(self, sums: Mapping[str, Tensor]) -> None:
        """Divide sums by counts; where no subject's brain was, a modality's mean over all voxels stands."""
        whole_M111 = _ratio(sums["image"].sum((1, 2, 3), True), sums["subjects"].sum((1, 2, 3), True))
        held = sums["subjects"] > 0
        self.mean_MDHW = torch.where(held, _ratio(sums["image"], sums["subjects"]), whole_M111).float()

    def fill(self, images_MDHW: Tensor, shown_M: Tensor) -> Tensor:
        x_MDHW, inside_DHW = _inside(images_MDHW, shown_M)
        made_MDHW = torch.where(inside_DHW, self.mean_MDHW.clamp(0, 1), 0.0)
        return torch.where(shown_M[:, None, None, None], x_MDHW.float(), made_MDHW)


class VoxelRegression:
    """Every modality from any shown subset, at each voxel by itself; a shown one is itself.

    `voxel` and `near` count subjects: so many of the neighbourhood's stand beside those that a voxel has, and so many
    of the whole brain's beside those of a neighbourhood. With 0 and 0 it is least squares at each voxel.
    """

    def __init__(self, *, voxel: float = 50.0, near: float = 100.0) -> None:
        self.voxel, self.near = voxel, near
        self._sums: dict[str, Tensor] = {}
        self._cov_MMDHW = torch.zeros(0)
        self._solved: dict[tuple[tuple[int, ...], int], tuple[Tensor, Tensor]] = {}

    def sums(self, images_MDHW: Tensor, exists_M: Tensor) -> dict[str, Tensor]:
        """Total a subject, fp64: gram[i, j] = x_i x_j, total[i, j] = x_i and subjects[i, j] = 1, where both exist."""
        x_MDHW, inside_DHW = _inside(images_MDHW, exists_M)
        both_MMDHW = (exists_M[:, None] & exists_M)[:, :, None, None, None] & inside_DHW
        x_MMDHW = x_MDHW[:, None].expand(both_MMDHW.shape)
        return {
            "gram": x_MMDHW * x_MMDHW.transpose(0, 1),
            "total": torch.where(both_MMDHW, x_MMDHW, 0.0),
            "subjects": both_MMDHW.double(),
        }

    def settle(self, sums: Mapping[str, Tensor]) -> None:
        """The covariance of every pair at every voxel, drawn toward its neighbourhood's."""
        self._sums = {name: value.double() for name, value in sums.items()}
        self._solved.clear()
        total, n = self._sums["total"], self._sums["subjects"]
        spread = self._sums["gram"] - _ratio(total * total.transpose(0, 1), n)
        free = (n - 1).clamp(min=0)
        whole = _ratio(spread.sum((2, 3, 4), True), free.sum((2, 3, 4), True))
        near = _ratio(_around(spread) + self.near * whole, _around(free) + self.near)
        self._cov_MMDHW = _ratio(spread + self.voxel * near, free + self.voxel)

    def fill(self, images_MDHW: Tensor, shown_M: Tensor) -> Tensor:
        x_MDHW, inside_DHW = _inside(images_MDHW, shown_M)
        shown = tuple(int(m) for m in shown_M.nonzero().flatten())
        made_MDHW = x_MDHW.float()
        for target in range(len(shown_M)):
            if target not in shown:
                weights_SDHW, offset_DHW = self.coefficients(shown, target)
                y_DHW = offset_DHW + (weights_SDHW * made_MDHW[list(shown)]).sum(0)
                made_MDHW[target] = torch.where(inside_DHW, y_DHW.clamp(0, 1), 0.0)
        return made_MDHW

    def coefficients(self, shown: tuple[int, ...], target: int) -> tuple[Tensor, Tensor]:
        """One weight per shown modality, and the offset. What never existed beside the target weighs nothing."""
        if (shown, target) not in self._solved:
            self._solved[shown, target] = self._solve(shown, target)
        return self._solved[shown, target]

    def _solve(self, shown: tuple[int, ...], target: int) -> tuple[Tensor, Tensor]:
        total, n = self._sums["total"], self._sums["subjects"]
        weights_SDHW = total.new_zeros(len(shown), *total.shape[2:])
        whole_M = _ratio(torch.einsum("iidhw->i", total), torch.einsum("iidhw->i", n))
        places = [s for s, m in enumerate(shown) if bool((n[m, target] > 0).any())]
        known = [shown[s] for s in places]
        beside_SDHW = n[known, target]
        means_SDHW = torch.where(
            beside_SDHW > 0, _ratio(total[known, target], beside_SDHW), whole_M[known][:, None, None, None]
        )
        mean_DHW = (
            _ratio(total[target, known].sum(0), beside_SDHW.sum(0))
            if known
            else _ratio(total[target, target], n[target, target])
        )
        held_DHW = beside_SDHW.sum(0) > 0 if known else n[target, target] > 0
        mean_DHW = torch.where(held_DHW, mean_DHW, whole_M[target])
        if known:
            order = [*known, target]
            cov_NFF = self._cov_MMDHW[order][:, order].flatten(2).permute(2, 0, 1)
            found = torch.cat([_regress(part) for part in torch.split(cov_NFF, AT_ONCE)])
            weights_SDHW[places] = found.T.reshape(len(known), *total.shape[2:])
        offset_DHW = mean_DHW - (weights_SDHW[places] * means_SDHW).sum(0)
        return weights_SDHW.float(), offset_DHW.float()


def floors_3d(cohorts: Sequence[Cohort], modalities: Sequence[Modality], depth: int) -> dict[str, Fill]:
    """What needs no diffusion, from the training subjects of all cohorts."""
    mean, regression = MeanVolume(), VoxelRegression()
    totals: dict[str, dict[str, Tensor]] = {MEAN_VOLUME: {}, VOXELWISE: {}}
    for images_MDHW, exists_M in _volumes(cohorts, modalities, depth):
        for name, one in (
            (MEAN_VOLUME, mean.sums(images_MDHW, exists_M)),
            (VOXELWISE, regression.sums(images_MDHW, exists_M)),
        ):
            for key, value in one.items():
                totals[name][key] = totals[name][key].add_(value) if key in totals[name] else value
    if not totals[MEAN_VOLUME]:
        raise DataError(f"training cohorts: no subject of split train has any of {', '.join(modalities)}")
    mean.settle(totals[MEAN_VOLUME])
    regression.settle(totals[VOXELWISE])
    return {MEAN_VOLUME: of_volumes(mean.fill, depth), VOXELWISE: of_volumes(regression.fill, depth)}


def _volumes(cohorts: Sequence[Cohort], modalities: Sequence[Modality], depth: int) -> Iterator[tuple[Tensor, Tensor]]:
    grids = {(cohort.grid.height, cohort.grid.width) for cohort in cohorts}
    if len(grids) != 1:
        raise DataError(f"training cohorts on {len(grids)} grids: must all be on one")
    for cohort in cohorts:
        held = Slices(cohort, modalities, split="train")
        for i in range(len(held.subjects)):
            stack = held.volume(i)
            yield deep(stack.images_MDHW, depth), stack.exists_M


def of_volumes(fill: Callable[[Tensor, Tensor], Tensor], depth: int) -> Fill:
    def fill_all(images_MDHW: Tensor, shown_M: Tensor, keys: tuple[str | int, ...], chart: Clinical) -> Tensor:
        return fill(deep(images_MDHW, depth), shown_M)[:, : images_MDHW.shape[1]]

    return fill_all


def deep(images_MDHW: Tensor, depth: int) -> Tensor:
    lacking = depth - images_MDHW.shape[1]
    if lacking < 0:
        raise DataError(f"depth={depth}: a subject has {images_MDHW.shape[1]} slices; must be at least every subject's")
    return F.pad(images_MDHW, (0, 0, 0, 0, 0, lacking))


def _inside(images_MDHW: Tensor, known_M: Tensor) -> tuple[Tensor, Tensor]:
    """fp64 images, 0 where nothing is known, and the brain. What is hidden is never looked at."""
    x_MDHW = torch.where(known_M[:, None, None, None], images_MDHW.double(), 0.0)
    return x_MDHW, (x_MDHW > 0).any(0)


def _ratio(sums: Tensor, counts: Tensor) -> Tensor:
    """Divide sums by counts, with 0 for a count of 0."""
    return torch.where(counts > 0, sums / counts.clamp(min=1e-12), 0.0)


def _around(values_MMDHW: Tensor) -> Tensor:
    """Add up each voxel's neighbourhood."""
    M, _, *shape = values_MMDHW.shape
    padded = F.pad(values_MMDHW.reshape(M * M, 1, *shape), (NEAR // 2,) * 6)
    found: Tensor = F.avg_pool3d(padded, NEAR, stride=1, divisor_override=1)
    return found.reshape(values_MMDHW.shape)


def _regress(cov_NFF: Tensor) -> Tensor:
    """Weights of the last on the others. Pairs that come from different sites need not fit together: the nearest
    positive matrix takes such a one's place, and changes nothing where one cohort gave all pairs.
    """
    values_NF, vectors_NFF = torch.linalg.eigh((cov_NFF + cov_NFF.mT) / 2)
    nearest_NFF = (vectors_NFF * values_NF.clamp(min=0)[:, None]) @ vectors_NFF.mT
    cov_NFF = torch.where(values_NF[:, :1, None] < 0, nearest_NFF, cov_NFF)
    cov_NSS, cov_NS = cov_NFF[:, :-1, :-1], cov_NFF[:, :-1, -1]
    floor_N = 1e-9 * cov_NSS.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
    eye_SS = torch.eye(cov_NSS.shape[1], dtype=cov_NFF.dtype)
    weights_NS: Tensor = torch.linalg.solve(cov_NSS + floor_N[:, None, None] * eye_SS, cov_NS)
    return weights_NS
