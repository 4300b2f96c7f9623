"""What the product asks of a disk, one call of the system at a time; shared/base/files.py makes whole files of them.

<<<<<<< HEAD:shared/base/disk.py
Here alone are the calls that change a disk, so that a test can let each of them fail (tests/support/disk/disks.py),
and here alone is said what a half-made thing is called:
=======
Here alone are the calls that change a disk, so that a test can let each of them fail (tests/support/disk/disks.py), and
here alone is said what a half-made thing is called:
>>>>>>> h-files:shared/base/disk/system.py

    .NAME.partial, .NAME.2.partial ...   NAME being made. Its maker holds a lock on it, so one that nobody holds was
                                         left by a kill: the next maker of NAME takes it away, and so does `sweep`
    .NAME.old                            a folder NAME being replaced, where the disk can't swap two names in one step
"""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)  # a disk's word for what it can't do at all
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


# --- one call each --------------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """A file's bytes, or the names in a folder, are on the disk when this returns: a power cut can't take them back."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT or not path.is_dir():  # some network disks know no sync of a folder
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """All files of a folder, and the folder itself last."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            sync_tree(path)
        elif path.is_file() and not path.is_symlink():
            sync(path)
    sync(folder)


def rename(source: Path, target: Path) -> None:
    os.replace(source, target)


def link(source: Path, target: Path) -> None:
    """A second name, or where the disk has none, another; FileExistsError where it is taken."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.replace(source, target)


def relink(source: Path, name: Path) -> None:
    """`name` is a second name of `source` now, whatever it was."""
    os.unlink(name)
    os.link(source, name)


def remove(path: Path) -> None:
    """A file or a whole folder, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def make_folder(folder: Path, *, mode: int = 0o777, durable: bool = True) -> None:
    """It and what is missing above it; one that is there keeps its mode."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        with suppress(FileExistsError):  # another was first
            os.mkdir(missing, mode)
        if durable:
            sync(missing.parent)


def swap(one: Path, other: Path) -> bool:
    """Two names change places in one step; False, and nothing is done, where the system or the disk can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def open_new(path: Path, mode: int | None) -> int:
    """A handle to a file that was not there; `mode` None: as the umask has it, else just this."""
    handle = os.open(path, _NEW, 0o666 if mode is None else mode)
    if mode is not None:
        os.fchmod(handle, mode)
    return handle


def stream(handle: int) -> BinaryIO:
    """To write to; the handle stays open when it is closed."""
    return os.fdopen(handle, "wb", closefd=False)


def open_to_add(path: Path, mode: int | None) -> BinaryIO:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666 if mode is None else mode)
    return os.fdopen(handle, "a+b")


def push(file: BinaryIO) -> None:
    """What was written to it is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def lock(handle: int, *, shared: bool = False, wait: bool = False) -> bool:
    """False: another handle has it."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


# --- what is half made ----------------------------------------------------------------------------------------------


@contextmanager
def beside(path: Path, *, mode: int | None, folder: bool = False) -> Iterator[tuple[int, Path]]:
    """A new file, or folder, to become `path`: its handle and its name. Gone at the end, unless it was renamed."""
    handle, name = _take_slot(path, mode, folder=folder)
    try:
        yield handle, name
    finally:
        try:
            with suppress(OSError):
                if is_named(handle, name):
                    remove(name)
        finally:
            os.close(handle)


def sweep(folder: Path, names: str = "*") -> None:
    """What kills left half made in this folder, of the names that match; what somebody is making now stays."""
    for path in sorted(folder.glob(f".{names}.partial")):
        clear(path)
    for path in sorted(folder.glob(f".{names}.old")):
        settle(path.with_name(path.name.removeprefix(".").removesuffix(".old")))


def settle(folder: Path) -> None:
    """A folder whose replacement was broken off is put back; the old one of a replacement that came to its end goes."""
    if old(folder).exists() and not folder.exists():
        rename(old(folder), folder)
    else:
        remove(old(folder))


def old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _take_slot(path: Path, mode: int | None, *, folder: bool) -> tuple[int, Path]:
    slot = 1
    while True:
        name = path.with_name(f".{path.name}.partial" if slot == 1 else f".{path.name}.{slot}.partial")
        handle = _claim(name, mode, folder=folder) if clear(name) else None
        if handle is not None:
            return handle, name
        slot += 1


def _claim(name: Path, mode: int | None, *, folder: bool) -> int | None:
    """Made and held; None when another was quicker."""
    try:
        if folder:
            os.mkdir(name, 0o777 if mode is None else mode)
        handle = os.open(name, os.O_RDONLY) if folder else open_new(name, mode)
    except FileExistsError:
        return None
    if _hold(handle) and is_named(handle, name):
        return handle
    os.close(handle)  # a sweep came in between
    return None


def clear(name: Path) -> bool:
    """Nothing has this name now, for what had it was left behind; False: somebody holds it."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError:  # a link, or what we may not read: nothing that we made
        remove(name)
        return True
    try:
        if not _hold(handle) or not is_named(handle, name):
            return False
        remove(name)
        return True
    finally:
        os.close(handle)


def _hold(handle: int) -> bool:
    """On a disk without locks, or without those of folders, what is half made is anybody's: the last writer has it."""
    try:
        return lock(handle)
    except OSError as error:
        if error.errno not in (*_CANNOT, errno.ENOLCK, errno.EBADF):
            raise
        return True


def is_named(handle: int, name: Path) -> bool:
    """Is this name still that of what we hold?"""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(name))
    except FileNotFoundError:
        return False
