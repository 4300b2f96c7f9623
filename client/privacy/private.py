"""DP-SGD with the subject as the unit (docs/methods/privacy.md, "The engine").

A step charges the budget, then draws subjects by independent coins, then for each one makes an ordinary backward pass
over all its slices and noise draws, clips that one gradient, and adds it to a sum; noise is added once, the sum is
divided by the fixed expected number of subjects. A draw of nobody is charged, noised and stepped like any other.

Nothing here knows the layers of a network, so it is exact for every network that does not carry state from one subject
to the next; those that do are refused by name. Coins and noise come from ChaCha20 under a key of this process alone:
no seed brings them back, and a restart never repeats them.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.base.errors import PlanRefused, RunFailed
from shared.base.owners import named
from shared.base.randomness import generator
from shared.base.records import Batch, Owners
from shared.base.vocabulary import LOCAL, Modality, Owner
from shared.data.slices import Pool
from shared.methods import Method
from shared.methods.threads import threads
from shared.plan.training import ALL_THREADS, PhaseTraining, Trained, delta_of, optimizer_of, processes
from shared.trust.privacy import PrivacyPlan, Query

T = TypeVar("T")
Charge = Callable[[Query], None]  # durable when it returns; raises BudgetSpent

ZEROS = bytes(2**16)  # what the stream of bits is added to
AT_ONCE = 2**14  # pairs of values
MOST_NOISE = 2**22  # values that are held at once
PROBES = 32  # made-up images per pattern that tell which owners a pattern trains


class Entropy(Protocol):
    """Where coins and noise come from."""

    def bits(self, n: int) -> NDArray[np.uint64]: ...


class Secret:
    """A ChaCha20 stream under a key that is drawn from the operating system and kept nowhere."""

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.ChaCha20(os.urandom(32), os.urandom(16)), mode=None).encryptor()

    def bits(self, n: int) -> NDArray[np.uint64]:
        found = np.empty(n, dtype=np.uint64)
        octets = found.data.cast("B")
        for start in range(0, 8 * n, len(ZEROS)):
            part = octets[start : start + len(ZEROS)]
            self._stream.update_into(ZEROS[: len(part)], part)
        return found


def normal(entropy: Entropy, shape: Sequence[int]) -> Tensor:
    """Draw standard normal values in fp32 (Box-Muller; radii from 53 bits, so that tails are there)."""
    n = math.prod(shape)
    half = (n + 1) // 2
    bits = entropy.bits(half + (half + 1) // 2)
    radius_bits, angle_bits = bits[:half], bits[half:].view(np.int32)[:half]
    made = np.empty(2 * half, dtype=np.float32)
    cosines, sines = made[:half], made[half:]
    for start in range(0, half, AT_ONCE):  # so that each line finds the values of the one before in the cache
        part = slice(start, start + AT_ONCE)
        uniform = (radius_bits[part] >> np.uint64(11)).view(np.int64).astype(np.float64)
        uniform += 0.5
        uniform *= 2.0**-53
        np.log(uniform, out=uniform)
        uniform *= -2
        radius = np.sqrt(uniform, out=uniform).astype(np.float32)
        angle = angle_bits[part].astype(np.float32)
        angle *= np.float32(math.pi * 2.0**-31)
        np.multiply(radius, np.cos(angle), out=cosines[part])
        np.multiply(radius, np.sin(angle), out=sines[part])
    return torch.from_numpy(made)[:n].reshape(tuple(shape))


def draw(entropy: Entropy, n: int, rate: float) -> list[int]:
    """Toss a coin for each of n, and give those whose coin fell."""
    coins = (entropy.bits(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return [int(i) for i in np.flatnonzero(coins < rate)]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One private step, whatever is trained: `loss` of a unit gives parts that add up to its loss."""

    plan: PrivacyPlan
    charge: Charge
    entropy: Entropy = field(default_factory=Secret)

    def step(
        self, parameters: Sequence[nn.Parameter], units: Sequence[T], loss: Callable[[T], Iterator[Tensor]]
    ) -> int:
        """Leave the noised mean gradient in `.grad`; give how many units had no finite one, which stays here."""
        query = self.plan.step
        self.charge(query)
        flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
        parts = torch.split(flat, [p.numel() for p in parameters])
        sums = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
        lost = 0
        for i in draw(self.entropy, len(units), query.rate):
            for p in parameters:
                p.grad = None
            for part in loss(units[i]):
                part.backward()  # type: ignore[no-untyped-call]
            there = [(total, p.grad) for total, p in zip(sums, parameters, strict=True) if p.grad is not None]
            lost += not add_clipped([total for total, _ in there], [g for _, g in there], self.plan.clip)
        for some in torch.split(flat, MOST_NOISE):
            noise = normal(self.entropy, some.shape).to(some.device)
            some.add_(noise, alpha=query.noise * self.plan.clip).div_(self.plan.expected)
        for p, total in zip(parameters, sums, strict=True):
            p.grad = total.to(p.dtype)
        return lost


def add_clipped(sums: Sequence[Tensor], gradients: Sequence[Tensor], clip: float) -> bool:
    """Add one unit's gradients, all together no longer than `clip`; False, and nothing added, if not finite."""
    if not gradients:
        return True
    gradients = [g.float() for g in gradients]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).item()
    if not math.isfinite(norm):
        return False
    torch._foreach_add_(list(sums), gradients, alpha=min(1.0, clip / (norm + 1e-6)))
    return True


def train_private(
    method: Method,
    net: nn.Module,
    pool: Pool,
    *,
    phase: str,
    options: PhaseTraining,
    owners: Owners,
    round: int,
    engine: Engine,
    shares: Mapping[Owner, float],
) -> Trained:
    """Train `net` privately for one round. What it gives out holds no loss, no true count, no time."""
    if processes() > 1:
        raise PlanRefused("a private training runs in one process: start it without torchrun")
    check_layers(net)
    started = time.monotonic()
    parameters = dict(net.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in owners)
    trainable = {name: parameters[name] for name in owners}
    before = {name: p.detach().cpu().clone() for name, p in trainable.items()}
    anchor = {name: p.detach().clone() for name, p in trainable.items()} if options.prox else {}
    optimizer = optimizer_of(options, trainable, round, device_of(net))
    loss = _loss_of_units(method, net, pool, phase, engine)
    units = range(pool.units)
    net.train()
    lost = 0
    with threads(ALL_THREADS):
        for _ in range(options.steps):
            lost += engine.step(list(trainable.values()), units, loss)
            for name, value in anchor.items():
                gradient = trainable[name].grad
                assert gradient is not None
                gradient.add_(trainable[name].detach() - value, alpha=options.prox)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    for name, p in trainable.items():
        if not bool(torch.isfinite(p).all()):
            raise RunFailed(f"phase {phase}: {name} is not finite after a private round; a lower lr may help")
    samples = options.steps * options.batch
    counts = {
        owner: max(1, round_half_up(shares[owner] * samples))
        for owner in sorted(named(owners))
        if owner != LOCAL and shares.get(owner, 0.0) > 0
    }
    return Trained(
        delta=delta_of(trainable, before, owners, counts),
        counts=counts,
        loss=math.nan,  # stays here: a loss is a look at the data
        samples=samples,  # as many as the plan says, not as many as were drawn
        seconds=time.monotonic() - started,
        watch={"lost": float(lost)},
    )


def _loss_of_units(
    method: Method, net: nn.Module, pool: Pool, phase: str, engine: Engine
) -> Callable[[int], Iterator[Tensor]]:
    """A subject's loss in parts of so many rows as the plan says, of slices and noise of its own."""
    plan, device = engine.plan, device_of(net)
    least = least_rows(net, device)

    def loss(unit: int) -> Iterator[Tensor]:
        seed = int(engine.entropy.bits(1)[0] >> np.uint64(1))
        batch = pool.unit(unit, plan.slices, torch.Generator().manual_seed(seed))
        noise = torch.Generator(device).manual_seed(seed ^ 1)
        draws = max(plan.draws, math.ceil(least / len(batch)))
        whole = len(batch) * draws
        for part in _parts(batch, draws, plan.rows or whole, least):
            part = part.to(device)
            yield method.loss(net, part, phase, noise).loss_B.sum() / whole

    return loss


def device_of(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def sum_private(
    method: Method, net: nn.Module, pool: Pool, phase: str, *, engine: Engine, rows: int
) -> dict[str, Tensor]:
    """A phase of kind "sums": every subject's mean sums, clipped together to one norm, added up, and noised once."""
    plan, query = engine.plan, engine.plan.sums
    engine.charge(query)
    totals: dict[str, Tensor] = {}
    net.eval()
    with torch.no_grad(), threads(ALL_THREADS):
        for unit in range(pool.units):
            own: dict[str, Tensor] = {}
            slices = 0
            for batch in pool.unit_in_order(unit, rows):
                slices += len(batch)
                for name, value in method.sums(net, batch, phase).items():
                    own[name] = own[name] + value if name in own else value.double()
            if not totals:
                totals = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in sorted(own.items())}
            add_clipped(list(totals.values()), [own[name] / slices for name in totals], plan.sums_clip)
    sd = query.noise * plan.sums_clip
    return {name: (total + sd * normal(engine.entropy, total.shape)).double() for name, total in totals.items()}


def shares_of(
    method: Method, net: nn.Module, phase: str, patterns: Sequence[tuple[Modality, ...]], height: int, width: int
) -> dict[Owner, float]:
    """Which part of the samples trains each owner, from made-up images with the site's public patterns alone."""
    device = device_of(net)
    found: dict[Owner, float] = {}
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    net.train()
    with torch.no_grad():
        for number, pattern in enumerate(patterns):
            made = generator("cpu", "shares", phase, number)
            depth = (method.slab,) if method.slab > 1 else ()
            images = torch.rand(PROBES, len(method.modalities), *depth, height, width, generator=made)
            exists_BM = torch.tensor([[m in pattern for m in method.modalities]] * PROBES)
            batch = Batch(
                images_BMHW=images * exists_BM.reshape(PROBES, -1, *[1] * (images.ndim - 2)),
                exists_BM=exists_BM,
                shown_BM=exists_BM.clone(),
                subject_B=torch.zeros(PROBES, dtype=torch.int64),
                clinical=({},) * PROBES,
            )
            noise = generator(device, "shares", phase, number, "noise")
            for part in _parts(batch, 1, 8):
                for owner, gave_B in method.loss(net, part.to(device), phase, noise).gave.items():
                    found[owner] = found.get(owner, 0.0) + float(gave_B.sum()) / (PROBES * len(patterns))
    for name, value in net.named_buffers():
        if not torch.equal(value, buffers[name]):
            raise PlanRefused(
                f"{name}: changes while the network looks at images, so it would carry one subject's state to the next "
                "and out of the site; a private training can't have it"
            )
    return found


def check_layers(net: nn.Module) -> None:
    """Refuse networks with layers whose state or output mixes subjects."""
    for name, module in net.named_modules():
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm)
        tracks = isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats
        if mixes or tracks:
            raise PlanRefused(
                f"{name or 'the network'}: {type(module).__name__} keeps statistics over subjects, which leave without "
                "noise; a private training needs GroupNorm or LayerNorm there"
            )


def round_half_up(value: float) -> int:
    return math.floor(value + 0.5)


def least_rows(net: nn.Module, device: torch.device) -> int:
    """How few rows may go in at once: on a CPU a 3D convolution of one row is nine times slower than of two."""
    return 2 if device.type == "cpu" and any(isinstance(m, nn.Conv3d) for m in net.modules()) else 1


def _parts(batch: Batch, draws: int, rows: int, least: int = 1) -> Iterator[Batch]:
    """Give every slice `draws` times, in parts of about `rows` rows and never fewer than the least."""
    order = torch.arange(len(batch)).repeat_interleave(draws)
    count = max(1, min(math.ceil(len(order) / rows), len(order) // least))
    for index in torch.tensor_split(order, count):
        yield dataclasses.replace(
            batch,
            images_BMHW=batch.images_BMHW[index],
            exists_BM=batch.exists_BM[index],
            shown_BM=batch.shown_BM[index],
            subject_B=batch.subject_B[index],
            clinical=tuple(batch.clinical[i] for i in index.tolist()) if batch.clinical else (),
        )
