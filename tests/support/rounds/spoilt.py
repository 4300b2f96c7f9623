"""A federation over the local grid on whose wire something happens to the replies, and whose sites have policies."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flwr.app import Error, Message, RecordDict
from support.rounds.federation import write

from server.runs import simulation
from server.runs.local_grid import LocalGrid
from server.runs.serve import serve
from shared.plan.config import Config

Spoil = Callable[[str, Message], Message | None]  # (site, reply) -> what arrives; None is nothing


class SpoiltGrid(LocalGrid):
    spoil: Spoil = staticmethod(lambda site, reply: reply)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            arrived = self.spoil(self._names[reply.metadata.src_node_id], reply)
            if arrived is not None:
                yield arrived


def start(
    folder: Path, wanted: Config, *, spoil: Spoil | None = None, policies: Mapping[str, Mapping[str, str]] | None = None
) -> Path:
    """`policies`: by site, what stands in its node config besides. A folder with a run in it is gone on with."""
    write(folder, wanted)
    cohorts = simulation.find_cohorts(wanted)
    nodes = simulation._node_configs(wanted, folder, cohorts)
    for site, policy in (policies or {}).items():
        nodes[site] |= policy
    grid = SpoiltGrid(simulation.client_app(), nodes)
    if spoil is not None:
        grid.spoil = spoil  # type: ignore[method-assign]
    return serve(grid, folder, quiet=True)


def about(reply: Message) -> tuple[str, int] | None:
    """Phase and round of an update; None for any other reply."""
    if not reply.has_content() or "update" not in reply.content.config_records:
        return None
    head = reply.content.config_records["update"]
    return str(head["phase"]), int(str(head["round"]))


def failed(reply: Message) -> Message:
    """As if the site had answered nothing."""
    broken = Message(Error(8, "ClientApp stopped responding"), reply_to=reply)
    broken.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
    return broken


def saying(reply: Message, content: RecordDict) -> Message:
    """The same message with other content."""
    other = Message(content, reply_to=reply)
    other.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
    return other
