"""The one way to write to a disk: a file or a folder is there whole, as it was or as it is to be, and nothing between.

It is made beside its place, brought onto the disk, renamed, and the folder is brought onto the disk too: only then is
it reported as written, and no kill or power cut takes it back. `durable=False` leaves out what guards against the power
cut, for what can be made again (a cache, thousands of files of a copy): such a file may then be gone, cut short or
empty, so its reader must notice that. What a half-made file is called: shared/base/disk/system.py. One process at a
time: shared/base/disk/locks.py.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import SEEK_END, fspath
from pathlib import Path
from typing import Any, BinaryIO

from shared.base.disk import locks, system
from shared.base.disk.system import make_folder as make_folder
from shared.base.disk.system import remove as remove
from shared.base.disk.system import sweep as sweep
from shared.base.errors import ConfigError, DataError

_STAGE, _PLAN, _LOCK = ".change", "plan.json", ".lock"
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
    with _new(path, mode=mode, durable=durable) as (handle, _), system.stream(handle) as file:
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
    make_folder(path.parent)
    with system.beside(path, mode=mode) as (handle, name):
        with system.stream(handle) as file:
            file.write(content)
            system.push(file)
        system.link(name, path)
        system.sync(path.parent)


def copy(source: Path, target: Path, *, linked: bool = False, durable: bool = True) -> None:
    """`linked`: a second name for the same bytes, where the disk has such."""
    with writing_at(target, durable=durable) as name:
        if linked:
            with suppress(OSError):
                system.relink(source.resolve(), name)
                return
        shutil.copyfile(source, name)


def move(source: Path, target: Path) -> None:
    """A file that is finished goes to its place."""
    system.sync(source)
    system.rename(source, target)
    system.sync(target.parent)


@contextmanager
def adding(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to read and to add to, nobody else's meanwhile; what was added is on the disk when the block has ended."""
    make_folder(path.parent)
    with system.open_to_add(path, mode) as file:
        system.lock(file.fileno(), wait=True)
        if not file.seek(0, SEEK_END):
            system.sync(path.parent)  # before there is anything in it that could be missed
        yield file
        system.push(file)


@contextmanager
def _new(path: Path, *, mode: int | None, durable: bool) -> Iterator[tuple[int, Path]]:
    make_folder(path.parent, durable=durable)
    with system.beside(path, mode=mode) as (handle, name):
        yield handle, name
        if durable:
            system.sync(name)
        system.rename(name, path)
        if durable:
            system.sync(path.parent)


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
    system.settle(folder)
    with system.beside(folder, mode=mode, folder=True) as (_, name):
        yield name
        if durable:
            system.sync_tree(name)
        if not folder.exists():
            system.rename(name, folder)
        elif not system.swap(name, folder):
            system.rename(folder, system.old(folder))
            system.rename(name, folder)
        if durable:
            system.sync(folder.parent)
    system.clear(name)
    system.settle(folder)


# --- files that change together


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; what a killed one left half done is finished or forgotten first."""
    with locks.held(folder / _LOCK, wait=None):
        finish(folder)
        yield


class Change:
    """Files of one folder that change together or not at all, whenever the power fails. Needs `locked`.

    What is to be is written into FOLDER/.change first, and decided by one file there, plan.json. Whoever comes next to
    the folder finishes what was decided, and forgets what was not.
    """

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
        system.remove(stage)
        make_folder(stage, mode=0o700)
        moves: dict[str, str] = {}
        for name, (content, mode) in sorted(self._writes.items()):
            if not _is(self._folder / name, content, mode):
                moves[name] = str(len(moves))
                write_bytes(stage / moves[name], content, mode=mode, durable=False)
        system.sync_tree(stage)
        write_bytes(stage / _PLAN, canonical({"move": moves, "remove": sorted(self._removes)}), mode=0o600)
        finish(self._folder)


def finish(folder: Path) -> None:
    """A change that was decided is carried out; one that was not is forgotten."""
    stage = folder / _STAGE
    if not stage.exists():
        return
    if (stage / _PLAN).exists():
        plan = json.loads((stage / _PLAN).read_bytes())
        for name, number in plan["move"].items():
            staged = stage / number  # it stays until all is in its place
            private_folder((folder / name).parent)
            write_bytes(folder / name, staged.read_bytes(), mode=staged.stat().st_mode & 0o777)
        for name in plan["remove"]:
            system.remove(folder / name)
        for parent in {(folder / name).parent for name in plan["remove"]}:
            if parent.exists():
                system.sync(parent)
        system.remove(stage / _PLAN)
        system.sync(stage)
    system.remove(stage)
    system.sync(folder)


def _is(path: Path, content: bytes, mode: int) -> bool:
    return path.is_file() and path.stat().st_mode & 0o777 == mode and path.read_bytes() == content
