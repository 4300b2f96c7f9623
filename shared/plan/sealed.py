"""What is written down of a reply, at both ends: by the site before it leaves, by the coordinator when it has come.

One hash of all of it, which the site signs, the site's ledger has, and the coordinator's receipt names.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from shared.base.chain import Link
from shared.base.disk.tensors import File
from shared.base.errors import UpdateRejected
from shared.base.files import writing
from shared.base.names import SITE_NAME
from shared.base.vocabulary import SiteName
from shared.plan.packed import kind
from shared.plan.tensors import ALL, Sourced, length, pieces, unpack
from shared.trust.warrant import is_answer, sign_answer

LINK = re.compile(r"[0-9a-f]{64}")


def seal(content: RecordDict, before: Link) -> dict[str, Any]:
    """Ties a reply to the site's ledger, and describes it: who keeps the link knows how all before it stood there."""
    content["ledger"] = ConfigRecord({"before": before})
    return describe(content)


def sign(content: RecordDict, sha256: str, key: ec.EllipticCurvePrivateKey, site: SiteName, question: str) -> None:
    """The last thing that is done to a reply, whose digest is `sha256`."""
    content["signed"] = ConfigRecord({"site": site, "signature": sign_answer(key, site, question, sha256)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A reply as it came: for a receipt, and to be taken before an update is read, which empties it."""

    site: SiteName  # in whose name it was signed; not yet believed
    signature: bytes
    sha256: str
    bytes: int
    link: Link | None

    def check(self, question: str, keys: Mapping[SiteName, ec.EllipticCurvePublicKey]) -> None:
        """UpdateRejected unless that site signed it, as its answer to this question."""
        if self.site not in keys:
            said = self.site or "nobody"
            raise UpdateRejected(
                f"{said}: is not among the sites whose keys this run has, {', '.join(sorted(keys))}; who was admitted "
                "since is, once the run is stopped and resumed"
            )
        if not is_answer(keys[self.site], self.signature, self.site, question, self.sha256):
            raise UpdateRejected(
                f"{self.site}: its key did not sign this reply to this question: a changed one, or another's"
            )


def receive(content: RecordDict, onto: Path | None = None) -> Received:
    """Takes the signature off a reply; nothing else of it is read, and nothing unpacked.

    The tensors' bytes, which come in pieces, go into the file `onto` as they are hashed, and are read from there.
    """
    signed = content.config_records["signed"] if "signed" in content.config_records else ConfigRecord()
    content.pop("signed", None)
    site, signature = signed.get("site"), signed.get("signature")
    link = str(content.config_records.get("ledger", ConfigRecord()).get("before"))
    return Received(
        site=site if isinstance(site, str) and SITE_NAME.fullmatch(site) else "",
        signature=signature if isinstance(signature, bytes) else b"",
        sha256=digest(content) if onto is None else _kept(content, onto),
        bytes=size(content),
        link=link if LINK.fullmatch(link) else None,
    )


def _kept(content: RecordDict, onto: Path) -> str:
    sent = content.array_records.get("delta", ArrayRecord())
    if ALL not in sent:
        return digest(content)
    with writing(onto, durable=False) as file:  # whoever is killed asks for the round again

        def keep(key: str, name: str, piece: memoryview) -> None:
            if (key, name) == ("delta", ALL):
                file.write(piece)

        found = digest(content, keep)
        whole = file.tell()
    sent[ALL] = Sourced(File(onto), whole, stype=sent[ALL].stype)
    return found


def fields(content: RecordDict) -> dict[str, Any]:
    """All that is no tensor."""
    return {f"{key}.{k}": v for key, record in content.config_records.items() for k, v in record.items()}


def digest(content: RecordDict, keep: Callable[[str, str, memoryview], None] = lambda *_: None) -> str:
    """One hash of a reply, the same at both ends: of every field, and of every tensor's name, form and bytes.

    Its bytes are read once, and `keep` is called with each piece of them.
    """
    whole = hashlib.sha256(json.dumps(fields(content), sort_keys=True, default=repr).encode())
    for key in sorted(content.array_records):
        record = content.array_records[key]
        for name in sorted(record.keys()):
            array = record[name]
            form = [key, name, array.dtype, list(array.shape), array.stype, length(array)]
            whole.update(json.dumps(form).encode() + b"\0")
            for piece in pieces(array):
                whole.update(piece)
                keep(key, name, piece)
    return whole.hexdigest()


def describe(content: RecordDict) -> dict[str, Any]:
    """A release as the site's ledger keeps it: every field in full, the tensors by name, form and L2 norm.

    Of one in few bits the form is how it is sent, the norm of what it means.
    """
    listed: list[list[Any]] = []
    for record in content.array_records.values():
        tensors = unpack(record)
        for name, form in tensors.entries.items():
            listed.append([name, kind(form), list(form.shape), _norm(tensors[name])])
    finite = [entry[-1] for entry in listed if entry[-1] is not None]
    return {
        "fields": fields(content),
        "tensors": listed,
        "norm": math.hypot(*finite) if len(finite) == len(listed) else None,
        "bytes": size(content),
        "sha256": digest(content),
    }


def _norm(tensor: Tensor) -> float | None:
    """None where it is no finite number."""
    flat = tensor.numpy().reshape(-1)
    norm = math.sqrt(float(np.einsum("i,i->", flat, flat, dtype=np.float64, casting="unsafe")))
    return norm if math.isfinite(norm) else None


def size(content: RecordDict) -> int:
    """Bytes of payload in a message."""
    arrays = sum(length(a) for record in content.array_records.values() for a in record.values())
    texts = sum(len(str(v)) for record in content.config_records.values() for v in record.values())
    return arrays + texts
