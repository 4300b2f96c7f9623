"""The tasks of the Any2all paper on held-out slices (docs/methods/any2all.md, "The paper's tasks").

One modality is reconstructed beside more and more clean ones; one that is missing is made from more and more clean
ones, and from raw data of others (mixed). One slice of each held-out subject, so that slices are independent; every
way sees the same images, and the same k-space and noise from the same seeds. Raw data are simulated, so that what a way
should have found is known.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from shared.base.display.progress import Progress, unwatched
from shared.base.errors import ConfigError, DataError
from shared.base.options import require
from shared.base.randomness import generator
from shared.base.vocabulary import Modality
from shared.data.cohort import Cohort
from shared.data.modalities import MODALITIES
from shared.data.slices import Slices
from shared.diffusion.acquisition import birdcage, equispaced
from shared.diffusion.operators import CartesianMRI, Measured, clean, measured, none, simulate
from shared.diffusion.samplers import Sampler
from shared.methods import TAKE_RAW, Restores
from shared.methods.baselines.reconstruction import cg_sense, total_variation, zero_filled
from shared.model.evaluation import Filler
from shared.model.metrics import METRICS, as_judged
from shared.model.model import Model
from shared.model.tables import Interval, interval
from shared.model.taught import passes

MEASURED = ("psnr", "ssim", "wasserstein")
RAW_FLOORS = ("zero-filled", "CG-SENSE", "TV")
TV_STRENGTH, SENSE_STRENGTH = 0.003, 0.01  # of physical images in [0, 1]; docs/log.md says how they were chosen
AWAY = 0.2  # of a subject's brain slices: how far from the middle the one that is used may lie


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """How raw data are simulated: Cartesian, lines skipped along the rows of the image."""

    acceleration: int = 4
    coils: int = 8
    acs: int = 0  # lines in the middle that are always measured; the paper's is equispaced alone
    noise: float = 0.01  # sd of a complex sample, for images in [0, 1]

    def __post_init__(self) -> None:
        require(self.acceleration >= 1, "acceleration", self.acceleration, "1 or more")
        require(self.coils >= 1, "coils", self.coils, "1 or more")
        require(self.acs >= 0, "acs", self.acs, "0 or more")
        require(self.noise >= 0, "noise", self.noise, "0 or more")

    def operator(self, height: int, width: int) -> CartesianMRI:
        mask = equispaced(width, self.acceleration, self.acs, offset=None)  # through the centre, at any width
        return CartesianMRI(maps_BCHW=birdcage(self.coils, height, width), mask=mask, sigma=self.noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Make `target`, from clean images of some modalities and raw data of others."""

    group: str
    target: Modality
    clean: tuple[Modality, ...] = ()
    raw: tuple[Modality, ...] = ()

    @property
    def name(self) -> str:
        return " + ".join([*self.clean, *(f"y({m})" for m in self.raw)])


def usual_tasks(modalities: Sequence[Modality]) -> tuple[Task, ...]:
    """The paper's, for any list of modalities: T2FLAIR is measured, CT is missing, the others help."""
    mr = [m for m in modalities if MODALITIES[m].kind == "mr"]
    if not mr or len(modalities) < 2:
        raise ConfigError(f"method.modalities={list(modalities)}: these tasks need an MR modality and another one")
    wanted = "FLAIR" if "FLAIR" in mr else mr[-1]
    helpers = [m for m in (*mr, *modalities) if m != wanted]
    helpers = list(dict.fromkeys(helpers))
    steps = dict.fromkeys([(), tuple(helpers[:1]), tuple(helpers[:2]), tuple(helpers)])
    tasks = [Task(group=f"reconstruct {wanted}", target=wanted, raw=(wanted,), clean=aids) for aids in steps]
    missing = "CT" if "CT" in modalities else next((m for m in reversed(modalities) if m != wanted), wanted)
    sources = [m for m in (*helpers[:2], *mr) if m != missing]
    sources = list(dict.fromkeys(sources))
    for n in range(1, len(sources) + 1):
        tasks.append(Task(group=f"synthesise {missing}", target=missing, clean=tuple(sources[:n])))
    aids = [m for m in mr if m not in (wanted, missing)][:2]
    mixed = f"mixed, {missing}"  # fig. 4c: what is measured is not what is made
    tasks.append(Task(group=mixed, target=missing, raw=(wanted,)))
    tasks.append(Task(group=mixed, target=missing, raw=tuple(m for m in modalities if m in (*aids, wanted))))
    tasks.append(Task(group=mixed, target=missing, clean=tuple(aids), raw=(wanted,)))
    return tuple(dict.fromkeys(tasks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One slice of each of several held-out subjects that have all modalities."""

    images_BMHW: Tensor
    brain_BHW: Tensor
    judged_BM2: Tensor  # gain and offset to the scale that each is judged on

    def __len__(self) -> int:
        return len(self.images_BMHW)


def pick(cohorts: Sequence[Cohort], modalities: Sequence[Modality], count: int, seed: int) -> Held:
    """`count` slices near the middle of the brain; a second one of a subject only when subjects run out."""
    images, brains, judged = [], [], []
    held = [Slices(cohort, modalities, split=None) for cohort in cohorts]
    stacks = [(slices, i) for slices in held for i in range(len(slices.subjects))]
    for turn in range(math.ceil(count / max(1, len(stacks)))):
        for slices, i in stacks:
            stack = slices.volume(i)
            if not bool(stack.exists_M.all()):
                continue
            reached = slices.subjects[i].brain_slices
            draw = torch.rand(1, generator=generator("cpu", seed, "slice", slices.subjects[i].name, turn)).item()
            z = reached[round((0.5 + AWAY * (2 * draw - 1)) * (len(reached) - 1))]
            images.append(stack.images_MDHW[:, z])
            brains.append(stack.brain_DHW[z])
            judged.append(stack.judged_M2)
    if len(images) < count:
        raise DataError(f"held-out subjects: {len(images)} have all of {', '.join(modalities)}; {count} are needed")
    keep = torch.linspace(0, len(images) - 1, count).round().long().tolist()  # of every cohort alike
    return Held(
        images_BMHW=torch.stack([images[k] for k in keep]),
        brain_BHW=torch.stack([brains[k] for k in keep]),
        judged_BM2=torch.stack([judged[k] for k in keep]),
    )


# --- ways of filling in ---------------------------------------------------------------------------------------------

Restorer: TypeAlias = Callable[[Task], Tensor | None]  # the target's images in [0, 1]; None where it does not apply


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One way at one task: each slice's scores, and what it cost."""

    task: Task
    way: str
    values: Mapping[str, tuple[float, ...]]  # by metric
    seconds: float  # per slice
    made_BHW: Tensor

    def mean(self, metric: str) -> float:
        return sum(self.values[metric]) / len(self.values[metric])


def run(
    ways: Mapping[str, Restorer],
    tasks: Sequence[Task],
    held: Held,
    modalities: Sequence[Modality],
    *,
    progress: Progress = unwatched,
) -> Iterator[Outcome]:
    """Every way at every task, one after the other, as each is done."""
    pairs = [(task, name) for task in tasks for name in ways]
    for done, (task, name) in enumerate(pairs):
        started = time.monotonic()
        made_BHW = ways[name](task)
        seconds = time.monotonic() - started
        if made_BHW is not None:
            yield Outcome(
                task=task,
                way=name,
                values=_measured(made_BHW, held, list(modalities).index(task.target)),
                seconds=seconds / len(held),
                made_BHW=made_BHW,
            )
        progress(done + 1, len(pairs))


def _measured(made_BHW: Tensor, held: Held, target: int) -> dict[str, tuple[float, ...]]:
    """Each metric of each slice."""
    pairs = [
        (as_judged(made_BHW[b : b + 1], line_2), as_judged(held.images_BMHW[b : b + 1, target], line_2))
        for b, line_2 in enumerate(held.judged_BM2[:, target])
    ]
    return {
        metric: tuple(
            METRICS[metric](made, truth, brain_HW[None]).volume
            for (made, truth), brain_HW in zip(pairs, held.brain_BHW, strict=True)
        )
        for metric in MEASURED
    }


def known(task: Task, held: Held, modalities: Sequence[Modality], scan: Scan, seed: int) -> list[Measured]:
    """What a task tells, on the network's scale; a modality's noise is the same in every task."""
    height, width = held.images_BMHW.shape[-2:]
    operator = scan.operator(height, width)
    found = []
    for m, modality in enumerate(modalities):
        image_BHW = held.images_BMHW[:, m]
        if modality in task.raw:
            found.append(measured(_raw(image_BHW, operator, modality, seed), operator, 1.0))
        else:
            found.append(clean(image_BHW) if modality in task.clean else none())
    return found


def _raw(image_BHW: Tensor, operator: CartesianMRI, modality: Modality, seed: int) -> Tensor:
    return simulate(operator, image_BHW, [generator("cpu", seed, "scan", modality, b) for b in range(len(image_BHW))])


def sampled(model: Model, sampler: Sampler, held: Held, scan: Scan, *, seed: int, device: torch.device) -> Restorer:
    """The Monte-Carlo mean of a sampler's samples."""
    if not isinstance(model.method, Restores):
        raise DataError(f"model {model.name}: works from images only; these tasks need {TAKE_RAW}")
    method, net = model.method, model.net.to(device)

    def fill(task: Task) -> Tensor | None:
        if task.raw and sampler.kind in ("mean", "ddim", "multistep", "ancestral"):
            return None
        told = [one.to(device) for one in known(task, held, model.modalities, scan, seed)]
        like_BMHW = torch.zeros_like(held.images_BMHW, device=device)
        row = model.modalities.index(task.target)
        planned = passes(model, [m for m, one in enumerate(told) if one.kind != "none"])
        silent = next(one.silent for one in planned if row in one.rows)
        total_BHW = torch.zeros_like(like_BMHW[:, row])
        for k in range(sampler.samples):
            noise = [generator(device, seed, "restore", b, k) for b in range(len(held))]
            total_BHW += method.restore(net, told, sampler, noise, like_BMHW=like_BMHW, silent=silent)[:, row]
        return (total_BHW / sampler.samples).cpu()

    return fill


def floors(
    held: Held, modalities: Sequence[Modality], scan: Scan, regressions: Mapping[str, Filler], *, seed: int
) -> dict[str, Restorer]:
    """What needs no prior: reconstruction from the target's raw data, regressions from the other modalities.

    Where what is made was not measured itself, raw data of others are reconstructed (TV) for the regression.
    """
    height, width = held.images_BMHW.shape[-2:]
    operator = scan.operator(height, width)

    def from_raw(reconstruct: Callable[[Tensor], Tensor]) -> Restorer:
        def fill(task: Task) -> Tensor | None:
            if task.raw != (task.target,) or task.clean:
                return None  # they can't use the others: the same image again
            image_BHW = held.images_BMHW[:, list(modalities).index(task.target)]
            return reconstruct(_raw(image_BHW, operator, task.target, seed))

        return fill

    def tv(y: Tensor) -> Tensor:
        return total_variation(y, operator, strength=TV_STRENGTH, iterations=200)

    def from_others(task: Task, regress: Filler) -> Tensor | None:
        raw = () if task.target in task.raw else task.raw
        shown_M = torch.tensor([m in (*task.clean, *raw) for m in modalities])
        if not bool(shown_M.any()):
            return None
        images_MBHW = held.images_BMHW.transpose(0, 1).clone()
        for i, m in enumerate(modalities):
            if m in raw:
                found_BHW = tv(_raw(held.images_BMHW[:, i], operator, m, seed)).clamp(0, 1)
                images_MBHW[i] = torch.where(held.brain_BHW, found_BHW, 0.0)
        return regress(images_MBHW, shown_M, (), {})[list(modalities).index(task.target)]

    return {
        "zero-filled": from_raw(lambda y: zero_filled(y, operator)),
        "CG-SENSE": from_raw(lambda y: cg_sense(y, operator, strength=SENSE_STRENGTH, iterations=30)),
        "TV": from_raw(tv),
        **{name: functools.partial(from_others, regress=regress) for name, regress in regressions.items()},
    }


# --- what the outcomes say ------------------------------------------------------------------------------------------


def gains(outcomes: Sequence[Outcome], metric: str = "psnr") -> list[tuple[Outcome, Outcome, Interval]]:
    """Of each way, each task of a group against the one before it."""
    found = []
    for way in dict.fromkeys(o.way for o in outcomes):
        own = [o for o in outcomes if o.way == way]
        for before, after in itertools.pairwise(own):
            if before.task.group == after.task.group:
                found.append((before, after, lead(after, before, metric)))
    return found


def lead(one: Outcome, other: Outcome, metric: str) -> Interval:
    """Paired over slices: mean and 95 % interval."""
    return interval([a - b for a, b in zip(one.values[metric], other.values[metric], strict=True)])
