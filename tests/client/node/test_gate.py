"""The gate of a site's container: bytes pass as they are, to one address, and what does not answer is named."""

import asyncio
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.flower.federations import make, tls_server

from client.node import gate, reach
from server.federation.federation import CA, SERVER, SERVER_KEY
from shared.base.names import Address

HERE, THERE = "127.0.0.1", "127.0.0.2"


@contextmanager
def standing(listens: Path, address: Address, here: str) -> Iterator[None]:
    """A gate to this address, at another one of loopback's."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        task = asyncio.create_task(gate.serve([address], here=here, listens=listens))
        await stop.wait()
        task.cancel()
        mine = asyncio.current_task()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not mine), return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        while not listens.exists():
            assert thread.is_alive()
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("gate") / "federation")


def test_bytes_pass_both_ways_as_they_are_and_an_end_is_an_end(tmp_path: Path) -> None:
    sent, answer = secrets.token_bytes(3_000_000), secrets.token_bytes(2_000_000)
    heard: list[bytes] = []
    with socket.create_server((THERE, 0)) as server:

        def serve() -> None:
            channel, _ = server.accept()
            with channel:
                while data := channel.recv(2**16):
                    heard.append(data)
                channel.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        with (
            standing(tmp_path / "listens", Address(host=THERE, port=port), HERE),
            socket.create_connection((HERE, port)) as us,
        ):
            us.sendall(sent)
            us.shutdown(socket.SHUT_WR)
            back = b""
            while data := us.recv(2**16):
                back += data
        thread.join()
    assert b"".join(heard) == sent
    assert back == answer


@pytest.mark.parametrize(("name", "word"), [("localhost", "ok"), ("other.example", "fail")])
def test_through_a_gate_it_is_the_server_that_is_judged(
    tmp_path: Path, federation: Path, monkeypatch: pytest.MonkeyPatch, name: str, word: str
) -> None:
    """By the name that is called, as without a gate."""
    with tls_server(federation / SERVER, federation / SERVER_KEY, THERE) as port:
        address = Address(host=THERE, port=port)
        look_up = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda h, *w, **k: look_up(HERE if h == name else h, *w, **k))
        monkeypatch.setenv(gate.NAME, name)
        with standing(tmp_path / "listens", address, HERE):
            found = {check.name: check for check in reach.look(address, (federation / CA).read_bytes())}
    assert found["tls"].status == word
    assert "lacuna gate" not in found["tls"].found


@pytest.mark.parametrize(
    ("host", "step", "says"), [("nowhere.invalid", "name", "is unknown"), (THERE, "tcp", "does not answer")]
)
def test_why_the_other_side_is_not_reached_comes_through_the_gate(
    tmp_path: Path, federation: Path, monkeypatch: pytest.MonkeyPatch, host: str, step: str, says: str
) -> None:
    """Else every failure would read as a server with a wrong certificate: a gate itself always answers."""
    with socket.create_server((THERE, 0)) as free:
        port = free.getsockname()[1]
    address = Address(host=host, port=port)
    monkeypatch.setenv(gate.NAME, HERE)
    with standing(tmp_path / "listens", address, HERE):
        failed = reach.first_failure(reach.look(address, (federation / CA).read_bytes()))
    assert failed is not None
    assert failed.name == step
    assert failed.found.startswith(host)
    assert says in failed.found
    assert ("the site's gate" in failed.remedy) == (step == "name")


def test_a_way_out_beside_the_gate_is_seen(tmp_path: Path) -> None:
    routes = tmp_path / "route"
    own = "Iface\tDestination\tGateway\tFlags\neth0\t000012AC\t00000000\t0001\n"
    routes.write_text(own)
    assert gate.is_alone(routes)
    routes.write_text(own + "eth1\t00000000\t010012AC\t0003\n")
    assert not gate.is_alone(routes)


def test_without_a_gate_the_server_itself_is_called() -> None:
    server = Address(host="fl.example.org", port=443)
    assert gate.reached(server, {}) == server
    assert gate.stands({}) is False
    assert str(gate.reached(server, {gate.NAME: "superlink"})) == "superlink:443"
