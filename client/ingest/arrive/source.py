"""What a source of images is: something that ends as a folder on this machine. The simplest is a folder already."""

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from client.ingest.arrive.records import Aside
from shared.base.display.progress import Bar
from shared.base.errors import DataError
from shared.base.files import private_folder

SPARE = 1e9  # bytes of a disk that are never filled
UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*")  # PS3.5 9.1, but for leading zeros, which some makers write


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


def place(incoming: Path, name: str) -> Path:
    """The folder for what comes from one source; the same source finds what it fetched before."""
    folder = incoming / hashlib.sha256(name.encode()).hexdigest()[:12]
    private_folder(folder)
    return folder


def is_this_machine(host: str) -> bool:
    """Is it a name or a number of loopback? Nothing is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
