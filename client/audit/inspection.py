"""What both looks of the memorisation audit share: the model, the two groups of subjects, and how much is looked at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from shared.base.display.progress import Progress
from shared.base.errors import DataError
from shared.base.options import require
from shared.base.randomness import seed_of
from shared.base.vocabulary import Modality
from shared.data.cohort import Cohort
from shared.data.slices import Slices
from shared.diffusion.samplers import Sampler
from shared.model.model import Model
from shared.plan.training import find_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is looked at; the search for near-duplicates always goes through all training subjects."""

    subjects: int = 100  # of each cohort, that go through the network
    slices: int = 8  # of each subject
    draws: int = 16  # of times and noise, for each slice
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("subjects", "slices", "draws"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    model: Model
    trained: Slices
    heldout: Slices
    sampler: Sampler
    effort: Effort
    device: torch.device
    progress: Progress

    @staticmethod
    def of(
        model: Model,
        training: Cohort,
        heldout: Cohort,
        *,
        sampler: Sampler,
        effort: Effort,
        device: str,
        progress: Progress,
    ) -> "Inspection":
        """Prepare an audit. Of one cohort given twice: its split train against its others."""
        for cohort in (training, heldout):
            if cohort.grid != model.grid:
                raise DataError(
                    f"cohort {cohort.folder.name}: prepared for grid {cohort.grid.name}; "
                    f"the bundle needs {model.grid.name}"
                )
        if heldout.folder == training.folder:
            rest = tuple(subject for subject in heldout.subjects if subject.split != "train")
            heldout = replace(heldout, subjects=rest)
        slab = model.method.slab
        return Inspection(
            model=model,
            trained=Slices(training, model.modalities, split="train", slab=slab),
            heldout=Slices(heldout, model.modalities, split=None, slab=slab),
            sampler=sampler,
            effort=effort,
            device=find_device(device),
            progress=progress,
        )

    def some(self, part: Slices, needed: Sequence[Modality] = ()) -> list[int]:
        """Draw by the seed at most `effort.subjects` of those that have what is needed; give them in their order."""
        fitting = [n for n, subject in enumerate(part.subjects) if set(needed) <= set(subject.modalities)]
        order = np.random.default_rng(seed_of(self.effort.seed, "subjects")).permutation(len(fitting))
        return sorted(fitting[i] for i in order[: self.effort.subjects])

    def counter(self, total: int) -> Callable[[], None]:
        """Make one bar over all parts of the work: each call is one more done."""
        done = 0

        def one_more() -> None:
            nonlocal done
            done += 1
            self.progress(done, total)

        return one_more


def spread(length: int, count: int) -> list[int]:
    """Place `count` numbers in range(length), evenly, the outer tenths left out."""
    return [round(share * (length - 1)) for share in np.linspace(0.1, 0.9, count)]
