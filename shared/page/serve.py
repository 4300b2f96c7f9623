"""A page on an address of this machine, until it is stopped. [the only uvicorn]

By itself it listens to this machine alone. Beyond it only over TLS and with a password file, and then under the names
that are given.
"""

import getpass
import ipaddress
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from shared.base.errors import ConfigError, RunFailed
from shared.page import people
from shared.page.app import Page
from shared.page.ask import ROLES, Person, Route
from shared.page.door import Door
from shared.page.look import Look

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where a page listens, and who may see it; checked before a port is opened."""

    listen: str = "127.0.0.1:0"  # port 0: a free one
    names: tuple[str, ...] = ()  # under which others reach it
    certificate: Path | None = None
    key: Path | None = None
    passwords: Path | None = None
    readonly: bool = False

    def __post_init__(self) -> None:
        if self.is_local:
            return
        if self.certificate is None or self.key is None:
            raise ConfigError(f"--listen {self.listen}: beyond this machine it needs TLS: --tls-cert and --tls-key")
        if self.passwords is None:
            raise ConfigError(f"--listen {self.listen}: beyond this machine it needs --passwords FILE")

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        host = host.strip("[]")
        if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"--listen {self.listen!r}: must be ADDRESS:PORT, such as 127.0.0.1:8443")
        return host, int(port)

    @property
    def is_local(self) -> bool:
        host, _ = self.address
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def secure(self) -> bool:
        return self.certificate is not None


class Served:
    """A page that is about to listen: its port is taken, its link is known."""

    def __init__(self, routes: Sequence[Route], look: Look, where: Where) -> None:
        self._where = where
        host, port = where.address
        self._socket = _bound(host, port)
        self.port = int(self._socket.getsockname()[1])
        shown = f"[{host}]" if ":" in host else host
        hosts = [*(LOOPBACK if where.is_local else ()), shown, *where.names]
        scheme = "https" if where.secure else "http"
        usual = 443 if where.secure else 80
        here = {f"{name.lower()}:{self.port}" for name in hosts}
        here |= {name.lower() for name in hosts if self.port == usual}
        self.door = Door(hosts=frozenset(here), scheme=scheme)
        first = where.names[0] if where.names else shown
        self.url = f"{scheme}://{first}:{self.port}/"
        page = Page(
            routes=routes,
            look=look,
            door=self.door,
            known={} if where.passwords is None else _without(people.read(where.passwords), where.readonly),
            cookie=f"lacuna-{self.port}",
            secure=where.secure,
        )
        self.app = page.app()

    def link(self) -> str:
        """An address that lets whoever runs this in, once."""
        roles = frozenset(ROLES[:1] if self._where.readonly else ROLES)
        return f"{self.url}enter/{self.door.link(Person(name=_me(), roles=roles))}"

    def run(self) -> None:
        """Answer until SIGTERM or Ctrl-C."""
        self._server().run(sockets=[self._socket])

    def _server(self) -> uvicorn.Server:
        where = self._where
        config = uvicorn.Config(
            self.app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,  # an address is nobody's business
            server_header=False,
            proxy_headers=False,
            limit_concurrency=100,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=3,
            h11_max_incomplete_event_size=2**15,
            ssl_certfile=where.certificate,
            ssl_keyfile=where.key,
        )
        return uvicorn.Server(config)


def serve(routes: Sequence[Route], look: Look, where: Where, *, browse: bool, say: Callable[[str], None]) -> None:
    """Say where the page is and answer until Ctrl-C; at a terminal the return key gives a new link."""
    served = Served(routes, look, where)
    if where.passwords is not None:
        say(f"{served.url} (names and passwords: {where.passwords})")
    else:
        link = served.link()
        say(f"{link}\nThe link works once, and for whoever has it. Ctrl-C ends the page.")
        if browse:
            threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()
        if sys.stdin is not None and sys.stdin.isatty():
            say("Return: another link.")
            threading.Thread(target=_more_links, args=(served, say), daemon=True).start()
    served.run()


def _more_links(served: Served, say: Callable[[str], None]) -> None:
    for _ in sys.stdin:
        say(served.link())


def _without(known: dict[str, people.Known], readonly: bool) -> dict[str, people.Known]:
    if not readonly:
        return known
    looking = frozenset(ROLES[:1])
    return {n: people.Known(person=Person(name=n, roles=looking), secret=one.secret) for n, one in known.items()}


def _bound(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(found[0], socket.SOCK_STREAM)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(found[4])
    except OSError as error:
        raise RunFailed(f"--listen {host}:{port}: can't be listened at: {error.strerror}") from None
    return taken


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return "somebody at this machine"
