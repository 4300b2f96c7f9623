"""Messages through a SuperLink, of which no end holds one whole; like server/flower.py a door to Flower's inside.

Flower cuts an array into objects, named by their hashes. Going down they are read from the disk as they are sent, once
for all sites. Coming up a reply's heads are pulled first, and say how large it is; its tensors are pulled as they are
written to the disk.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from shared.base.errors import RunFailed
from shared.plan.tensors import Streamed

if TYPE_CHECKING:
    from flwr.superlink.grid.http_grid import HttpGrid


# --- questions, whose tensors are pushed once for all sites ---------------------------------------------------------

WINDOW = 4  # objects that are in memory to be sent


def push(grid: Grid, messages: Sequence[Message]) -> list[str]:
    """Send them together: what they share is read, hashed and sent once. Gives their numbers, "" for one not taken."""
    from flwr.supercore.inflatable import inflatable_utils

    vars(inflatable_utils).update(push_object_contents_from_iterable=_push_in_turn)
    taken = list(grid.push_messages(list(messages)))
    return [number or "" for number in taken] or [""] * len(messages)


def _push_in_turn(contents: Iterable[tuple[str, bytes]], push_object: Callable[[str, bytes], None], **_: Any) -> None:
    """Flower's own reads all of it into memory before the first has left."""
    with ThreadPoolExecutor(WINDOW // 2) as pool:
        under_way: deque[Future[None]] = deque()
        for number, content in contents:
            if len(under_way) == WINDOW:
                under_way.popleft().result()
            under_way.append(pool.submit(push_object, number, content))
            del content
        for one in under_way:
            one.result()


# --- replies, bounded before they are pulled ------------------------------------------------------------------------

SMALLEST = 2**20  # bytes of an object: an honest site's are larger, but for a few
FEW = 64
AHEAD = 2  # objects that are pulled before they are asked for


class Lost(RunFailed):
    """A reply that did not come whole, or was too large to be pulled on."""


def pull(grid: Grid, message_id: str, *, most: int) -> Iterator[Message]:
    """The reply to a message, if it is there; one of more than `most` bytes comes as an error.

    A SuperLink's reply is of objects: they are counted first, then its heads are pulled, which say how large it is.
    The bytes of its tensors are pulled as they are read, which must be before the next reply is asked for: `Lost` then
    where they are not there, or are more than was said.
    """
    from flwr.superlink.grid.http_grid import HttpGrid

    if not isinstance(grid, HttpGrid):  # the sites are in this process, or in Ray's on this machine
        yield from grid.pull_messages([message_id])
        return
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest

    found = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=[message_id]))
    for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
        number = head.metadata.message_id
        try:
            yield _Reply(grid, tree, most).read(number)
        except Lost as lost:
            yield _unavailable(grid, head, str(lost))
        finally:  # the SuperLink may let it go
            _confirm(grid, number)


def forget(grid: Grid, questions: Collection[str]) -> None:
    """After their deadline: a SuperLink lets go of what sites did not fetch, and of what they answered too late.

    It would keep a model's bytes of each until the run ends.
    """
    from flwr.superlink.grid.http_grid import HttpGrid

    if not questions or not isinstance(grid, HttpGrid):
        return
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest

    found = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=questions))
    for number in (*questions, *(head.metadata.message_id for head in found.messages_list)):
        _confirm(grid, number)


def _confirm(grid: "HttpGrid", number: str) -> None:
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

    run = grid._run
    assert run is not None
    grid._runtime_client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=grid.node, run_id=run.run_id, message_object_id=number)
    )


class _Reply:
    """One that lies at a SuperLink."""

    def __init__(self, grid: "HttpGrid", tree: Any, most: int) -> None:
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
        from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf

        run = grid._run
        assert run is not None
        self._pull = make_pull_object_fn_protobuf(grid._runtime_client.PullObject, grid.node, run.run_id)
        self._known = {node.object_id for node in iterate_object_tree(tree)}
        self._most, self._heads, self._said = most, 0, 0

    def read(self, number: str) -> Message:
        """Its message, whose arrays are not pulled yet."""
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        if len(self._known) > FEW + self._most // SMALLEST:
            raise Lost(f"it is of {len(self._known)} objects, and has at most {self._most} bytes: too large a reply")
        contents: dict[str, bytes] = {}
        made: dict[str, Any] = {}  # what Flower would want the bytes for, when it makes it
        try:
            self._head(number, contents, made)
            found = inflate_object_from_contents(number, contents, objects=made)
            if not isinstance(found, Message):
                raise ValueError(f"it is a {type(found).__name__}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise Lost(f"it can't be read: {type(error).__name__}: {str(error)[:200]}") from None
        found.metadata.__dict__["_message_id"] = number
        return found

    def _head(self, number: str, contents: dict[str, bytes], made: dict[str, Any]) -> None:
        from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content

        if number in contents or number in made:
            return
        content = self._one(number)
        self._heads += len(content)
        self._within(self._heads)
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == "Array":
            made[number] = self._array(content, children)
            return
        if kind != "ArrayRecord":
            contents[number] = content
        for child in children:
            self._head(child, contents, made)
        if kind == "ArrayRecord":
            made[number] = ArrayRecord()
            for name, array in _body(content).items():
                made[number][name] = made[array]

    def _array(self, content: bytes, children: list[str]) -> "_Pulled":
        said = _body(content)
        chunks = [children[i] for i in said["arraychunk_ids"]]
        (length,) = said["shape"]
        if type(length) is not int or length < 0 or not isinstance(said["stype"], str):
            raise ValueError("an array says no length, or no type")
        self._said += length
        self._within(self._said)
        return _Pulled(self, length, chunks, dtype=str(said["dtype"]), stype=said["stype"])

    def _within(self, size: int) -> None:
        if size > self._most:
            raise Lost(f"it is of more than {self._most} bytes: too large a reply")

    def _one(self, number: str) -> bytes:
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects

        if number not in self._known:
            raise Lost(f"object {number[:12]} is none of its own")
        try:
            return pull_objects([number], self._pull)[number]
        except ObjectPullError as error:
            raise Lost(f"Reply message objects are unavailable: {error}") from None

    def pieces(self, chunks: Sequence[str], length: int) -> Iterator[memoryview]:
        """The chunks in their order, of which a few are pulled ahead; no more than was said, and no less."""
        with ThreadPoolExecutor(AHEAD) as pool:
            ahead: deque[Future[bytes]] = deque()
            coming, left = iter(chunks), length
            while True:
                ahead.extend(pool.submit(self._one, number) for number in islice(coming, AHEAD - len(ahead)))
                if not ahead:
                    break
                content = ahead.popleft().result()
                piece = memoryview(content)[content.find(b"\0") + 1 :]
                left -= len(piece)
                if left < 0 or not content.startswith(b"ArrayChunk ") or not len(piece):
                    for one in ahead:
                        one.cancel()
                    raise Lost(f"its array is not of the {length} bytes that it says")
                yield piece
        if left:
            raise Lost(f"its array is not of the {length} bytes that it says")


class _Pulled(Streamed):
    """An array of a reply that lies at a SuperLink."""

    def __init__(self, reply: _Reply, length: int, chunks: list[str], *, dtype: str, stype: str) -> None:
        super().__init__(length, dtype, stype)
        self._reply, self._pulled = reply, chunks

    def pieces(self) -> Iterator[memoryview]:
        return self._reply.pieces(self._pulled, self.length)


_Pulled.__qualname__ = "Array"


def _body(content: bytes) -> dict[str, Any]:
    return dict(json.loads(content[content.index(b"\0") + 1 :]))


def _unavailable(grid: "HttpGrid", head: Any, reason: str) -> Message:
    """As Flower says it of a reply whose objects it can't get."""
    from flwr.app import Error, Metadata
    from flwr.app.message import make_message
    from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE

    told = Metadata(
        run_id=head.metadata.run_id,
        message_id="",
        src_node_id=grid.node.node_id,
        dst_node_id=grid.node.node_id,
        message_type=SYSTEM_MESSAGE_TYPE,
        group_id="",
        ttl=0,
        reply_to_message_id=head.metadata.reply_to_message_id,
        created_at=time.time(),
    )
    return make_message(metadata=told, error=Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason=reason))
