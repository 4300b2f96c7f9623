"""Checkpoints: safetensors + JSON in one folder, written beside and renamed into place, verified before use.

A kill at any moment leaves the previous checkpoint whole. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.base.errors import DataError

TENSORS, RECORD = "tensors.safetensors", "record.json"


def save(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write `folder` whole or not at all; an existing one is replaced. OSError where the disk is full."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _write(beside, tensors, record)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)  # its room may be what the last words need
        raise
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(beside, folder)
    _sync(folder.parent)


def _write(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    folder.mkdir()
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    except SafetensorError as error:
        raise OSError(f"{folder / TENSORS}: {error}") from None
    sealed = {**record, "sha256": sha256(folder / TENSORS)}
    (folder / RECORD).write_text(json.dumps(sealed, indent=1, sort_keys=True))
    for path in (folder / TENSORS, folder / RECORD, folder):
        _sync(path)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record, or DataError naming what is wrong with the folder."""
    try:
        record = json.loads((folder / RECORD).read_text())
        digest = sha256(folder / TENSORS)
    except (OSError, ValueError) as error:
        raise DataError(f"checkpoint {folder}: {error}") from None
    if record.get("sha256") != digest:
        raise DataError(f"checkpoint {folder}: {TENSORS} has sha256 {digest[:12]}, its record says otherwise")
    return load_file(folder / TENSORS), record


def save_step(
    root: Path, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any], *, keep: int = 2
) -> None:
    """Checkpoint number `step` under `root`; all but the newest `keep` are removed."""
    save(root / f"{step:06d}", tensors, record)
    for old in _steps(root)[:-keep]:
        shutil.rmtree(old)


def load_latest(root: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that verifies; None where there is none at all."""
    steps = _steps(root)
    for folder in reversed(steps):
        try:
            return load(folder)
        except DataError:
            if folder == steps[0]:
                raise
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """A small file, replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    _sync(beside)
    os.replace(beside, path)


def _steps(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("[0-9]" * 6) if p.is_dir()) if root.is_dir() else []


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
