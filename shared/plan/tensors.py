"""Tensors as raw little-endian bytes in one array of a message: the round trip is bit-exact."""

import json
import math

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from shared.base.vocabulary import Weights

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64, "bool": torch.bool}
_STYPE = "lacuna.tensors"
ALL = "tensors"  # the one array of a record
_LENGTH = 8  # bytes that say how long the list of forms is


def pack(tensors: Weights) -> ArrayRecord:
    """All in one array: Flower asks for every array of a record by a request of its own, and a network has hundreds.

    Its bytes: the length of a list, the list in JSON of every tensor's name, type and shape, then the tensors.
    """
    arrays = {name: tensors[name].detach().cpu().contiguous().numpy() for name in sorted(tensors)}
    forms = json.dumps([[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]).encode()
    values = (array.reshape(-1).view(np.uint8).data for array in arrays.values())
    data = b"".join([len(forms).to_bytes(_LENGTH, "little"), forms, *values])
    return ArrayRecord({ALL: Array("uint8", (len(data),), _STYPE, data)})


def unpack(record: ArrayRecord, *, free: bool) -> dict[str, Tensor]:
    """With `free` the record lets go of its bytes."""
    array = record.pop(ALL) if free else record[ALL]
    if len(record) + free != 1 or array.stype != _STYPE:
        raise ValueError(f"tensors must be one array of {_STYPE}, not {len(record) + free}, the first {array.stype}")
    data = memoryview(array.data)
    at = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape in json.loads(bytes(data[_LENGTH:at])):
        if not isinstance(name, str) or name in tensors or dtype not in _DTYPES:
            raise ValueError(f"{name}: {dtype} is not one of ours, or it is there twice")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name}: shape {shape} must be whole numbers from 0")
        end = at + math.prod(shape) * _DTYPES[dtype].itemsize
        if end > len(data):
            raise ValueError(f"{name}: {len(data) - at} bytes are left for shape {shape} of {dtype}")
        tensors[name] = torch.empty(shape, dtype=_DTYPES[dtype])
        tensors[name].numpy().reshape(-1)[:] = np.frombuffer(data[at:end], dtype=np.dtype(dtype))
        at = end
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes too many for its {len(tensors)} tensors")
    return tensors
