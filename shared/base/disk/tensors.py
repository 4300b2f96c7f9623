"""Named tensors that lie somewhere and are read when they are asked for: one is in memory, not all.

On a disk they lie in safetensors' form, which is read and written here a tensor at a time. Reading is plain reading, no
map of the file: mapped pages count as memory.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor, nn

from shared.base.errors import DataError

BLOCK = 2**20
_LENGTH = 8  # bytes that say how long safetensors' list is
_MOST_LIST = 100_000_000  # as safetensors has it
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class Source(Protocol):
    """Bytes that can be read from anywhere in them."""

    def fill(self, at: int, into: memoryview) -> None:
        """The bytes from `at` on, as many as fit."""


@dataclass(frozen=True, slots=True)
class File:
    path: Path

    def fill(self, at: int, into: memoryview) -> None:
        with self.path.open("rb", buffering=0) as file:
            file.seek(at)
            got = 0
            while got < len(into):
                more = file.readinto(into[got:])
                if not more:
                    raise DataError(f"{self.path}: ends at {at + got}, before what should be there")
                got += more


@dataclass(frozen=True, slots=True)
class Memory:
    data: memoryview

    def fill(self, at: int, into: memoryview) -> None:
        into[:] = self.data[at : at + len(into)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lying:
    """A tensor in a source; like a tensor, it has a type and a shape."""

    source: Source
    at: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        value = torch.empty(self.shape, dtype=self.dtype)
        if value.numel():
            self.source.fill(self.at, bytes_of(value))
        return value


class Tensors(Mapping[str, Tensor]):
    """By name: some in memory, others lying somewhere, of which each look makes a new tensor."""

    def __init__(self, entries: Mapping[str, Tensor | Lying]) -> None:
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        found = self.entries[name]
        return found.read() if isinstance(found, Lying) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries


class WorkedOut(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for, each time anew."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> Tensor:
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def forms(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor | Lying]:
    """What has each one's type and shape, without reading it."""
    return tensors.entries if isinstance(tensors, Tensors) else tensors


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's own memory; of one that is contiguous and on the CPU."""
    if tensor.numel() == 0:
        return memoryview(bytearray())
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def load(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put them into a network, one read at a time; DataError where they are another's."""
    state = net.state_dict()
    if state.keys() != weights.keys():
        differing = sorted(state.keys() ^ weights.keys())
        raise DataError(f"{len(differing)} tensors of another network, such as {differing[:3]}")
    with torch.no_grad():
        for name, own in state.items():
            value = weights[name]
            if value.shape != own.shape:
                raise DataError(f"{name} has shape {tuple(value.shape)}, the network's is {tuple(own.shape)}")
            own.copy_(value)


def let_go(weights: Mapping[str, Tensor]) -> None:
    """Of what they lie in: whoever still holds the mapping finds it empty."""
    if isinstance(weights, Tensors):
        weights.entries.clear()


# --- files ----------------------------------------------------------------------------------------------------------


def lying_in(path: Path) -> Tensors:
    """The tensors of a safetensors file; DataError where it is none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            listed = json.loads(file.read(min(length, _MOST_LIST)))
        found = {}
        for name, form in listed.items():
            if name != "__metadata__":
                dtype, (start, _) = _DTYPES[form["dtype"]], form["data_offsets"]
                at = _LENGTH + length + start
                found[name] = Lying(source=File(path), at=at, dtype=dtype, shape=torch.Size(form["shape"]))
        return Tensors(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: is no list of tensors: {type(error).__name__}") from None


def write(file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """All of them, read and written one by one, the widest types first, as safetensors asks for."""
    every = forms(tensors)
    order = sorted(every, key=lambda name: (-every[name].dtype.itemsize, name))
    write_each(file, {name: every[name] for name in order}, ((name, tensors[name]) for name in order))


def write_each(file: BinaryIO, every: Mapping[str, Tensor | Lying], values: Iterable[tuple[str, Tensor]]) -> None:
    """Values as they come, which is in the order of `every`, their forms."""
    listed: dict[str, Any] = {}
    at = 0
    for name, form in every.items():
        end = at + math.prod(form.shape) * form.dtype.itemsize
        listed[name] = {"dtype": _NAMES[form.dtype], "shape": list(form.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(listed, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)
    file.write(len(text).to_bytes(_LENGTH, "little") + text)
    for name, value in values:
        form = every[name]
        assert value.dtype == form.dtype, f"{name}: {value.dtype}, said {form.dtype}"
        assert value.shape == form.shape, f"{name}: {value.shape}, said {form.shape}"
        file.write(bytes_of(value.detach().cpu().contiguous()))
