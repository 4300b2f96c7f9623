"""What a site can set a bundle beside, alone: for each subject the mean image and a regression from all the others of
its cohort, by sums of which the subject's own are taken away; and the prediction that the bundle's network is told.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from torch import Tensor

from shared.data.bids import Clinical
from shared.data.cohort import Cohort
from shared.data.slices import Slices
from shared.methods import ReadsChart
from shared.methods.anchors.mixture import Mixture
from shared.methods.anchors.ridge import MeanImage, PatchRidge
from shared.methods.baselines.voxelwise import MEAN_VOLUME, VOXELWISE, MeanVolume, VoxelRegression, deep, of_volumes
from shared.model.evaluation import MEAN, MIXTURE, POOL, RIDGE, Filler, Keys, of_slices
from shared.model.model import Model

Sums = Mapping[str, Tensor]


class Settled(Protocol):
    """Whatever is fitted by sums over subjects."""

    def settle(self, sums: Sums) -> None: ...


def floors_here(model: Model, cohort: Cohort, *, split: str | None) -> dict[str, Filler]:
    """By name; `split` is of those that are scored. From one subject alone nothing can be told but by the bundle."""
    made: dict[str, Filler] = {}
    held = Slices(cohort, model.modalities, split=None)
    if len(held.subjects) > 1:
        numbers = {subject.name: number for number, subject in enumerate(held.subjects)}
        scored = Slices(cohort, model.modalities, split=split).subjects
        fit = _volumes if isinstance(model.method, ReadsChart) else _slices
        made = fit(model, held, [numbers[subject.name] for subject in scored])
    for part in model.net.children():
        if isinstance(part, PatchRidge | Mixture):
            made[f"the bundle's {MIXTURE if isinstance(part, Mixture) else RIDGE}"] = of_slices(part)
    return made


def _slices(model: Model, held: Slices, scored: list[int]) -> dict[str, Filler]:
    nets: dict[str, MeanImage | PatchRidge] = {
        MEAN: MeanImage(len(model.modalities), model.grid.height, model.grid.width),
        RIDGE: PatchRidge(len(model.modalities)),
    }

    def sums_of(net: MeanImage | PatchRidge) -> Callable[[int], Sums]:
        return lambda i: _total(net.sums(batch) for batch in held.all_of(i, POOL))

    return {name: _of_others(net, sums_of(net), scored, held, of_slices(net)) for name, net in nets.items()}


def _volumes(model: Model, held: Slices, scored: list[int]) -> dict[str, Filler]:
    depth = model.method.slab
    fits: dict[str, MeanVolume | VoxelRegression] = {MEAN_VOLUME: MeanVolume(), VOXELWISE: VoxelRegression()}

    def sums_of(fit: MeanVolume | VoxelRegression) -> Callable[[int], Sums]:
        def sums(i: int) -> Sums:
            stack = held.volume(i)
            return fit.sums(deep(stack.images_MDHW, depth), stack.exists_M)

        return sums

    return {
        name: _of_others(fit, sums_of(fit), scored, held, of_volumes(fit.fill, depth)) for name, fit in fits.items()
    }


def _of_others(fit: Settled, sums_of: Callable[[int], Sums], scored: list[int], held: Slices, fill: Filler) -> Filler:
    """`fill`, settled anew for each subject: `scored` are its places among all, by the number that a score knows."""
    everyone = _total(sums_of(i) for i in range(len(held.subjects)))
    settled_for = -1

    def fill_all(images_MDHW: Tensor, shown_M: Tensor, keys: Keys, clinical: Clinical) -> Tensor:
        nonlocal settled_for
        _, _, number, *_ = keys  # ("evaluate", site, number, shown)
        if scored[int(number)] != settled_for:
            settled_for = scored[int(number)]
            own = sums_of(settled_for)
            fit.settle({key: value - own[key] for key, value in everyone.items()})
        return fill(images_MDHW, shown_M, keys, clinical)

    return fill_all


def _total(parts: Iterable[Sums]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total[key] + value if key in total else value
    return total
