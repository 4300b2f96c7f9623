"""One process at a time: a lock is a file, held as long as the handle to it is open, and freed by a kill too."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.base.disk import system

LOOK = 0.02  # seconds between two tries


def take(path: Path, *, wait: float | None = 0.0, mode: int = 0o600) -> int | None:
    """A handle that holds it until it is closed; None: another had it for `wait` seconds. None waits for ever."""
    until = None if wait is None else time.monotonic() + wait
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, mode)
        try:
            if system.lock(handle, wait=wait is None) and system.is_named(
                handle, path
            ):  # and was not removed meanwhile
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if until is not None and time.monotonic() >= until:
            return None
        time.sleep(LOOK)


@contextmanager
def held(path: Path, *, wait: float | None = 0.0, busy: Exception | None = None) -> Iterator[None]:
    """Within the block nobody else is in one like it; `busy` is raised where another was for `wait` seconds."""
    handle = take(path, wait=wait)
    if handle is None:
        raise busy or BlockingIOError(f"{path}: another process holds it")
    try:
        yield
    finally:
        os.close(handle)


def is_held(path: Path) -> bool:
    """Does anybody hold it now?"""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not system.lock(handle, shared=True)
    finally:
        os.close(handle)
