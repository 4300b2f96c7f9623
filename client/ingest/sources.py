"""Where an ingest takes its images from: a folder, a DICOMweb server, or whoever sends to us. All end as a folder."""

import hashlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from client.ingest.records import Aside
from shared.errors import ConfigError, DataError

Progress = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[Progress]]


class Source(Protocol):
    """`bring` makes the images available as a folder on this machine; `incoming` is where it may put files."""

    @property
    def name(self) -> str: ...

    def bring(self, incoming: Path, bar: Bar) -> tuple[Path, list[Aside]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Files that are here already; they are read where they are, and never changed."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.resolve())

    def bring(self, incoming: Path, bar: Bar) -> tuple[Path, list[Aside]]:
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such folder")
        return self.path, []


def is_web(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def is_receiver(text: str) -> bool:
    return text.startswith("receive:")


def check_url(url: str) -> str:
    """The address of a DICOMweb service, without credentials: the command line is seen by every user of a machine."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ConfigError("source: an address with a user or password; put the authorization into a file, --auth-file")
    if not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"source={url!r}: must be http(s)://host[:port]/path, such as https://pacs/dicom-web")
    return url.rstrip("/")


def parse_receiver(text: str) -> tuple[str, int, str]:
    """receive:[ADDRESS:]PORT/AETITLE -> address to listen on, port, our AE title."""
    match = re.fullmatch(r"receive:(?:([0-9A-Za-z.\-]+):)?(\d{1,5})/([\x21-\x5b\x5d-\x7e]{1,16})", text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ConfigError(f"source={text!r}: must be receive:PORT/AETITLE or receive:ADDRESS:PORT/AETITLE")
    return match[1] or "0.0.0.0", int(match[2]), match[3]


def place(incoming: Path, name: str) -> Path:
    """The folder for what comes from one source; the same source finds what it fetched before."""
    return incoming / hashlib.sha256(name.encode()).hexdigest()[:12]


def find_source(
    text: str,
    *,
    auth_file: Path | None = None,
    studies: Path | None = None,
    dates: str = "",
    idle: float = 60.0,
    peers: tuple[str, ...] = (),
) -> Source:
    """What the command line names. The network is loaded only for whom it is for."""
    if is_web(text):
        from client.ingest.dicomweb import Web, read_authorization

        wanted = tuple(_lines(studies)) if studies is not None else ()
        return Web(url=check_url(text), authorization=read_authorization(auth_file), studies=wanted, dates=dates)
    if is_receiver(text):
        from client.ingest.receive import Receiver

        address, port, title = parse_receiver(text)
        return Receiver(address=address, port=port, title=title, idle=idle, peers=peers)
    return Folder(path=Path(text))


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"studies={path}: can't be read ({type(error).__name__})") from None
