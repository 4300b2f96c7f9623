"""Which container images the federation vouches for: each by its id, which is the hash of what it holds, and signed.

A file has a line for each: `sha256:<64 hex digits> <public key> <signature>`. A site keeps such files in STATE/images.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.base.errors import ConfigError
from shared.base.files import read_bounded
from shared.trust.signed import Signature

FOLDER = "images"  # in STATE
ID = re.compile(r"sha256:[0-9a-f]{64}")
_PURPOSE = b"lacuna image 1\n"  # no signature made for another purpose fits


def sign(ids: Iterable[str], signing: Ed25519PrivateKey) -> bytes:
    """The file's content; ConfigError for what is a name, which can be given to another image at any time."""
    lines = []
    for id in ids:
        if not ID.fullmatch(id):
            raise ConfigError(f"image={id[:80]!r}: must be an id, sha256:..., as `docker image inspect` shows it")
        lines.append(f"{id} ".encode() + Signature.make(signing, _message(id)).line())
    return b"".join(lines)


def is_signed(id: str, folder: Path, trusted: Ed25519PublicKey) -> bool:
    """Does a file of the folder have this image's line, by that key? Other lines, and other keys', are passed over."""
    if not ID.fullmatch(id):
        return False
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        for line in read_bounded(path, "image signature").splitlines(keepends=True):
            found = Signature.parse_line(line, f"{id} ")
            if found is not None and found.is_by(trusted) and found.fits(_message(id)):
                return True
    return False


def _message(id: str) -> bytes:
    return _PURPOSE + id.encode("ascii")
