"""The egress ledger: what it holds, that a change shows, and what only the coordinator's receipts can tell."""

import csv
import io
import json
import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from support.rounds.federation import config
from support.rounds.probe import Probe
from support.rounds.spoilt import about, start
from typer.testing import CliRunner

from client.cli.cli import app
from client.site import ledger as egress
from client.site.ledger import LEDGER, Ledger, compare, read_receipts
from server.journal import receipts
from shared import methods
from shared.base import chain
from shared.base.chain import Chain
from shared.base.errors import DataError, LacunaError
from shared.base.records import Spent, Update
from shared.plan import sealed, wire


def facts_of(number: int, **fields: Any) -> dict[str, Any]:
    return {"fields": fields, "tensors": [], "norm": 0.0, "bytes": number, "sha256": f"{number:064x}"}


def book(folder: Path, n: int = 5) -> Path:
    for i in range(n):
        Ledger(folder / LEDGER).release(lambda _, i=i: facts_of(i), {"run": "r", "phase": "p", "round": i})
    return folder / LEDGER


# --- the chain ------------------------------------------------------------------------------------------------------


def edited(lines: list[str]) -> list[str]:
    return [lines[0], json.dumps(json.loads(lines[1]) | {"bytes": 99}, sort_keys=True), *lines[2:]]


BROKEN: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a changed entry": (edited, "line 3: the chain is broken"),
    "a deleted entry": (lambda lines: lines[:2] + lines[3:], "line 3: the chain is broken"),
    "the first entry deleted": (lambda lines: lines[1:], "line 1: the chain is broken"),
    "two entries swapped": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2: the chain is broken"),
    "an entry twice": (lambda lines: [*lines[:2], lines[1], *lines[2:]], "line 3: the chain is broken"),
    "what is no entry": (lambda lines: ['{"bytes": 1}', *lines], "line 1: not an entry"),
    "an empty line": (lambda lines: [*lines[:2], "", *lines[2:]], "line 3: not an entry"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_ledger_that_was_tampered_with_is_found(what: str, tmp_path: Path) -> None:
    path = book(tmp_path)
    assert len(list(Ledger(path).entries())) == 5
    change, says = BROKEN[what]
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(DataError, match=says):
        list(Ledger(path).entries())
    done = CliRunner().invoke(app, ["ledger", "verify", "--state", str(tmp_path)])
    assert isinstance(done.exception, DataError)


def test_a_torn_line_is_cut_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = book(tmp_path, 2)
    with path.open("ab") as file:
        file.write(b'{"half": ')
    assert len(list(Ledger(path).entries())) == 2
    Ledger(path).release(lambda _: facts_of(7), {})
    assert [entry["bytes"] for entry in Ledger(path).entries()] == [0, 1, 7]


@pytest.mark.parametrize("sizes", [(1,), (chain.BLOCK - 1, 3), (chain.BLOCK, chain.BLOCK), (3 * chain.BLOCK, 5, 1)])
def test_the_last_line_is_found_whatever_its_length(sizes: tuple[int, ...]) -> None:
    lines = [bytes([97 + i]) * size for i, size in enumerate(sizes)]
    whole = b"".join(line + b"\n" for line in lines)
    for torn in (b"", b"{half", b"{" * chain.BLOCK):
        assert chain._last_line(io.BytesIO(whole + torn)) == (len(whole), lines[-1])
    assert chain._last_line(io.BytesIO(b"half")) == (0, None)


def test_an_entry_costs_the_same_in_a_long_ledger() -> None:
    """Of a million lines it reads the last block."""

    class Counted(io.BytesIO):
        bytes = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.bytes += len(found)
            return found

    file = Counted(b'{"line": 1}\n' * 1_000_000)
    chain._last_line(file)
    assert file.bytes <= chain.BLOCK


def test_entries_of_two_processes_at_once_stay_one_chain(tmp_path: Path) -> None:
    def write(_: int) -> None:
        for i in range(20):
            Chain(tmp_path / "c").append(lambda before, last, i=i: {"n": 1 if last is None else last["n"] + 1})

    threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry["n"] for entry in Chain(tmp_path / "c").entries()] == list(range(1, 61))


# --- what an entry says ---------------------------------------------------------------------------------------------


def update(**changes: Any) -> Update:
    facts: dict[str, Any] = {
        "site": "north",
        "run": "r",
        "phase": "p",
        "round": 3,
        "schema": "s",
        "delta": {"w": torch.randn(3, 2), "none": torch.zeros(0, 4), "sums": torch.ones(2, dtype=torch.float64)},
        "counts": {"shared": 8},
        "metrics": {"loss": 0.5},
    }
    return Update(**{**facts, **changes})


SPENT = Spent(ledger="ab" * 16, sequence=7, head="cd" * 32, epsilon=1.5, budget=8.0, delta=1e-5, size=70, others=0)


def test_an_entry_has_every_tensors_form_and_norm_and_what_the_update_says(tmp_path: Path) -> None:
    honest = update(spent=SPENT, metrics={"samples": 8.0})
    content = wire.pack_update(honest)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.release(lambda before: sealed.seal(content, before), {"run": "r", "phase": "p", "round": 3})
    (entry,) = ledger.entries()
    assert {name: (dtype, shape) for name, dtype, shape, _ in entry["tensors"]} == {
        "w": ("float32", [3, 2]),
        "none": ("float32", [0, 4]),
        "sums": ("float64", [2]),
    }
    norms = {name: norm for name, *_, norm in entry["tensors"]}
    for name, value in honest.delta.items():
        assert norms[name] == pytest.approx(np.linalg.norm(value.double().numpy()), rel=1e-12)
    assert entry["norm"] == pytest.approx(math.sqrt(sum(norm**2 for norm in norms.values())), rel=1e-12)
    assert (entry["run"], entry["phase"], entry["round"]) == ("r", "p", 3)
    assert (entry["counts"], entry["metrics"], entry["epsilon"]) == ({"shared": 8}, {"samples": 8.0}, 1.5)
    assert entry["sha256"] == sealed.receive(content).sha256
    assert entry["before"] == sealed.receive(content).link == chain.GENESIS


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_norm_that_is_no_number_can_still_be_written_down(value: float, tmp_path: Path) -> None:
    content = wire.pack_update(update(delta={"w": torch.full((2,), value)}))
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.release(lambda before: sealed.seal(content, before), {})
    assert next(ledger.entries())["norm"] is None


def test_the_hash_changes_with_every_word_and_every_bit() -> None:
    one = update()
    flipped = {**one.delta, "w": one.delta["w"].clone()}
    flipped["w"][0, 0] = -flipped["w"][0, 0]
    reshaped = {**one.delta, "w": one.delta["w"].reshape(2, 3)}
    others = [
        update(delta=flipped),
        update(delta=reshaped),
        update(delta=one.delta, counts={"shared": 9}),
        update(delta=one.delta, round=4),
        update(delta=one.delta, metrics={}),
        update(delta=one.delta, spent=SPENT),
    ]
    hashes = [sealed.digest(wire.pack_update(each)) for each in (one, *others)]
    assert len(set(hashes)) == len(hashes)
    assert sealed.digest(wire.pack_update(update(delta=one.delta))) == hashes[0]


def test_updates_without_privacy_are_counted_on_without_reading_all(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    old = {"kind": "reply", "fields": {"update.run": "r", "update.spent": ""}, "bytes": 0, "sha256": ""}
    Chain(tmp_path / "ledger.jsonl").append(lambda before, last: old)  # as a version before this one wrote it
    assert ledger.without_privacy() == 1
    for spent in (None, SPENT, None):
        content = wire.pack_update(update(spent=spent))
        ledger.release(lambda before, content=content: sealed.seal(content, before), {})
    ledger.release(lambda _: facts_of(1), {})
    assert ledger.without_privacy() == 3
    assert [entry.get("open") for entry in ledger.entries()] == [None, 2, 2, 3, 3]


# --- a run's ledger and receipts ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds; north's policy lets no loss out."""
    folder = tmp_path_factory.mktemp("served") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "probe", Probe)  # type: ignore[arg-type]
        start(folder, config(world, rounds=2), policies={"north": {"metrics": "samples"}})
    return folder


@pytest.fixture
def north(served: Path, tmp_path: Path) -> Path:
    """A copy of north's ledger beside what the coordinator says; gives the folder."""
    (tmp_path / LEDGER).write_bytes((served / "sites" / "north" / LEDGER).read_bytes())
    receipts.export(receipts.read(served, "north"), tmp_path / "r.json", run="run", site="north")
    return tmp_path


def verify(folder: Path) -> tuple[list[str], LacunaError | None]:
    done = CliRunner().invoke(app, ["ledger", "verify", "--state", str(folder), "--receipts", str(folder / "r.json")])
    return done.stdout.splitlines(), done.exception if isinstance(done.exception, LacunaError) else None


def test_a_ledger_and_honest_receipts_agree(north: Path) -> None:
    said, error = verify(north)
    assert error is None
    assert said == ["4 replies; the chain is whole", "run run: all 3 receipts of north agree"]


def test_a_policys_metrics_are_all_that_is_sent(served: Path) -> None:
    sent = [e for e in Ledger(served / "sites" / "north" / LEDGER).entries() if egress.what(e) == "update"]
    assert [list(entry["metrics"]) for entry in sent] == [["samples"]] * 3
    others = [e for e in Ledger(served / "sites" / "east" / LEDGER).entries() if egress.what(e) == "update"]
    assert "loss" in others[-1]["metrics"]


def rewritten(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """A forger who makes a whole new chain."""
    entries = change([json.loads(line) for line in path.read_text().splitlines()])
    path.unlink()
    for entry in entries:
        Chain(path).append(lambda before, last, entry=entry: entry)


def less(path: Path) -> None:
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:-1]))


def other_hash(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*entries[:-1], entries[-1] | {"sha256": "f" * 64}]


def other_norm(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entries[0], entries[1] | {"norm": 0.0}, *entries[2:]]


FORGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut off at its end": (less, "run fit round 1: receipted as .* and not in this ledger"),
    "another hash": (lambda path: rewritten(path, other_hash), "run fit round 1: sent as ffffffffffff, receipted as"),
    "written anew": (
        lambda path: rewritten(path, other_norm),
        "run fit round 0: left with the link .* was written anew",
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_the_chain_alone_does_not_show_the_receipts_do(what: str, north: Path) -> None:
    FORGED[what][0](north / LEDGER)
    assert len(list(Ledger(north / LEDGER).entries())) >= 3  # the chain itself is whole
    said, error = verify(north)
    assert isinstance(error, DataError)
    assert error.exit_code == 3
    assert any(re.search(FORGED[what][1], line) for line in said), said


def test_what_the_coordinator_keeps_quiet_is_found(north: Path) -> None:
    told = json.loads((north / "r.json").read_text())
    told["receipts"].pop(1)
    (north / "r.json").write_text(json.dumps(told))
    said, error = verify(north)
    assert isinstance(error, DataError)
    assert [line for line in said if "never receipted" in line] == [
        next(line for line in said if line.startswith("run fit round 0: sent as"))
    ]


@pytest.mark.usefixtures("probe")
def test_an_update_changed_on_the_way_is_found(world: Path, tmp_path: Path) -> None:
    def change(site: str, reply: Message) -> Message | None:
        if site == "north" and about(reply) == ("fit", 0):
            reply.content.config_records["update"]["counts"] = '{"shared": 16}'
        return reply

    start(tmp_path / "run", config(world, rounds=1), spoil=change)
    receipts.export(receipts.read(tmp_path / "run", "north"), tmp_path / "r.json", run="run", site="north")
    entries = Ledger(tmp_path / "run" / "sites" / "north" / LEDGER).entries()
    (line,) = compare(entries, read_receipts(tmp_path / "r.json"))
    assert line.startswith("run fit round 0: sent as")
    assert line.endswith("one of the two was changed")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"run": "r", "site": null, "receipts": [{"site": "a"}]}', '"x"'])
def test_what_are_no_receipts_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=r"receipts .*r\.json: not what `lacuna receipts"):
        read_receipts(tmp_path / "r.json")


# --- for a person ---------------------------------------------------------------------------------------------------


def test_the_table_and_the_exports_show_every_reply(north: Path) -> None:
    done = CliRunner().invoke(app, ["ledger", "--state", str(north)])
    assert done.exit_code == 0, done.stderr
    assert "4 replies" in done.stdout
    assert done.stdout.count("update") == 3
    assert "handshake" in done.stdout
    for name in ("out.csv", "out.json"):
        done = CliRunner().invoke(app, ["ledger", "--state", str(north), "--export", str(north / name)])
        assert done.exit_code == 0, done.stderr
    with (north / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    entries = json.loads((north / "out.json").read_text())
    assert [row["sha256"] for row in rows] == [entry["sha256"] for entry in entries]
    assert rows[-1]["counts"] == json.dumps(entries[-1]["counts"])
    assert entries == list(Ledger(north / LEDGER).entries())
