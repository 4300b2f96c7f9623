"""Finished slices of a job that may be stopped at any moment, in a private folder beside what it will write.

    OUT/.partial-sub-X-KEY/000012.npz    one batch, renamed into place: its slices, mean and spread of each

The key is that of everything the bits depend on, so a job that finds its folder goes on to what it would have made. A
batch is there whole or not at all: the next one holds the same slices as without the stop. Its folder is patient data,
for its owner alone, and goes away with the end of any job of that subject.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.base.files import private_folder, writing


class SliceStore:
    """shared/model/fill.py's Kept, on disk."""

    def __init__(self, out: Path, subject: str, made_from: Mapping[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:24]
        self._out, self._subject = out, subject
        self.folder = out / f".partial-{subject}-{key}"
        self._batch_of: dict[int, Path] = {}
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            batch = _read(path)
            if batch is None:
                path.unlink()  # damaged: made anew
            else:
                self._batch_of.update(dict.fromkeys(batch[0], path))

    def read(self, z: int) -> tuple[Tensor, Tensor] | None:
        path = self._batch_of.get(z)
        batch = None if path is None else _read(path)
        if batch is None:
            return None
        slices, mean_BMHW, sd_BMHW = batch
        return mean_BMHW[slices.index(z)], sd_BMHW[slices.index(z)]

    def write(self, slices: Sequence[int], mean_BMHW: Tensor, sd_BMHW: Tensor) -> None:
        self.make()
        path = self.folder / f"{min(slices):06d}.npz"
        with writing(path, durable=False) as file:  # `_read` takes no damaged one
            np.savez(file, slices=np.asarray(slices), mean=mean_BMHW.numpy(), sd=sd_BMHW.numpy())
        self._batch_of.update(dict.fromkeys(slices, path))

    def make(self) -> Path:
        """The folder, for its owner alone."""
        private_folder(self.folder)
        return self.folder

    def clear(self) -> None:
        """The job is done: nothing of it stays, nor of another job of the subject that was never ended."""
        for folder in self._out.glob(f".partial-{self._subject}-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> tuple[list[int], Tensor, Tensor] | None:
    try:
        with np.load(path, allow_pickle=False) as batch:
            return batch["slices"].tolist(), torch.from_numpy(batch["mean"]), torch.from_numpy(batch["sd"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
