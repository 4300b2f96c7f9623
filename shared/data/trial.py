"""A file of raw data is read once by a process that may fall over it.

HDF5 trusts what it reads: damaged lengths and heaps have crashed it, and sent it round in a circle for ever. So before
the worker that holds everything else opens a file from elsewhere, a process of its own has read all of it (`tried`).
"""

import resource
import signal
import subprocess
import sys
from pathlib import Path

from shared.base.doors import TRIAL
from shared.base.errors import DataError
from shared.data.kspace import KSpace, read

SECONDS, BYTES_PER_SECOND = 30, 2 << 20  # of CPU: a healthy file of 1 GB takes some ten seconds
REFUSED = 3


def tried(path: Path, maps: Path | None = None, seconds: int = SECONDS) -> KSpace:
    """Read as `kspace.read` does, once a process of its own has come to its end."""
    if not path.is_file():
        raise DataError(f"{path.name}: no such file")
    size = sum(p.stat().st_size for p in (path, maps) if p is not None and p.is_file())
    limit = seconds + size // BYTES_PER_SECOND
    files = [str(p.absolute()) for p in (path, maps) if p is not None]
    command = [sys.executable, "-P", "-m", TRIAL, str(limit), *files]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode == REFUSED:
        raise DataError(done.stdout)
    if done.returncode == -signal.SIGXCPU:
        raise DataError(f"{path.name}: damaged: HDF5 comes to no end of it in {limit} s")
    if done.returncode < 0:
        raise DataError(f"{path.name}: damaged: HDF5 breaks off over it ({signal.Signals(-done.returncode).name})")
    return read(path, maps)


def main() -> None:
    """`python -m shared.data.trial SECONDS FILE [MAPS]` ends with 0, or with REFUSED and the fault in one line."""
    limit, path, *maps = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        read(Path(path), Path(maps[0]) if maps else None)
    except DataError as error:
        sys.stdout.write(str(error))
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
