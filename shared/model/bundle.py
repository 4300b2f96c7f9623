"""A model leaves the federation as a bundle: a folder of files, their hashes in bundle.json, one signature over that.

    bundle.json          method, options, grid, modalities, intensity rules, provenance, metrics; sha256 of the others;
                         what may be said of its privacy, and what sites' audits found
    bundle.sig           Ed25519 over the bytes of bundle.json
    model.safetensors    the weights, from which `load` rebuilds the method
    denoiser.pt2, .onnx  the denoiser alone, for other programs

The same model and key give the same bytes. `load` verifies signature and hashes before it parses anything else, and
reads JSON and safetensors only. It never opens denoiser.pt2 or denoiser.onnx: a torch.export archive may hold pickles.
"""

import base64
import binascii
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey as Ed25519PublicKey
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as dump_safetensors

from shared.base.errors import ConfigError, DataError
from shared.base.files import canonical
from shared.base.options import plain
from shared.data.intensities import RULES, RULES_VERSION
from shared.model.denoiser import export_denoiser
from shared.model.model import Model, read_model, rebuild
from shared.trust.audits import Summary
from shared.trust.claims import privacy_of
from shared.trust.keys import key_id as key_id
from shared.trust.keys import make_signing_key as make_signing_key
from shared.trust.keys import public_path as public_path
from shared.trust.keys import read_public_key as read_public_key
from shared.trust.keys import read_signing_key as read_signing_key

SCHEMA = 1
MANIFEST, SIGNATURE, WEIGHTS = "bundle.json", "bundle.sig", "model.safetensors"
MAY_HOLD = (WEIGHTS, "denoiser.pt2", "denoiser.onnx")
MOST_TEXT = 2**22  # bytes of bundle.json: read before anything is known of it
_CONTEXT = b"lacuna bundle 1\n"  # so that no signature made for another purpose fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    model: Model
    digest: str  # sha256 of bundle.json, which holds the hashes of all the rest: the bundle's name
    signer: str  # id of the key that signed it
    trusted: bool  # was that the key the reader asked for? If not, only damage is excluded, not forgery
    record: Mapping[str, Any]  # bundle.json


# --- out ------------------------------------------------------------------------------------------------------------


def export(
    run_final: Path,
    out: Path,
    *,
    key: Path,
    metrics: Mapping[str, float] | None = None,
    ranges: Mapping[str, Any] | None = None,
    audits: Sequence[Summary] = (),
) -> Path:
    """Write the released model in `run_final` as a signed bundle at `out`; an older bundle there is replaced whole.

    `ranges` say what inputs it is for (shared/model/ranges.py); None: a site then can't tell. `audits` are kept as
    sites handed them over, whatever they found; one of other weights is a ConfigError.
    """
    signing = read_signing_key(key)
    if out.exists() and not (out / MANIFEST).is_file():
        raise ConfigError(f"bundle {out}: something else is there")
    model = read_model(run_final)
    beside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        tensors = {name: value.contiguous() for name, value in model.net.state_dict().items()}
        (beside / WEIGHTS).write_bytes(dump_safetensors(tensors))
        _check_audits(audits, beside / WEIGHTS)
        checked = export_denoiser(model, beside)
        manifest = canonical(_manifest(model, checked, beside, metrics or {}, ranges, audits))
        (beside / MANIFEST).write_bytes(manifest)
        (beside / SIGNATURE).write_bytes(_sign(manifest, signing))
        if out.exists():
            shutil.rmtree(out)
        os.replace(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


def _manifest(
    model: Model,
    checked: Mapping[str, Any],
    folder: Path,
    metrics: Mapping[str, float],
    ranges: Mapping[str, Any] | None,
    audits: Sequence[Summary],
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "lacuna": version("lacuna"),
        "torch": torch.__version__,
        "method": model.name,
        "options": model.record["options"],
        "modalities": list(model.modalities),
        "grid": plain(model.grid),
        "sampler": plain(model.sampler),
        "intensities": {"version": RULES_VERSION, "rules": {m: plain(RULES[m]) for m in model.modalities}},
        "provenance": model.record["provenance"],
        "privacy": privacy_of(model.record["provenance"]),
        "audits": [plain(audit) for audit in audits],
        "metrics": dict(metrics),
        "ranges": None if ranges is None else dict(ranges),
        "denoiser": checked,
        "files": {
            path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
            for path in sorted(folder.iterdir())
        },
    }


def _check_audits(audits: Sequence[Summary], weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    for audit in audits:
        if audit.weights != digest:
            raise ConfigError(f"audit: of weights {audit.weights[:12]}; this bundle's are {digest[:12]}")


def _sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    public = key.public_key()
    return canonical(
        {
            "algorithm": "Ed25519",
            "key": key_id(public),
            "public_key": base64.b64encode(public.public_bytes_raw()).decode(),
            "signature": base64.b64encode(key.sign(_CONTEXT + manifest)).decode(),
        }
    )


# --- in -------------------------------------------------------------------------------------------------------------


def load(folder: Path, *, trusted: Ed25519PublicKey | None) -> Bundle:
    """Verify a bundle and read it, or raise a DataError that says what is wrong with it.

    `trusted` None: whoever signed it. Its files are then whole and belong together, but anybody may have made them;
    the caller must have asked its user for that.
    """
    where = f"bundle {folder}"
    manifest = _read_small(folder / MANIFEST, where)
    signer = _verify(manifest, _read_small(folder / SIGNATURE, where), trusted, where)
    record = _parse(manifest, where)
    _check_listing(folder, record["files"], where)
    weights = b""
    for name in sorted(record["files"]):
        content = (folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != record["files"][name]["sha256"]:
            raise DataError(f"{where}: {name} was changed: sha256 {digest[:12]}, not what {MANIFEST} says")
        if name == WEIGHTS:
            weights = content  # what was hashed is what is parsed
    if record["intensities"]["version"] != RULES_VERSION:
        raise DataError(
            f"{where}: made with other intensity rules ({record['intensities']['version']}, here "
            f"{RULES_VERSION}); use the Lacuna version {record['lacuna']}"
        )
    try:
        tensors = parse_safetensors(weights)
    except SafetensorError as error:
        raise DataError(f"{where}: {WEIGHTS} is no safetensors file: {error}") from None
    return Bundle(
        model=rebuild(record, tensors, where),
        digest=hashlib.sha256(manifest).hexdigest(),
        signer=signer,
        trusted=trusted is not None,
        record=record,
    )


def _read_small(path: Path, where: str) -> bytes:
    try:
        if path.is_symlink() or not path.is_file():
            raise DataError(f"{where}: {path.name} is missing")
        with path.open("rb") as file:
            content = file.read(MOST_TEXT + 1)
    except OSError as error:
        raise DataError(f"{where}: {path.name} can't be read: {error.strerror}") from None
    if len(content) > MOST_TEXT:
        raise DataError(f"{where}: {path.name} is over {MOST_TEXT} bytes")
    return content


def _verify(manifest: bytes, signature: bytes, trusted: Ed25519PublicKey | None, where: str) -> str:
    """The id of the key whose signature this is; with `trusted`, no key that the bundle brings along is believed."""
    try:
        entry = json.loads(signature)
        if entry["algorithm"] != "Ed25519":
            raise DataError(f"{where}: signed by {str(entry['algorithm'])[:20]}; must be Ed25519")
        claimed = Ed25519PublicKey.from_public_bytes(base64.b64decode(entry["public_key"], validate=True))
        value = base64.b64decode(entry["signature"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise DataError(f"{where}: {SIGNATURE} is damaged") from None
    if trusted is not None and key_id(trusted) != key_id(claimed):
        raise DataError(f"{where}: signed by key {key_id(claimed)}, not by the trusted key {key_id(trusted)}")
    try:
        (trusted or claimed).verify(value, _CONTEXT + manifest)
    except InvalidSignature:
        raise DataError(f"{where}: the signature does not fit {MANIFEST}: one of them was changed") from None
    return key_id(claimed)


def _parse(manifest: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(manifest)
        if record["schema"] != SCHEMA:
            raise DataError(f"{where}: schema {record['schema']}: this version reads {SCHEMA}")
        for key in ("lacuna", "method", "options", "modalities", "grid", "sampler", "intensities", "provenance"):
            record[key]
        if not all(isinstance(file["sha256"], str) for file in record["files"].values()):
            raise TypeError
        record["intensities"]["version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: {MANIFEST} is not what this version writes ({type(error).__name__})") from None
    return dict(record)


def _check_listing(folder: Path, files: Mapping[str, Any], where: str) -> None:
    """Just the files that bundle.json lists, each a plain file of this folder."""
    for name in files:
        if name not in MAY_HOLD:
            raise DataError(f"{where}: {MANIFEST} lists {name[:40]!r}; a bundle holds {', '.join(MAY_HOLD)}")
    if WEIGHTS not in files:
        raise DataError(f"{where}: {MANIFEST} lists no {WEIGHTS}")
    found = {path.name: path for path in folder.iterdir()}
    for name in sorted(files):
        if name not in found or found[name].is_symlink() or not found[name].is_file():
            raise DataError(f"{where}: {name} is missing")
    for name in sorted(found.keys() - files.keys() - {MANIFEST, SIGNATURE}):
        raise DataError(f"{where}: {name[:40]!r} is no part of it; remove it")
