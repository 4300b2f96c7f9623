"""Checkpoints: safetensors + JSON in one folder, whole or absent (shared/base/files.py), verified before use.

Nothing is ever unpickled.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from shared.base.disk.tensors import Tensors, lying_in, write
from shared.base.errors import DataError
from shared.base.files import hash_file, new_folder, remove, sweep, write_text, writing

TENSORS, RECORD = "tensors.safetensors", "record.json"


def save(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write `folder` whole or not at all; an existing one is replaced. OSError where the disk is full."""
    with new_folder(folder) as made:
        save_tensors(made / TENSORS, tensors, durable=False)  # the whole folder is brought onto the disk at its end
        sealed = {**record, "sha256": hash_file(made / TENSORS)}
        write_text(made / RECORD, json.dumps(sealed, indent=1, sort_keys=True), durable=False)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, durable: bool = True) -> None:
    """A safetensors file, as `shared/base/files.py` writes files, of tensors that are read one at a time."""
    with writing(path, durable=durable) as file:
        try:
            write(file, tensors)
            file.flush()
        except OSError as error:
            raise OSError(f"{path}: {error}") from None


def load(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors, which stay on the disk, and record; or DataError naming what is wrong with the folder."""
    try:
        record = json.loads((folder / RECORD).read_text())
        digest = hash_file(folder / TENSORS)
    except (OSError, ValueError) as error:
        raise DataError(f"checkpoint {folder}: {error}") from None
    if record.get("sha256") != digest:
        raise DataError(f"checkpoint {folder}: {TENSORS} has sha256 {digest[:12]}, its record says otherwise")
    return lying_in(folder / TENSORS), record


def save_step(
    root: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    *,
    keep: int = 2,
    before: Collection[int] = (),
) -> Tensors:
    """Checkpoint number `step` under `root`, and its tensors as they lie there; of the others the newest stay, and the
    last until each of `before`."""
    folder = root / f"{step:06d}"
    save(folder, tensors, record)
    sweep(root)
    kept = {*_steps(root)[-keep:], *(last_until(root, most) for most in before)}
    for old in _steps(root):
        if old not in kept:
            remove(old)
    return lying_in(folder / TENSORS)


def last_until(root: Path, step: int) -> Path | None:
    """The newest checkpoint whose number is no more than this."""
    return max((folder for folder in _steps(root) if int(folder.name) <= step), default=None)


def load_latest(root: Path) -> tuple[Tensors, dict[str, Any]] | None:
    """The newest checkpoint that verifies; None where there is none at all."""
    steps = _steps(root)
    for folder in reversed(steps):
        try:
            return load(folder)
        except DataError:
            if folder == steps[0]:
                raise
    return None


def _steps(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("[0-9]" * 6) if p.is_dir()) if root.is_dir() else []
