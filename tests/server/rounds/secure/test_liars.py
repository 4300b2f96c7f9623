"""One site that wants to stop a run for good: it is left out, or the round is; never is the run stuck."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from support.rounds.five import make_five, part, secure
from support.rounds.spoilt import start

from server.journal import facts
from shared.base.errors import RunFailed
from shared.plan import tensors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("probe")]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_five(tmp_path_factory.mktemp("five"))


@pytest.mark.parametrize("box", ["", "00" * 32 + " " + "ab" * 40], ids=["none", "unsigned"])
def test_a_site_whose_box_is_none_is_left_out_by_name(box: str, five: Path, tmp_path: Path) -> None:
    def spoil(site: str, reply: Message) -> Message:
        if site == "e" and reply.has_content() and "inventory" in reply.content.config_records:
            reply.content.config_records["inventory"]["box"] = box
        return reply

    start(tmp_path / "run", secure(five), spoil=spoil)
    last = facts.read(tmp_path / "run" / "rounds.jsonl")[-1]
    assert sorted(site for site, one in last.sites.items() if one.status == "ok") == ["a", "b", "c", "d"]
    assert last.sites["e"].reason == "e: its box is not one that it signed"


def training(folder: Path) -> bool:
    return len(facts.read(folder / "rounds.jsonl")) == 1


def sealing_garbage(folder: Path) -> Callable[[str, Message], Message]:
    def spoil(site: str, reply: Message) -> Message:
        if site == "e" and part(reply) == "dealt" and training(folder):
            head = reply.content.config_records["dealt"]
            said = json.loads(str(head["dealt"]))
            said["sealed"] = {to: dict.fromkeys(its, "00" * 62) for to, its in said["sealed"].items()}
            head["dealt"] = json.dumps(said)
        return reply

    return spoil


def sending_too_much(folder: Path) -> Callable[[str, Message], Message]:
    def spoil(site: str, reply: Message) -> Message:
        if site == "e" and part(reply) == "update" and training(folder):
            sent = dict(tensors.unpack(reply.content.array_records["delta"]))
            reply.content["delta"] = tensors.pack({**sent, "body.weight": sent["body.weight"] + 2**62})
        return reply

    return spoil


@pytest.mark.parametrize("lie", [sealing_garbage, sending_too_much])
def test_after_one_lie_the_run_goes_on_without_the_liar(
    lie: Callable[[Path], Callable[[str, Message], Message]], five: Path, tmp_path: Path
) -> None:
    """The round may be lost; without e, once a person names it, the run ends."""
    folder = tmp_path / "run"
    try:
        start(folder, secure(five), spoil=lie(folder))
    except RunFailed:
        start(folder, secure(five), policies={"e": {"methods": "amm_diff"}})
    assert (folder / "final").exists()


def test_of_a_group_over_whose_samples_is_averaged_too_few_came(five: Path, tmp_path: Path) -> None:
    """estimator=delta: a site that says it trained nothing shared leaves FLAIR without a divisor, and no crash."""
    folder = tmp_path / "run"

    def spoil(site: str, reply: Message) -> Message:
        if site in "de" and part(reply) == "update" and training(folder):
            head = reply.content.config_records["update"]
            counts = json.loads(str(head["counts"]))
            place = sorted(counts.keys() - {"*"}).index("shared")
            del counts["shared"]
            head["counts"] = json.dumps(counts)
            sent = dict(tensors.unpack(reply.content.array_records["delta"]))
            for name in ("stem.bias", "body.weight", "body.bias"):
                del sent[name]
            sent["(counts)"] = torch.cat([sent["(counts)"][:place], sent["(counts)"][place + 1 :]])
            reply.content["delta"] = tensors.pack(sent)
        return reply

    start(folder, secure(five, estimator="delta"), spoil=spoil)
    last = facts.read(folder / "rounds.jsonl")[-1]
    assert {one.status for one in last.sites.values()} == {"ok"}
    assert "shared" not in last.holders
