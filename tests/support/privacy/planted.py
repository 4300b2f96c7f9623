"""The private step with one thing wrong: what the audit is there to catch. Never part of the product.

`Pieces` is the real step cut into pieces (a test holds it to the same bits); each planted engine puts one piece wrong.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.privacy.private import Charge, Engine, Entropy, add_clipped, draw, normal
from shared.base.errors import BudgetSpent
from shared.trust.privacy import PrivacyPlan


class Pieces(Engine):
    def step(self, parameters: Sequence[nn.Parameter], units: Sequence[Any], loss: Any) -> int:
        self.begin()
        drawn = self.who(len(units))
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        lost = 0
        for i in drawn:
            for p in parameters:
                p.grad = None
            lost += not self.add(sums, parameters, loss(units[i]))
        self.release(parameters, sums, len(drawn))
        return lost

    def begin(self) -> None:
        self.charge(self.plan.step)

    def who(self, n: int) -> list[int]:
        return draw(self.entropy, n, self.plan.step.rate)

    def add(self, sums: list[Tensor], parameters: Sequence[nn.Parameter], parts: Iterable[Tensor]) -> bool:
        for part in parts:
            part.backward()
        return self.clipped(sums, parameters)

    def clipped(self, sums: list[Tensor], parameters: Sequence[nn.Parameter]) -> bool:
        there = [(total, p.grad) for total, p in zip(sums, parameters, strict=True) if p.grad is not None]
        return add_clipped([total for total, _ in there], [g for _, g in there], self.plan.clip)

    def release(self, parameters: Sequence[nn.Parameter], sums: list[Tensor], drawn: int) -> None:
        sizes = [total.numel() for total in sums]
        noises = normal(self.entropy, (sum(sizes),)).split(sizes)
        for p, total, noise in zip(parameters, sums, noises, strict=True):
            p.grad = (total + self.sd() * self.noise(noise.view_as(total))) / self.divisor(drawn)

    def sd(self) -> float:
        return self.plan.step.noise * self.plan.clip

    def noise(self, made: Tensor) -> Tensor:
        return made

    def divisor(self, drawn: int) -> float:
        return self.plan.expected


class Keyed:
    """A seed that everyone shares."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def bits(self, n: int) -> NDArray[np.uint64]:
        return self._rng.integers(0, 2**64, n, dtype=np.uint64)


# --- the twelve of docs/methods/privacy.md, "The planted bugs" ------------------------------------------------------


class NoNoise(Pieces):
    def noise(self, made: Tensor) -> Tensor:
        return torch.zeros_like(made)


class TooLittleNoise(Pieces):
    """As if the noise were meant for the mean of so many, and each gave its part."""

    def sd(self) -> float:
        return super().sd() / math.sqrt(self.plan.expected)


class ClipAfterMean(Pieces):
    def clipped(self, sums: list[Tensor], parameters: Sequence[nn.Parameter]) -> bool:
        for total, p in zip(sums, parameters, strict=True):
            if p.grad is not None:
                total += p.grad
        return True

    def release(self, parameters: Sequence[nn.Parameter], sums: list[Tensor], drawn: int) -> None:
        means = [total / max(drawn, 1) for total in sums]
        sums = [torch.zeros_like(total) for total in sums]
        add_clipped(sums, means, self.plan.clip)
        super().release(parameters, [total * max(drawn, 1) for total in sums], drawn)


class ClipPerSlice(Pieces):
    def add(self, sums: list[Tensor], parameters: Sequence[nn.Parameter], parts: Iterable[Tensor]) -> bool:
        ok = True
        for part in parts:
            for p in parameters:
                p.grad = None
            part.backward()
            ok &= self.clipped(sums, parameters)
        return ok


class ClipPerLayer(Pieces):
    def clipped(self, sums: list[Tensor], parameters: Sequence[nn.Parameter]) -> bool:
        there = [(total, p.grad) for total, p in zip(sums, parameters, strict=True) if p.grad is not None]
        return min(map(bool, [add_clipped([total], [g], self.plan.clip) for total, g in there]), default=True)


class SameSeedAtSites(Pieces):
    def __init__(self, *, plan: PrivacyPlan, charge: Charge, entropy: Entropy) -> None:
        super().__init__(plan=plan, charge=charge, entropy=Keyed())


class SameNoiseEachStep(Pieces):
    """The noise comes back with a checkpoint; the coins do not."""

    def release(self, parameters: Sequence[nn.Parameter], sums: list[Tensor], drawn: int) -> None:
        again = dataclasses.replace(self, entropy=Keyed())
        Pieces.release(again, parameters, sums, drawn)


class NotCharged(Pieces):
    def begin(self) -> None:
        pass


class ChargedAfter(Pieces):
    def begin(self) -> None:
        pass

    def release(self, parameters: Sequence[nn.Parameter], sums: list[Tensor], drawn: int) -> None:
        super().release(parameters, sums, drawn)
        self.charge(self.plan.step)


class EmptySkipped(Pieces):
    def step(self, parameters: Sequence[nn.Parameter], units: Sequence[Any], loss: Any) -> int:
        drawn = self.who(len(units))
        if not drawn:
            return 0
        fixed = dataclasses.replace(self)
        object.__setattr__(fixed, "who", lambda n: drawn)
        return Pieces.step(fixed, parameters, units, loss)


class DividesByDrawn(Pieces):
    def divisor(self, drawn: int) -> float:
        return float(max(drawn, 1))


class Shuffled(Pieces):
    """Everyone once an epoch, so many at a time, charged as if by coins."""

    def who(self, n: int) -> list[int]:
        queue: list[int] = self.__dict__.setdefault("queue", [])
        size = max(1, round(n * self.plan.step.rate))
        while len(queue) < size:
            queue.extend(np.argsort(self.entropy.bits(n + 1)[:n]).tolist())
        drawn = sorted(set(queue[:size]))
        del queue[:size]
        return drawn


# --- more of the kind -----------------------------------------------------------------------------------------------


class NonFiniteAdded(Pieces):
    def clipped(self, sums: list[Tensor], parameters: Sequence[nn.Parameter]) -> bool:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        for total, g in zip(sums, grads, strict=True):
            total += g * min(1.0, self.plan.clip / (norm + 1e-6))
        return True


class GradientsNotReset(Pieces):
    """Each subject's gradient holds those of the ones before it."""

    def step(self, parameters: Sequence[nn.Parameter], units: Sequence[Any], loss: Any) -> int:
        self.begin()
        sums = [torch.zeros_like(p) for p in parameters]
        drawn = self.who(len(units))
        for i in drawn:
            self.add(sums, parameters, loss(units[i]))
        self.release(parameters, sums, len(drawn))
        return 0


class Remembers(Pieces):
    """A momentum before the noise: a subject goes on to count in steps that did not draw it."""

    def release(self, parameters: Sequence[nn.Parameter], sums: list[Tensor], drawn: int) -> None:
        before = self.__dict__.get("before", [torch.zeros_like(total) for total in sums])
        kept = [0.5 * old + 0.5 * total for old, total in zip(before, sums, strict=True)]
        self.__dict__["before"] = kept
        super().release(parameters, kept, drawn)


class DrawTruncated(Pieces):
    """A cap for memory."""

    def who(self, n: int) -> list[int]:
        return super().who(n)[: max(1, round(n * self.plan.step.rate))]


class DrawnWithReplacement(Pieces):
    def who(self, n: int) -> list[int]:
        picks = self.entropy.bits(n)[: max(1, round(n * self.plan.step.rate))]
        return [int(b) for b in picks % np.uint64(max(n, 1))] if n else []


class ChargedForMoreNoise(Pieces):
    def begin(self) -> None:
        self.charge(dataclasses.replace(self.plan.step, noise=2 * self.plan.step.noise))


class RefusalIgnored(Pieces):
    def begin(self) -> None:
        with suppress(BudgetSpent):
            super().begin()


class OneNoiseForLayersOfOneShape(Pieces):
    def release(self, parameters: Sequence[nn.Parameter], sums: list[Tensor], drawn: int) -> None:
        noises = {total.shape: normal(self.entropy, total.shape) for total in sums}
        for p, total in zip(parameters, sums, strict=True):
            p.grad = (total + self.sd() * noises[total.shape]) / self.divisor(drawn)


class NoNoiseOnOffsets(Pieces):
    def noise(self, made: Tensor) -> Tensor:
        return made * (made.ndim > 0)


class UniformNoise(Pieces):
    """As wide as it should be, with no tails."""

    def noise(self, made: Tensor) -> Tensor:
        return (torch.special.ndtr(made) - 0.5) * math.sqrt(12)


CAUGHT_BY: Mapping[type[Pieces], tuple[str, ...]] = {
    NoNoise: ("noise", "sites", "one_run"),
    TooLittleNoise: ("noise", "one_run"),
    ClipAfterMean: ("sensitivity",),
    ClipPerSlice: ("sensitivity",),
    ClipPerLayer: ("sensitivity",),
    SameSeedAtSites: ("sites", "one_run"),
    SameNoiseEachStep: ("noise", "sites", "one_run"),
    NotCharged: ("ledger",),
    ChargedAfter: ("ledger",),
    EmptySkipped: ("noise", "sites", "ledger"),
    DividesByDrawn: ("sensitivity", "noise"),
    Shuffled: ("sampling",),
}
MORE_CAUGHT_BY: Mapping[type[Pieces], tuple[str, ...]] = {
    NonFiniteAdded: ("sensitivity",),
    GradientsNotReset: ("sensitivity",),
    Remembers: ("sensitivity",),
    DrawTruncated: ("sampling",),
    DrawnWithReplacement: ("sampling",),
    ChargedForMoreNoise: ("ledger",),
    RefusalIgnored: ("ledger",),
    OneNoiseForLayersOfOneShape: ("noise",),
    NoNoiseOnOffsets: ("noise",),
    UniformNoise: ("noise",),
}
