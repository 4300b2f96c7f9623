"""The coordinator's receipts: one for every reply of a round, one chain over kills, found out when changed."""

import json
from pathlib import Path

import pytest
from flwr.app import Message
from support.rounds.federation import config
from support.rounds.probe import Probe
from support.rounds.spoilt import about, failed, start
from typer.testing import CliRunner

from server.cli.cli import app
from server.journal import receipts
from shared import methods
from shared.base.errors import ConfigError, DataError
from shared.plan import tensors


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed in the second round, and resumed; south answers with nan once, east nothing once, north refuses once."""
    folder = tmp_path_factory.mktemp("receipts") / "run"

    def spoil(site: str, reply: Message) -> Message | None:
        if site == "south" and about(reply) == ("fit", 0):
            reply.content.config_records["update"]["metrics"] = '{"loss": NaN}'
        return failed(reply) if site == "east" and about(reply) == ("fit", 0) else reply

    def kill(site: str, reply: Message) -> Message | None:
        if site == "north" and about(reply) == ("fit", 1):
            raise KeyboardInterrupt
        return spoil(site, reply)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "probe", Probe)  # type: ignore[arg-type]
        wanted = config(world, min_sites=1)
        policies = {"north": {"max-rounds-per-day": "4"}}
        with pytest.raises(KeyboardInterrupt):
            start(folder, wanted, spoil=kill, policies=policies)
        start(folder, wanted, spoil=spoil, policies=policies)
    return folder


def test_every_reply_of_a_round_has_a_receipt_over_a_kill(folder: Path) -> None:
    found: dict[tuple[str, int], dict[str, list[str]]] = {}
    for one in receipts.read(folder, None):
        found.setdefault((one["phase"], one["round"]), {}).setdefault(one["site"], []).append(one["verdict"])
    assert found == {
        ("level", 0): {"north": ["ok"], "east": ["ok"], "south": ["ok"]},
        ("fit", 0): {"north": ["ok"], "south": ["rejected"]},
        ("fit", 1): {"north": ["ok"], "east": ["ok", "ok"], "south": ["ok"]},  # east had answered before the kill
        ("fit", 2): {"north": ["refused"], "east": ["ok"], "south": ["ok"]},
    }


def test_a_receipt_has_hash_bytes_and_reason(folder: Path) -> None:
    (one,) = (e for e in receipts.read(folder, "south") if e["verdict"] == "rejected")
    assert "malformed update" in one["reason"]
    (refused,) = (e for e in receipts.read(folder, "north") if e["verdict"] == "refused")
    assert "max_rounds_per_day=4" in refused["reason"]
    for each in receipts.read(folder, None):
        assert (each["run"], len(each["sha256"]), len(each["link"])) == ("run", 64, 64)
        assert each["bytes"] > 0


def test_an_update_that_was_set_aside_after_all_had_come_is_not_said_to_be_ok(world: Path, tmp_path: Path) -> None:
    """One receipt of it, with the last word; what it said first stays in the chain."""
    folder = tmp_path / "run"

    def spoil(site: str, reply: Message) -> Message | None:
        if site == "south" and about(reply) == ("fit", 1):
            delta = tensors.unpack(reply.content.array_records["delta"])
            reply.content["delta"] = tensors.pack({name: 50.0 * value for name, value in delta.items()})
        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "probe", Probe)  # type: ignore[arg-type]
        start(folder, config(world, min_sites=2), spoil=spoil)
    said = [(one["round"], one["verdict"]) for one in receipts.read(folder, "south") if one["phase"] == "fit"]
    assert said == [(0, "ok"), (1, "rejected"), (2, "ok")]
    (one,) = (one for one in receipts.read(folder, "south") if one["verdict"] == "rejected")
    assert "times the round's median" in one["reason"]
    lines = [json.loads(line) for line in (folder / receipts.FILE).read_text().splitlines()]
    same = [line["verdict"] for line in lines if (line["site"], line["sha256"]) == ("south", one["sha256"])]
    assert same == ["ok", "rejected"]


@pytest.mark.parametrize("what", ["changed", "removed", "swapped"])
def test_receipts_that_were_tampered_with_are_found(what: str, folder: Path, tmp_path: Path) -> None:
    lines = (folder / receipts.FILE).read_text().splitlines()
    if what == "changed":
        lines[2] = json.dumps(json.loads(lines[2]) | {"verdict": "ok", "sha256": "0" * 64}, sort_keys=True)
    elif what == "removed":
        del lines[2]
    else:
        lines[2], lines[3] = lines[3], lines[2]
    (tmp_path / receipts.FILE).write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="the chain is broken"):
        receipts.read(tmp_path, None)


def test_the_verb_shows_and_exports_one_sites_receipts(folder: Path, tmp_path: Path) -> None:
    words = ["receipts", "run", "--runs", str(folder.parent)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    assert f"{len(receipts.read(folder, None))} receipts; the chain is whole" in done.stdout
    assert "malformed update" in done.stdout
    for name in ("out.json", "out.csv"):
        more = ["--site", "east", "--export", str(tmp_path / name)]
        assert CliRunner().invoke(app, [*words, *more]).exit_code == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert (told["run"], told["site"]) == ("run", "east")
    assert {one["site"] for one in told["receipts"]} == {"east"}
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + len(told["receipts"])


def test_what_is_not_there_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--site west: has no receipt in this run; east, north, south has"):
        receipts.read(folder, "west")
    with pytest.raises(DataError, match=r"has no receipts, receipts\.jsonl is missing"):
        receipts.read(tmp_path, None)
    with pytest.raises(ConfigError, match=r"must end in \.csv or \.json"):
        receipts.export([], tmp_path / "x.txt", run="r", site=None)
