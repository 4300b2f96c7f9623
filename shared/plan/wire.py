"""Records <-> Flower messages. Tensors travel as raw little-endian bytes in one array: the round trip is bit-exact.

What a site sends is built here from named fields only: there is no way to attach anything else to a reply.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from shared.base.chain import Link
from shared.base.errors import (
    BudgetSpent,
    ConfigError,
    DataError,
    LacunaError,
    PlanRefused,
    PlanWaits,
    RunFailed,
    UpdateRejected,
)
from shared.base.names import SITE_NAME as SITE_NAME
from shared.base.options import build, plain
from shared.base.records import PRIVATE, RELEASED, Inventory, RoundPlan, Spent, Update
from shared.base.vocabulary import Weights

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64, "bool": torch.bool}
_STYPE = "lacuna.tensors"
_ALL = "tensors"  # the one array of a record
_LENGTH = 8  # bytes that say how long the list of forms is
_REFUSALS: Mapping[str, type[LacunaError]] = {
    error.__name__: error for error in (PlanRefused, PlanWaits, BudgetSpent, DataError, RunFailed)
}
Head: TypeAlias = dict[
    str, int | float | str | bytes | bool | list[int] | list[float] | list[str] | list[bytes] | list[bool]
]
LEDGER = re.compile(r"[0-9a-f]{16,128}")  # a ledger's id, and a link of its chain
# what reading another machine's words can raise; the last two of numbers and shapes that are out of all bounds
_MALFORMED = (KeyError, ValueError, TypeError, AttributeError, RecursionError, ConfigError, OverflowError, RuntimeError)
LINK = re.compile(r"[0-9a-f]{64}")
PREPARATION = re.compile(r"|[0-9a-f]{64}")  # a digest, or nothing: a site has no other words here


# --- server -> site


def pack_plan(plan: RoundPlan) -> RecordDict:
    """Write the plan into a message, the same for all sites; `address` adds what is for one alone."""
    head: Head = {
        "run": plan.run,
        "phase": plan.phase,
        "round": plan.round,
        "config": plan.config,
        "schema": plan.schema,
    }
    return RecordDict({"plan": ConfigRecord(head), "weights": _pack(plan.weights)})


def address(content: RecordDict, known: tuple[int, str] | None) -> RecordDict:
    """A packed plan for one site, with where its privacy ledger stood; the tensors are not copied."""
    if known is None:
        return content
    own = ConfigRecord({"sequence": known[0], "head": known[1]})
    return RecordDict({**content, "known": own})


def unpack_plan(content: RecordDict) -> RoundPlan:
    head = content.config_records["plan"]
    known = content.config_records.get("known")
    return RoundPlan(
        run=str(head["run"]),
        phase=str(head["phase"]),
        round=int(head["round"]),  # type: ignore[arg-type]
        config=str(head["config"]),
        schema=str(head["schema"]),
        weights=_unpack(content.array_records["weights"], free=False),
        known=None if known is None else (int(known["sequence"]), str(known["head"])),  # type: ignore[arg-type]
    )


def pack_query(run: str, config: str, schema: str) -> RecordDict:
    return RecordDict({"query": ConfigRecord({"run": run, "config": config, "schema": schema})})


def unpack_query(content: RecordDict) -> tuple[str, str, str]:
    """Run, config, schema."""
    head = content.config_records["query"]
    return str(head["run"]), str(head["config"]), str(head["schema"])


def asked(content: RecordDict) -> dict[str, str | int]:
    """What a question is about: its run, and of a plan the phase and the round."""
    head = content.config_records.get("plan") or content.config_records.get("query") or ConfigRecord()
    found: dict[str, str | int] = {key: str(head[key])[:200] for key in ("run", "phase") if key in head}
    if isinstance(number := head.get("round"), int):
        found["round"] = number
    return found


# --- site -> server


def pack_update(update: Update) -> RecordDict:
    """Write the update into a reply, from named fields alone: a metric outside RELEASED, or PRIVATE, has no way out."""
    may = RELEASED if update.spent is None else PRIVATE
    head: Head = {
        "site": update.site,
        "run": update.run,
        "phase": update.phase,
        "round": update.round,
        "schema": update.schema,
        "counts": json.dumps(dict(update.counts), sort_keys=True),
        "metrics": json.dumps({k: update.metrics[k] for k in may if k in update.metrics}, sort_keys=True),
        "frozen": update.frozen,
        "spent": _pack_spent(update.spent),
    }
    return RecordDict({"update": ConfigRecord(head), "delta": _pack(update.delta)})


def unpack_update(message: Message, sender: str) -> Update:
    """Read the update of a reply, emptying the reply; a malformed one is UpdateRejected by its sender's name."""
    try:
        head = message.content.config_records["update"]
        counts = json.loads(str(head["counts"]))
        metrics = json.loads(str(head["metrics"]))
        if not all(isinstance(k, str) and type(n) is int for k, n in counts.items()):
            raise ValueError("counts must be whole numbers by owner")
        if not all(k in RELEASED and type(v) in (int, float) and math.isfinite(v) for k, v in metrics.items()):
            raise ValueError(f"metrics must be finite numbers among {', '.join(RELEASED)}")
        if head["site"] != sender:
            raise ValueError(f"it calls itself {str(head['site'])[:64]!r}")
        return Update(
            site=sender,
            run=str(head["run"]),
            phase=str(head["phase"]),
            round=int(head["round"]),  # type: ignore[arg-type]
            schema=str(head["schema"]),
            delta=_unpack(message.content.array_records["delta"], free=True),
            counts=counts,
            metrics={k: float(v) for k, v in metrics.items()},
            frozen=str(head["frozen"]),
            spent=_unpack_spent(str(head["spent"])),
        )
    except _MALFORMED as error:
        raise UpdateRejected(f"{sender}: malformed update: {type(error).__name__}: {str(error)[:200]}") from None


def pack_inventory(inventory: Inventory) -> RecordDict:
    text: Head = {
        "site": inventory.site,
        "schema": inventory.schema,
        "subjects": inventory.subjects,
        "patterns": json.dumps([[list(pattern), n] for pattern, n in sorted(inventory.patterns.items())]),
        "refused": json.dumps(dict(inventory.refused), sort_keys=True),
        "preparation": inventory.preparation,
        "spent": _pack_spent(inventory.spent),
    }
    return RecordDict({"inventory": ConfigRecord(text)})


def unpack_inventory(content: RecordDict) -> Inventory:
    try:
        head = content.config_records["inventory"]
        site = str(head["site"])
        if not SITE_NAME.fullmatch(site):
            raise ValueError(f"site name {site[:64]!r} must match {SITE_NAME.pattern}")
        preparation = str(head["preparation"])
        if not PREPARATION.fullmatch(preparation):
            raise ValueError(f"preparation {preparation[:64]!r} must be empty or 64 hex digits")
        return Inventory(
            site=site,
            schema=str(head["schema"]),
            subjects=int(head["subjects"]),  # type: ignore[arg-type]
            patterns={tuple(map(str, pattern)): int(n) for pattern, n in json.loads(str(head["patterns"]))},
            refused={str(k): str(v)[:500] for k, v in json.loads(str(head["refused"])).items()},
            preparation=preparation,
            spent=_unpack_spent(str(head["spent"])),
        )
    except _MALFORMED as error:
        raise UpdateRejected(f"malformed inventory: {type(error).__name__}: {str(error)[:200]}") from None


def _pack_spent(spent: Spent | None) -> str:
    return "" if spent is None else json.dumps(plain(spent), sort_keys=True)


def _unpack_spent(text: str) -> Spent | None:
    """A site's word on its budget: numbers that can be true, and two strings of hex digits."""
    if not text:
        return None
    spent = build(Spent, dict(json.loads(text)), "spent")
    if not (LEDGER.fullmatch(spent.ledger) and LEDGER.fullmatch(spent.head)):
        raise ValueError("spent: the ledger's id and head must be hex digits")
    numbers = (spent.epsilon, spent.budget, spent.delta)
    if not (all(math.isfinite(n) and n >= 0 for n in numbers) and spent.delta < 1):
        raise ValueError("spent: epsilon, budget and delta must be finite numbers from 0")
    if min(spent.sequence, spent.size, spent.others) < 0:
        raise ValueError("spent: sequence, size and others must be 0 or more")
    return spent


def pack_refusal(site: str, error: LacunaError) -> RecordDict:
    """A site's named no; only the error's kind and its message, which never names a subject."""
    return RecordDict({"refusal": ConfigRecord({"site": site, "kind": type(error).__name__, "why": str(error)})})


def refusal_in(content: RecordDict) -> LacunaError | None:
    if "refusal" not in content.config_records:
        return None
    head = content.config_records["refusal"]
    return _REFUSALS.get(str(head.get("kind")), RunFailed)(str(head.get("why"))[:500])


def size(content: RecordDict) -> int:
    """Bytes of payload in a message."""
    arrays = sum(len(a.data) for record in content.array_records.values() for a in record.values())
    texts = sum(len(str(v)) for record in content.config_records.values() for v in record.values())
    return arrays + texts


# --- tensors


def _pack(tensors: Weights) -> ArrayRecord:
    """All in one array: Flower asks for every array of a record by a request of its own, and a network has hundreds.

    Its bytes: the length of a list, the list in JSON of every tensor's name, type and shape, then the tensors.
    """
    arrays = {name: tensors[name].detach().cpu().contiguous().numpy() for name in sorted(tensors)}
    forms = json.dumps([[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]).encode()
    values = (array.reshape(-1).view(np.uint8).data for array in arrays.values())
    data = b"".join([len(forms).to_bytes(_LENGTH, "little"), forms, *values])
    return ArrayRecord({_ALL: Array("uint8", (len(data),), _STYPE, data)})


def _unpack(record: ArrayRecord, *, free: bool) -> dict[str, Tensor]:
    """With `free` the record lets go of its bytes."""
    array = record.pop(_ALL) if free else record[_ALL]
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


# --- what is written down of a reply, at both ends


def seal(content: RecordDict, before: Link) -> dict[str, Any]:
    """Ties a reply to the site's ledger, and describes it: who keeps the link knows how all before it stood there."""
    content["ledger"] = ConfigRecord({"before": before})
    return describe(content)


def received(content: RecordDict) -> dict[str, Any]:
    """For a receipt; to be taken before an update is read, which empties it."""
    link = str(content.config_records.get("ledger", ConfigRecord()).get("before"))
    return {"sha256": digest(content), "bytes": size(content), "link": link if LINK.fullmatch(link) else None}


def fields(content: RecordDict) -> dict[str, Any]:
    """All that is no tensor."""
    return {f"{key}.{k}": v for key, record in content.config_records.items() for k, v in record.items()}


def digest(content: RecordDict) -> str:
    """One hash of a reply, the same at both ends: of every field, and of every tensor's name, form and bytes."""
    whole = hashlib.sha256(json.dumps(fields(content), sort_keys=True, default=repr).encode())
    for key in sorted(content.array_records):
        record = content.array_records[key]
        for name in sorted(record.keys()):
            array = record[name]
            form = [key, name, array.dtype, list(array.shape), array.stype, len(array.data)]
            whole.update(json.dumps(form).encode() + b"\0")
            whole.update(array.data)
    return whole.hexdigest()


def describe(content: RecordDict) -> dict[str, Any]:
    """A release as the site's ledger keeps it: every field in full, the tensors by name, form and L2 norm."""
    tensors = {n: t for record in content.array_records.values() for n, t in _unpack(record, free=False).items()}
    norms = {name: _norm(tensor) for name, tensor in tensors.items()}
    finite = [norm for norm in norms.values() if norm is not None]
    return {
        "fields": fields(content),
        "tensors": [[n, str(t.dtype).removeprefix("torch."), list(t.shape), norms[n]] for n, t in tensors.items()],
        "norm": math.hypot(*finite) if len(finite) == len(norms) else None,
        "bytes": size(content),
        "sha256": digest(content),
    }


def _norm(tensor: Tensor) -> float | None:
    """None where it is no finite number."""
    flat = tensor.numpy().reshape(-1)
    norm = math.sqrt(float(np.einsum("i,i->", flat, flat, dtype=np.float64, casting="unsafe")))
    return norm if math.isfinite(norm) else None
