"""What both sides read of certificates: what is inside, and how long they hold. `server/federation/authority.py`
makes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509

from shared.base.errors import DataError

WARN = timedelta(days=30)  # ahead of the end
_BEGIN = b"-----BEGIN CERTIFICATE-----\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """How long the certificate that a person knows by this name holds, and what to do when it ends."""

    name: str
    begins: datetime
    ends: datetime
    remedy: str

    def warning(self, now: datetime) -> str | None:
        """Warn from 30 days ahead; also when the clock stands before its first day."""
        if now < self.begins:
            return f"{self.name} is not valid before {utc(self.begins)}, and the clock here says {utc(now)}: set it"
        if now >= self.ends:
            return f"{self.name} expired at {utc(self.ends)}: {self.remedy}"
        if self.ends - now <= WARN:
            return f"{self.name} expires in {(self.ends - now).days} days, at {utc(self.ends)}: {self.remedy}"
        return None


def lifetime(certificate: x509.Certificate, name: str, remedy: str) -> Lifetime:
    return Lifetime(
        name=name,
        begins=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
        remedy=remedy,
    )


def warnings(lifetimes: Mapping[str, Lifetime], now: datetime) -> list[str]:
    return [said for entry in lifetimes.values() if (said := entry.warning(now)) is not None]


def parse_authorities(pem: bytes, where: str) -> list[x509.Certificate]:
    """The CA certificates of a kit, one after the other and nothing between; else DataError."""
    if not pem.startswith(_BEGIN):
        raise DataError(f"{where}: no certificate in PEM")
    found = []
    for part in pem.split(_BEGIN)[1:]:
        try:
            certificate = x509.load_pem_x509_certificate(_BEGIN + part)
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise DataError(f"{where}: no certificate of a CA ({type(error).__name__})") from None
        if not constraints.ca:
            raise DataError(f"{where}: {certificate.subject.rfc4514_string()} is no CA's certificate")
        found.append(certificate)
    return found


def utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def utc_of(seconds: float) -> str:
    """Write seconds since 1970 as `utc` does, also those that no calendar has."""
    try:
        return utc(datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g} s"
