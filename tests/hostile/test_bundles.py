"""A run's bundle with code, or that would have other code run: refused at the site before Flower unpacks it."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as flower
from flwr.supernode.nodestate import NodeStateFactory
from hypothesis import given, settings
from hypothesis import strategies as st
from support.model.bundles import HOSTILE, bundle

from client.node import supernode
from client.site import bundle_guard
from client.site.ledger import Ledger
from server.superlink.superlink import bundle as own
from shared.base.errors import PlanRefused, RunFailed

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # in Flower's own packing
RUN = Run.create_empty(7)
CONTACT = "node/contact.json"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bundle_that_could_run_anything_is_refused_in_one_line_that_says_what(kind: str) -> None:
    make, says = HOSTILE[kind]
    content = make()
    with pytest.raises(PlanRefused, match=says) as refusal:
        bundle_guard.check(content, digest(content))
    assert str(refusal.value).startswith("bundle: ")
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 400


def test_the_bundle_that_lacuna_submits_passes() -> None:
    for content in (own(), bundle({})):
        found = bundle_guard.check(content, digest(content))
        assert (found.publisher, found.name, found.id) == ("lacuna", "lacuna-run", "lacuna/lacuna-run")


def test_a_bundle_of_another_hash_than_the_run_names_is_refused() -> None:
    with pytest.raises(PlanRefused, match="has the hash"):
        bundle_guard.check(own(), digest(own() + b" "))


@settings(max_examples=150, deadline=None)
@given(at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_no_single_bit_makes_a_bundle_that_passes_with_other_content(at: int, bit: int) -> None:
    """Under its own hash. Some bits of a zip mean nothing to anybody; the files inside are then the same."""
    content = bytearray(bundle({}))
    content[at % len(content)] ^= 1 << bit
    changed = bytes(content)
    try:
        bundle_guard.check(changed, digest(changed))
    except PlanRefused:
        return
    with zipfile.ZipFile(io.BytesIO(changed)) as archive:
        assert sorted(archive.namelist()) == [".info/CONTENT", "pyproject.toml"]
        assert archive.read("pyproject.toml") == zipfile.ZipFile(io.BytesIO(bundle({}))).read("pyproject.toml")


# --- in Flower's own function, with a hostile server at the other end -------------------------------------------------


class Server:
    """What a node asks of its server, answered with malice."""

    def __init__(self, run: Run, fab: Fab) -> None:
        self.run, self.fab, self.confirmed = run, fab, False
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run.run_id, 1, 1  # the ServerApp's
        self.message = Message(RecordDict(), dst_node_id=1, message_type="train")
        self.message.metadata.__dict__["_message_id"] = self.message.object_id

    def given(self) -> dict[str, object]:
        def confirm(*_: object) -> None:
            self.confirmed = True

        return {
            "receive": lambda: (self.message, flower.get_object_tree(self.message)),
            "get_run": lambda _: self.run,
            "get_fab": lambda *_: self.fab,
            "pull_object": lambda _, name: flower.get_all_nested_objects(self.message)[name].deflate(),
            "confirm_message_received": confirm,
            "trusted_entities": None,
            "node_config": {"site": "north"},
        }


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Flower's node with our guard on it, and its memory."""
    before = flower._pull_and_store_message, flower._push_messages
    store = ObjectStoreFactory()
    state = NodeStateFactory(objectstore_factory=store).state()
    state.set_node_id(1)
    supernode.guard(tmp_path)

    def take(server: Server) -> int | None:
        return flower._pull_and_store_message(state=state, object_store=store.store(), **server.given())  # type: ignore[arg-type]

    yield SimpleNamespace(take=take, state=state, folder=tmp_path)
    flower._pull_and_store_message, flower._push_messages = before


def run_of(content: bytes, **other: object) -> Run:
    named = {"fab_id": "lacuna/lacuna-run", "fab_version": "0.1.0", "fab_hash": digest(content)}
    return replace(RUN, **(named | other))  # type: ignore[arg-type]


def fab(content: bytes) -> Fab:
    return Fab(digest(content), content, {})


def refused(node: SimpleNamespace, server: Server) -> str:
    """Why; and that nothing of the run was kept, the server is told at once, and the ledger has it."""
    assert node.take(server) == server.run.run_id
    (reply,) = node.state.get_messages_legacy(is_reply=True)
    assert reply.has_error()
    assert reply.metadata.reply_to_message_id == server.message.metadata.message_id
    assert node.state.get_run(server.run.run_id) is None
    assert node.state.get_fab(server.run.fab_hash) is None
    assert list(node.state.get_tasks()) == []
    assert not server.confirmed
    (entry,) = Ledger(node.folder / "ledger.jsonl").entries()
    assert entry["fields"]["refusal.why"] == reply.error.reason
    assert entry["run"] == str(server.run.run_id)
    return str(reply.error.reason)


@pytest.mark.parametrize(
    "kind", ["a package that shadows ours", "another client", "a bomb", "not a zip", "a dependency"]
)
def test_flowers_node_keeps_nothing_of_a_refused_run_and_answers_at_once(
    node: SimpleNamespace, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, says = HOSTILE[kind]
    content = make()
    reason = refused(node, Server(run_of(content), fab(content)))
    assert re.search(says, reason)
    assert f"lacuna: refused: run 7: {reason}" in capfd.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            {"fab_id": "lacuna/../../x"},
            r"its name is 'lacuna/lacuna-run', and the server calls it 'lacuna/\.\./\.\./x'",
        ),
        ({"fab_version": "0.1.0/../../x"}, "its version is"),
        ({"primary_task_type": "flwr-agentapp"}, "the run is a 'flwr-agentapp'"),
        ({"primary_task_type": ""}, "the run is a ''"),
        ({"override_config": {"unknown": 1}}, "Flower can't use it"),
        ({"fab_hash": "0" * 64}, "has the hash"),
    ],
)
def test_a_run_that_is_not_what_its_bundle_says_is_refused(
    node: SimpleNamespace, other: dict[str, object], says: str
) -> None:
    assert re.search(says, refused(node, Server(run_of(own(), **other), fab(own()))))


def test_a_bundle_under_a_false_hash_is_refused(node: SimpleNamespace) -> None:
    false = Fab("../../../../etc", own(), {})
    assert "the server calls it '../../../../etc'" in refused(node, Server(run_of(own()), false))


def test_flowers_node_takes_a_run_that_only_configures(node: SimpleNamespace) -> None:
    server = Server(run_of(own(), override_config={"folder": "/runs/a"}), fab(own()))
    assert node.take(server) == 7
    assert server.confirmed
    assert node.state.get_messages_legacy(is_reply=True) == []
    assert node.state.get_fab(digest(own())).content == own()
    assert json.loads((node.folder / CONTACT).read_text())["doing"] == "work"


def test_a_flower_of_another_kind_is_not_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(flower, "_pull_and_store_message", lambda message, fab: None)
    with pytest.raises(RunFailed, match="is not the version that this Lacuna guards"):
        supernode.guard(tmp_path)
