"""A subject filled in: any shown modalities of a whole volume in, all modalities out, slice by slice.

The noise of slice z and sample k comes from (keys, z, k) alone (every second is the mirror image of the one before):
however many slices fit into memory at once, and however often the work was stopped, the result is the same. A method
that can `restore` takes raw measurements too. A method of slabs goes over the volume in overlapping windows, which are
numbered like slices.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from shared.base.display.progress import Progress, unwatched
from shared.base.errors import DataError
from shared.base.randomness import Mirror, Noise, generator
from shared.base.vocabulary import Modality
from shared.data.bids import Clinical
from shared.diffusion.operators import Measured, clean, none
from shared.diffusion.samplers import Sampler
from shared.methods import TAKE_RAW, ReadsChart, Restores
from shared.model import calibration
from shared.model.calibration import CALIBRATED, COVERED, Calibration, uncalibrated
from shared.model.model import Model
from shared.model.taught import passes
from shared.model.windows import Blend, cut, lay

AT_ONCE: Mapping[str, int] = {"cpu": 8, "cuda": 64}  # slices, or windows; halved as often as memory asks


class Scanned(Protocol):
    """Raw data of a whole stack; `Measured` itself, or what reads the slices when they are wanted."""

    def at(self, index: Sequence[int]) -> Measured: ...


class Kept(Protocol):
    """Slices that are finished, kept on disk for work that is stopped and goes on."""

    def read(self, z: int) -> tuple[Tensor, Tensor] | None:
        """mean_MHW and sd_MHW of a finished slice, or MDHW of a window."""

    def write(self, slices: Sequence[int], mean_BMHW: Tensor, sd_BMHW: Tensor) -> None: ...


Take: TypeAlias = Callable[[Sequence[int]], Tensor]  # numbers of slices, or windows -> their images as a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """How a subject is filled in: all but its images."""

    sampler: Sampler
    keys: tuple[str | int, ...]  # of the noise
    device: torch.device
    measured: Mapping[Modality, Scanned] = field(default_factory=dict)  # of what is not shown; an entry per slice
    clinical: Clinical = field(default_factory=dict)  # for methods that read the chart: what it says ...
    wanted: Collection[Modality] | None = None  # ... and what to make; by default all
    at_once: int | None = None  # slices, or windows
    kept: Kept | None = None
    progress: Progress = unwatched


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """All modalities of a subject on the grid, in [0, 1], 0 in the slices that were not asked for."""

    mean_MDHW: Tensor
    sd_MDHW: Tensor | None  # over the Monte-Carlo samples of each voxel; None for a single sample
    samples: int = 1
    shown: int = 0  # modalities
    calibration: Calibration | None = None  # of these samples

    def slices(self, chosen: Sequence[int]) -> "Filled":
        sd_MDHW = None if self.sd_MDHW is None else self.sd_MDHW[:, chosen]
        return replace(self, mean_MDHW=self.mean_MDHW[:, chosen], sd_MDHW=sd_MDHW)

    def half_widths(self, row: int, modality: Modality) -> dict[str, Tensor]:
        """Of intervals for nine truths in ten: as the samples tell it, and as it was calibrated."""
        if self.sd_MDHW is None:
            return {}
        found = {COVERED: uncalibrated(self.sd_MDHW[row], self.samples)}
        if self.calibration is not None and self.calibration.knows(modality, self.shown):
            found[CALIBRATED] = self.calibration.half_width(modality, self.shown, self.sd_MDHW[row])
        return found


def fill(model: Model, images_MDHW: Tensor, shown_M: Tensor, slices: Sequence[int], how: Filling) -> Filled:
    """Monte-Carlo mean and spread of every modality, the shown ones too (raw reconstructions)."""
    if how.measured and not isinstance(model.method, Restores):
        raise DataError(
            f"model {model.name}: works from images only; raw data of {', '.join(how.measured)} need {TAKE_RAW}"
        )
    shown_MDHW = torch.where(shown_M[:, None, None, None], images_MDHW, 0.0)
    samples = _Samples(model=model, net=model.net.to(how.device), shown_M=shown_M, how=how)
    return (_by_windows if model.method.slab > 1 else _by_slices)(samples, shown_MDHW, slices)


def _by_slices(samples: "_Samples", shown_MDHW: Tensor, slices: Sequence[int]) -> Filled:
    mean_MDHW = torch.zeros(shown_MDHW.shape, dtype=torch.float32)
    sd_MDHW = torch.zeros_like(mean_MDHW)
    for z, mean_MHW, sd_MHW in _each(samples, slices, "slice", lambda some: shown_MDHW[:, some].transpose(0, 1)):
        mean_MDHW[:, z], sd_MDHW[:, z] = mean_MHW, sd_MHW
    return samples.filled(mean_MDHW, sd_MDHW)


def _by_windows(samples: "_Samples", shown_MDHW: Tensor, slices: Sequence[int]) -> Filled:
    """Windows one after the other, those that see nothing left out; added in their order, whoever made them."""
    model, sampler = samples.model, samples.how.sampler
    size_DHW = (model.method.slab, model.grid.height, model.grid.width)
    every = lay(shown_MDHW.shape[1:], (min(slices), max(slices) + 1), size_DHW, sampler.stride) if slices else []
    windows = [at for at in every if bool(cut(shown_MDHW, at, size_DHW).any())]
    mean_MDHW = torch.zeros(shown_MDHW.shape, dtype=torch.float32)
    spread_MDHW = torch.zeros_like(mean_MDHW) if sampler.samples > 1 else None
    blend = Blend(mean_MDHW=mean_MDHW, variance_MDHW=spread_MDHW, size_DHW=size_DHW)

    def take(some: Sequence[int]) -> Tensor:
        return torch.stack([cut(shown_MDHW, windows[w], size_DHW) for w in some])

    for w, *made in _each(samples, range(len(windows)), "slab", take):
        blend.add(windows[w], *made)
    return samples.filled(mean_MDHW, None if spread_MDHW is None else spread_MDHW.sqrt())


def _each(samples: "_Samples", numbers: Sequence[int], what: str, take: Take) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number, mean and sd of each, in their order: as it was kept, or made now."""
    kept = samples.how.kept
    todo = [z for z in numbers if kept is None or kept.read(z) is None]
    made, missing = _batches(samples, todo, len(numbers), what, take), set(todo)
    for z in numbers:
        found = kept.read(z) if kept is not None and z not in missing else None
        yield next(made) if found is None else (z, *found)


def _batches(
    samples: "_Samples", todo: Sequence[int], total: int, what: str, take: Take
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number, mean and sd of each that is to do; a batch that does not fit into memory is tried again in halves."""
    how, done = samples.how, 0
    size = how.at_once or AT_ONCE.get(how.device.type, 8)
    while done < len(todo):
        chosen = todo[done : done + size]
        try:
            mean, sd = samples.moments(take(chosen), chosen, together=max(1, size // len(chosen)))
        except torch.OutOfMemoryError:
            if size == 1:
                raise DataError(
                    f"grid {samples.model.grid.name}: one {what} does not fit into the memory of {how.device}"
                ) from None
            size = max(1, size // 2)
            continue
        if how.kept is not None:
            how.kept.write(chosen, mean, sd)
        done += len(chosen)
        how.progress(total - len(todo) + done, total)
        yield from zip(chosen, mean, sd, strict=True)


# --- samples of a batch ---------------------------------------------------------------------------------------------

Numbers: TypeAlias = Sequence[int]  # of the slices, or windows, of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """Monte-Carlo samples of slices or windows of one subject (images B M H W, or B M D H W)."""

    model: Model
    net: nn.Module
    shown_M: Tensor
    how: Filling

    def filled(self, mean_MDHW: Tensor, sd_MDHW: Tensor | None) -> Filled:
        n = self.how.sampler.samples
        shown = int(self.shown_M.sum())
        return Filled(mean_MDHW=mean_MDHW, sd_MDHW=sd_MDHW if n > 1 else None, samples=n, shown=shown)

    def moments(self, images_BMHW: Tensor, numbers: Numbers, *, together: int) -> tuple[Tensor, Tensor]:
        """Mean and sd over samples, by Welford's recurrence: memory does not grow with their number. Of samples in
        mirrored pairs the mean is known, so that their squares are not one too few.

        `together`: so many samples are drawn side by side, where one by one would leave the device idle.
        """
        images_BMHW = images_BMHW.to(self.how.device)
        mean = torch.zeros(images_BMHW.shape, dtype=torch.float64, device=self.how.device)
        squares = torch.zeros_like(mean)
        charted = isinstance(self.model.method, ReadsChart)
        samples = self._charted(images_BMHW, numbers, together) if charted else self._plain(images_BMHW, numbers)
        for k, made_BMHW in enumerate(samples):
            from_mean = made_BMHW - mean
            mean += from_mean / (k + 1)
            squares += from_mean * (made_BMHW - mean)
        spread = squares.clamp(min=0).sqrt() / math.sqrt(max(1, calibration.squares(self.how.sampler.samples)))
        return mean.float().cpu(), spread.float().cpu()

    def _noise(self, numbers: Numbers, *samples: int) -> Noise:
        """Samples come in pairs whose noise is each other's mirror image: what answers to noise linearly leaves their
        mean, and a mean of a few samples is nearly that of many.
        """
        return [self._own_noise(z, k) for k in samples for z in numbers]

    def _own_noise(self, z: int, sample: int) -> torch.Generator | Mirror:
        drawn = generator(self.how.device, *self.how.keys, z, sample - sample % 2)
        return Mirror(drawn) if sample % 2 else drawn

    def _charted(self, images_BMHW: Tensor, numbers: Numbers, together: int) -> Iterator[Tensor]:
        """By a method that hears the chart: a few samples side by side."""
        method, B = self.model.method, len(images_BMHW)
        assert isinstance(method, ReadsChart)
        for first in range(0, self.how.sampler.samples, together):
            few = range(first, min(first + together, self.how.sampler.samples))
            with torch.no_grad():
                made = method.synthesize(
                    self.net,
                    images_BMHW.repeat(len(few), 1, 1, 1, 1),
                    self._shown(B * len(few)),
                    self.how.sampler,
                    self._noise(numbers, *few),
                    clinical=[self.how.clinical] * (B * len(few)),
                    wanted=self.how.wanted,
                )
            yield from torch.split(made.double(), B)

    def _plain(self, images_BMHW: Tensor, numbers: Numbers) -> Iterator[Tensor]:
        raw = {m: known.at(numbers).to(self.how.device) for m, known in self.how.measured.items()}
        for k in range(self.how.sampler.samples):
            with torch.no_grad():
                made = self._sample(images_BMHW, raw, numbers, k)
            yield made.double()

    def _sample(self, images_BMHW: Tensor, raw: Mapping[Modality, Measured], numbers: Numbers, k: int) -> Tensor:
        """Sample k of every slice."""
        method, sampler, shown_BM = self.model.method, self.how.sampler, self._shown(len(images_BMHW))
        if not isinstance(method, Restores) or not (raw or shown_BM.any()):
            return method.synthesize(self.net, images_BMHW, shown_BM, sampler, self._noise(numbers, k))
        known = [
            raw[m] if m in raw else clean(images_BMHW[:, i]) if shown_BM[0, i] else none()
            for i, m in enumerate(self.model.modalities)
        ]
        made_BMHW = images_BMHW.float().clone()
        for silent, rows in passes(self.model, [i for i, one in enumerate(known) if one.kind != "none"]):
            noise = self._noise(numbers, k)  # the same in every pass
            made = method.restore(self.net, known, sampler, noise, like_BMHW=images_BMHW, silent=silent)
            made_BMHW[:, list(rows)] = made[:, list(rows)]
        return torch.where(shown_BM[:, :, None, None], images_BMHW, made_BMHW)

    def _shown(self, batch: int) -> Tensor:
        return self.shown_M.to(self.how.device).expand(batch, -1)
