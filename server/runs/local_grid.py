"""A Flower Grid that runs the ClientApp in this process: a federation without a cluster.

Messages wait in a queue and are worked on when their reply is pulled, one at a time: the sites share the device in
turn, and hundreds of them need the memory of one. Nothing is copied that the wire does not copy.
"""

import logging
from collections.abc import Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from server.flower import Run, act_as_server, give_id

log = logging.getLogger("lacuna.grid")
SERVER_NODE = 1
ERROR_CODE = 1  # any failure of the app itself


class LocalGrid(Grid):
    """One node per site, numbered from 2; `node_configs` is what each SuperNode would be started with."""

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Mapping[str, Mapping[str, bool | int | float | str]],
    ) -> None:
        self._app = client_app
        self._names = dict(enumerate(node_configs, start=SERVER_NODE + 1))
        self._contexts = {
            node: Context(
                run_id=1, node_id=node, node_config=dict(node_configs[name]), state=RecordDict(), run_config={}
            )
            for node, name in self._names.items()
        }
        self._waiting: dict[str, Message] = {}
        act_as_server(SERVER_NODE)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._names)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(give_id(message))
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Does the work: a message is answered when its reply is asked for."""
        for message_id in message_ids:
            message = self._waiting.pop(message_id, None)
            if message is not None:
                yield self._answer(message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(self.pull_messages(self.push_messages(messages)))

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            reply = self._app(message, self._contexts[node])
        except Exception as error:  # as a SuperNode would: the site's log has the rest
            log.exception("the app of %s failed", self._names[node])
            return Message(Error(ERROR_CODE, f"{type(error).__name__} in the app"), reply_to=message)
        return reply
