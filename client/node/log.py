"""The end of a site's log, and what is added to it."""

import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from shared.base.errors import DataError

LOG = "node/site.log"


def tail(state: Path, lines: int, *, follow: bool = False, pause: float = 0.5) -> Iterator[str]:
    """Give the last lines; with `follow` it never ends, and goes on in the next file when this one is full."""
    path = state / LOG
    if not path.exists():
        raise DataError(f"{path}: no node has run with this state")
    file = path.open(encoding="utf-8", errors="replace")
    try:
        yield from (line.rstrip("\n") for line in deque(file, maxlen=lines))
        while follow:
            line = file.readline()
            if line:
                yield line.rstrip("\n")
            elif path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                file.close()
                file = path.open(encoding="utf-8", errors="replace")
            else:
                time.sleep(pause)
    finally:
        file.close()
