"""Federations, sites and TLS on loopback for the tests of provisioning."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from client.site import enrol
from server.federation import provision
from server.federation.federation import SIGNING_PUBLIC
from shared.trust.keys import fingerprint, read_public_key

NOW = datetime.now(UTC).replace(microsecond=0)  # handshakes look at the real clock
ADDRESS = "localhost:18443"


def make(folder: Path, *, now: datetime = NOW, name: str = "strokes", address: str = ADDRESS, **options: int) -> Path:
    said = {"min_holders": 2, "quorum": 2} | options
    new = provision.NewFederation(name=name, address=address, modalities=["T1", "FLAIR"], methods=["amm_diff"], **said)
    provision.init(folder, new, now=now)
    return folder


def site(state: Path, name: str, word: bytes | None = None) -> Path:
    """A new site; gives its request."""
    return enrol.init_site(state, name, word=word).request


def enter(folder: Path, state: Path, name: str, *, now: datetime = NOW, word: bytes | None = None) -> Path:
    """A site made, admitted and joined; gives its kit."""
    kit = provision.admit(folder, site(state, name, word), now=now).kit
    enrol.join(state, kit, signer=signer(folder), now=now)
    return kit


def signer(folder: Path) -> str:
    """What the coordinator reads out by telephone."""
    return fingerprint(read_public_key(folder / SIGNING_PUBLIC))


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's mode and bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode & 0o777, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def tls_server(certificate: Path, key: Path, host: str = "127.0.0.1") -> Iterator[int]:
    """Answers every handshake on a free loopback port until the block ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server((host, 0))
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            connection, _ = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as channel:
                    channel.sendall(b"here")
            except OSError:  # the client did not like us
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join()
        listener.close()


def handshake(port: int, authorities: Path, name: str = "localhost") -> bytes:
    """What the server says to a client that trusts these CAs alone, under OpenSSL's strict rules."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(authorities)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as channel,
    ):
        return channel.recv(4)
