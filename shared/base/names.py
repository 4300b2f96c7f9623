"""What a site, a federation, a run and an address may be called: nothing that a shell, a path or YAML understands."""

import ipaddress
import re
from dataclasses import dataclass

from shared.base.errors import ConfigError

SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RESERVED = ("server", "ca", "signing")  # what `lacuna federation rotate` takes besides a site
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def check_site(name: str, key: str) -> str:
    """A site's name, also where it becomes part of a path."""
    if not SITE_NAME.fullmatch(name):
        raise ConfigError(f"{key}={name[:80]!r}: must match {SITE_NAME.pattern}")
    return name


def check_run(name: str, key: str) -> str:
    """A run's name, which becomes a folder's at the coordinator and at every site."""
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(f"{key}={name[:80]!r}: must match {RUN_NAME.pattern}")
    return name


def check_name(name: str, key: str) -> str:
    """What a new site or federation may be called."""
    check_site(name, key)
    if name.casefold() in RESERVED:
        raise ConfigError(f"{key}={name!r}: is reserved; choose another than {', '.join(RESERVED)}")
    return name


def check_host(host: str, key: str) -> str:
    """A name or an IP address, as a certificate can hold it."""
    labels = host.split(".")
    if not is_ip(host) and (len(host) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit()):
        raise ConfigError(f"{key}={host[:80]!r}: must be a host name or an IP address")
    return host


def is_ip(host: str) -> bool:
    try:
        return str(ipaddress.ip_address(host)) == host
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where sites reach the server."""

    host: str
    port: int

    @staticmethod
    def parse(text: str, key: str) -> "Address":
        host, colon, port = text.rpartition(":")
        if not colon or not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65535:
            raise ConfigError(f"{key}={text[:80]!r}: must be HOST:PORT with a port from 1 to 65535")
        if host.startswith("[") and host.endswith("]") and ":" in host:
            host = host[1:-1]
        elif ":" in host:
            raise ConfigError(f"{key}={text[:80]!r}: an IPv6 address stands in brackets, [::1]:443")
        return Address(host=check_host(host, key), port=int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
