"""What the coordinator asks of a running SuperLink, through Flower's control API: its list of keys, and its runs.

`sync` makes the list equal to the federation's; Flower never forgets a key: once unregistered, the same one can't be
registered again in the same database. A run is submitted as a bundle that holds configuration alone: the apps that it
names are those that the server and the sites have installed.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.transport_pb2 import Scalar
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors.http import RuntimeVersionHttpInterceptor

from server.federation.federation import Federation, opened
from shared.base.doors import CLIENT_APP, SERVER_APP
from shared.base.errors import ConfigError, RunFailed
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


class Unreachable(ConfigError):
    """Nobody there, or somebody else."""


class Answered(RunFailed):
    """It is there and says no; Flower's number for why."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    online: bool
    since: float | None = None  # offline: when it was last heard of, in seconds since 1970; None: never


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerRun:
    """What Flower says of a run; it calls one finished that failed, was stopped, or died."""

    status: str  # pending, starting, running, finished
    how: str = ""  # completed, failed, stopped
    details: str = ""

    @property
    def over(self) -> bool:
        return self.status == "finished"

    def __str__(self) -> str:
        return self.status + (f": {self.how}" if self.how else "") + (f", {self.details}" if self.details else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperLink:
    """Where runs are submitted, and the CA that vouches for it."""

    address: str
    authorities: str  # PEM

    def sites(self) -> dict[str, SiteState]:
        """All whose key may take part, by name."""
        with self._control() as control:
            nodes = control.ListNodes(ListNodesRequest()).nodes_info
        return {
            node.name: SiteState(
                online=node.status == NodeStatus.ONLINE,
                since=(node.online_until or None) if node.status == NodeStatus.OFFLINE else None,
            )
            for node in sorted(nodes, key=lambda node: node.name)
            if node.status != NodeStatus.UNREGISTERED
        }

    def start(self, folder: Path) -> int:
        """Submit the run in `folder`, as the executor sees that path; gives Flower's number of it."""
        content = bundle()
        fab = Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
        request = StartRunRequest(fab=fab, override_config={"folder": Scalar(string=str(folder))})
        with self._control() as control:
            started = control.StartRun(request)
        if not started.HasField("run_id"):
            raise RunFailed(f"superlink={self.address}: took no run; its log says why")
        return int(started.run_id)

    def run(self, number: int) -> FlowerRun | None:
        """None where it knows no such run, as when it was started without its database."""
        try:
            with self._control() as control:
                found = control.ListRuns(ListRunsRequest(run_id=number)).run_dict.get(number)
        except Answered as no:
            if no.code == ApiErrorCode.RUN_ID_NOT_FOUND:
                return None
            raise
        if found is None:
            return None
        return FlowerRun(status=found.status.status, how=found.status.sub_status, details=found.status.details)

    def stop(self, number: int) -> bool:
        """False where there is nothing to stop any more."""
        try:
            with self._control() as control:
                return bool(control.StopRun(StopRunRequest(run_id=number)).success)
        except Answered as no:
            if no.code in (ApiErrorCode.RUN_ID_NOT_FOUND, ApiErrorCode.RUN_ALREADY_FINISHED):
                return False
            raise

    def _control(self) -> AbstractContextManager[ControlHttpClient]:
        return _control(Address.parse(self.address, "superlink"), self.authorities.encode("ascii"))


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
    address = Address.parse(superlink, "superlink")
    with opened(folder) as federation:
        wanted, others = _keys(federation)
    registered, unregistered, strangers, spent = [], [], [], []
    with _control(address, federation.authorities) as control:
        nodes = {node.public_key: node for node in control.ListNodes(ListNodesRequest()).nodes_info}
        for key, site in wanted.items():
            if key not in nodes:
                control.RegisterNode(RegisterNodeRequest(public_key=key, name=site))
                registered.append(site)
            elif nodes[key].status == NodeStatus.UNREGISTERED:
                spent.append(site)
        for key, node in nodes.items():
            if key not in wanted and node.status != NodeStatus.UNREGISTERED:
                control.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
                if key in others:
                    unregistered.append(others[key])
                else:
                    strangers.append(node.node_id)
    return Synced(
        registered=tuple(registered),
        unregistered=tuple(unregistered),
        strangers=tuple(strangers),
        spent=tuple(spent),
    )


def _keys(federation: Federation) -> tuple[dict[bytes, str], dict[bytes, str]]:
    """As the SuperLink keeps them, by site: those that may take part, and those that may not any more."""
    wanted: dict[bytes, str] = {}
    others: dict[bytes, str] = {}
    for entry in federation.sites.values():
        (wanted if entry.status == "admitted" else others)[_pem(entry.public_key)] = entry.site
        others.update({_pem(retired.public_key): entry.site for retired in entry.retired})
    return wanted, others


def _pem(line: str) -> bytes:
    return public_pem(parse_site_line(line, "site"))


@contextmanager
def _control(address: Address, authorities: bytes) -> Iterator[ControlHttpClient]:
    client = ControlHttpClient.from_server_address(
        server_address=str(address),
        insecure=False,
        root_certificates=authorities,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="lacuna")],
    )
    try:
        yield client
    except httpx.HTTPStatusError as error:
        said = FlowerError.from_json(error.response.text)
        raise Answered(
            f"superlink={address}: answered {error.response.status_code}: {error.response.text[:200]}",
            None if said is None else int(said.code),
        ) from None
    except httpx.HTTPError as error:
        raise Unreachable(
            f"superlink={address}: can't be reached: {error}; it must run, and its certificate be of this federation"
        ) from None
    finally:
        client.close()
