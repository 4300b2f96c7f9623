"""The local loop: batches in, delta out. A site's round and central pretraining are the same code.

Under torchrun every process draws its own part of each batch, and gradients and counts are pooled over processes.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared.base.errors import ConfigError, RunFailed
from shared.base.options import require
from shared.base.owners import held_index, named, take
from shared.base.randomness import generator
from shared.base.records import Batch, Cut, Owners
from shared.base.vocabulary import LOCAL, Owner
from shared.data.slices import prefetch
from shared.methods import Method
from shared.methods.threads import threads

ALL_THREADS = torch.get_num_threads()

Draw = Callable[[int, torch.Generator], Batch]  # (batch size, generator on the CPU) -> batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTraining:
    """How one phase is trained; the same numbers at every site."""

    rounds: int
    steps: int  # local steps in a round
    batch: int
    lr: float
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    clip: float = 1.0  # gradient norm; 0 is off
    decay: Literal["none", "cosine"] = "none"  # of lr over the rounds of the phase
    prox: float = 0.0  # FedProx: mu/2 * |w - w_round|^2 added to the loss
    ema: float = 0.999  # per local step, kept by the server; 0 is off

    def __post_init__(self) -> None:
        for key in ("rounds", "steps", "batch"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")
        require(self.lr > 0, "lr", self.lr, "above 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(self.clip >= 0, "clip", self.clip, "0 or more")
        require(self.prox >= 0, "prox", self.prox, "0 or more")
        require(0 <= self.ema < 1, "ema", self.ema, "in [0, 1)")

    @property
    def samples(self) -> int:
        """That a round's update is of, with all of its owners."""
        return self.steps * self.batch

    def lr_at(self, round: int) -> float:
        """From lr down to a twentieth of it along a half cosine."""
        if self.decay == "none" or self.rounds == 1:
            return self.lr
        return self.lr * (0.05 + 0.95 * (1 + math.cos(math.pi * round / (self.rounds - 1))) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a round of local training gave; `counts` are samples that actually gave gradient to each owner."""

    delta: dict[str, Tensor]  # owned slices only
    counts: dict[Owner, int]
    loss: float
    samples: int
    seconds: float
    watch: dict[str, float] = field(default_factory=dict)  # of the last step; and of the first, as NAME_before
    people: dict[Owner, int] = field(default_factory=dict)  # of whom those samples were; stays at the site

    def without(self, few: Collection[Owner], owners: Owners) -> "Trained":
        """As if these owners had got no gradient: their counts are 0, and their slices are not in the delta."""
        held = [owner for owner, n in self.counts.items() if n > 0]
        kept = [owner for owner in held if owner not in few]
        delta = {}
        for name, value in self.delta.items():
            owner = owners[name]
            if isinstance(owner, Cut):  # of which the held slices are there
                owner = Cut(dim=owner.dim, owners=tuple(owner.owners[i] for i in held_index(owner, held).tolist()))
            if (part := take(value, owner, kept)) is not None:
                delta[name] = part
        counts = {owner: 0 if owner in few else n for owner, n in self.counts.items()}
        return replace(self, delta=delta, counts=counts)


def train(
    method: Method,
    net: nn.Module,
    draw: Draw,
    *,
    phase: str,
    options: PhaseTraining,
    owners: Owners,
    round: int,
    seed: tuple[str | int, ...],
    on_step: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train `net` in place for one round, from the weights it has."""
    started, device = time.monotonic(), device_of(net)
    if options.batch % processes():
        raise ConfigError(f"training.{phase}.batch={options.batch}: must be a multiple of the {processes()} processes")
    parameters = dict(net.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in owners)
    trainable = {name: parameters[name] for name in owners}
    before = {name: p.detach().cpu().clone() for name, p in trainable.items()}
    anchor = {name: p.detach().clone() for name, p in trainable.items()} if options.prox else {}
    optimizer = optimizer_of(options, trainable, round, device)
    counts: dict[Owner, int] = dict.fromkeys(sorted(named(owners)), 0)
    people: dict[Owner, set[int]] = {owner: set() for owner in counts}
    losses: list[float] = []
    watch: dict[str, float] = {}
    # each step has its own streams, so nothing depends on how many draws an earlier step made, or when
    rank = [dist.get_rank()] if dist.is_initialized() else []
    keys = [(*seed, phase, round, step, *rank) for step in range(options.steps)]
    drawn = (draw(options.batch // processes(), generator("cpu", *key, "draw")) for key in keys)
    net.train()
    with threads(ALL_THREADS), closing(prefetch(drawn, device)) as batches:
        for step, (key, batch) in enumerate(zip(keys, batches, strict=True)):
            result = method.loss(net, batch, phase, generator(device, *key, "noise"))
            losses.append(_step(result.loss_B.mean(), trainable, anchor, optimizer, options, f"{phase} {round}.{step}"))
            for owner, gave_B in result.gave.items():
                if owner in counts:
                    counts[owner] += int(gave_B.sum())
                    people[owner].update(batch.subject_B[gave_B].tolist())
            before_any = watch if step else {f"{name}_before": value for name, value in result.watch.items()}
            watch = {**before_any, **result.watch}
            if on_step is not None:
                on_step(step, losses[-1])
    counts, people = _pooled(counts, device), _together(people)
    counts.pop(LOCAL, None)
    return Trained(
        delta=delta_of(trainable, before, owners, counts),
        counts=counts,
        loss=sum(losses) / max(len(losses), 1),
        samples=len(losses) * options.batch,
        seconds=time.monotonic() - started,
        watch=watch,
        people={owner: len(who) for owner, who in people.items()},
    )


def _step(
    loss: Tensor,
    trainable: Mapping[str, nn.Parameter],
    anchor: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    options: PhaseTraining,
    where: str,
) -> float:
    """One step downhill; gives the loss without its proximal term."""
    if not torch.isfinite(loss):
        raise RunFailed(f"step {where}: the loss is {loss.item()}; a lower lr may help")
    objective = loss
    for name, value in anchor.items():
        objective = objective + options.prox / 2 * (trainable[name] - value).square().sum()
    objective.backward()  # type: ignore[no-untyped-call]
    _average_over_processes(trainable)
    if options.clip:
        nn.utils.clip_grad_norm_(list(trainable.values()), options.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def pool(method: Method, net: nn.Module, drawn: Iterable[Batch], phase: str) -> dict[str, Tensor]:
    """A phase of kind "sums": fp64 totals over all batches."""
    totals: dict[str, Tensor] = {}
    net.eval()
    with torch.no_grad(), threads(ALL_THREADS), closing(prefetch(drawn, device_of(net))) as batches:
        for batch in batches:
            for name, value in method.sums(net, batch, phase).items():
                totals[name] = totals[name] + value if name in totals else value
    return {name: value.cpu() for name, value in totals.items()}


def device_of(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def find_device(wanted: str) -> torch.device:
    """'auto' is CUDA where it is (this process's own card under torchrun), else the CPU."""
    if wanted != "auto":
        return torch.device(wanted)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = dist.get_rank() if dist.is_initialized() else 0
    return torch.device("cuda", rank % torch.cuda.device_count())


def delta_of(
    trainable: Mapping[str, Tensor], before: Mapping[str, Tensor], owners: Owners, counts: Mapping[Owner, int]
) -> dict[str, Tensor]:
    """New minus old for the slices that got gradient; weight decay on the others is dropped with them."""
    held = [owner for owner, n in counts.items() if n > 0]
    delta: dict[str, Tensor] = {}
    for name, parameter in trainable.items():
        old = before[name]
        part = take(torch.sub(parameter.detach().cpu(), old, out=old), owners[name], held)  # in the memory of the old
        if part is not None:
            delta[name] = part
    return delta


def optimizer_of(
    options: PhaseTraining, trainable: Mapping[str, nn.Parameter], round: int, device: torch.device
) -> torch.optim.Optimizer:
    """Fresh in every round: the state is not kept, so a killed site repeats its round to the same bits."""
    lr = options.lr_at(round)
    parameters: list[dict[str, object]] = [
        {"params": [p for p in trainable.values() if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable.values() if p.ndim <= 1], "weight_decay": 0.0},  # offsets, norms, variances
    ]
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr)
    return torch.optim.AdamW(parameters, lr=lr, fused=device.type == "cuda")


def _average_over_processes(trainable: Mapping[str, nn.Parameter]) -> None:
    if processes() == 1:
        return
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trainable.values()]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= processes()
    for p, part in zip(trainable.values(), torch.split(flat, [g.numel() for g in grads]), strict=True):
        p.grad = part.view_as(p)


def _pooled(counts: dict[Owner, int], device: torch.device) -> dict[Owner, int]:
    if processes() == 1:
        return counts
    totals = torch.tensor(list(counts.values()), device=device)
    dist.all_reduce(totals)
    return dict(zip(counts, totals.tolist(), strict=True))


def _together(people: dict[Owner, set[int]]) -> dict[Owner, set[int]]:
    if processes() == 1:
        return people
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, people)
    return {owner: set().union(*(one[owner] for one in found)) for owner in people}
