"""Images that a PACS sends to us (DIMSE C-STORE), for a site without DICOMweb. Each file appears whole or not at all.

The receiver listens until nothing has come for `idle` seconds after the first image, or until it is interrupted. What
it has is kept, so a second sending adds to it. It answers to its own AE title alone, takes images from the peers that
were named alone, and listens to this machine alone unless it is given an address. DIMSE neither encrypts nor proves a
title: the address of a peer is looked at too, and must be given where another machine may send.
"""

import ipaddress
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom import AE, AllStoragePresentationContexts, _config, evt

from client.ingest.arrive.records import Aside
from client.ingest.arrive.source import SPARE, UID, is_this_machine, place
from shared.base.display.progress import Bar, Progress
from shared.base.errors import ConfigError
from shared.base.files import copy

OUT_OF_RESOURCES, WRONG_IDENTITY, SUCCESS = 0xA700, 0xA900, 0x0000
SYNTAXES = [
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)),
]
VERIFICATION = "1.2.840.10008.1.1"
LOOPBACK = "127.0.0.1"
REJECTED = (0x01, 0x01, 0x03)  # PS3.8 9.3.4: for good, by the service user, the calling AE title is not recognised
_TITLE = r"[\x21-\x3f\x41-\x5b\x5d-\x7e]{1,16}"  # no @, which ends a peer's title


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Who may send: an AE title, and the address that it must come from; None where only this machine is heard."""

    title: str
    address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """Where to listen, under what title, and for how long."""

    address: str = LOOPBACK
    port: int
    title: str
    peers: tuple[Sender, ...]
    idle: float = 60.0
    ready: Callable[[], None] = lambda: None  # called when it listens

    def __post_init__(self) -> None:
        if not self.peers:
            raise ConfigError("--peer: missing; who may send must be named: AETITLE, or AETITLE@ADDRESS")
        here = is_this_machine(self.address)
        for peer in self.peers:
            if peer.address is None and not here:
                raise ConfigError(
                    f"--peer {peer.title}: must be {peer.title}@ADDRESS where {self.address} is listened on, for "
                    "anybody can call himself so"
                )

    @property
    def name(self) -> str:
        return f"receive:{self.title}"

    def lets(self, title: str, address: str) -> bool:
        return any(peer.title == title and peer.address in (None, address) for peer in self.peers)

    def bring(self, incoming: Path, bar: Bar) -> tuple[Path, list[Aside]]:
        folder = place(incoming, self.name)
        refused: list[Aside] = []
        with bar("receiving") as advance:
            self._listen(folder, refused, advance)
        return folder, refused

    def _listen(self, folder: Path, refused: list[Aside], advance: Progress) -> None:
        _config.STORE_RECV_CHUNKED_DATASET = True  # straight to disk: memory does not grow with the image
        entity = AE(ae_title=self.title)
        entity.require_called_aet = True
        entity.network_timeout = 120
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), SYNTAXES)
        entity.add_supported_context(VERIFICATION)
        state = _State(last=None, count=0)
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, lambda event: self._answer(event, refused)),
            (evt.EVT_C_STORE, lambda event: _store(event, folder, refused, state)),
        ]
        try:
            server: Any = entity.start_server((self.address, self.port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise ConfigError(f"source=receive: can't listen on port {self.port}: {error.strerror}") from None
        try:
            self.ready()
            while state.last is None or time.monotonic() - state.last < self.idle or server.active_associations:
                time.sleep(0.1)
                advance(state.count, state.count)
        except KeyboardInterrupt:
            pass  # a person says that it is enough
        finally:
            server.shutdown()

    def _answer(self, event: Any, refused: list[Aside]) -> None:
        """Turns a caller away that is not listed, before anything is agreed on with it."""
        association = event.assoc
        title, address = str(association.requestor.primitive.calling_ae_title).strip(), association.requestor.address
        if not self.lets(title, address):
            why = f"{title!r} at {address} is no --peer: refused"
            refused.append(Aside(what="file", where="(over the network)", why=why))
            association.acse.send_reject(*REJECTED)
            association.kill()


@dataclass(slots=True)
class _State:
    """What has come so far."""

    last: float | None
    count: int


def _store(event: Any, folder: Path, refused: list[Aside], state: _State) -> int:
    """One image to disk; the status that its sender gets."""
    state.last = time.monotonic()
    uid = str(event.request.AffectedSOPInstanceUID)
    if not UID.fullmatch(uid):
        refused.append(Aside(what="file", where="(over the network)", why="sent with a UID that is none: refused"))
        return WRONG_IDENTITY
    if shutil.disk_usage(folder).free < SPARE:
        refused.append(Aside(what="file", where=uid, why="refused: less than 1 GB of the disk is free"))
        return OUT_OF_RESOURCES
    target = folder / f"{uid}.dcm"
    try:
        copy(Path(event.dataset_path), target, durable=False)  # its sender has it too; a damaged one is named later
    except OSError as error:
        refused.append(Aside(what="file", where=uid, why=f"can't be written: {error.strerror}"))
        return OUT_OF_RESOURCES
    state.count += 1
    state.last = time.monotonic()
    return SUCCESS


def parse_receiver(text: str) -> tuple[str, int, str]:
    """receive:[ADDRESS:]PORT/AETITLE -> address to listen on, port, our AE title."""
    match = re.fullmatch(r"receive:(?:([0-9A-Za-z.\-]+):)?([0-9]{1,5})/([\x21-\x5b\x5d-\x7e]{1,16})", text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ConfigError(f"source={text!r}: must be receive:PORT/AETITLE or receive:ADDRESS:PORT/AETITLE")
    return match[1] or LOOPBACK, int(match[2]), match[3]


def parse_peer(text: str) -> Sender:
    """AETITLE or AETITLE@ADDRESS, an address of numbers: a name is whatever the network says that it is."""
    match = re.fullmatch(rf"({_TITLE})(?:@([0-9A-Fa-f.:]+))?", text)
    try:
        if match is not None:
            return Sender(title=match[1], address=None if match[2] is None else str(ipaddress.ip_address(match[2])))
    except ValueError:
        pass
    raise ConfigError(f"--peer {text}: must be AETITLE or AETITLE@ADDRESS, such as PACS@10.0.0.5")
