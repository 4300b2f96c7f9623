"""How good models are on subjects that no site trained on: every shown subset x hidden target x site, against floors.

Every model fills the same slices from the same shown images with noise from the same seeds, so differences are paired.
Floors are the mean image, patch-ridge regression and the mixture of tissues, all from sums pooled over the training
cohorts. `alone` is each site's own model, scored at its own site. Names of subjects are not kept: a score knows its
subject by number only.

Of a model that draws several samples it is also counted how many truths lie in the interval that they tell (`covered`),
and in the calibrated one (`calibrated`, shared/model/calibration.py). Texture (`wasserstein`) is looked at where one
modality is hidden: it is slow, and says least where much is missing.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from shared.base.display.progress import Progress, unwatched
from shared.base.errors import ConfigError, DataError
from shared.base.vocabulary import Modality, SiteName
from shared.data.bids import Clinical
from shared.data.cohort import Cohort
from shared.data.missing import all_patterns
from shared.data.slices import Slices, Stack
from shared.diffusion.samplers import Sampler
from shared.methods import ReadsChart
from shared.methods.anchors.lookup import LookUp
from shared.methods.anchors.mixture import COMPONENTS, ITERATIONS, Mixture
from shared.methods.anchors.ridge import MeanImage, PatchRidge
from shared.model.calibration import Calibration
from shared.model.fill import Filled, Filling, fill
from shared.model.metrics import METRICS, as_judged, check_range, shares
from shared.model.model import Model
from shared.model.tables import Frame, tidy

Keys: TypeAlias = tuple[str | int, ...]
Filler: TypeAlias = Callable[[Tensor, Tensor, Keys, Clinical], Tensor]  # (images_MDHW, shown_M, keys, chart) -> MDHW
Fill: TypeAlias = Callable[[Tensor, Tensor, Keys, Clinical], Filled]  # the same, with the spread of its samples
Either: TypeAlias = Callable[[Tensor, Tensor, Keys, Clinical], Tensor | Filled]
Never: TypeAlias = Mapping[SiteName, tuple[Modality, ...]]  # what no training subject of a site has

MEAN, RIDGE, HATS, TABLE = "mean image", "patch ridge", "hat ridge", "look-up table"
MIXTURE, ALONE = "mixture", "alone"
FLOORS = (MEAN, RIDGE, HATS, TABLE)  # of one round of sums each
MEASURED: Mapping[str, tuple[str, ...]] = {
    "brain": ("psnr", "psnr_fitted", "ssim", "mse", "mae", "nmi"),
    "lesion": ("psnr", "mse"),
}
TEXTURE = "wasserstein"
LEVELS = 8  # hats of the hat ridge
POOL = 64  # slices at once for the floors' sums


class Score(NamedTuple):
    """One metric of one target of one subject, from one shown subset."""

    model: str
    site: SiteName
    subject: int
    shown: str  # joined by +
    target: Modality
    region: str
    metric: str
    volume: float  # over all its voxels in the region
    slice: float  # mean over its slices
    slices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """What is scored of whom."""

    targets: tuple[Modality, ...] = ()  # that the models make; () is all
    every: int = 1  # one brain slice in so many is used
    whole: bool = False  # models are given whole volumes, and scored on the same slices
    split: str | None = None  # of each cohort; by default all subjects

    @classmethod
    def of(cls, model: Model, *, every: int = 1, split: str | None = None) -> "Scoring":
        """As a model needs it: slabs need all slices, and a method that sees a subject at once the whole volume."""
        method = model.method
        if every > 1 and method.slab > 1:
            raise ConfigError(f"--every {every}: {model.name} sees {method.slab} adjacent slices; it needs them all")
        return cls(targets=method.targets, every=every, whole=isinstance(method, ReadsChart), split=split)


# --- who is compared ------------------------------------------------------------------------------------------------


def filled_by(
    model: Model,
    *,
    sampler: Sampler,
    seed: int,
    device: torch.device,
    told: Collection[str] | None = None,
    calibration: Calibration | None = None,
) -> Fill:
    """What is hidden, by a trained model; `told`: the fields of the chart that it hears, by default all."""

    def fill_all(images_MDHW: Tensor, shown_M: Tensor, keys: Keys, clinical: Clinical) -> Filled:
        how = Filling(
            sampler=sampler,
            keys=(seed, *keys),
            device=device,
            clinical={name: value for name, value in clinical.items() if told is None or name in told},
            wanted=[m for m, shown in zip(model.modalities, shown_M.tolist(), strict=True) if not shown],
        )
        filled = fill(model, images_MDHW, shown_M, range(images_MDHW.shape[1]), how)
        return dataclasses.replace(filled, calibration=calibration)

    return fill_all


def mean_of(fill_all: Fill) -> Filler:
    """The Monte-Carlo mean; of one sample, the sample."""
    return lambda images_MDHW, shown_M, keys, clinical: fill_all(images_MDHW, shown_M, keys, clinical).mean_MDHW


def filler(model: Model, *, sampler: Sampler, seed: int, device: torch.device) -> Filler:
    """The Monte-Carlo mean of a trained model."""
    return mean_of(filled_by(model, sampler=sampler, seed=seed, device=device))


def floors(
    cohorts: Sequence[Cohort], modalities: Sequence[Modality], names: Sequence[str] = FLOORS
) -> dict[str, Filler]:
    """What needs no diffusion, from the training subjects of all cohorts; sites can pool these sums exactly."""
    grids = {cohort.grid for cohort in cohorts}
    if len(grids) != 1:
        raise DataError(f"training cohorts on {len(grids)} grids: must all be on one")
    grid = grids.pop()
    made: Mapping[str, Callable[[], MeanImage | PatchRidge | LookUp | Mixture]] = {
        MEAN: lambda: MeanImage(len(modalities), grid.height, grid.width),
        RIDGE: lambda: PatchRidge(len(modalities)),
        HATS: lambda: PatchRidge(len(modalities), levels=LEVELS),
        TABLE: lambda: LookUp(len(modalities)),
        MIXTURE: lambda: Mixture(len(modalities), COMPONENTS),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of where the mixture begins
        nets = {name: made[name]() for name in names}
    for net in nets.values():
        for _ in range(1 + ITERATIONS if isinstance(net, Mixture) else 1):
            totals: dict[str, Tensor] = {}
            for cohort in cohorts:
                for batch in Slices(cohort, modalities, split="train").in_order(POOL):
                    for key, value in net.sums(batch).items():
                        totals[key] = totals[key] + value if key in totals else value
            if not totals:
                raise DataError(f"training cohorts: no subject of split train has any of {', '.join(modalities)}")
            net.settle(totals)
    return {name: of_slices(net) for name, net in nets.items()}


def of_slices(net: nn.Module) -> Filler:
    """What is hidden, slice by slice, by a network without noise."""

    def fill_all(images_MDHW: Tensor, shown_M: Tensor, keys: Keys, clinical: Clinical) -> Tensor:
        images_DMHW = images_MDHW.transpose(0, 1)
        with torch.no_grad():
            made: Tensor = net(images_DMHW, shown_M.expand(len(images_DMHW), -1))
        return made.transpose(0, 1)

    return fill_all


def never_acquired(cohorts: Mapping[SiteName, Cohort], modalities: Sequence[Modality]) -> Never:
    """By site, the modalities that it can't train a model to make: none of its training subjects has them."""
    held = {site: {m for pattern in cohort.patterns("train") for m in pattern} for site, cohort in cohorts.items()}
    return {site: tuple(m for m in modalities if m not in held[site]) for site in cohorts}


# --- scoring --------------------------------------------------------------------------------------------------------


def evaluate(
    models: Mapping[str, Either],
    heldout: Mapping[SiteName, Cohort],
    modalities: Sequence[Modality],
    scoring: Scoring | None = None,
    *,
    alone: Mapping[SiteName, Filler] | None = None,
    progress: Progress = unwatched,
) -> Frame:
    """A row for each `Score`. `alone`: each site's own model, for its own subjects."""
    scoring, alone = scoring or Scoring(), alone or {}
    slices = {site: Slices(cohort, modalities, split=scoring.split) for site, cohort in heldout.items()}
    subjects = [(site, number) for site, held in slices.items() for number in range(len(held.subjects))]
    if not subjects:
        raise DataError("nothing to evaluate on: no subject has any of " + ", ".join(modalities))
    scores: list[Score] = []
    for done, (site, number) in enumerate(subjects):
        brain = slices[site].subjects[number].brain_slices
        chosen = spread_over(brain, scoring.every)
        compared = {**models, **({ALONE: alone[site]} if site in alone else {})}
        stack = slices[site].volume(number)
        scores += _subject(compared, (site, number), stack, chosen, list(modalities), scoring)
        progress(done + 1, len(subjects))
    return tidy(scores, Score._fields)


def _subject(
    models: Mapping[str, Either],
    who: tuple[SiteName, int],
    stack: Stack,
    chosen: Sequence[int],
    modalities: Sequence[Modality],
    scoring: Scoring,
) -> Iterator[Score]:
    images_MDHW = stack.images_MDHW[:, chosen]
    regions = {"brain": stack.brain_DHW[chosen]}
    if stack.lesion_DHW is not None:
        regions["lesion"] = (stack.lesion_DHW[chosen] > 0) & regions["brain"]
    for one in tasks_of(stack, chosen, modalities, scoring):
        shown, texture = "+".join(one.shown), (TEXTURE,) if one.alone else ()
        for model, fill_all in models.items():
            made = fill_all(one.visible_MDHW, one.shown_M, ("evaluate", *who, shown), stack.clinical)
            filled = made if isinstance(made, Filled) else Filled(mean_MDHW=made, sd_MDHW=None)
            if scoring.whole:
                filled = filled.slices(chosen)
            for target, (region, mask_DHW) in itertools.product(one.targets, regions.items()):
                row = modalities.index(target)
                if not bool(mask_DHW.any()):
                    continue
                check_range("prediction", filled.mean_MDHW[row], mask_DHW)
                made_DHW, true_DHW = (as_judged(x[row], stack.judged_M2[row]) for x in (filled.mean_MDHW, images_MDHW))
                for metric in (*MEASURED[region], *(texture if region == "brain" else ())):
                    volume, mean, n = METRICS[metric](made_DHW, true_DHW, mask_DHW)
                    yield Score(model, *who, shown, target, region, metric, volume, mean, n)
                for metric, width_DHW in filled.half_widths(row, target).items():
                    off_DHW = (filled.mean_MDHW[row] - images_MDHW[row]).abs()
                    volume, mean, n = shares(off_DHW <= width_DHW, mask_DHW)
                    yield Score(model, *who, shown, target, region, metric, volume, mean, n)


class Task(NamedTuple):
    """What is shown of a subject, and what of the rest is made."""

    shown: tuple[Modality, ...]
    targets: tuple[Modality, ...]
    shown_M: Tensor
    visible_MDHW: Tensor
    alone: bool  # all that the subject has is shown but one


def tasks_of(stack: Stack, chosen: Sequence[int], modalities: Sequence[Modality], scoring: Scoring) -> Iterator[Task]:
    """Every shown subset of what a subject has."""
    given_MDHW = stack.images_MDHW if scoring.whole else stack.images_MDHW[:, chosen]
    held = [m for m, exists in zip(modalities, stack.exists_M.tolist(), strict=True) if exists]
    for shown in all_patterns(held):
        targets = tuple(m for m in held if m not in shown and (m in scoring.targets or not scoring.targets))
        if targets:
            shown_M = torch.tensor([m in shown for m in modalities])
            # a peek would not go unseen
            visible_MDHW = torch.where(shown_M[:, None, None, None], given_MDHW, torch.nan)
            yield Task(shown, targets, shown_M, visible_MDHW, len(shown) == len(held) - 1)


def spread_over(brain: Sequence[int], every: int) -> list[int]:
    """One brain slice in so many."""
    return list(brain[min(every // 2, len(brain) - 1) :: every])
