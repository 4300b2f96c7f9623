"""The one way to write to a disk: a file or a folder is there whole, as it was or as it is to be, and nothing between.

It is made beside its place, brought onto the disk, renamed, and the folder is brought onto the disk too: only then is
it reported as written, and no kill or power cut takes it back. `durable=False` leaves out what guards against the power
cut, for what can be made again (a cache, thousands of files of a copy): such a file may then be gone, cut short or
empty, so its reader must notice that. What a half-made file is called: shared/base/disk.py. Files that change together:
shared/base/change.py. One process at a time: shared/base/locks.py.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import SEEK_END, fspath
from pathlib import Path
from typing import Any, BinaryIO

from shared.base import disk
from shared.base.disk import make_folder as make_folder
from shared.base.disk import remove as remove
from shared.base.disk import sweep as sweep
from shared.base.errors import ConfigError, DataError

MOST = 2**20  # bytes of a small file: read before anything is known of it


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


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


# --- writing a file


@contextmanager
def writing(path: Path, *, mode: int | None = None, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, that is `path` when the block has come to its end; folders above it are made.

    `mode` is just that, whatever the umask; None: as the umask has it.
    """
    with _new(path, mode=mode, durable=durable) as (handle, _), disk.stream(handle) as file:
        yield file


@contextmanager
def writing_at(path: Path, *, mode: int | None = None, durable: bool = True) -> Iterator[Path]:
    """`writing` for a library that opens its file itself."""
    with _new(path, mode=mode, durable=durable) as (_, name):
        yield name


def write_bytes(path: Path, content: bytes, *, mode: int | None = None, durable: bool = True) -> None:
    with writing(path, mode=mode, durable=durable) as file:
        file.write(content)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """UTF-8; what can't be (a file's name need not be) is written with backslashes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), durable=durable)


def write_json(path: Path, content: Any, *, durable: bool = True, **how: Any) -> None:
    """For people to read: indented, with a line's end; a path is its text; `how` as `json.dumps` takes it."""
    write_text(path, json.dumps(content, indent=1, **{"default": fspath, **how}) + "\n", durable=durable)


def write_once(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """A file that is never overwritten: FileExistsError where one is, also one that another process made just now."""
    with disk.beside(path, mode=mode) as (handle, name):
        with disk.stream(handle) as file:
            file.write(content)
            disk.push(file)
        disk.link(name, path)
        disk.sync(path.parent)


def copy(source: Path, target: Path, *, linked: bool = False, durable: bool = True) -> None:
    """`linked`: a second name for the same bytes, where the disk has such."""
    with writing_at(target, durable=durable) as name:
        if linked:
            with suppress(OSError):
                disk.relink(source.resolve(), name)
                return
        shutil.copyfile(source, name)


def move(source: Path, target: Path) -> None:
    """A file that is finished goes to its place."""
    disk.sync(source)
    disk.rename(source, target)
    disk.sync(target.parent)


@contextmanager
def adding(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to read and to add to, nobody else's meanwhile; what was added is on the disk when the block has ended."""
    make_folder(path.parent)
    with disk.open_to_add(path, mode) as file:
        disk.lock(file.fileno(), wait=True)
        if not file.seek(0, SEEK_END):
            disk.sync(path.parent)  # before there is anything in it that could be missed
        yield file
        disk.push(file)


@contextmanager
def _new(path: Path, *, mode: int | None, durable: bool) -> Iterator[tuple[int, Path]]:
    make_folder(path.parent, durable=durable)
    with disk.beside(path, mode=mode) as (handle, name):
        yield handle, name
        if durable:
            disk.sync(name)
        disk.rename(name, path)
        if durable:
            disk.sync(path.parent)


# --- writing a folder


def private_folder(folder: Path) -> None:
    """Make it, and what is missing above it, for the owner alone; one that is there keeps its mode."""
    make_folder(folder, mode=0o700)


@contextmanager
def new_folder(folder: Path, *, mode: int | None = None, durable: bool = True) -> Iterator[Path]:
    """A folder to fill, that is `folder` when the block has come to its end; one that is there is replaced.

    The two change places in one step, so there is always one. Where the disk can't do that, a kill between two steps
    leaves the old one as `.NAME.old`, and whoever writes or sweeps there next puts it back.
    """
    make_folder(folder.parent, durable=durable)
    disk.settle(folder)
    with disk.beside(folder, mode=mode, folder=True) as (_, name):
        yield name
        if durable:
            disk.sync_tree(name)
        if not folder.exists():
            disk.rename(name, folder)
        elif not disk.swap(name, folder):
            disk.rename(folder, disk.old(folder))
            disk.rename(name, folder)
        if durable:
            disk.sync(folder.parent)
    disk.clear(name)
    disk.settle(folder)
