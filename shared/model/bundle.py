"""A model leaves the federation as a bundle: a folder of files, their hashes in bundle.json, one signature over that.

    bundle.json          method, options, grid, modalities, intensity rules, provenance, metrics; sha256 of the others;
                         what may be said of its privacy, what sites' audits found, and how sure its samples may be
    bundle.sig           Ed25519 over the bytes of bundle.json
    model.safetensors    the weights, from which `load` rebuilds the method
    denoiser.pt2, .onnx  the denoiser alone, for other programs

The same model and key give the same bytes. `load` verifies signature and hashes before it parses anything else, and
reads JSON and safetensors only. It never opens denoiser.pt2 or denoiser.onnx: a torch.export archive may hold pickles.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey as Ed25519PublicKey
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as dump_safetensors

from shared.base.errors import ConfigError, DataError
from shared.base.files import canonical, hash_file, new_folder, sha256, write_bytes
from shared.base.options import plain
from shared.data.intensities import RULES, rules_version
from shared.model.calibration import Calibration
from shared.model.calibration import read as calibration_of
from shared.model.denoiser import export_denoiser
from shared.model.model import Model, read_model, rebuild
from shared.trust.audits import Summary
from shared.trust.claims import privacy_of
from shared.trust.keys import key_id as key_id
from shared.trust.keys import make_signing_key as make_signing_key
from shared.trust.keys import public_path as public_path
from shared.trust.keys import read_public_key as read_public_key
from shared.trust.keys import read_signing_key as read_signing_key
from shared.trust.signed import Folder

SCHEMA = 1
MANIFEST, SIGNATURE, WEIGHTS = "bundle.json", "bundle.sig", "model.safetensors"
MAY_HOLD = (WEIGHTS, "denoiser.pt2", "denoiser.onnx")
# what reading another machine's words can raise; the last two of numbers and shapes that are out of all bounds
_MALFORMED = (LookupError, ValueError, TypeError, AttributeError, RecursionError, OverflowError, RuntimeError)
MOST_TEXT = 2**22  # bytes of bundle.json: read before anything is known of it
_FOLDER = Folder(
    what="bundle",
    listing=MANIFEST,
    signature=SIGNATURE,
    context=b"lacuna bundle 1\n",
    may_hold=MAY_HOLD,
    must_hold=WEIGHTS,
    most=MOST_TEXT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    model: Model
    digest: str  # sha256 of bundle.json, which holds the hashes of all the rest: the bundle's name
    signer: str  # id of the key that signed it
    trusted: bool  # was that the key the reader asked for? If not, only damage is excluded, not forgery
    record: Mapping[str, Any]  # bundle.json
    calibration: Calibration | None = None  # of its samples


# --- out ------------------------------------------------------------------------------------------------------------


def export(
    run_final: Path,
    out: Path,
    *,
    key: Path,
    metrics: Mapping[str, float] | None = None,
    ranges: Mapping[str, Any] | None = None,
    audits: Sequence[Summary] = (),
    calibration: Calibration | None = None,
) -> Path:
    """Write the released model in `run_final` as a signed bundle at `out`; an older bundle there is replaced whole.

    `ranges` say what inputs it is for (shared/model/ranges.py); None: a site then can't tell. `audits` are kept as
    sites handed them over, whatever they found; one of other weights is a ConfigError.
    """
    signing = read_signing_key(key)
    if out.exists() and not (out / MANIFEST).is_file():
        raise ConfigError(f"bundle {out}: something else is there")
    model = read_model(run_final)
    with new_folder(out) as made:
        tensors = {name: value.contiguous() for name, value in model.net.state_dict().items()}
        write_bytes(made / WEIGHTS, dump_safetensors(tensors), durable=False)
        _check_audits(audits, made / WEIGHTS)
        checked = export_denoiser(model, made)
        manifest = canonical(
            {
                **_manifest(model, checked, made, metrics or {}, ranges, audits),
                "calibration": None if calibration is None else calibration.record(),
            }
        )
        write_bytes(made / MANIFEST, manifest, durable=False)
        write_bytes(made / SIGNATURE, _FOLDER.sign(manifest, signing), durable=False)
    return out


def _manifest(
    model: Model,
    checked: Mapping[str, Any],
    folder: Path,
    metrics: Mapping[str, float],
    ranges: Mapping[str, Any] | None,
    audits: Sequence[Summary],
) -> dict[str, Any]:
    rules = {modality: plain(RULES[modality]) for modality in model.modalities}
    return {
        "schema": SCHEMA,
        "lacuna": version("lacuna"),
        "torch": torch.__version__,
        "method": model.name,
        "options": model.record["options"],
        "modalities": list(model.modalities),
        "grid": plain(model.grid),
        "sampler": plain(model.sampler),
        "intensities": {"version": rules_version(model.modalities), "rules": rules},
        "provenance": model.record["provenance"],
        "privacy": privacy_of(model.record["provenance"]),
        "audits": [plain(audit) for audit in audits],
        "metrics": dict(metrics),
        "ranges": None if ranges is None else dict(ranges),
        "denoiser": checked,
        "files": _FOLDER.entries(folder),
    }


def _check_audits(audits: Sequence[Summary], weights: Path) -> None:
    digest = hash_file(weights)
    for audit in audits:
        if audit.weights != digest:
            raise ConfigError(f"audit: of weights {audit.weights[:12]}; this bundle's are {digest[:12]}")


# --- in -------------------------------------------------------------------------------------------------------------


def load(folder: Path, *, trusted: Ed25519PublicKey | None) -> Bundle:
    """Verify a bundle and read it, or raise a DataError that says what is wrong with it.

    `trusted` None: whoever signed it. Its files are then whole and belong together, but anybody may have made them;
    the caller must have asked its user for that.
    """
    where = f"bundle {folder}"
    manifest, signer = _FOLDER.verify(folder, trusted, where)
    record = _parse(manifest, where)
    weights = b""
    for name, content in _FOLDER.read(folder, record["files"], where):
        if name == WEIGHTS:
            weights = content
    own, theirs = rules_version(record["modalities"]), record["intensities"]["version"]
    if theirs != own:
        raise DataError(
            f"{where}: made with other intensity rules ({str(theirs)[:80]}, here {own}); "
            f"use the Lacuna version {str(record['lacuna'])[:40]}"
        )
    try:
        tensors = parse_safetensors(weights)
    except SafetensorError as error:
        raise DataError(f"{where}: {WEIGHTS} is no safetensors file: {error}") from None
    try:
        return Bundle(
            model=rebuild(record, tensors, where),
            digest=sha256(manifest),
            signer=key_id(signer),
            trusted=trusted is not None,
            record=record,
            calibration=_calibration(record, where),
        )
    except ConfigError as error:
        raise DataError(f"{where}: {str(error)[:300]}") from None
    except _MALFORMED as error:
        raise DataError(f"{where}: {MANIFEST} is not what this version writes ({type(error).__name__})") from None


def _calibration(record: Mapping[str, Any], where: str) -> Calibration | None:
    try:
        return calibration_of(record.get("calibration"))
    except ConfigError as error:
        raise DataError(f"{where}: {str(error)[:300]}") from None


def weights_of(folder: Path) -> tuple[str, Ed25519PublicKey]:
    """The hash of a bundle's weights, whoever signed it, and who did; nothing else of it is read."""
    where = f"bundle {folder}"
    manifest, signer = _FOLDER.verify(folder, None, where)
    files = _parse(manifest, where)["files"]
    if WEIGHTS not in files:
        raise DataError(f"{where}: {MANIFEST} lists no {WEIGHTS}")
    return str(files[WEIGHTS]["sha256"]), signer


def _parse(manifest: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(manifest)
        if record["schema"] != SCHEMA:
            raise DataError(f"{where}: schema {str(record['schema'])[:40]}: this version reads {SCHEMA}")
        for key in ("lacuna", "method", "options", "modalities", "grid", "sampler", "intensities", "provenance"):
            record[key]
        if not all(isinstance(file["sha256"], str) for file in record["files"].values()):
            raise TypeError
        record["intensities"]["version"]
        rules_version(record["modalities"])
    except (*_MALFORMED, ConfigError) as error:
        raise DataError(f"{where}: {MANIFEST} is not what this version writes ({type(error).__name__})") from None
    return dict(record)
