"""Small files that are whole or absent, records that have one spelling, and secrets that only their owner may read."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.base.errors import ConfigError, DataError

MOST = 2**20  # bytes of any file here: read before anything is known of it
_STAGE, _PLAN, _LOCK = ".change", "plan.json", ".lock"


# --- records


def canonical(record: Mapping[str, Any], *, indent: int | None = 1) -> bytes:
    """The one way in which a record is written: sorted keys, ASCII, no NaN."""
    return (json.dumps(record, sort_keys=True, indent=indent, allow_nan=False) + "\n").encode("ascii")


def parse_canonical(content: bytes, where: str, *, indent: int | None = 1) -> dict[str, Any]:
    """The record, if these are the very bytes that `canonical` gives for it; else DataError."""
    try:
        record = json.loads(content)
        same = isinstance(record, dict) and canonical(record, indent=indent) == content
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: can't be read ({type(error).__name__}): it was damaged or changed") from None
    if not same:
        raise DataError(f"{where}: is not written as Lacuna writes it: it was changed")
    return dict(record)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- reading


def read_bounded(path: Path, where: str, most: int = MOST) -> bytes:
    """The bytes of a plain file of at most `most`; else DataError."""
    try:
        if not path.is_file():
            raise DataError(f"{where}: {path} is missing or no file")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise DataError(f"{where}: {path} can't be read: {error.strerror}") from None
    if len(content) > most:
        raise DataError(f"{where}: {path} is over {most} bytes")
    return content


def read_secret(path: Path, what: str) -> bytes:
    """ConfigError when anybody but its owner may read it."""
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise ConfigError(f"{what} {path}: mode {mode:04o} lets others at it; must be 0600 or less")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {path}: can't be read: {error.strerror}") from None


# --- writing


def private_folder(folder: Path) -> None:
    """Make it, and what is missing above it, for the owner alone; one that is there keeps its mode."""
    for missing in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; what a killed one left half done is finished or forgotten first."""
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        finish(folder)
        yield
    finally:
        os.close(handle)


class Change:
    """Files of one folder that change together or not at all, whenever the power fails. Needs `locked`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writes: dict[str, tuple[bytes, int]] = {}
        self._removes: set[str] = set()

    def write(self, name: str, content: bytes, *, mode: int = 0o644) -> None:
        self._removes.discard(name)
        self._writes[name] = (content, mode)

    def remove(self, name: str) -> None:
        self._writes.pop(name, None)
        self._removes.add(name)

    def commit(self) -> None:
        """Files that have their content already are left alone. Once plan.json is there, `finish` does the rest."""
        stage = self._folder / _STAGE
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(mode=0o700)
        moves: dict[str, str] = {}
        for name, (content, mode) in sorted(self._writes.items()):
            if not _is(self._folder / name, content, mode):
                moves[name] = str(len(moves))
                _write(stage / moves[name], content, mode)
        _write(stage / f"{_PLAN}.partial", canonical({"move": moves, "remove": sorted(self._removes)}), 0o600)
        os.replace(stage / f"{_PLAN}.partial", stage / _PLAN)
        _sync(stage)
        finish(self._folder)


def finish(folder: Path) -> None:
    """A change that was decided is carried out; one that was not is forgotten."""
    stage = folder / _STAGE
    if not stage.exists():
        return
    if (stage / _PLAN).exists():
        plan = json.loads((stage / _PLAN).read_bytes())
        for name, number in plan["move"].items():
            private_folder((folder / name).parent)
            if (stage / number).exists():  # else it was moved before the kill
                _move(stage / number, folder / name)
        for name in plan["remove"]:
            (folder / name).unlink(missing_ok=True)
        for parent in {(folder / name).parent for name in (*plan["move"], *plan["remove"])}:
            if parent.exists():
                _sync(parent)
        (stage / _PLAN).unlink()
    shutil.rmtree(stage)


def _is(path: Path, content: bytes, mode: int) -> bool:
    return path.is_file() and path.stat().st_mode & 0o777 == mode and path.read_bytes() == content


def _write(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)  # whatever the umask
        file.write(content)
        file.flush()
        os.fsync(handle)


def _move(source: Path, target: Path) -> None:
    os.replace(source, target)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
