"""Names for addresses: what a browser, its history or a proxy may keep, and what says nothing of whom it is about."""

import hashlib
import hmac
import secrets
from contextlib import suppress
from pathlib import Path

from shared.base.files import read_secret, write_once

KEY = "page.key"


def key_of(folder: Path) -> bytes:
    """The folder's own secret, so that an address that was kept still leads there tomorrow."""
    path = folder / KEY
    if not path.exists():
        with suppress(FileExistsError):  # another process made it just now
            write_once(path, secrets.token_bytes(32))
    return read_secret(path, "page key")


def handle(key: bytes, *words: str) -> str:
    return hmac.digest(key, "\0".join(words).encode("utf-8", "surrogateescape"), hashlib.sha256).hex()[:20]
