"""What `synthesize` and `reconstruct` share: what is asked for one subject, what of it is there, and how it is made.

A sidecar with the same key (inputs, bundle, sampler, seed) and whole files is a finished target, and is not made again;
finished slices of a stopped job are kept until it is started again. Nothing here leaves the site; messages may name
files.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.inference import outputs
from client.inference.charts import NOTHING, Saying
from client.inference.outputs import Files, Made, Planes
from client.inference.slices import SliceStore
from shared.base.display.progress import Progress, unwatched
from shared.base.files import make_folder, move
from shared.base.vocabulary import Modality
from shared.data.bids import Clinical, Sources
from shared.data.preparation import Loaded
from shared.diffusion.samplers import Sampler
from shared.model.bundle import Bundle
from shared.model.calibration import COVER, NORMAL
from shared.model.fill import Filled, Filling, Scanned, fill
from shared.plan.training import find_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be made of a subject, and how. A target that the subject has is hidden from the model."""

    targets: Sequence[Modality] | None = None  # None: what the subject lacks, and what is measured of it
    without: Sequence[Modality] = ()  # volumes of the subject that are not used
    sampler: Sampler | None = None  # None: the bundle's
    samples: int | None = None  # None: the sampler's
    seed: int = 0
    device: str = "auto"
    at_once: int | None = None  # slices; None: as many as fit
    force: bool = False  # go on with an input far from what the bundle was trained on
    saying: Saying = NOTHING  # of the chart, for models that read it

    def with_samples(self, sampler: Sampler) -> Sampler:
        return sampler if self.samples is None else dataclasses.replace(sampler, samples=self.samples)


DEFAULT = Asked()
CALIBRATED = f"standard deviation, calibrated: {NORMAL:.3g} of it to each side held {COVER:.0%} of the voxels of"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What was done for one subject."""

    subject: str
    made: Mapping[Modality, Path]
    kept: Mapping[Modality, Path]  # were there already, from the same inputs, bundle, sampler and seed
    preview: Path | None
    remarks: tuple[str, ...]  # files that were left aside, and why
    unusual: str | None = None  # how the volumes differ from what the bundle was trained on, in a line


class Job:
    """One subject's volumes by one bundle: `todo` are those that are not there yet, and may be empty."""

    def __init__(
        self, bundle: Bundle, asked: Asked, sampler: Sampler, files: Mapping[Modality, Files], made_from: dict[str, Any]
    ) -> None:
        """`files`: where each wanted modality belongs; `made_from`: all that decides the result but its target."""
        self._bundle, self._asked, self._sampler, self._made_from = bundle, asked, sampler, made_from
        self.files = files
        self.keys = {m: outputs.key_of(made_from, m) for m in files}
        self.todo = [m for m, file in files.items() if not file.are_whole(self.keys[m])]

    def store(self, out: Path, subject: str, **parts: Any) -> SliceStore:
        """Open the place where finished slices wait; `parts`: what else decides their bits."""
        device = find_device(self._asked.device).type
        return SliceStore(out, subject, {**self._made_from, "device": device, "at_once": self._asked.at_once, **parts})

    def fill(
        self,
        loaded: Loaded,
        store: SliceStore,
        keyed: str,
        *,
        measured: Mapping[Modality, Scanned] | None = None,
        clinical: Clinical | None = None,
        wanted: Collection[Modality] | None = None,
        progress: Progress = unwatched,
    ) -> Filled:
        """Make all modalities on the grid, in the slices that the brain reaches; `keyed` is of the noise."""
        model, asked = self._bundle.model, self._asked
        images_MDHW = torch.zeros(len(model.modalities), *loaded.brain_DHW.shape)
        shown_M = torch.zeros(len(model.modalities), dtype=torch.bool)
        for image_DHW, modality in zip(loaded.images_MDHW, loaded.scalings, strict=True):
            images_MDHW[model.modalities.index(modality)] = torch.from_numpy(image_DHW)
            shown_M[model.modalities.index(modality)] = True
        how = Filling(
            sampler=self._sampler,
            keys=(asked.seed, keyed),
            device=find_device(asked.device),
            clinical=clinical or {},
            wanted=wanted,
            measured=measured or {},
            at_once=asked.at_once,
            kept=store,
            progress=progress,
        )
        return fill(model, images_MDHW, shown_M, outputs.reached(loaded), how)

    def row(self, filled: Filled, modality: Modality) -> tuple[Tensor, Tensor | None]:
        """Give mean and spread of one modality."""
        row = self._bundle.model.modalities.index(modality)
        return filled.mean_MDHW[row], None if filled.sd_MDHW is None else filled.sd_MDHW[row]

    def calibrated(
        self, modality: Modality, sd_DHW: Tensor | None, *, shown: int
    ) -> tuple[Tensor | None, dict[str, str]]:
        """The spread of what so many images made, as the bundle's calibration has it; and words for a sidecar."""
        known = self._bundle.calibration
        if sd_DHW is None or known is None or known.sampler != self._sampler or not known.knows(modality, shown):
            return sd_DHW, {}
        return known.sd(modality, shown, sd_DHW), {"Uncertainty": f"{CALIBRATED} {known.source}, in the same units"}

    def write(
        self,
        store: SliceStore,
        preview: Path,
        loaded: Loaded,
        made: Mapping[Modality, Made],
        *,
        given: Planes,
        named: Mapping[str, Made],
        warning: str,
    ) -> None:
        """Write what was to do, and the contact sheet of all; each file is whole before it is in its place."""
        partial = store.make()
        outputs.draw(loaded, given, named, warning).save(partial / preview.name)
        for modality in self.todo:
            outputs.write_volumes(self.files[modality], partial, loaded, made[modality])
        make_folder(preview.parent)
        move(partial / preview.name, preview)
        outputs.describe(preview.parent.parent)
        store.clear()

    def means(self) -> tuple[dict[Modality, Path], dict[Modality, Path]]:
        """Give the volumes that were made now, and those that were kept."""
        made = {m: self.files[m].mean for m in self.todo}
        return made, {m: file.mean for m, file in self.files.items() if m not in self.todo}


def remarks_of(sources: Sources) -> list[str]:
    return [f"{remark.file or remark.subject}: {remark.why}" for remark in sources.remarks]
