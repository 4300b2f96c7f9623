"""The local loop: batches in, delta out. A site's round and central pretraining are the same code.

Under torchrun every process draws its own part of each batch, and gradients and counts are pooled over processes.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared.base.errors import ConfigError, RunFailed
from shared.base.options import require
from shared.base.owners import named, take
from shared.base.randomness import generator
from shared.base.records import Batch, Owners
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
            before_any = watch if step else {f"{name}_before": value for name, value in result.watch.items()}
            watch = {**before_any, **result.watch}
            if on_step is not None:
                on_step(step, losses[-1])
    counts = _pooled(counts, device)
    counts.pop(LOCAL, None)
    return Trained(
        delta=delta_of(trainable, before, owners, counts),
        counts=counts,
        loss=sum(losses) / max(len(losses), 1),
        samples=len(losses) * options.batch,
        seconds=time.monotonic() - started,
        watch=watch,
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
