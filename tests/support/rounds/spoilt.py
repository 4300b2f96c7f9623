"""A federation over the local grid of which a site lies, and whose sites have policies.

What a hostile site says it signs with its own key: what happens on the way is in support/rounds/relay.py.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from support.rounds.federation import write

from client.site.keys import own_key
from server.runs import simulation
from server.runs.local_grid import LocalGrid
from server.runs.serve import serve
from shared.plan import sealed, wire
from shared.plan.config import Config

Spoil = Callable[[str, Message], Message | None]  # (site, reply) -> what arrives; None is nothing


class SpoiltGrid(LocalGrid):
    spoil: Spoil = staticmethod(lambda site, reply: reply)

    def __init__(self, client_app: ClientApp, node_configs: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(client_app, node_configs)
        self._states = {site: Path(str(own["state"])) for site, own in node_configs.items()}
        self._questions: dict[str, str] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            (name,) = super().push_messages([message])
            self._questions[name] = wire.question(message.content)
            yield name

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            site, question = (
                self._names[reply.metadata.src_node_id],
                self._questions[reply.metadata.reply_to_message_id],
            )
            arrived = self.spoil(site, reply)
            if arrived is not None:
                if arrived.has_content():
                    sign(arrived.content, self._states[site], site, question)
                yield arrived


def sign(content: RecordDict, state: Path, site: str, question: str) -> None:
    """Sign it anew, with the key of a site's disk."""
    content.pop("signed", None)
    sealed.sign(content, sealed.digest(content), own_key(state), site, question)


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
