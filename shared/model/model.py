"""A trained model in use: any shown modalities of a whole subject in, all modalities out, slice by slice.

The noise of slice z and sample k comes from (keys, z, k) alone: however many slices fit into memory at once, and
however often the work was stopped, the result is the same. A method that can `restore` takes raw measurements too.
A method of slabs goes over the volume in overlapping windows, which are numbered like slices.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.base.errors import ConfigError, DataError
from shared.base.options import build
from shared.base.randomness import Noise, generator
from shared.base.vocabulary import Modality, Weights
from shared.clinical.attach import attach_own
from shared.data.bids import Clinical
from shared.data.volumes import Grid
from shared.diffusion.operators import Measured, clean, none
from shared.diffusion.samplers import Sampler
from shared.methods import METHODS, Method
from shared.model.windows import Blend, cut, lay

AT_ONCE: Mapping[str, int] = {"cpu": 8, "cuda": 64}  # slices, or windows; halved as often as memory asks
KEYS = ("method", "options", "modalities", "grid", "sampler", "provenance")  # of model.json

Progress = Callable[[int, int], None]  # (steps done, steps in all)


@runtime_checkable
class Restores(Protocol):
    """A method that takes raw measurements as well as images."""

    def restore(
        self,
        net: nn.Module,
        measured: Sequence[Measured],
        sampler: Sampler,
        generator: Noise,
        *,
        like_BMHW: Tensor,
        silent: Collection[int] = (),
    ) -> Tensor:
        """All modalities in [0, 1], of the shape and on the device of `like_BMHW`; `silent` ones take no part."""


@runtime_checkable
class ReadsChart(Protocol):
    """A method that hears what is known of a subject beside its images, and makes each modality by itself."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the chart that it hears, where they are known."""

    def synthesize(
        self,
        net: nn.Module,
        images_BMHW: Tensor,
        shown_BM: Tensor,
        sampler: Sampler,
        generator: Noise,
        *,
        clinical: Sequence[Clinical] = (),
        wanted: Collection[Modality] | None = None,
    ) -> Tensor:
        """`clinical`: one record for each sample, or none at all; `wanted`: what to make, by default all."""


class Told(NamedTuple):
    """What a method that reads the chart is told of a subject; others are not."""

    clinical: Clinical
    wanted: Collection[Modality] | None


class Pass(NamedTuple):
    """One joint sample: what takes no part in it, and what is taken from it."""

    silent: tuple[int, ...]
    rows: tuple[int, ...]


class Scanned(Protocol):
    """Raw data of a whole stack; `Measured` itself, or what reads the slices when they are wanted."""

    def at(self, index: Sequence[int]) -> Measured: ...


class Kept(Protocol):
    """Slices that are finished, kept on disk for work that is stopped and goes on."""

    def read(self, z: int) -> tuple[Tensor, Tensor] | None:
        """mean_MHW and sd_MHW of a finished slice, or MDHW of a window."""

    def write(self, slices: Sequence[int], mean_BMHW: Tensor, sd_BMHW: Tensor) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str  # of its method
    method: Method
    net: nn.Module
    grid: Grid
    sampler: Sampler  # what it was validated with
    record: Mapping[str, Any]  # model.json

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return self.method.modalities

    @property
    def patterns(self) -> tuple[frozenset[Modality], ...] | None:
        """Which modalities some training subject had together; None where an older version did not say."""
        found = self.record.get("provenance", {}).get("patterns")
        return None if found is None else tuple(frozenset(pattern) for pattern in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """All modalities of a subject on the grid, in [0, 1], 0 in the slices that were not asked for."""

    mean_MDHW: Tensor
    sd_MDHW: Tensor | None  # over the Monte-Carlo samples of each voxel; None for a single sample


def read_model(folder: Path) -> Model:
    """A released model: weights.safetensors and model.json, as in runs/RUN/final."""
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "weights.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"model {folder}: can't be read: {error}") from None
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise DataError(f"model {folder}: model.json has no {missing[0]}")
    return rebuild(record, weights, f"model {folder}")


def rebuild(record: Mapping[str, Any], weights: Weights, where: str) -> Model:
    """Build the method by its name and options, and load its weights: what is read is numbers and words, never code."""
    name = record["method"]
    if name not in METHODS:
        raise DataError(f"{where}: method={name!r}: this version knows {', '.join(METHODS)}")
    try:
        method: Method = build(METHODS[name], record["options"], "options")
        grid, sampler = build(Grid, record["grid"], "grid"), build(Sampler, record["sampler"], "sampler")
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from None
    if list(method.modalities) != list(record["modalities"]):
        raise DataError(f"{where}: modalities={record['modalities']}: its method says {list(method.modalities)}")
    net = method.build(0)
    try:
        net.load_state_dict(dict(weights))
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise DataError(f"{where}: the weights are not those of {name} with these options: {first[:200]}") from None
    attach_own(net, method)
    net.eval().requires_grad_(False)
    return Model(
        name=name,
        method=method,
        net=net,
        grid=grid,
        sampler=sampler,
        record=record,
    )


def fill(
    model: Model,
    images_MDHW: Tensor,
    shown_M: Tensor,
    *,
    slices: Sequence[int],
    sampler: Sampler,
    keys: tuple[str | int, ...],
    device: torch.device,
    measured: Mapping[Modality, Scanned] | None = None,
    at_once: int | None = None,
    kept: Kept | None = None,
    clinical: Clinical | None = None,
    wanted: Collection[Modality] | None = None,
    progress: Progress | None = None,
) -> Filled:
    """Monte-Carlo mean and spread of every modality, the shown ones too (raw reconstructions).

    `measured`: raw data of modalities that are not shown, one entry per slice of the stack. `clinical` and `wanted`
    are for methods that read the chart: what it says, and what to make.
    """
    if measured and not isinstance(model.method, Restores):
        raise DataError(f"model {model.name}: works from images only; raw data of {', '.join(measured)} need any2all")
    net, told = model.net.to(device), Told(clinical or {}, wanted)
    shown_MDHW = torch.where(shown_M[:, None, None, None], images_MDHW, 0.0)
    if model.method.slab > 1:
        return _fill_by_windows(
            model, net, shown_MDHW, shown_M, told, slices, sampler, keys, device, at_once, kept, progress
        )
    mean_MDHW = torch.zeros(images_MDHW.shape, dtype=torch.float32)
    sd_MDHW = torch.zeros_like(mean_MDHW) if sampler.samples > 1 else None
    todo: list[int] = []
    for z in slices:
        found = kept.read(z) if kept is not None else None
        if found is None:
            todo.append(z)
            continue
        mean_MDHW[:, z] = found[0]
        if sd_MDHW is not None:
            sd_MDHW[:, z] = found[1]
    size, done, before = at_once or AT_ONCE.get(device.type, 8), 0, len(slices) - len(todo)
    while done < len(todo):
        chosen = todo[done : done + size]
        try:
            raw = {m: known.at(chosen).to(device) for m, known in (measured or {}).items()}
            mean_BMHW, sd_BMHW = _sampled(
                model, net, shown_MDHW[:, chosen].transpose(0, 1), shown_M, raw, told, chosen, sampler, keys, device
            )
        except torch.OutOfMemoryError:
            if size == 1:
                raise DataError(f"grid {model.grid.name}: one slice does not fit into the memory of {device}") from None
            size = max(1, size // 2)
            continue
        mean_MDHW[:, chosen] = mean_BMHW.transpose(0, 1)
        if sd_MDHW is not None:
            sd_MDHW[:, chosen] = sd_BMHW.transpose(0, 1)
        if kept is not None:
            kept.write(chosen, mean_BMHW, sd_BMHW)
        done += len(chosen)
        if progress is not None:
            progress(before + done, len(slices))
    return Filled(mean_MDHW=mean_MDHW, sd_MDHW=sd_MDHW)


def _fill_by_windows(
    model: Model,
    net: nn.Module,
    shown_MDHW: Tensor,
    shown_M: Tensor,
    told: Told,
    slices: Sequence[int],
    sampler: Sampler,
    keys: tuple[str | int, ...],
    device: torch.device,
    at_once: int | None,
    kept: Kept | None,
    progress: Progress | None,
) -> Filled:
    """Windows one after the other, those that see nothing left out; added in their order, whoever made them."""
    size_DHW = (model.method.slab, model.grid.height, model.grid.width)
    every = lay(shown_MDHW.shape[1:], (min(slices), max(slices) + 1), size_DHW, sampler.stride) if slices else []
    windows = [at for at in every if bool(cut(shown_MDHW, at, size_DHW).any())]
    mean_MDHW = torch.zeros(shown_MDHW.shape, dtype=torch.float32)
    spread_MDHW = torch.zeros_like(mean_MDHW) if sampler.samples > 1 else None
    blend = Blend(mean_MDHW=mean_MDHW, variance_MDHW=spread_MDHW, size_DHW=size_DHW)
    size, done = at_once or AT_ONCE.get(device.type, 8), 0
    while done < len(windows):
        found = kept.read(done) if kept is not None else None
        if found is not None:
            blend.add(windows[done], *found)
            done += 1
            continue
        chosen = list(range(done, min(done + size, len(windows))))
        images = torch.stack([cut(shown_MDHW, windows[w], size_DHW) for w in chosen])
        try:
            together = max(1, size // len(chosen))
            made = _sampled(model, net, images, shown_M, {}, told, chosen, sampler, keys, device, together)
        except torch.OutOfMemoryError:
            if size == 1:
                raise DataError(f"grid {model.grid.name}: one slab does not fit into the memory of {device}") from None
            size = max(1, size // 2)
            continue
        if kept is not None:
            kept.write(chosen, *made)
        for w, mean, sd in zip(chosen, *made, strict=True):
            blend.add(windows[w], mean, sd)
        done += len(chosen)
        if progress is not None:
            progress(done, len(windows))
    return Filled(mean_MDHW=mean_MDHW, sd_MDHW=None if spread_MDHW is None else spread_MDHW.sqrt())


def passes(model: Model, known: Collection[int]) -> list[Pass]:
    """How to make what is not known, each time among modalities that some training subject had together.

    A prior that never saw all of them at once meets that joint badly (docs/log.md), so the others are silent meanwhile.
    What no pattern holds beside all that is known is made from everything at once, as well as it goes.
    """
    every = set(range(len(model.modalities)))
    patterns = [
        {model.modalities.index(m) for m in p if m in model.modalities} for p in model.patterns or [model.modalities]
    ]
    fitting = [pattern for pattern in patterns if pattern >= set(known)]
    found: list[Pass] = []
    left = every - set(known)
    while fitting:
        best = max(fitting, key=lambda pattern: (len(pattern & left), sorted(every - pattern)))
        if found and not best & left:
            break
        rows = best & left if found else best
        found.append(Pass(silent=tuple(sorted(every - best)), rows=tuple(sorted(rows))))
        left -= best
    if left or not found:
        found.append(Pass(silent=(), rows=tuple(sorted(left if found else every))))
    return found


def _sampled(
    model: Model,
    net: nn.Module,
    images_BMHW: Tensor,
    shown_M: Tensor,
    raw: Mapping[Modality, Measured],
    told: Told,
    slices: Sequence[int],
    sampler: Sampler,
    keys: tuple[str | int, ...],
    device: torch.device,
    together: int = 1,
) -> tuple[Tensor, Tensor]:
    """Mean and sd over samples, by Welford's recurrence: memory does not grow with their number.

    `together`: so many samples are drawn side by side, where one by one would leave the device idle.
    """
    images_BMHW = images_BMHW.to(device)
    shown_BM = shown_M.to(device).expand(len(slices), -1)
    mean = torch.zeros(images_BMHW.shape, dtype=torch.float64, device=device)
    squares = torch.zeros_like(mean)
    for k, made_BMHW in enumerate(
        _samples(model, net, images_BMHW, shown_BM, raw, told, sampler, keys, slices, together)
    ):
        from_mean = made_BMHW - mean
        mean += from_mean / (k + 1)
        squares += from_mean * (made_BMHW - mean)
    spread = squares.clamp(min=0).sqrt() / math.sqrt(max(1, sampler.samples - 1))
    return mean.float().cpu(), spread.float().cpu()


def _samples(
    model: Model,
    net: nn.Module,
    images_BMHW: Tensor,
    shown_BM: Tensor,
    raw: Mapping[Modality, Measured],
    told: Told,
    sampler: Sampler,
    keys: tuple[str | int, ...],
    slices: Sequence[int],
    together: int,
) -> Iterator[Tensor]:
    """The samples in their order."""
    if not isinstance(model.method, ReadsChart):
        for k in range(sampler.samples):
            with torch.no_grad():
                made = _sample(model, net, images_BMHW, shown_BM, raw, sampler, keys, slices, k)
            yield made.double()
        return
    B, device = len(images_BMHW), images_BMHW.device
    for first in range(0, sampler.samples, together):
        few = range(first, min(first + together, sampler.samples))
        noise = [generator(device, *keys, z, k) for k in few for z in slices]
        with torch.no_grad():
            made = model.method.synthesize(
                net,
                images_BMHW.repeat(len(few), 1, 1, 1, 1),
                shown_BM.repeat(len(few), 1),
                sampler,
                noise,
                clinical=[told.clinical] * (B * len(few)),
                wanted=told.wanted,
            )
        yield from torch.split(made.double(), B)


def _sample(
    model: Model,
    net: nn.Module,
    images_BMHW: Tensor,
    shown_BM: Tensor,
    raw: Mapping[Modality, Measured],
    sampler: Sampler,
    keys: tuple[str | int, ...],
    slices: Sequence[int],
    k: int,
) -> Tensor:
    """Sample k of every slice."""
    device = images_BMHW.device
    if not isinstance(model.method, Restores) or not (raw or shown_BM.any()):
        noise = [generator(device, *keys, z, k) for z in slices]
        return model.method.synthesize(net, images_BMHW, shown_BM, sampler, noise)
    known = [
        raw[m] if m in raw else clean(images_BMHW[:, i]) if shown_BM[0, i] else none()
        for i, m in enumerate(model.modalities)
    ]
    made_BMHW = images_BMHW.float().clone()
    for silent, rows in passes(model, [i for i, one in enumerate(known) if one.kind != "none"]):
        noise = [generator(device, *keys, z, k) for z in slices]  # the same in every pass
        made = model.method.restore(net, known, sampler, noise, like_BMHW=images_BMHW, silent=silent)
        made_BMHW[:, list(rows)] = made[:, list(rows)]
    return torch.where(shown_BM[:, :, None, None], images_BMHW, made_BMHW)
