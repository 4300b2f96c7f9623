"""The gate of a site's container, in a container of its own: the one way out, to the addresses that it was given.

    python -P -m client.node.gate HOST:PORT [HOST:PORT ...]

It listens at each PORT and passes bytes on to that HOST:PORT, as they are: TLS is between the site and the server, so
nothing is decrypted. Why the other side can't be reached it says to whoever knocked, in one line (`asked`).
"""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

from shared.base.names import Address

NAME = "LACUNA_GATE"  # in the site's environment: what its gate is called there
ROUTES = Path("/proc/net/route")
LISTENS = Path("/tmp/listens")  # for the container's health check
PATIENCE = 7.0  # seconds for the other side; whoever knocks waits a little longer
CHUNK, LINE = 2**16, 300  # bytes
SAYS = b"lacuna gate: "


def reached(address: Address, environment: Mapping[str, str] = os.environ) -> Address:
    """What is called for this server: itself, or the gate where there is one."""
    return Address(host=environment.get(NAME) or address.host, port=address.port)


def stands(environment: Mapping[str, str] = os.environ) -> bool:
    return bool(environment.get(NAME))


def is_alone(routes: Path = ROUTES) -> bool:
    """Has this container no way out but its gate? One that has another has a default route."""
    return not any(line.split()[1:2] == ["00000000"] for line in routes.read_text().splitlines())


def asked(address: Address) -> tuple[str, str] | None:
    """The step that fails behind this gate, `name` or `tcp`, and why; None where none does, or no gate stands."""
    with suppress(OSError), socket.create_connection((address.host, address.port), timeout=PATIENCE + 1) as channel:
        said = channel.recv(LINE)
        step, _, why = said.removeprefix(SAYS).decode("ascii", "replace").strip().partition(": ")
        if said.startswith(SAYS) and step in ("name", "tcp"):
            return step, why
    return None


async def serve(addresses: Sequence[Address], *, here: str = "0.0.0.0", listens: Path = LISTENS) -> None:
    """Pass on until the process ends."""
    async with AsyncExitStack() as doors:
        for address in addresses:
            await doors.enter_async_context(await asyncio.start_server(partial(_pass, address), here, address.port))
            print(f"passes {address}", flush=True)
        listens.touch()
        await asyncio.get_running_loop().create_future()


async def _pass(address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            ahead = await asyncio.open_connection(address.host, address.port)
    except OSError as error:  # TimeoutError is one
        step = "name" if isinstance(error, socket.gaierror) else "tcp"
        line = f"{step}: {address}: {error.strerror or 'no answer'}"
        print(line, flush=True)
        with suppress(OSError):
            writer.write(SAYS + line.encode("ascii", "replace") + b"\n")
            await writer.drain()
    else:
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(reader, ahead[1]))
            both.create_task(_pump(ahead[0], writer))
        await _end(ahead[1])
    await _end(writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, until its side has said all or is gone; the other may still speak."""
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.write_eof()


async def _end(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.close()
        await writer.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve([Address.parse(word, "gate") for word in sys.argv[1:]]))
