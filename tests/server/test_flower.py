"""The door to Flower's private modules: what a SuperLink answers becomes our words."""

from typing import Any

import httpx
import pytest
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.control_pb2 import ListRunsResponse, StartRunResponse
from flwr.supercore.error import ApiErrorCode

from server.flower import Answered, Control, Unreachable, act_as_server, bundle_refused


class Client:
    """Answers every question with one thing, or raises it."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, []

    def __getattr__(self, verb: str) -> Any:
        def ask(request: Any) -> Any:
            self.asked.append((verb, request))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return ask


def refusing(code: int) -> Client:
    response = httpx.Response(404, json={"code": int(code), "detail": "no"}, request=httpx.Request("POST", "https://x"))
    return Client(httpx.HTTPStatusError("404", request=response.request, response=response))


def test_a_run_that_the_superlink_does_not_know_is_none_and_needs_no_stop() -> None:
    control = Control(refusing(ApiErrorCode.RUN_ID_NOT_FOUND), "here:1")  # type: ignore[arg-type]
    assert control.run(7) is None
    assert control.stop(7) is False
    assert Control(refusing(ApiErrorCode.RUN_ALREADY_FINISHED), "here:1").stop(7) is False  # type: ignore[arg-type]
    assert Control(Client(ListRunsResponse()), "here:1").run(7) is None  # type: ignore[arg-type]


def test_any_other_no_and_silence_say_which_superlink() -> None:
    with pytest.raises(Answered, match=r"superlink=here:1: answered 404") as caught:
        Control(refusing(999), "here:1").stop(7)  # type: ignore[arg-type]
    assert caught.value.code == 999
    silent = Control(Client(httpx.ConnectError("refused")), "here:1")  # type: ignore[arg-type]
    with pytest.raises(Unreachable, match=r"superlink=here:1: can't be reached: refused"):
        silent.nodes()


def test_a_question_is_flowers_own_request_and_a_start_without_a_number_is_none() -> None:
    client = Client(StartRunResponse())
    control = Control(client, "here:1")  # type: ignore[arg-type]
    assert control.start(b"bundle", {"folder": "/runs/a"}) is None
    ((verb, request),) = client.asked
    assert verb == "StartRun"
    assert request.fab.content == b"bundle"
    assert request.override_config["folder"].string == "/runs/a"
    client.answer = StartRunResponse(run_id=5)
    assert control.start(b"bundle", {}) == 5


def test_a_refused_bundle_is_told_from_any_other_failure() -> None:
    act_as_server(1)
    sent = Message(RecordDict(), dst_node_id=2, message_type=MessageType.QUERY)
    assert bundle_refused(Message(Error(ErrorCode.INVALID_FAB, "code"), reply_to=sent))
    assert not bundle_refused(Message(Error(ErrorCode.UNKNOWN, "?"), reply_to=sent))
    assert not bundle_refused(Message(RecordDict(), reply_to=sent))
