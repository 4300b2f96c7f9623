"""Can this site reach its server, and does it find it genuine? Step by step, so that the first that fails says why."""

import http.client
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from client.node import gate
from shared.base.names import Address
from shared.trust.certificates import utc

TIMEOUT = 8.0  # seconds for each step
CLOCK_WARN, CLOCK_FAIL = 30.0, 240.0  # seconds; Flower refuses what is signed 300 s ago
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    name: str
    status: Status
    found: str
    remedy: str = ""  # what to do, unless it is ok

    def line(self) -> str:
        return f"{self.name}: {self.found}" + (f": {self.remedy}" if self.remedy else "")


def look(
    server: Address, authorities: bytes, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> list[Check]:
    """Name, connection, TLS against the federation's CA alone, health, clock; nothing after the first that fails.

    In a container that has a gate the gate is asked what lies behind it: it answers by itself, whatever does there.
    """
    found: list[Check] = []
    address = gate.reached(server)
    try:
        infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        return [_unknown(server, str(error.args[-1]))]
    found.append(Check(name="name", status="ok", found=f"{address.host} is {infos[0][4][0]}"))
    try:
        plain = socket.create_connection((address.host, address.port), timeout=TIMEOUT)
    except OSError as error:
        return [*found, _silent(server, _why(error))]
    found.append(Check(name="tcp", status="ok", found=f"{address} answers"))
    with plain:
        try:
            channel = _context(authorities).wrap_socket(plain, server_hostname=address.host)
        except OSError as error:
            return _behind(server, address) or [*found, _distrusted(server, error, now())]
        found.append(Check(name="tls", status="ok", found="the server shows a certificate of the federation's CA"))
        with channel:
            return [*found, *_health(address, channel, now)]


def _behind(server: Address, address: Address) -> list[Check]:
    """What a gate says of the other side; nothing where it passes, or none stands."""
    said = gate.asked(address) if gate.stands() else None
    if said is None:
        return []
    step, why = said
    return [_unknown(server, why) if step == "name" else _silent(server, why)]


def _unknown(server: Address, why: str) -> Check:
    remedy = "ask the coordinator whether it is right, and see that this machine can look names up (DNS)"
    if gate.stands():
        remedy += "; the site's gate does so, a container beside this one (`docker ps`)"
    return Check(name="name", status="fail", found=f"{server.host} is unknown ({why})", remedy=remedy)


def _silent(server: Address, why: str) -> Check:
    remedy = "the server may be down, or a firewall in between: outgoing TCP to this address must be open"
    return Check(name="tcp", status="fail", found=f"{server} does not answer ({why})", remedy=remedy)


def first_failure(checks: list[Check]) -> Check | None:
    return next((check for check in checks if check.status == "fail"), None)


def _context(authorities: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authorities.decode("ascii"))
    return context


def _distrusted(address: Address, error: OSError, now: datetime) -> Check:
    why = getattr(error, "verify_message", "") or _why(error)
    if "expired" in why or "not yet valid" in why:
        remedy = f"the clock here says {utc(now)}: set it if that is wrong; else the coordinator renews the certificate"
    elif "mismatch" in why or "not valid for" in why:
        remedy = "ask the coordinator for a kit with the right address, or for a certificate that has this one"
    elif isinstance(error, ssl.SSLCertVerificationError):
        remedy = (
            "it is of another CA than the federation's: an intercepting proxy, the wrong server, or a new CA of which "
            "this site has no kit yet (`lacuna-site join`); ask the coordinator, and let it not pass"
        )
    else:
        remedy = "something else than Lacuna's server answers there, or a firewall cuts the connection"
    return Check(name="tls", status="fail", found=f"{address} is not trusted ({why})", remedy=remedy)


def _health(address: Address, channel: ssl.SSLSocket, now: Callable[[], datetime]) -> list[Check]:
    try:
        channel.settimeout(TIMEOUT)
        channel.sendall(f"GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode("ascii"))
        answer = http.client.HTTPResponse(channel)
        answer.begin()
        at, status, date = now(), answer.status, answer.getheader("Date")
        answer.close()
    except (OSError, http.client.HTTPException) as error:
        remedy = "the server's own part behind the proxy may be starting or down; ask the coordinator if it stays so"
        return [Check(name="health", status="fail", found=f"no answer to /health ({_why(error)})", remedy=remedy)]
    checks = [_clock(date, at)]
    if status == 200:
        return [Check(name="health", status="ok", found="the server says that it is well"), *checks]
    remedy = "the server's own part behind the proxy may be starting or down; ask the coordinator if it stays so"
    return [Check(name="health", status="fail", found=f"/health answers {status}", remedy=remedy), *checks]


def _clock(date: str | None, at: datetime) -> Check:
    try:
        theirs = parsedate_to_datetime(date or "")
    except (TypeError, ValueError):
        return Check(name="clock", status="warn", found="the server tells no time", remedy="compare the clock by hand")
    ahead = (at - (theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC))).total_seconds()
    word = "ahead of" if ahead > 0 else "behind"
    found = f"{abs(ahead):.0f} s {word} the server's"
    if abs(ahead) >= CLOCK_WARN:
        status: Status = "fail" if abs(ahead) >= CLOCK_FAIL else "warn"
        remedy = f"set the clock here (NTP): it says {utc(at)}; at 300 s the server turns the site away"
        return Check(name="clock", status=status, found=found, remedy=remedy)
    return Check(name="clock", status="ok", found=found)


def _why(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
