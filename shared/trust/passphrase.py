"""The passphrase of private keys that are encrypted on the disk: from a file, or from whoever sits at the terminal.

A variable names the file; the passphrase itself stands in no environment and on no command line.
"""

import getpass
import os
import sys
from functools import lru_cache
from pathlib import Path

from shared.base.errors import ConfigError
from shared.base.files import read_secret

FILE_VARIABLE = "LACUNA_PASSPHRASE_FILE"
SHORTEST = 12


def known(what: str) -> bytes:
    """The passphrase of keys that are there; a person is asked once in a process."""
    file = os.environ.get(FILE_VARIABLE)
    return _from(Path(file)) if file else _asked(what)


def new(what: str) -> bytes:
    """The passphrase of keys to be made; a person says it twice."""
    file = os.environ.get(FILE_VARIABLE)
    if file:
        return _from(Path(file))
    first = _asked(what)
    if getpass.getpass("again: ").encode() != first:
        _asked.cache_clear()
        raise ConfigError("passphrase: the two differ")
    return first


def _from(path: Path) -> bytes:
    return _checked(read_secret(path, "passphrase").rstrip(b"\r\n"), f"passphrase {path}")


@lru_cache(maxsize=8)
def _asked(what: str) -> bytes:
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{what}: is encrypted, and nobody is here to be asked; {FILE_VARIABLE} may name a file of mode 600 that "
            "holds the passphrase"
        )
    return _checked(getpass.getpass(f"passphrase of the {what}: ").encode(), "passphrase")


def _checked(content: bytes, where: str) -> bytes:
    if len(content) < SHORTEST or b"\n" in content:
        raise ConfigError(f"{where}: must be one line of {SHORTEST} characters or more")
    return content
