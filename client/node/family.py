"""Processes that must not outlive the one that started them: they would hold the GPU and the site's key. Linux only.

Three hands, since any process can be killed: whoever starts a group ends it whole; orphans below `adopt_orphans` come
to us and not to init; and a process that called `die_with` is told by the kernel when its parent is gone.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


def die_with(parent: int) -> None:
    """Has this process get SIGTERM, once, when its parent `parent` ends, or now where it has ended already.

    The kernel tells it as often as a thread of the parent dies, and a second SIGTERM may kill where the first asked.
    """

    def once(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR1, once)
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGUSR1)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def adopt_orphans() -> None:
    """Make this process the parent of what was started below it and lost its own parent."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def below(pid: int) -> set[int]:
    """Find all living processes that descend from this one."""
    children: dict[int, list[int]] = {}
    for child, (parent, _) in _processes().items():
        children.setdefault(parent, []).append(child)
    found: set[int] = set()
    ahead = [pid]
    while ahead:
        for child in children.get(ahead.pop(), []):
            if child not in found:
                found.add(child)
                ahead.append(child)
    return found


def beside(pid: int) -> set[int]:
    """Find the other living processes of this one's group."""
    group = os.getpgid(pid)
    return {other for other, (_, its) in _processes().items() if its == group and other != pid}


def end(find: Callable[[], Iterable[int]], patience: float) -> None:
    """End those that `find` finds: SIGTERM, and SIGKILL after `patience` seconds, until it finds none."""
    limit = time.monotonic() + patience
    asked: set[int] = set()
    while living := set(find()):
        late = time.monotonic() >= limit
        for pid in living if late else living - asked:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked |= living
        if late and time.monotonic() >= limit + 10:  # one that the kernel does not let go
            return
        time.sleep(0.05)


def bury(known: Iterable[int]) -> None:
    """Let go the orphans that came to this process and have ended; `known` are waited for elsewhere."""
    for pid, (parent, _) in _processes(ended=True).items():
        if parent == os.getpid() and pid not in known:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _processes(*, ended: bool = False) -> dict[int, tuple[int, int]]:
    """Parent and group of each process that lives; `ended`: of those that ended and are not yet waited for."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                # the name in brackets may hold anything: what we want follows the last bracket
                state, parent, group = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:3]
                if (state in ("Z", "X")) == ended:
                    found[int(entry.name)] = (int(parent), int(group))
    return found


def _prctl(option: int, value: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")
