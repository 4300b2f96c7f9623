"""Who a subject is, known at the site alone: by one random key, patients, UIDs and dates become others.

    patient    sub-<16 letters>     the same at every visit and in every ingest with this key
    UID        2.25.<number>        references between images stay whole
    date       days earlier         one distance per patient, so the time between two visits is kept

Whoever has the key can link a subject to its patient: it stays on the site's private disk, mode 0600, is never part of
a cohort, and must be kept (another key gives the same patients other names).
"""

import base64
import hmac
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

from shared.base.errors import ConfigError, DataError
from shared.base.files import private_folder, write_once

KEY_FILE = "identity.key"
KEY_BYTES = 32
LEAST_SHIFT, MOST_SHIFT = 30, 3650  # days, always into the past: no image comes from the future
STANDARD_UIDS = "1.2.840.10008."  # DICOM's own: classes and transfer syntaxes, which identify nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The site's key at work. Equal input gives equal output; without the key nothing can be inverted or guessed."""

    key: bytes = field(repr=False)

    @staticmethod
    def open(state: Path) -> "Identity":
        """The key of this site's private folder, made at its first use."""
        path = state / KEY_FILE
        if not path.exists():
            _make(path)
        return Identity(key=_read(path))

    def subject(self, patient: str) -> str:
        """The name under which a cohort knows this patient: 80 bits, so two patients never share one."""
        return "sub-" + base64.b32encode(self._of("subject", _known(patient))[:10]).decode().lower()

    def uid(self, uid: str) -> str:
        """Another UID in place of this one; DICOM's own are kept."""
        uid = uid.strip("\0 ")
        if not uid or uid.startswith(STANDARD_UIDS):
            return uid
        number = int.from_bytes(self._of("uid", uid)[:16], "big")
        number = number & ~(0xF << 76) | 0x8 << 76  # a UUID of version 8 (RFC 9562, 5.8) ...
        number = number & ~(0x3 << 62) | 0x2 << 62  # ... and its variant, as PS3.5 B.2 wants under 2.25
        return f"2.25.{number}"

    def shift_days(self, patient: str) -> int:
        """What is added to each date of this patient: negative, the same for all of its studies."""
        number = int.from_bytes(self._of("shift", _known(patient))[:8], "big")
        return -(LEAST_SHIFT + number % (MOST_SHIFT - LEAST_SHIFT + 1))

    def date(self, yyyymmdd: str, patient: str) -> str:
        """A date moved by the patient's distance; "" for what is no date."""
        text = yyyymmdd.strip("\0 ")
        if re.fullmatch(r"\d{4}[.-]\d{2}[.-]\d{2}", text, re.ASCII):
            text = text[:4] + text[5:7] + text[8:]
        if not re.fullmatch(r"\d{8}", text, re.ASCII):
            return ""
        try:
            moved = date(int(text[:4]), int(text[4:6]), int(text[6:])) + timedelta(days=self.shift_days(patient))
        except (ValueError, OverflowError):
            return ""
        return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"

    def _of(self, purpose: str, text: str) -> bytes:
        return hmac.new(self.key, f"lacuna {purpose}\0{text}".encode("utf-8", "surrogateescape"), "sha256").digest()


def _known(patient: str) -> str:
    text = patient.strip("\0 ")
    if not text:
        raise DataError("PatientID: empty; without one, a patient's studies can't be kept apart from another's")
    return text


def _make(path: Path) -> None:
    """Whole or not at all; of two processes that start together, one makes it and both read it."""
    private_folder(path.parent)
    with suppress(FileExistsError):
        write_once(path, f"{secrets.token_hex(KEY_BYTES)}\n".encode("ascii"))


def _read(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o177:
            raise ConfigError(f"identity key {path}: mode {mode:04o} lets others at it; must be 0600 (chmod 600)")
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(f"identity key {path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if not re.fullmatch(rf"[0-9a-f]{{{2 * KEY_BYTES}}}", text, re.ASCII):
        raise ConfigError(
            f"identity key {path}: must be {2 * KEY_BYTES} hexadecimal digits; bring back the site's copy of it "
            "(a new key would give every patient another name)"
        )
    return bytes.fromhex(text)
