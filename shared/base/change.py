"""Files of one folder that change together or not at all, whenever the power fails.

What is to be is written into FOLDER/.change first, and decided by one file there, plan.json. Whoever comes next to the
folder finishes what was decided, and forgets what was not.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.base import disk, locks
from shared.base.files import canonical, make_folder, private_folder, write_bytes

_STAGE, _PLAN, _LOCK = ".change", "plan.json", ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; what a killed one left half done is finished or forgotten first."""
    with locks.held(folder / _LOCK, wait=None):
        finish(folder)
        yield


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
        disk.remove(stage)
        make_folder(stage, mode=0o700)
        moves: dict[str, str] = {}
        for name, (content, mode) in sorted(self._writes.items()):
            if not _is(self._folder / name, content, mode):
                moves[name] = str(len(moves))
                write_bytes(stage / moves[name], content, mode=mode, durable=False)
        disk.sync_tree(stage)
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
            disk.remove(folder / name)
        for parent in {(folder / name).parent for name in plan["remove"]}:
            if parent.exists():
                disk.sync(parent)
        disk.remove(stage / _PLAN)
        disk.sync(stage)
    disk.remove(stage)
    disk.sync(folder)


def _is(path: Path, content: bytes, mode: int) -> bool:
    return path.is_file() and path.stat().st_mode & 0o777 == mode and path.read_bytes() == content
