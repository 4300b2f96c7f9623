"""The server's one door to what Flower keeps private: all of it may be another in Flower's next version.

Its public parts (flwr.app, flwr.serverapp, flwr.clientapp, flwr.simulation) are imported where they are used. Here what
is large is imported by the function that needs it: a round does not load Flower's whole server.
"""

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from shared.base.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

__all__ = [
    "Answered",
    "Control",
    "FlowerRun",
    "Node",
    "Run",
    "Unreachable",
    "act_as_server",
    "bundle_refused",
    "control",
    "give_id",
    "run_superlink",
]


# --- messages -------------------------------------------------------------------------------------------------------


def act_as_server(node: int) -> None:
    """Messages made in this process from now on come from the ServerApp of run 1, which is this node."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, node, 1


def give_id(message: Message) -> str:
    """What the SuperLink does to a message that is pushed."""
    message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
    return message.metadata.message_id


def bundle_refused(reply: Message) -> bool:
    """Did the site's node refuse the run's bundle, before the ClientApp saw anything of it?"""
    return reply.has_error() and reply.error.code == ErrorCode.INVALID_FAB


# --- the control API of a SuperLink ---------------------------------------------------------------------------------


class Unreachable(ConfigError):
    """Nobody there, or somebody else."""


class Answered(RunFailed):
    """It is there and says no; Flower's number for why."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A key that a SuperLink knows."""

    number: int
    name: str
    key: bytes  # public, in PEM
    status: str  # registered, online, offline, unregistered
    online_until: float | None


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


@contextmanager
def control(address: str, authorities: bytes) -> Iterator["Control"]:
    """Of the SuperLink at HOST:PORT, whose certificate one of these CAs has signed."""
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors.http import RuntimeVersionHttpInterceptor

    client = ControlHttpClient.from_server_address(
        server_address=address,
        insecure=False,
        root_certificates=authorities,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="lacuna")],
    )
    try:
        yield Control(client, address)
    finally:
        client.close()


class Control:
    """Every question raises Unreachable or Answered where there is no answer, or a no."""

    def __init__(self, client: "ControlHttpClient", address: str) -> None:
        self._client, self._address = client, address

    def nodes(self) -> list[Node]:
        return [
            Node(
                number=node.node_id,
                name=node.name,
                key=node.public_key,
                status=node.status,
                online_until=node.online_until or None,
            )
            for node in self._ask("ListNodes").nodes_info
        ]

    def register(self, key: bytes, name: str) -> None:
        self._ask("RegisterNode", public_key=key, name=name)

    def unregister(self, node: int) -> None:
        self._ask("UnregisterNode", node_id=node)

    def start(self, bundle: bytes, config: Mapping[str, str]) -> int | None:
        """Flower's number of the new run; None where it took none."""
        from flwr.proto.fab_pb2 import Fab
        from flwr.proto.transport_pb2 import Scalar

        started = self._ask(
            "StartRun",
            fab=Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle),
            override_config={key: Scalar(string=value) for key, value in config.items()},
        )
        return int(started.run_id) if started.HasField("run_id") else None

    def run(self, number: int) -> FlowerRun | None:
        """None where it knows no such run, as when it was started without its database."""
        from flwr.supercore.error import ApiErrorCode

        try:
            found = self._ask("ListRuns", run_id=number).run_dict.get(number)
        except Answered as no:
            if no.code == ApiErrorCode.RUN_ID_NOT_FOUND:
                return None
            raise
        if found is None:
            return None
        return FlowerRun(status=found.status.status, how=found.status.sub_status, details=found.status.details)

    def stop(self, number: int) -> bool:
        """False where there is nothing to stop any more."""
        from flwr.supercore.error import ApiErrorCode

        try:
            return bool(self._ask("StopRun", run_id=number).success)
        except Answered as no:
            if no.code in (ApiErrorCode.RUN_ID_NOT_FOUND, ApiErrorCode.RUN_ALREADY_FINISHED):
                return False
            raise

    def _ask(self, verb: str, **fields: Any) -> Any:
        """`ListNodes` is asked with a `ListNodesRequest`, and so on."""
        import httpx
        from flwr.proto import control_pb2
        from flwr.supercore.error import FlowerError

        try:
            return getattr(self._client, verb)(getattr(control_pb2, f"{verb}Request")(**fields))
        except httpx.HTTPStatusError as error:
            said = FlowerError.from_json(error.response.text)
            raise Answered(
                f"superlink={self._address}: answered {error.response.status_code}: {error.response.text[:200]}",
                None if said is None else int(said.code),
            ) from None
        except httpx.HTTPError as error:
            raise Unreachable(
                f"superlink={self._address}: can't be reached: {error}; it must run, and its certificate be of this "
                "federation"
            ) from None


# --- the SuperLink itself -------------------------------------------------------------------------------------------


SMALL = {"cache_size": "-2000", "mmap_size": "0"}  # 2 MB and no map for each of ten connections, not 64 and 256


def run_superlink(*, database: int, start: int) -> None:
    """The program `flower-superlink`, by the flags in sys.argv, until it ends.

    It waits for SQLite's lock so many milliseconds, and for a task to begin so many seconds; after as many without a
    sign of life a task is over.
    """
    from flwr.supercore import sql_mixin
    from flwr.supercore.constant import SQLITE_PRAGMAS
    from flwr.supercore.corestate import in_memory_corestate, sql_corestate
    from flwr.superlink.cli import flower_superlink

    pragmas = dict(SQLITE_PRAGMAS)
    ours = {"busy_timeout": str(database), **SMALL}
    if not pragmas.keys() >= ours.keys() or not hasattr(sql_corestate, "HEARTBEAT_PATIENCE"):
        raise SystemExit("superlink: this version of Flower is another one; see server/flower.py")
    vars(sql_mixin).update(SQLITE_PRAGMAS=tuple((pragmas | ours).items()))
    for state in (in_memory_corestate, sql_corestate):
        vars(state).update(HEARTBEAT_DEFAULT_INTERVAL=start, HEARTBEAT_PATIENCE=1)
    flower_superlink()
