"""A federation over the local grid whose messages somebody handles on the way: a SuperLink in the wrong hands."""

import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from support.rounds.federation import write

from server.federation.lead import Lead
from server.runs import simulation
from server.runs.local_grid import LocalGrid
from server.runs.serve import serve
from shared.base.files import canonical
from shared.plan.config import Config
from shared.trust.warrant import Leader, Question

Handle = Callable[[str, RecordDict], object]  # (site, content) -> None; changes the content


class RelayGrid(LocalGrid):
    down: Handle = staticmethod(lambda site, content: None)
    up: Handle = staticmethod(lambda site, content: None)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return super().push_messages(map(self._handled, messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            if reply.has_content():
                self.up(self._names[reply.metadata.src_node_id], reply.content)
            yield reply

    def _handled(self, message: Message) -> Message:
        content = copy.deepcopy(message.content)
        self.down(self._names[message.metadata.dst_node_id], content)
        told = message.metadata
        return Message(content, told.dst_node_id, told.message_type, ttl=told.ttl, group_id=told.group_id)


def relay(folder: Path, wanted: Config, *, down: Handle | None = None, up: Handle | None = None) -> Path:
    write(folder, wanted)
    cohorts = simulation.find_cohorts(wanted)
    grid = RelayGrid(simulation.client_app(), simulation._node_configs(wanted, folder, cohorts))
    if down is not None:
        grid.down = down  # type: ignore[method-assign]
    if up is not None:
        grid.up = up  # type: ignore[method-assign]
    return serve(grid, folder, quiet=True)


def told(content: RecordDict) -> dict[str, Any]:
    """What a question says; a relay can read it all."""
    (name,) = {"plan", "query"} & set(content.config_records)
    found: dict[str, Any] = json.loads(bytes(content.config_records[name]["text"]))  # type: ignore[arg-type]
    return found


def reworded(content: RecordDict, leader: Leader | None = None, **changes: Any) -> None:
    """Other words in a question, under the old signature; or with a leader's key under a new one."""
    (name,) = {"plan", "query"} & set(content.config_records)
    record = content.config_records[name]
    other = {**told(content), **changes}
    if leader is None:
        record["text"] = canonical(other, indent=None)
        return
    made = Question.make(leader, other)
    for key in ("warrant", "text", "signature"):
        record[key] = getattr(made, key)


def leader_of(run: Path) -> Leader:
    """What whoever has taken over the run's ServerApp signs with."""
    return Lead.read(run).leader
