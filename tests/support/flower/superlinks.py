"""A real SuperLink and real SuperNodes on loopback, ended by their process ids."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATIENCE = 120.0  # on a machine with much else to do
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def program(name: str, *flags: str, home: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """One of Flower's programs, until the block ends. It calls nobody: no telemetry, no update check."""
    home.mkdir(exist_ok=True)
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(home)}
    with log.open("wb") as out:
        process = subprocess.Popen([BIN / name, *flags], env=os.environ | quiet, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def superlink(federation: Path, folder: Path) -> Iterator[int]:
    """With the federation's own certificate and a database in `folder`, which outlives it; gives the port."""
    port = free_port()
    flags = (
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--enable-supernode-auth",
        "--isolation",
        "process",
        "--ssl-certfile",
        str(federation / "server" / "server.crt"),
        "--ssl-keyfile",
        str(federation / "server" / "server.key"),
        "--ssl-ca-certfile",
        str(federation / "ca" / "ca.crt"),
        "--disable-runtime-dependency-installation",
        "--database",
        str(folder / "state.db"),
    )
    with program("flower-superlink", *flags, home=folder / "home", log=folder / "superlink.log") as process:
        wait(lambda: answers(port), process)
        yield port


def supernode(state: Path, port: int, folder: Path) -> "contextlib.AbstractContextManager[subprocess.Popen[bytes]]":
    """With the key and the CA of a site's state."""
    flags = (
        "--superlink",
        f"127.0.0.1:{port}",
        "--root-certificates",
        str(state / "federation" / "ca.crt"),
        "--auth-supernode-private-key",
        str(state / "enrolment" / "site.key"),
        "--port",
        str(free_port()),
        "--isolation",
        "process",
    )
    return program("flower-supernode", *flags, home=folder / f"home-{state.name}", log=folder / f"{state.name}.log")


def wait(happened: Callable[[], bool], *alive: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it took too long"
        assert all(process.poll() is None for process in alive), "it ended"
        time.sleep(0.1)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
