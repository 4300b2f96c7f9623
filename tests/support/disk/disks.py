"""A disk that is full; one that fails where a test says, so that any call that changes it can be the last, or find it
broken; and a model of the power cut, after which of all that was not synced any part may be there, or none.

The last two stand between shared/base/disk and the system, and act in a real folder. Nothing is really synced there.
"""

import errno
import io
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

from shared.base.disk import system

CODES = {"full": errno.ENOSPC, "broken": errno.EIO}
Names: TypeAlias = dict[str, int]  # inode of each name in a folder
Choose: TypeAlias = Callable[[Sequence[Any]], Any]


@contextmanager
def full(room: int = 1000) -> Iterator[None]:
    """No file grows beyond `room` bytes until the block ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- calls that fail ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here: nothing of it, no `except` and no `finally`, changes the disk any more."""


class Faults:
    """`at`: the number of the call that fails (None: none does), and `how`: killed, full or broken."""

    def __init__(self, root: Path, at: int | None = None, how: str = "killed") -> None:
        self._at, self._how, self._dead = at, how, False
        self.calls: list[str] = []
        self.power = Power(root)

    def step(self, name: str, half: Callable[[], object] = lambda: None) -> bool:
        """One call more: raises where it is the one; `half` is what is done of it all the same."""
        if self._dead:
            raise Killed
        self.calls.append(name)
        if len(self.calls) - 1 == self._at:
            half()
            if self._how == "killed":
                self._dead = True
                raise Killed
            raise OSError(CODES[self._how], os.strerror(CODES[self._how]), name)
        return True

    @property
    def dead(self) -> bool:
        return self._dead


@contextmanager
def failing(root: Path, at: int | None = None, how: str = "killed", *, cuts: bool = False) -> Iterator[Faults]:
    """Within the block the disk below `root` fails at call `at`; with None it never does, and counts alone.

    `cuts`: the test will cut the power afterwards, and closes `Faults.power` itself.
    """
    faults = Faults(root, at, how)
    swap = system.swap

    def swapped(one: Path, other: Path) -> bool:
        faults.step("swap")
        done = swap(one, other)
        faults.power.named(one, other)
        return done

    with (
        mock.patch.object(system, "os", _Os(faults)),
        mock.patch.object(system, "shutil", _Shutil(faults)),
        mock.patch.object(system, "swap", swapped),
    ):
        try:
            yield faults
        finally:
            if not cuts:
                faults.power.close()


class _Os:
    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT and not path.exists():
            self._faults.step("create")
        handle = os.open(path, flags, mode)
        self._faults.power.named(path)
        return handle

    def fdopen(self, handle: int, mode: str, closefd: bool = True) -> Any:
        raw = _Raw(handle, mode.replace("b", ""), closefd=closefd)
        raw.faults = self._faults
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

    def fsync(self, handle: int) -> None:
        self._faults.step("sync")
        self._faults.power.synced(handle)

    def replace(self, source: Path, target: Path) -> None:
        self._faults.step("rename")
        os.replace(source, target)
        self._faults.power.named(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._faults.step("link")
        os.link(source, target)
        self._faults.power.named(target)

    def unlink(self, path: Path) -> None:
        if path.exists():
            self._faults.step("unlink")
        os.unlink(path)
        self._faults.power.named(path)

    def mkdir(self, path: Path, mode: int) -> None:
        self._faults.step("mkdir")
        os.mkdir(path, mode)
        self._faults.power.named(path)


class _Shutil:
    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(shutil, name)

    def rmtree(self, path: Path) -> None:
        files = [inside for inside in sorted(path.rglob("*")) if inside.is_file()]
        self._faults.step("remove a folder", lambda: [file.unlink() for file in files[: len(files) // 2 + 1]])
        shutil.rmtree(path)
        self._faults.power.named(path)


class _Raw(io.FileIO):
    faults: Faults

    def write(self, content: Any) -> int:
        if self.faults.dead:
            return len(content)
        wanted = bytes(content)
        self.faults.step("write", lambda: super(_Raw, self).write(wanted[: len(wanted) // 2]))
        return int(super().write(wanted))

    def truncate(self, size: int | None = None) -> int:
        self.faults.step("truncate")
        return int(super().truncate(size))


# --- the power cut --------------------------------------------------------------------------------------------------


class Power:
    """What each file holds, and each folder names, on the disk; and what they came to hold since without a sync."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._handles: dict[int, int] = {}  # held open, so that no inode's number is given to another
        self._content: dict[int, bytes] = {}
        self._names: dict[int, list[Names]] = {}  # since the last sync, oldest first
        for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
            self._names[self._hold(folder)] = [self._list(folder)]
        for path in root.rglob("*"):
            if path.is_file():
                self._content[self._hold(path)] = path.read_bytes()

    def named(self, *paths: Path) -> None:
        """Something was made, renamed or removed there."""
        for folder in {path.parent for path in paths} | {path for path in paths if path.is_dir()}:
            if folder.is_relative_to(self._root) and folder.is_dir():
                history, now = self._names.setdefault(self._hold(folder), [{}]), self._list(folder)
                if history[-1] != now:
                    history.append(now)

    def synced(self, handle: int) -> None:
        number = os.fstat(handle).st_ino
        if number in self._names:
            self._names[number] = [self._list(Path(os.readlink(f"/proc/self/fd/{handle}")))]
        else:
            self._content[number] = self._read(number)

    def cut(self, into: Path, choose: Choose) -> None:
        """The disk as it is found afterwards; `choose` picks of each thing's possible states one, oldest first."""
        self._make(self._hold(self._root), into, choose)

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)

    def _make(self, number: int, into: Path, choose: Choose) -> None:
        into.mkdir()
        for name, inside in choose(self._names[number]).items():
            if inside in self._names:
                self._make(inside, into / name, choose)
            else:
                now, then = self._read(inside), self._content.get(inside, b"")
                whole = len(then) if now.startswith(then) else 0  # what is only added to keeps what it had
                half = now[: whole + (len(now) - whole) // 2]
                states = [then, half, now] if now != then else [now]
                (into / name).write_bytes(choose(states))

    def _list(self, folder: Path) -> Names:
        found = {path.name: self._hold(path) for path in folder.iterdir()}
        for path in folder.iterdir():
            if path.is_dir():
                self._names.setdefault(found[path.name], [{}])
        return found

    def _hold(self, path: Path) -> int:
        handle = os.open(path, os.O_RDONLY)
        number = os.fstat(handle).st_ino
        if number in self._handles:
            os.close(handle)
        else:
            self._handles[number] = handle
        return number

    def _read(self, number: int) -> bytes:
        handle = self._handles[number]
        return os.pread(handle, os.fstat(handle).st_size, 0)
