"""How good models are on subjects that no site trained on: every shown subset x hidden target x site, against floors.

Every model fills the same slices from the same shown images with noise from the same seeds, so differences are paired.
Floors are the mean image and patch-ridge regression, both from sums pooled over the training cohorts. `alone` is each
site's own model, scored at its own site. Names of subjects are not kept: a score knows its subject by number only.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from shared.base.display.progress import Progress
from shared.base.errors import DataError
from shared.base.vocabulary import Modality, SiteName
from shared.data.bids import Clinical
from shared.data.cohort import Cohort
from shared.data.missing import all_patterns
from shared.data.slices import Slices, Stack
from shared.diffusion.samplers import Sampler
from shared.methods.nets.ridge import MeanImage, PatchRidge
from shared.model.metrics import METRICS
from shared.model.model import Model, fill

Keys: TypeAlias = tuple[str | int, ...]
Filler: TypeAlias = Callable[[Tensor, Tensor, Keys, Clinical], Tensor]  # (images_MDHW, shown_M, keys, chart) -> MDHW
Never: TypeAlias = Mapping[SiteName, tuple[Modality, ...]]  # what no training subject of a site has

MEAN, RIDGE, ALONE = "mean image", "patch ridge", "alone"
MEASURED: Mapping[str, tuple[str, ...]] = {
    "brain": ("psnr", "ssim", "mse", "mae", "nmi"),
    "lesion": ("psnr", "mse"),
}
POOL = 64  # slices at once for the floors' sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one target of one subject, from one shown subset."""

    model: str
    site: SiteName
    subject: int
    shown: tuple[Modality, ...]
    target: Modality
    region: str
    metric: str
    volume: float  # over all its voxels in the region
    slice: float  # mean over its slices
    slices: int


class Row(NamedTuple):
    """A line of scores.csv: the mean over a site's subjects, or over all their slices."""

    model: str
    site: SiteName
    shown: str  # joined by +
    target: Modality
    region: str
    metric: str
    per: str
    value: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Paired over subjects: mean and its 95 % confidence interval (Student's t)."""

    mean: float
    low: float
    high: float
    subjects: int


# --- who is compared ------------------------------------------------------------------------------------------------


def filler(model: Model, *, sampler: Sampler, seed: int, device: torch.device) -> Filler:
    """The Monte-Carlo mean of a trained model."""

    def fill_all(images_MDHW: Tensor, shown_M: Tensor, keys: Keys, clinical: Clinical) -> Tensor:
        every = range(images_MDHW.shape[1])
        return fill(
            model,
            images_MDHW,
            shown_M,
            slices=every,
            sampler=sampler,
            keys=(seed, *keys),
            device=device,
            clinical=clinical,
        ).mean_MDHW

    return fill_all


def floors(cohorts: Sequence[Cohort], modalities: Sequence[Modality]) -> dict[str, Filler]:
    """What needs no diffusion, from the training subjects of all cohorts; sites can pool these sums exactly."""
    grids = {cohort.grid for cohort in cohorts}
    if len(grids) != 1:
        raise DataError(f"training cohorts on {len(grids)} grids: must all be on one")
    grid = grids.pop()
    nets: dict[str, MeanImage | PatchRidge] = {
        MEAN: MeanImage(len(modalities), grid.height, grid.width),
        RIDGE: PatchRidge(len(modalities)),
    }
    totals: dict[str, dict[str, Tensor]] = {name: {} for name in nets}
    for cohort in cohorts:
        for batch in Slices(cohort, modalities, split="train").in_order(POOL):
            for name, net in nets.items():
                for key, value in net.sums(batch).items():
                    totals[name][key] = totals[name][key] + value if key in totals[name] else value
    for name, net in nets.items():
        if not totals[name]:
            raise DataError(f"training cohorts: no subject of split train has any of {', '.join(modalities)}")
        net.settle(totals[name])
    return {name: _floor(net) for name, net in nets.items()}


def _floor(net: nn.Module) -> Filler:
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
    models: Mapping[str, Filler],
    heldout: Mapping[SiteName, Cohort],
    modalities: Sequence[Modality],
    *,
    targets: Sequence[Modality] | None = None,
    alone: Mapping[SiteName, Filler] | None = None,
    every: int = 1,
    reconstruct: bool = False,
    whole: bool = False,
    split: str | None = None,
    progress: Progress | None = None,
) -> tuple[Score, ...]:
    """`targets`: what the models make, by default all. `every`: one brain slice in so many is used; models of slabs
    need all of them. `reconstruct`: shown modalities are scored too. `whole`: models are given whole volumes, as those
    that see a subject at once need, and scored on the same slices.
    """
    alone = alone or {}
    slices = {site: Slices(cohort, modalities, split=split) for site, cohort in heldout.items()}
    subjects = [(site, number) for site, held in slices.items() for number in range(len(held.subjects))]
    if not subjects:
        raise DataError("nothing to evaluate on: no subject has any of " + ", ".join(modalities))
    scores: list[Score] = []
    for done, (site, number) in enumerate(subjects):
        stack = slices[site].volume(number)
        brain = slices[site].subjects[number].brain_slices
        chosen = list(brain[min(every // 2, len(brain) - 1) :: every])
        compared = {**models, **({ALONE: alone[site]} if site in alone else {})}
        scores += _subject(compared, site, number, stack, chosen, modalities, targets or modalities, reconstruct, whole)
        if progress is not None:
            progress(done + 1, len(subjects))
    return tuple(scores)


def _subject(
    models: Mapping[str, Filler],
    site: SiteName,
    number: int,
    stack: Stack,
    chosen: Sequence[int],
    modalities: Sequence[Modality],
    made: Sequence[Modality],
    reconstruct: bool,
    whole: bool,
) -> Iterable[Score]:
    given_MDHW = stack.images_MDHW if whole else stack.images_MDHW[:, chosen]
    images_MDHW = stack.images_MDHW[:, chosen]
    regions = {"brain": stack.brain_DHW[chosen]}
    if stack.lesion_DHW is not None:
        regions["lesion"] = (stack.lesion_DHW[chosen] > 0) & regions["brain"]
    held = [m for m, exists in zip(modalities, stack.exists_M.tolist(), strict=True) if exists]
    for shown in all_patterns(held):
        targets = [m for m in held if m in made and (reconstruct or m not in shown)]
        if not targets:
            continue
        shown_M = torch.tensor([m in shown for m in modalities])
        visible_MDHW = torch.where(shown_M[:, None, None, None], given_MDHW, torch.nan)  # a peek would not go unseen
        for model, fill_all in models.items():
            keys = ("evaluate", site, number, "+".join(shown))
            made_MDHW = fill_all(visible_MDHW, shown_M, keys, stack.clinical)
            if whole:
                made_MDHW = made_MDHW[:, chosen]
            for target in targets:
                row = list(modalities).index(target)
                for region, mask_DHW in regions.items():
                    if not bool(mask_DHW.any()):
                        continue
                    for metric in MEASURED[region]:
                        volume, mean, n = METRICS[metric](made_MDHW[row], images_MDHW[row], mask_DHW)
                        yield Score(
                            model=model,
                            site=site,
                            subject=number,
                            shown=shown,
                            target=target,
                            region=region,
                            metric=metric,
                            volume=volume,
                            slice=mean,
                            slices=n,
                        )


# --- what the scores say --------------------------------------------------------------------------------------------


def rows(scores: Iterable[Score]) -> list[Row]:
    """Means over each site's subjects, per volume and per slice; in the order in which they were scored."""

    cells: dict[tuple[str, SiteName, str, Modality, str, str], list[Score]] = {}
    for s in scores:
        cells.setdefault((s.model, s.site, "+".join(s.shown), s.target, s.region, s.metric), []).append(s)
    table = []
    for (model, site, shown, target, region, metric), held in cells.items():
        per_volume = [(s.volume, 1) for s in held]
        per_slice = [(s.slice, s.slices) for s in held]
        for per, values in (("volume", per_volume), ("slice", per_slice)):
            finite = [(value, n) for value, n in values if math.isfinite(value)]
            total = sum(n for _, n in finite)
            if total:
                value = sum(value * n for value, n in finite) / total
                table.append(Row(model, site, shown, target, region, metric, per, value, total))
    return table


Task: TypeAlias = Callable[[Score], bool]


def single(modalities: Sequence[Modality]) -> Task:
    """One modality hidden, all the others shown."""
    return lambda s: s.target not in s.shown and len(s.shown) == len(modalities) - 1


def untrainable(never: Never, site: SiteName | None = None) -> Task:
    """Targets that a site never acquires, from what it does acquire; at one site, or each site's own at all sites."""

    def is_task(s: Score) -> bool:
        lacking = never.get(s.site, ())
        return site in (None, s.site) and s.target in lacking and not set(s.shown) & set(lacking)

    return is_task


def by_subject(
    scores: Iterable[Score], model: str, task: Task, *, region: str = "brain", metric: str = "psnr"
) -> dict[tuple[SiteName, int], float]:
    """Each subject's mean over a task, per volume."""
    held: dict[tuple[SiteName, int], list[float]] = {}
    for s in scores:
        if s.model == model and s.region == region and s.metric == metric and math.isfinite(s.volume) and task(s):
            held.setdefault((s.site, s.subject), []).append(s.volume)
    return {key: sum(values) / len(values) for key, values in held.items()}


def difference(
    scores: Sequence[Score], model: str, other: str, task: Task, *, region: str = "brain", metric: str = "psnr"
) -> Difference | None:
    """How much better `model` is than `other` on the subjects that both filled; None for no such subject."""
    ours, theirs = (by_subject(scores, name, task, region=region, metric=metric) for name in (model, other))
    found = [ours[key] - theirs[key] for key in ours if key in theirs]
    if not found:
        return None
    return interval(found)


def interval(found: Sequence[float]) -> Difference:
    """Mean and 95 % confidence interval of paired differences."""
    n, mean = len(found), sum(found) / len(found)
    if n == 1:
        return Difference(mean=mean, low=-math.inf, high=math.inf, subjects=1)
    from scipy.stats import t  # takes a second to import

    error = math.sqrt(sum((d - mean) ** 2 for d in found) / (n - 1) / n)
    reach = float(t.ppf(0.975, n - 1)) * error
    return Difference(mean=mean, low=mean - reach, high=mean + reach, subjects=n)


class Bought(NamedTuple):
    """A line of the table of what the federation bought, in dB of PSNR per volume; None where nothing was scored."""

    task: str
    site: SiteName  # "" for all sites
    region: str
    values: Mapping[str, float | None]  # by model
    over: Mapping[str, Difference | None]  # the first model's lead over each other


def bought(scores: Sequence[Score], modalities: Sequence[Modality], never: Never) -> list[Bought]:
    """The first model against all others: one hidden modality, and what each site can't train by itself."""
    models = list(dict.fromkeys(s.model for s in scores))
    tasks = [("one hidden, all others shown", "", single(modalities))]
    for site, lacking in never.items():
        if lacking:
            tasks.append((f"{site}: never acquires {', '.join(lacking)}", site, untrainable(never, site)))
    tasks.append(("what a site never acquires", "", untrainable(never)))
    table = []
    for name, site, task in tasks:
        for region in MEASURED:
            values = {m: _mean(by_subject(scores, m, task, region=region).values()) for m in models}
            if any(value is not None for value in values.values()):
                over = {m: difference(scores, models[0], m, task, region=region) for m in models[1:]}
                table.append(Bought(task=name, site=site, region=region, values=values, over=over))
    return table


def _mean(values: Iterable[float]) -> float | None:
    held = list(values)
    return sum(held) / len(held) if held else None
