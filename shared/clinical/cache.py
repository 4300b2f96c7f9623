"""Embeddings kept on the site's own disk, so that a prompt is embedded once: encrypted, under names that say nothing.

    STATE/text/key           the site's key for this cache, for its owner alone; made at first use
    STATE/text/<64 hex>      Fernet of (the name, float32 numbers); the name is HMAC(key, provider and prompt)

What can't be decrypted (another key, damage, an entry under another's name) is as if it were not there, and made anew.
"""

import contextlib
import hashlib
import hmac
from pathlib import Path

import numpy as np
from cryptography.fernet import Fernet, InvalidToken
from numpy.typing import NDArray

from shared.base.files import private_folder, read_secret, write_bytes, write_once

FOLDER = "text"  # in the site's STATE


class Cache:
    def __init__(self, state: Path, provider: str) -> None:
        self._folder = state / FOLDER
        self._provider = provider
        private_folder(self._folder)
        key = _read_key(self._folder / "key")
        self._names, self._fernet = hmac.digest(key, b"names", "sha256"), Fernet(key)

    def read(self, text: str) -> NDArray[np.float32] | None:
        name = self._name(text)
        try:
            content = self._fernet.decrypt((self._folder / name).read_bytes())
        except (OSError, InvalidToken):
            return None
        if content[:64] != name.encode():
            return None
        return np.frombuffer(content[64:], np.float32).copy()

    def write(self, text: str, vector: NDArray[np.float32]) -> None:
        """Keep vectors, whole or not at all. A full disk costs no more than the next look-up."""
        name = self._name(text)
        content = self._fernet.encrypt(name.encode() + np.ascontiguousarray(vector, np.float32).tobytes())
        with contextlib.suppress(OSError):
            write_bytes(self._folder / name, content, mode=0o600, durable=False)

    def clear(self) -> None:
        """Delete all entries, whatever provider made them; the key stays."""
        for path in self._folder.iterdir():
            if path.name != "key":
                path.unlink(missing_ok=True)

    def _name(self, text: str) -> str:
        return hmac.new(self._names, f"{self._provider}\0{text}".encode(), hashlib.sha256).hexdigest()


def _read_key(path: Path) -> bytes:
    """Read the key; ConfigError when others may, too. One that is no key is replaced, with all entries."""
    if path.exists():
        key = read_secret(path, "key of the text cache")
        with contextlib.suppress(ValueError):
            Fernet(key)
            return key
        path.unlink(missing_ok=True)
    with contextlib.suppress(FileExistsError):  # another process was first
        write_once(path, Fernet.generate_key())
    return read_secret(path, "key of the text cache")
