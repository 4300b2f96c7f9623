"""The SuperLink's list of keys made equal to the federation's: the one thing that a site's admission needs there.

Flower never forgets a key: once unregistered, the same one can't be registered again in the same database.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors.http import RuntimeVersionHttpInterceptor

from server.federation import Federation, opened
from shared.errors import ConfigError, RunFailed
from shared.keys import parse_site_line, public_pem
from shared.names import Address


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
        raise RunFailed(
            f"superlink={address}: answered {error.response.status_code}: {error.response.text[:200]}"
        ) from None
    except httpx.HTTPError as error:
        raise ConfigError(
            f"superlink={address}: can't be reached: {error}; it must run, and its certificate be of this federation"
        ) from None
    finally:
        client.close()
