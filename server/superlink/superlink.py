"""What the coordinator asks of a running SuperLink, through Flower's control API: its list of keys, and its runs.

`sync` makes the list equal to the federation's; Flower never forgets a key: once unregistered, the same one can't be
registered again in the same database. A run is submitted as a bundle that holds configuration alone: the apps that it
names are those that the server and the sites have installed.
"""

import hashlib
import io
import zipfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from server.federation.federation import Federation, opened
from server.flower import Control, FlowerRun, control
from shared.base.doors import CLIENT_APP, SERVER_APP
from shared.base.errors import RunFailed
from shared.base.names import Address
from shared.trust.keys import parse_site_line, public_pem

# Flower asks for these words; dependencies are never installed, and flwr alone is named lest somebody's set-up does so.
PROJECT = f"""[project]
name = "lacuna-run"
version = "{version("lacuna")}"
description = "A run of Lacuna: configuration alone"
license = {{ text = "Apache-2.0" }}
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "lacuna"

[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "{CLIENT_APP}"

[tool.flwr.app.config]
folder = ""
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    online: bool
    since: float | None = None  # offline: when it was last heard of, in seconds since 1970; None: never


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperLink:
    """Where runs are submitted, and the CA that vouches for it."""

    address: str
    authorities: str  # PEM

    def sites(self) -> dict[str, SiteState]:
        """All whose key may take part, by name."""
        with self._control() as link:
            nodes = link.nodes()
        return {
            node.name: SiteState(
                online=node.status == "online", since=node.online_until if node.status == "offline" else None
            )
            for node in sorted(nodes, key=lambda node: node.name)
            if node.status != "unregistered"
        }

    def start(self, folder: Path) -> int:
        """Submit the run in `folder`, as the executor sees that path; gives Flower's number of it."""
        with self._control() as link:
            number = link.start(bundle(), {"folder": str(folder)})
        if number is None:
            raise RunFailed(f"superlink={self.address}: took no run; its log says why")
        return number

    def run(self, number: int) -> FlowerRun | None:
        """None where it knows no such run, as when it was started without its database."""
        with self._control() as link:
            return link.run(number)

    def stop(self, number: int) -> bool:
        """False where there is nothing to stop any more."""
        with self._control() as link:
            return link.stop(number)

    def _control(self) -> AbstractContextManager[Control]:
        return control(str(Address.parse(self.address, "superlink")), self.authorities.encode("ascii"))


def bundle() -> bytes:
    """The same bytes for every run: pyproject.toml alone, and Flower's list of what is inside."""
    content = PROJECT.encode("ascii")
    listed = f"pyproject.toml,{hashlib.sha256(content).hexdigest()},{8 * len(content)}".encode("ascii")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in (("pyproject.toml", content), (".info/CONTENT", listed)):
            archive.writestr(zipfile.ZipInfo(name), data)  # dated 1980, as zip's first day
    return packed.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    registered: tuple[str, ...] = ()
    unregistered: tuple[str, ...] = ()
    strangers: tuple[int, ...] = ()  # nodes of keys on nobody's entry: unregistered too
    spent: tuple[str, ...] = ()  # admitted sites whose key this SuperLink has let go before


def sync(folder: Path, superlink: str) -> Synced:
    """Register what is admitted, unregister everything else; sites whose key is right are not touched."""
    address = str(Address.parse(superlink, "superlink"))
    with opened(folder) as federation:
        wanted, others = _keys(federation)
    registered, unregistered, strangers, spent = [], [], [], []
    with control(address, federation.authorities) as link:
        nodes = {node.key: node for node in link.nodes()}
        for key, site in wanted.items():
            if key not in nodes:
                link.register(key, site)
                registered.append(site)
            elif nodes[key].status == "unregistered":
                spent.append(site)
        for key, node in nodes.items():
            if key not in wanted and node.status != "unregistered":
                link.unregister(node.number)
                if key in others:
                    unregistered.append(others[key])
                else:
                    strangers.append(node.number)
    return Synced(
        registered=tuple(registered),
        unregistered=tuple(unregistered),
        strangers=tuple(strangers),
        spent=tuple(spent),
    )


def _keys(federation: Federation) -> tuple[dict[bytes, str], dict[bytes, str]]:
    """Public keys in the SuperLink's form, and their sites: those that may take part, those that may not any more."""
    wanted: dict[bytes, str] = {}
    others: dict[bytes, str] = {}
    for entry in federation.sites.values():
        (wanted if entry.status == "admitted" else others)[_pem(entry.public_key)] = entry.site
        others.update({_pem(retired.public_key): entry.site for retired in entry.retired})
    return wanted, others


def _pem(line: str) -> bytes:
    return public_pem(parse_site_line(line, "site"))
