"""Numbers of an update or a step in few bits: a whole number times a power of two, the same at both ends.

    bfloat16   a plain cast
    int8       q in -127..127, a byte each
    int4       q in -7..7, two to a byte, the first in the lower half; kept as q + 8, so that 0 is never one

What q means is q * 2^k, exact in fp32; k is the tensor's, and lies within bounds that any honest number keeps.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shared.base.disk.tensors import Lying, Memory, Source, WorkedOut, bytes_of, forms
from shared.base.vocabulary import Weights

Bits = Literal["fp32", "bf16", "int8", "int4"]  # of an update
Step = Literal["fp32", "int8"]  # of weights: all of them, or what a round changed
MOST = {"int8": 127, "int4": 7}
LEAST_EXPONENT, MOST_EXPONENT = -100, 20
BFLOAT16 = "bfloat16"
CODES = (BFLOAT16, *MOST)
_BITS = {BFLOAT16: 16, "int8": 8, "int4": 4}
_NOUGHT = 8  # of int4, where q is 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded(Lying):
    """A tensor of few bits that lies somewhere; whoever reads it gets what it means, in fp32."""

    code: str
    exponent: int = 0

    @property
    def nbytes(self) -> int:
        return size(self.code, math.prod(self.shape))

    def read(self) -> Tensor:
        if self.code == BFLOAT16:
            return self._bytes(torch.bfloat16, math.prod(self.shape)).float().reshape(self.shape)
        return meant(self.whole(), self.exponent)

    def whole(self) -> Tensor:
        """The whole numbers themselves."""
        n = math.prod(self.shape)
        raw = self._bytes(torch.uint8 if self.code == "int4" else torch.int8, self.nbytes)
        if self.code == "int4":
            raw = torch.stack([raw & 15, raw >> 4], dim=1).flatten()[:n].to(torch.int8) - _NOUGHT
        return raw.reshape(self.shape)

    def raw(self) -> memoryview:
        """Its bytes."""
        return bytes_of(self._bytes(torch.uint8, self.nbytes))

    def stray(self) -> bool:
        """Does it say what nobody writes: a number out of its range, or one in the half byte that is left over?"""
        if self.code == BFLOAT16:
            return False
        n = math.prod(self.shape)
        if self.code == "int8":
            return bool((self.whole() < -MOST["int8"]).any())
        raw = self._bytes(torch.uint8, self.nbytes)
        left = bool(n % 2) and int(raw[-1]) >> 4 != _NOUGHT
        return left or bool(((raw & 15) == 0).any()) or bool(((raw >> 4) == 0).any())

    def _bytes(self, dtype: torch.dtype, n: int) -> Tensor:
        value = torch.empty(n, dtype=dtype)
        if n:
            self.source.fill(self.at, bytes_of(value))
        return value


def size(code: str, n: int) -> int:
    """Bytes of so many numbers."""
    return -(-n * _BITS[code] // 8)


def lying(source: Source, at: int, code: str, shape: list[int], *said: object) -> Coded:
    """One as a message lists it; ValueError for a list that nobody writes."""
    if len(said) != (code != BFLOAT16):
        raise ValueError(f"{code} with the exponents {said}: {BFLOAT16} has none, the others have one")
    k = exponent(said[0]) if said else 0
    return Coded(source=source, at=at, dtype=torch.float32, shape=torch.Size(shape), code=code, exponent=k)


def exponent(value: object) -> int:
    if type(value) is not int or not LEAST_EXPONENT <= value <= MOST_EXPONENT:
        raise ValueError(f"exponent {str(value)[:40]} must be a whole number of {LEAST_EXPONENT} to {MOST_EXPONENT}")
    return value


def listed(entry: Coded) -> list[object]:
    """What a message's list says of it beside its name."""
    return [entry.code, list(entry.shape), *([] if entry.code == BFLOAT16 else [entry.exponent])]


def kind(form: Tensor | Lying) -> str:
    return form.code if isinstance(form, Coded) else str(form.dtype).removeprefix("torch.")


# --- to few bits and back -------------------------------------------------------------------------------------------


def cast(value: Tensor) -> Coded:
    """As bf16."""
    return _held(value.to(torch.bfloat16).contiguous(), value.shape, BFLOAT16, 0)


def quantised(value: Tensor, code: str, exponent: int) -> Tensor:
    """The nearest whole numbers of 2^exponent; what is out of range is cut off at its end."""
    most = MOST[code]
    return (value.double() * 2.0**-exponent).round_().clamp_(-most, most).to(torch.int8)


def meant(whole: Tensor, exponent: int) -> Tensor:
    return whole.float().mul_(2.0**exponent)


def encoded(whole: Tensor, code: str, exponent: int) -> Coded:
    flat = whole.contiguous()
    if code == "int4":
        halves = torch.full((2 * size(code, whole.numel()),), _NOUGHT, dtype=torch.uint8)
        halves[: whole.numel()] = (flat.flatten() + _NOUGHT).to(torch.uint8)
        flat = halves[0::2] | (halves[1::2] << 4)
    return _held(flat, whole.shape, code, exponent)


def exponent_for(largest: float, code: str) -> int:
    """The least at which a number so large is not cut off."""
    mantissa, exponent = math.frexp(largest / MOST[code])
    least = exponent - 1 if mantissa == 0.5 else exponent
    return min(max(least if largest else LEAST_EXPONENT, LEAST_EXPONENT), MOST_EXPONENT)


def by_name(scales: Sequence[int | None], names: Iterable[str]) -> dict[str, int]:
    """Exponents as a plan lists them, in the order of names; without those that are not said."""
    return {name: k for name, k in zip(sorted(names), scales, strict=bool(scales)) if k is not None}


def listed_by(scales: Mapping[str, int], names: Iterable[str]) -> tuple[int | None, ...]:
    return tuple(scales.get(name) for name in sorted(names)) if scales else ()


def stepped(before: Weights, sent: Weights) -> Weights:
    """Weights after what was sent of them: a step of few bits on what stood, or a tensor as it now is."""

    def after(name: str) -> Tensor:
        if name not in sent:
            return before[name]
        return before[name] + sent[name] if isinstance(forms(sent)[name], Coded) else sent[name]

    return WorkedOut(before, after)


def _held(raw: Tensor, shape: torch.Size, code: str, exponent: int) -> Coded:
    source = Memory(bytes_of(raw))
    return Coded(source=source, at=0, dtype=torch.float32, shape=shape, code=code, exponent=exponent)
