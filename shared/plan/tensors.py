"""Tensors as raw little-endian bytes in one array of a message: the round trip is bit-exact.

The array's bytes are read from where the tensors lie (memory, or a checkpoint's file) as they are sent, and written to
where they are to lie as they come: a message of a model's size is at no time in memory whole.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import torch
from flwr.app import Array, ArrayRecord
from flwr.app.message.arraychunk import ArrayChunk
from torch import Tensor

from shared.base.disk.tensors import BLOCK, Lying, Memory, Source, Tensors, bytes_of, forms
from shared.base.vocabulary import Weights

_NAMED = (torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _NAMED}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
STYPE = "lacuna.tensors"
ALL = "tensors"  # the one array of a record
CHUNK = 2**21  # bytes that travel as one object: whoever passes them on holds a few of these at a time
_LENGTH = 8  # bytes that say how long the list of forms is


# --- arrays whose bytes are elsewhere -------------------------------------------------------------------------------


class Streamed(Array):
    """An array whose bytes come in pieces. Whoever asks for `data` gets them all at once."""

    def __init__(self, length: int, dtype: str = "uint8", stype: str = STYPE) -> None:
        self.dtype, self.shape, self.stype, self.length = dtype, (length,), stype, length

    def pieces(self) -> Iterator[memoryview]:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            return b"".join(self.pieces())
        raise AttributeError(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.dtype, tuple(self.shape), self.stype, self.data)  # a copy, and what goes to Ray


class Sourced(Streamed):
    """Of a source that can be read again and again, as Flower does: to hash each chunk, and to send it."""

    def __init__(self, source: Source, length: int, stype: str = STYPE) -> None:
        super().__init__(length, stype=stype)
        self.source = source

    def pieces(self) -> Iterator[memoryview]:
        for at in range(0, self.length, BLOCK):
            yield self.read(at, min(at + BLOCK, self.length))

    def read(self, at: int, end: int) -> memoryview:
        into = memoryview(bytearray(end - at))
        self.source.fill(at, into)
        return into

    def slice_array(self) -> list[tuple[str, Any]]:
        if "data" in self.__dict__:  # somebody put other bytes in their place
            return super().slice_array()
        if "_chunks" not in self.__dict__:
            chunks = [_Chunk(self, at, min(at + CHUNK, self.length)) for at in range(0, self.length, CHUNK)]
            self.__dict__["_chunks"] = [(chunk.object_id, chunk) for chunk in chunks]
        found: list[tuple[str, Any]] = self.__dict__["_chunks"]
        return found


class _Chunk(ArrayChunk):
    is_dirty = False  # hashed once

    def __init__(self, array: Sourced, at: int, end: int) -> None:
        self._array, self._at, self._end = array, at, end

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            return self._array.read(self._at, self._end)
        raise AttributeError(name)


for kind, name in ((Streamed, "Array"), (Sourced, "Array"), (_Chunk, "ArrayChunk")):
    kind.__qualname__ = name  # Flower writes it into every object, and reads by it


def pieces(array: Array) -> Iterable[memoryview]:
    return array.pieces() if isinstance(array, Streamed) and "data" not in array.__dict__ else [memoryview(array.data)]


def length(array: Array) -> int:
    """Bytes of payload: of one that is in memory as many as there are, whatever it says."""
    return array.length if isinstance(array, Streamed) and "data" not in array.__dict__ else len(array.data)


class _Joined:
    """One source of a text and the tensors after it."""

    def __init__(self, text: bytes, entries: Iterable[Tensor | Lying]) -> None:
        self._parts: list[memoryview | Tensor | Lying] = [memoryview(text), *(e for e in entries if e.nbytes)]
        self._ends = list(accumulate(part.nbytes for part in self._parts))

    @property
    def length(self) -> int:
        return self._ends[-1]

    def fill(self, at: int, into: memoryview) -> None:
        done, i = 0, bisect_right(self._ends, at)
        while done < len(into):
            part = self._parts[i]
            start = at + done - (self._ends[i] - part.nbytes)
            piece = into[done : done + part.nbytes - start]
            if isinstance(part, Lying):
                part.source.fill(part.at + start, piece)
            else:
                view = bytes_of(part) if isinstance(part, Tensor) else part
                piece[:] = view[start : start + len(piece)]
            done, i = done + len(piece), i + 1


# --- a record of them -----------------------------------------------------------------------------------------------


def pack(tensors: Weights) -> ArrayRecord:
    """All in one array: Flower asks for every array of a record by a request of its own, and a network has hundreds.

    Its bytes: the length of a list, the list in JSON of every tensor's name, type and shape, then the tensors.
    """
    entries = {name: _plain(forms(tensors)[name]) for name in sorted(tensors)}
    text = json.dumps([[name, _NAMES[entry.dtype], list(entry.shape)] for name, entry in entries.items()]).encode()
    joined = _Joined(len(text).to_bytes(_LENGTH, "little") + text, entries.values())
    return record_of(Sourced(joined, joined.length))


def record_of(array: Array) -> ArrayRecord:
    record = ArrayRecord()
    record[ALL] = array  # its constructor would ask for the bytes
    return record


def unpack(record: ArrayRecord) -> Tensors:
    """Each is read when it is asked for, out of the record's one array."""
    array = record[ALL]
    if len(record) != 1 or array.stype != STYPE:
        raise ValueError(f"tensors must be one array of {STYPE}, not {len(record)}, the first {array.stype}")
    source, whole = _source(array), length(array)
    at = _LENGTH + int.from_bytes(_read(source, 0, min(_LENGTH, whole)), "little")
    listed = json.loads(bytes(_read(source, _LENGTH, min(at, whole))))
    found: dict[str, Lying] = {}
    for name, dtype, shape in listed:
        if not isinstance(name, str) or name in found or dtype not in _DTYPES:
            raise ValueError(f"{name}: {dtype} is not one of ours, or it is there twice")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name}: shape {shape} must be whole numbers from 0")
        end = at + math.prod(shape) * _DTYPES[dtype].itemsize
        if end > whole:
            raise ValueError(f"{name}: {whole - at} bytes are left for shape {shape} of {dtype}")
        found[name] = Lying(source=source, at=at, dtype=_DTYPES[dtype], shape=torch.Size(shape))
        at = end
    if at != whole:
        raise ValueError(f"{whole - at} bytes too many for its {len(found)} tensors")
    return Tensors(found)


def _source(array: Array) -> Source:
    elsewhere = isinstance(array, Sourced) and "data" not in array.__dict__
    return array.source if elsewhere else Memory(memoryview(array.data))  # type: ignore[attr-defined]


def _plain(entry: Tensor | Lying) -> Tensor | Lying:
    return entry if isinstance(entry, Lying) else entry.detach().cpu().contiguous()


def _read(source: Source, at: int, end: int) -> memoryview:
    into = memoryview(bytearray(max(0, end - at)))
    source.fill(at, into)
    return into
