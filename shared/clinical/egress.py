"""Where a prompt may go: to this machine, to the site's own network, or to a host that the site listed by name.

The name is looked up once for a connection, every address that it has must be allowed, and the connection is made to
one of these addresses: a name that says something else a moment later changes nothing.
"""

import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from shared.base.errors import ConfigError, DataError

_LOOPBACK = [ipaddress.ip_network(n) for n in ("127.0.0.0/8", "::1/128")]
_PRIVATE = [ipaddress.ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a URL points; the host is not looked up yet."""

    host: str
    port: int
    path: str
    tls: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    ip: str
    loopback: bool


def parse_url(url: str) -> Place:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"text.url={url!r}: must be http(s)://host[:port]/path")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError("text.url: must hold no user, password, query or fragment; text.key-file takes the key")
    tls = parts.scheme == "https"
    return Place(host=host, port=port or (443 if tls else 80), path=parts.path.rstrip("/"), tls=tls)


def allowed_addresses(place: Place, *, allowed_hosts: Collection[str] = (), allow: bool = False) -> list[Address]:
    """Look the host up now; ConfigError when any of its addresses may not be sent a prompt."""
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise DataError(f"text.url: the name {place.host} can't be looked up") from None
    listed = allow and place.host.casefold() in {name.casefold() for name in allowed_hosts}
    addresses = []
    for ip in dict.fromkeys(str(entry[4][0]) for entry in found):
        kind = _kind(ip)
        if kind == "public" and not listed:
            raise ConfigError(
                f"text.url: {place.host} is at {ip}, outside this site's network, and a prompt is patient data; only "
                "loopback and private addresses are allowed, or a host in text.allowed-hosts with "
                "text.allow-phi-egress=true"
            )
        addresses.append(Address(ip=ip, loopback=kind == "loopback"))
    if not place.tls and not all(one.loopback for one in addresses):
        raise ConfigError(f"text.url: {place.host} is another machine, and http is not encrypted; must be https")
    return addresses


def _kind(ip: str) -> str:
    address = ipaddress.ip_address(ip.partition("%")[0])
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = inner or address
    if any(address in network for network in _LOOPBACK):
        return "loopback"
    return "private" if any(address in network for network in _PRIVATE) else "public"
