"""A site that answers with more than was asked for: the coordinator stops before it has pulled it."""

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.superlink.grid.http_grid import HttpGrid

from server.flower import act_as_server, give_id
from server.mail import Lost, forget, pull, push
from server.rounds.collect import BESIDE, room
from shared.base.checkpoint import save_tensors
from shared.base.disk.tensors import lying_in
from shared.plan.sealed import digest, receive
from shared.plan.tensors import CHUNK, pack, record_of

MB = 2**20


class SuperLink:
    """Holds one reply, as a site pushed it, behind Flower's own client calls."""

    def __init__(self, reply: Message) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self._head, self._tree = message_to_proto(remove_content_from_message(reply)), get_object_tree(reply)
        self.objects: Mapping[str, bytes] = {k: v.deflate() for k, v in get_all_nested_objects(reply).items()}
        self.pulled: list[int] = []
        self.pushed: list[int] = []
        self.confirmed: list[str] = []

    def PullMessages(self, request: Any) -> Any:
        return SimpleNamespace(messages_list=[self._head], message_object_trees=[self._tree])

    def PullObject(self, request: Any) -> Any:
        content = self.objects[request.object_id]
        self.pulled.append(len(content))
        return SimpleNamespace(object_found=True, object_available=True, object_content=content)

    def PushMessages(self, request: Any) -> Any:
        trees = (node.object_id for tree in request.message_object_trees for node in iterate_object_tree(tree))
        return SimpleNamespace(
            message_ids=[m.metadata.message_id for m in request.messages_list],
            objects_to_push=list(dict.fromkeys(trees)),
            session_id="s",
        )

    def PushObject(self, request: Any) -> Any:
        self.pushed.append(len(request.object_content))
        return SimpleNamespace(stored=True)

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


def lying(superlink: SuperLink, **said: Any) -> None:
    """What the head of the array says is another thing; all objects are there, and are called as they are known."""
    (number,) = (k for k, v in superlink.objects.items() if v.startswith(b"Array "))
    head, body = superlink.objects[number].split(b"\0", 1)
    text = json.dumps({**json.loads(body), **said}).encode()
    kind, children, _ = head.split(b" ")
    content = b" ".join([kind, children, str(len(text)).encode()]) + b"\0" + text
    superlink.objects = {**superlink.objects, number: content}


LIES: dict[str, tuple[dict[str, Any], int]] = {
    "fewer bytes than there are": ({"shape": [MB]}, 4),
    "more bytes than there are": ({"shape": [25 * MB]}, 12),
    "the same chunk for ever": ({"arraychunk_ids": [0] * 100_000}, 13),
}


@pytest.mark.parametrize("name", LIES)
def test_an_array_that_lies_about_its_length_is_lost_and_costs_no_more_than_what_it_said(
    name: str, tmp_path: Path
) -> None:
    said, objects = LIES[name]
    grid, superlink = grid_with(tensors(24 * MB))
    lying(superlink, **said)
    for reply in pull(grid, "a", most=room(8 * MB, 1, 4)):
        with pytest.raises(Lost, match=r"its array is not of the .* bytes that it says"):
            receive(reply.content, onto=tmp_path / "east")
    assert len([size for size in superlink.pulled if size > MB]) <= objects
    assert not list(tmp_path.iterdir())
    assert superlink.confirmed


def test_an_array_that_says_too_much_is_not_pulled_at_all() -> None:
    grid, superlink = grid_with(tensors(24 * MB))
    lying(superlink, shape=[2**62])
    (reply,) = pull(grid, "a", most=room(8 * MB, 1, 4))
    assert "too large a reply" in reply.error.reason
    assert max(superlink.pulled) < MB


def test_a_reply_is_written_down_a_few_objects_at_a_time(tmp_path: Path) -> None:
    size = 64 * MB
    grid, superlink = grid_with(tensors(size))
    for reply in pull(grid, "a", most=room(size // 4, 1, 4)):
        assert max(superlink.pulled) < MB  # heads alone
        assert superlink.confirmed == []
        tracemalloc.start()
        came = receive(reply.content, onto=tmp_path / "east")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 * CHUNK
    assert (tmp_path / "east").read_bytes() == tensors(size).array_records["delta"]["tensors"].data
    assert came.bytes == size
    assert came.sha256 == digest(tensors(size))
    assert len(superlink.confirmed) == 1


def test_what_is_late_is_let_go_of_unread() -> None:
    grid, superlink = grid_with(tensors(MB))
    forget(grid, ["a", "b"])
    assert superlink.pulled == []
    assert superlink.confirmed[:2] == ["a", "b"]
    assert len(superlink.confirmed) == 3


def test_a_plan_for_many_sites_is_hashed_and_pushed_once_and_never_whole_in_memory(tmp_path: Path) -> None:
    """Its chunks are read from the file as each is sent."""
    size = 64 * MB
    save_tensors(tmp_path / "weights", {f"w{i}": torch.zeros(MB).fill_(i) for i in range(size // MB // 4)})
    grid, superlink = grid_with(tensors(1))
    array = pack(lying_in(tmp_path / "weights"))["tensors"]
    act_as_server(1)
    messages = [
        Message(RecordDict({"x": ConfigRecord({"to": node}), "weights": record_of(array)}), node, "train")
        for node in range(2, 18)
    ]
    tracemalloc.start()
    push(grid, messages)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * CHUNK
    assert size <= sum(superlink.pushed) < size + MB


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
