"""Real images for tests, which are never part of this repository: LACUNA_SHARED_DATA, or ../shared/data beside it."""

import atexit
import os
import shutil
import tarfile
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("LACUNA_SHARED_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")


def shared(name: str) -> Path:
    """A file of the shared images, such as "dicom/xa30_t1.tar.xz"; the test is skipped where it is absent."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name}: no such real images; set LACUNA_SHARED_DATA to a folder that has them")
    return path


def unpacked(name: str) -> Path:
    """An archive of the shared images as a folder, unpacked once per process."""
    return _unpacked(shared(name))


@lru_cache
def _unpacked(path: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lacuna-shared-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder
