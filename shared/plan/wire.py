"""Records <-> Flower messages. Tensors travel as shared/plan/tensors.py packs them: the round trip is bit-exact.

What a site is asked is signed whole, and read only where that fits (shared/trust/warrant.py). What a site sends is
built here from named fields only: there is no way to attach anything else to a reply.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from flwr.app import Array, ConfigRecord, Message, RecordDict

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
from shared.base.vocabulary import SiteName, Weights
from shared.plan.tensors import ALL, pack, pieces, record_of, unpack
from shared.trust.warrant import Leader, Question, Reader

_REFUSALS: Mapping[str, type[LacunaError]] = {
    error.__name__: error for error in (PlanRefused, PlanWaits, BudgetSpent, DataError, RunFailed)
}
Head: TypeAlias = dict[
    str, int | float | str | bytes | bool | list[int] | list[float] | list[str] | list[bytes] | list[bool]
]
LEDGER = re.compile(r"[0-9a-f]{16,128}")  # a ledger's id, and a link of its chain
# what reading another machine's words can raise; the last two of numbers and shapes that are out of all bounds
_MALFORMED = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RecursionError,
    ConfigError,
    OverflowError,
    RuntimeError,
)
DEAL, REVEAL = "deal", "reveal"  # what sites are asked besides, where the coordinator sees sums alone
MOST_TEXT = 200  # characters of a name or a hash
BOX = re.compile(r"|[0-9a-f]{64} [0-9a-f]{16,256}")  # a key, and its site's signature
PREPARATION = re.compile(r"|[0-9a-f]{64}")  # a digest, or nothing: a site has no other words here


# --- server -> site


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A round's weights as they travel, the same for all sites."""

    array: Array
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked before round 1."""

    run: str
    config: str
    schema: str


def pack_weights(weights: Weights) -> Packed:
    array = pack(weights)[ALL]
    return Packed(array=array, sha256=_sha256(array))


def pack_plan(plan: RoundPlan, packed: Packed, leader: Leader, *, to: SiteName, until: float) -> RecordDict:
    """Write a plan for one site, good until then; of its tensors, which are not copied, the hash is signed."""
    keys = ("run", "phase", "round", "config", "schema", "hidden", "known", "secure")
    head = {key: getattr(plan, key) for key in keys}
    question = Question.make(leader, {**head, "what": "plan", "to": to, "until": until, "weights": packed.sha256})
    return RecordDict({"plan": _pack_question(question), "weights": record_of(packed.array)})


def pack_query(query: Query, leader: Leader, *, until: float) -> RecordDict:
    """Write a question to whichever site is at the node."""
    head = {key: getattr(query, key) for key in ("run", "config", "schema")}
    question = Question.make(leader, {**head, "what": "query", "to": None, "until": until})
    return RecordDict({"query": _pack_question(question)})


def unpack_plan(content: RecordDict, reader: Reader) -> RoundPlan:
    """Read a plan, emptying its message; PlanRefused, before a tensor is unpacked, for one that the federation did not
    sign for this site."""
    try:
        record = _question(content, "plan").read(reader)
        if record["what"] != "plan" or set(content) != {"plan", "weights"}:
            raise ValueError("it must be a plan and its weights")
        tensors = content.array_records["weights"]
        if _sha256(tensors[ALL]) != record["weights"]:
            raise reader.refused("was signed with other weights")
        weights = unpack(tensors)
        del tensors[ALL]  # whoever has the weights holds its bytes, and nobody else
        known = record["known"]
        return RoundPlan(
            run=record["run"],
            phase=check_text(record["phase"]),
            round=whole(record["round"]),
            config=record["config"],
            schema=check_text(record["schema"]),
            weights=weights,
            hidden=tuple(check_text(modality) for modality in record["hidden"]),
            known=None if known is None else (whole(known[0]), check_text(known[1])),
            sha256=record["weights"],
            secure=_secure(record["secure"]),
        )
    except _MALFORMED as error:
        raise reader.refused(f"is malformed: {type(error).__name__}: {str(error)[:200]}") from None


def unpack_query(content: RecordDict, reader: Reader) -> Query:
    try:
        record = _question(content, "query").read(reader)
        if record["what"] != "query" or set(content) != {"query"}:
            raise ValueError("it must be a query alone")
        return Query(run=record["run"], config=record["config"], schema=check_text(record["schema"]))
    except _MALFORMED as error:
        raise reader.refused(f"is malformed: {type(error).__name__}: {str(error)[:200]}") from None


def question(content: RecordDict) -> str:
    """Which question a message is, by its hash; nothing of it is read. One that has no text of bytes is none."""
    for name in ("plan", "query", DEAL, REVEAL):
        if name in content.config_records:
            text = content.config_records[name].get("text")
            return hashlib.sha256(text).hexdigest() if isinstance(text, bytes) else ""
    return ""


def pack_aside(what: str, head: Mapping[str, Any], leader: Leader, *, to: SiteName, until: float) -> RecordDict:
    """Write a question beside a round's work, with which no weights travel."""
    question = Question.make(leader, {**head, "what": what, "to": to, "until": until})
    return RecordDict({what: _pack_question(question)})


def unpack_aside(what: str, content: RecordDict, reader: Reader) -> dict[str, Any]:
    try:
        record = _question(content, what).read(reader)
        if record["what"] != what or set(content) != {what} or record["to"] != reader.site:
            raise ValueError(f"it must be a {what} alone, for this site")
        return record
    except _MALFORMED as error:
        raise reader.refused(f"is malformed: {type(error).__name__}: {str(error)[:200]}") from None


def _secure(text: object) -> str:
    if not isinstance(text, str):
        raise ValueError("secure must be a text")
    return text


def _pack_question(question: Question) -> ConfigRecord:
    return ConfigRecord({"warrant": question.warrant, "text": question.text, "signature": question.signature})


def _question(content: RecordDict, name: str) -> Question:
    record = content.config_records[name]
    parts = [record[key] for key in ("warrant", "text", "signature")]
    if len(record) != len(parts) or not all(isinstance(part, bytes) for part in parts):
        raise ValueError("it must be a warrant, a text and a signature")
    return Question(*parts)  # type: ignore[arg-type]


def check_text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise ValueError(f"{str(value)[:40]!r} must be a text of at most {MOST_TEXT} characters")
    return value


def check_box(value: object) -> str:
    if not isinstance(value, str) or not BOX.fullmatch(value):
        raise ValueError(f"{str(value)[:40]!r} must be a box, or nothing")
    return value


def whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:40]} must be a whole number from 0, below 2^63")
    return value


def count(value: object) -> int:
    """Of subjects with a pattern: a number, or -k for "fewer than that"."""
    return whole(value) if type(value) is int and value >= 0 else -whole(-value if type(value) is int else value)


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
    return RecordDict({"update": ConfigRecord(head), "delta": pack(update.delta)})


def unpack_update(message: Message, sender: str) -> Update:
    """Read the update of a reply, its tensors when they are asked for; a malformed one is UpdateRejected by its
    sender's name."""
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
            delta=unpack(message.content.array_records["delta"]),
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
        "summed": list(inventory.summed),
        "preparation": inventory.preparation,
        "spent": _pack_spent(inventory.spent),
        "box": inventory.box,
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
            subjects=whole(head["subjects"]),
            patterns={tuple(map(check_text, held)): count(n) for held, n in json.loads(str(head["patterns"]))},
            refused={str(k): str(v)[:500] for k, v in json.loads(str(head["refused"])).items()},
            summed=tuple(check_text(modality) for modality in head["summed"]),  # type: ignore[union-attr]
            preparation=preparation,
            spent=_unpack_spent(str(head["spent"])),
            box=check_box(head["box"]),
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
    if not (all(math.isfinite(n) and n >= 0 for n in numbers) and 0 < spent.delta < 1):
        raise ValueError("spent: epsilon and budget must be finite numbers from 0, delta between 0 and 1")
    for number in (spent.sequence, spent.size, spent.others):
        whole(number)
    return spent


def pack_refusal(site: str, error: LacunaError) -> RecordDict:
    """A site's named no; only the error's kind and its message, which never names a subject."""
    return RecordDict({"refusal": ConfigRecord({"site": site, "kind": type(error).__name__, "why": str(error)})})


def refusal_in(content: RecordDict) -> LacunaError | None:
    if "refusal" not in content.config_records:
        return None
    head = content.config_records["refusal"]
    why = str(head.get("why"))[:500]
    said = why if any(c.isprintable() and c != " " for c in why) else "it gave no reason"
    return _REFUSALS.get(str(head.get("kind")), RunFailed)(said)


def _sha256(array: Array) -> str:
    found = hashlib.sha256()
    for piece in pieces(array):
        found.update(piece)
    return found.hexdigest()
