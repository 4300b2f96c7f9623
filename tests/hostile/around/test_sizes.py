"""A site that answers with more than was asked for: the coordinator stops before it has pulled it."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid.http_grid import HttpGrid

from server.flower import act_as_server, give_id, pull
from server.rounds.collect import BESIDE, room

MB = 2**20


class SuperLink:
    """Holds one reply, as a site pushed it, behind Flower's own client calls."""

    def __init__(self, reply: Message) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self._head, self._tree = message_to_proto(remove_content_from_message(reply)), get_object_tree(reply)
        self.objects: Mapping[str, bytes] = {k: v.deflate() for k, v in get_all_nested_objects(reply).items()}
        self.pulled: list[int] = []
        self.confirmed: list[str] = []

    def PullMessages(self, request: Any) -> Any:
        return SimpleNamespace(messages_list=[self._head], message_object_trees=[self._tree])

    def PullObject(self, request: Any) -> Any:
        content = self.objects[request.object_id]
        self.pulled.append(len(content))
        return SimpleNamespace(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)


def grid_with(content: RecordDict) -> tuple[HttpGrid, SuperLink]:
    act_as_server(1)
    question = Message(RecordDict(), 1, "train")
    give_id(question)
    superlink = SuperLink(Message(content, reply_to=question))
    grid = HttpGrid(token="t")
    grid._client = superlink  # type: ignore[assignment]
    grid._run = SimpleNamespace(run_id=1)  # type: ignore[assignment]
    return grid, superlink


def tensors(size: int) -> RecordDict:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    return RecordDict({"delta": ArrayRecord({"tensors": Array("uint8", (size,), "lacuna.tensors", data)})})


def test_a_reply_of_a_hundred_times_what_was_asked_for_is_not_pulled_whole() -> None:
    grid, superlink = grid_with(tensors(120 * MB))
    (reply,) = pull(grid, "a", most=room(MB // 4, 1, 4))
    assert reply.has_error()
    assert "too large a reply" in reply.error.reason
    assert sum(superlink.pulled) < 25 * MB  # what was under way when it was over; no 120 MB
    assert superlink.confirmed  # so that the SuperLink lets it go
    assert grid._client is superlink


def test_of_a_reply_of_countless_objects_none_is_pulled() -> None:
    many = {f"{i}": ConfigRecord({"x": i}) for i in range(5000)}
    grid, superlink = grid_with(RecordDict(many))
    (reply,) = pull(grid, "a", most=room(MB, 1, 4))
    assert "it is of 5002 objects" in reply.error.reason
    assert superlink.pulled == []
    assert superlink.confirmed


@pytest.mark.parametrize("values", [0, 1, 1000, 4 * MB])
def test_an_answer_of_just_what_was_asked_for_comes_whole(values: int) -> None:
    grid, superlink = grid_with(tensors(4 * values + 200))
    (reply,) = pull(grid, "a", most=room(values, 1, 4))
    assert not reply.has_error()
    assert (
        reply.content.array_records["delta"]["tensors"].data
        == tensors(4 * values + 200).array_records["delta"]["tensors"].data
    )
    assert len(superlink.confirmed) == 1
    assert BESIDE >= 2**20
