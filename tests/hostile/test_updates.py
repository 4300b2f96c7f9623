"""One hostile site among three: what it answers is refused in one clear line, and the run is as if it were silent."""

import copy
import json
import logging
import os
import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, Message, RecordDict
from support.rounds.federation import config, weights_digest
from support.rounds.probe import Probe
from support.rounds.spoilt import Spoil, about, failed, start

from server.journal import facts, receipts
from shared import methods
from shared.base.errors import RunFailed
from shared.plan.settings import Limits
from shared.plan.tensors import pack as packed
from shared.plan.tensors import unpack as tensors_of

pytestmark = pytest.mark.slow  # left out of `make fast`

OPENED = str(Path(tempfile.gettempdir()) / f"lacuna-opened-{os.getpid()}")
Attack = Callable[[RecordDict, "Stash"], None]  # changes an honest reply
Stash = dict[str, RecordDict]  # what the site has answered before


def head(key: str, value: Any) -> Attack:
    def attack(content: RecordDict, stash: Stash) -> None:
        content.config_records["update"][key] = value

    return attack


def replayed(what: str) -> Attack:
    def attack(content: RecordDict, stash: Stash) -> None:
        emptied(content, stash)
        for key, record in copy.deepcopy(stash[what]).items():
            content[key] = record

    return attack


def emptied(content: RecordDict, stash: Stash) -> None:
    for key in list(content):
        del content[key]


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Attack:
    """Other tensors, packed as ours are."""

    def attack(content: RecordDict, stash: Stash) -> None:
        tensors = dict(tensors_of(content.array_records["delta"]))
        change(tensors)
        content["delta"] = packed(tensors)

    return attack


def tensor(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Attack:
    return changed(lambda tensors: tensors.update({name: make(tensors[name])}))


def every(make: Callable[[torch.Tensor], torch.Tensor]) -> Attack:
    return changed(lambda tensors: tensors.update({name: make(value) for name, value in tensors.items()}))


def raw(change: Callable[[Array], Array]) -> Attack:
    def attack(content: RecordDict, stash: Stash) -> None:
        record = content.array_records["delta"]
        record["tensors"] = change(record["tensors"])

    return attack


def form(name: str, **lies: Any) -> Attack:
    """What the list says of a tensor; the bytes stay."""

    def lie(array: Array) -> Array:
        end = 8 + int.from_bytes(array.data[:8], "little")
        forms = [
            [n, lies.get("dtype", dtype), lies.get("shape", shape)] if n == name else [n, dtype, shape]
            for n, dtype, shape in json.loads(array.data[8:end])
        ]
        text = json.dumps(forms).encode()
        return like(data=len(text).to_bytes(8, "little") + text + array.data[end:])(array)

    return raw(lie)


def counts(**changes: int) -> Attack:
    def attack(content: RecordDict, stash: Stash) -> None:
        record = content.config_records["update"]
        honest = json.loads(str(record["counts"]))
        record["counts"] = json.dumps(honest | {key.replace("_", ":"): n for key, n in changes.items()})

    return attack


def two(content: RecordDict, stash: Stash) -> None:
    record = content.array_records["delta"]
    record["more"] = record["tensors"]


def not_shared(content: RecordDict, stash: Stash) -> None:
    counts(shared=0)(content, stash)


class Opened:
    """Whoever unpickles it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (OPENED,)


def like(**changes: Any) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        values = {"dtype": array.dtype, "shape": tuple(array.shape), "stype": array.stype, "data": array.data}
        return Array(**{**values, **changes})

    return change


# name -> what the site does in a round of its own, and what the coordinator says of it
ATTACKS: dict[str, tuple[Attack, str]] = {
    "an update of another round": (replayed("round 0"), r"east: update is for run/fit/0, this is run/fit/\d+"),
    "an update of another run": (replayed("other run"), r"east: update is for other/fit/\d+, this is run/fit/\d+"),
    "an update of another phase": (replayed("sums"), r"east: update is for run/level/0, this is run/fit/\d+"),
    "a round that is no number": (head("round", "x"), "east: malformed update: ValueError"),
    "another site's update": (replayed("north"), "east: malformed update: ValueError: it calls itself 'north'"),
    "another site's name": (head("site", "north"), "east: malformed update: ValueError: it calls itself 'north'"),
    "other code": (head("schema", "0" * 64), "east: schema 000000000000 differs from the run's"),
    "around other frozen weights": (
        head("frozen", "0" * 64),
        "east: trained around frozen weights 000000000000, the round's are",
    ),
    "nan": (tensor("body.weight", lambda t: t * torch.nan), "east: body.weight has an entry of nan"),
    "infinity": (tensor("head.bias", lambda t: t - torch.inf), "east: head.bias has an entry of inf"),
    "a huge entry": (
        tensor("stem.bias", lambda t: t + 1e30),
        "east: stem.bias has an entry of 1e.30, over the limit 64",
    ),
    "a huge norm": (every(lambda t: t + 30.0), r"east: delta norm \d+ is over the limit 50"),
    "a wrong name": (
        changed(lambda tensors: tensors.update({"nose.weight": tensors.pop("body.weight")})),
        r"east: 2 tensors missing or not owned, such as \['body.weight', 'nose.weight'\]",
    ),
    "a missing tensor": (
        changed(lambda tensors: tensors.pop("body.bias")),
        r"east: 1 tensors missing or not owned, such as \['body.bias'\]",
    ),
    "a tensor that is not its own": (
        changed(lambda tensors: tensors.update({"level.mean_M": torch.zeros(3)})),
        r"east: 1 tensors missing or not owned, such as \['level.mean_M'\]",
    ),
    "a wrong type": (
        tensor("body.weight", torch.Tensor.double),
        "east: body.weight is torch.float64, expected torch.f",
    ),
    "whole numbers": (tensor("body.bias", torch.Tensor.long), "east: body.bias is torch.int64, expected torch.float32"),
    "an unknown type": (
        form("body.bias", dtype="object"),
        "east: malformed update: ValueError: body.bias: object is not",
    ),
    "a pickle": (
        raw(lambda a: like(stype="pickle", data=pickle.dumps(Opened()))(a)),
        "east: malformed update: ValueError: .*the first pickle",
    ),
    "a pickle that says it is ours": (
        raw(lambda a: like(data=pickle.dumps(Opened()))(a)),
        "east: malformed update: (JSONDecodeError|UnicodeDecodeError|ValueError|OverflowError)",
    ),
    "a second array": (two, "east: malformed update: ValueError: tensors must be one array of lacuna.tensors, not 2"),
    "a wrong shape": (tensor("stem.bias", lambda t: t[:4]), r"east: stem.bias has shape \(4,\), expected \(6,\)"),
    "a shape turned round": (tensor("body.weight", lambda t: t[None]), r"east: body.weight has shape \(1, 6, 6\)"),
    "truncated bytes": (
        raw(lambda a: like(data=a.data[:-3])(a)),
        r"east: malformed update: ValueError: stem.weight: \d+ bytes are left for shape",
    ),
    "too many bytes": (
        raw(lambda a: like(data=a.data + b"x")(a)),
        "east: malformed update: ValueError: 1 bytes too many",
    ),
    "a list of forms without end": (
        raw(lambda a: like(data=b"\xff" * 8 + a.data[8:])(a)),
        "east: malformed update: (JSONDecodeError|UnicodeDecodeError|ValueError|OverflowError)",
    ),
    "no bytes": (raw(lambda a: like(data=b"", shape=(0,))(a)), "east: malformed update: JSONDecodeError"),
    "a shape that would fill the memory": (
        form("body.bias", shape=[1 << 40]),
        "east: malformed update: ValueError: body",
    ),
    "a negative shape": (form("body.bias", shape=[-6]), r"east: malformed update: ValueError: body.bias: shape \[-6\]"),
    "a shape out of all bounds": (
        form("body.bias", shape=[0, 2**62, 2**62]),
        "east: malformed update: (RuntimeError|TypeError|OverflowError|ValueError)",
    ),
    "more samples than there were": (
        counts(shared=10**6),
        "east: count of shared is 1000000, the round has at most 16",
    ),
    "fewer samples than none": (counts(shared=-1), "east: count of shared is -1"),
    "counts of a modality without its tensors": (
        counts(to_T2=5),
        r"east: head\.bias has shape \(2,\), expected \(3,\)",
    ),
    "tensors of a modality without its counts": (
        tensor("head.bias", lambda t: torch.cat([t, t[:1]])),
        r"east: head\.bias has shape \(3,\), expected \(2,\)",
    ),
    "an owner that nobody knows": (counts(nose=1), r"east: counts for unknown owners \['nose'\]"),
    "counts for some and none for all": (not_shared, "east: counts for .* but none for 'shared'"),
    "a number without end": (
        head("metrics", '{"loss": 1' + "0" * 400 + "}"),
        "east: malformed update: (OverflowError|ValueError)",
    ),
    "nothing at all": (emptied, "east: malformed update: KeyError"),
}
SUMS: dict[str, tuple[Attack, str]] = {
    "a wrong shape": (tensor("total_M", lambda t: t[:1]), r"total_M has shape \(1,\), expected \(3,\)"),
    "a missing sum": (changed(lambda sums: sums.pop("total_M")), r"1 sums missing or unknown"),
    "a total that overflows": (
        tensor("total_M", lambda t: torch.full_like(t, 2**62)),
        "total_M has a sum of 4.4e.12, over the limit",
    ),
    "a total of another kind": (
        tensor("total_M", torch.Tensor.double),
        "total_M is torch.float64, expected torch.int64",
    ),
}


@pytest.fixture(scope="module")
def attacked(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which east does something else in each round; beside it the same run with east silent."""
    folder = tmp_path_factory.mktemp("attacked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "probe", Probe)  # type: ignore[arg-type]
        stash: Stash = {}

        def keep(site: str, reply: Message) -> Message | None:
            if site == "east" and about(reply) == ("fit", 0):
                stash["other run"] = copy.deepcopy(reply.content)
            return reply

        start(folder / "other", config(world, rounds=1), spoil=keep)

        def attack(site: str, reply: Message) -> Message | None:
            found = about(reply)
            if site == "north" and found is not None:
                stash["north"] = copy.deepcopy(reply.content)
            if site != "east" or found is None:
                return reply
            phase, number = found
            if phase == "level":
                stash["sums"] = copy.deepcopy(reply.content)
                return reply
            stash.setdefault("round 0", copy.deepcopy(reply.content))
            if number == 0:
                return failed(reply)  # what it could have sent, to be sent later
            list(ATTACKS.values())[number - 1][0](reply.content, stash)
            return reply

        wanted = config(world, rounds=len(ATTACKS) + 1, limits=Limits(norm=50.0))
        start(folder / "run", wanted, spoil=attack)
        start(folder / "silent", wanted, spoil=lambda s, r: failed(r) if s == "east" and about_fit(r) else r)
    return folder


def about_fit(reply: Message) -> bool:
    found = about(reply)
    return found is not None and found[0] == "fit"


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_is_refused_in_one_clear_line(name: str, attacked: Path) -> None:
    number = list(ATTACKS).index(name) + 1
    one = next(f for f in facts.read(attacked / "run" / "rounds.jsonl") if (f.phase, f.round) == ("fit", number))
    assert one.sites["east"].status == "rejected"
    assert not Path(OPENED).exists()
    assert re.match(ATTACKS[name][1], one.sites["east"].reason), one.sites["east"].reason
    assert one.refusals == (one.sites["east"].reason,)
    assert one.sites["north"].status == one.sites["south"].status == "ok"
    receipt = next(e for e in receipts.read(attacked / "run", "east") if (e["phase"], e["round"]) == ("fit", number))
    assert (receipt["verdict"], receipt["reason"]) == ("rejected", one.sites["east"].reason)


def test_the_others_train_as_if_the_hostile_site_had_been_silent(attacked: Path) -> None:
    assert weights_digest(attacked / "run") == weights_digest(attacked / "silent")


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize("name", SUMS)
def test_hostile_sums_are_refused_and_the_run_goes_on(name: str, world: Path, tmp_path: Path) -> None:
    def attack(site: str, reply: Message) -> Message | None:
        if site == "east" and about(reply) == ("level", 0):
            SUMS[name][0](reply.content, {})
        return reply

    start(tmp_path / "run", config(world, rounds=1), spoil=attack)
    level, fit = facts.read(tmp_path / "run" / "rounds.jsonl")
    assert level.sites["east"].status == "rejected"
    assert re.search(SUMS[name][1], level.sites["east"].reason), level.sites["east"].reason
    assert level.sites["north"].status == level.sites["south"].status == fit.sites["east"].status == "ok"


def lying(*liars: str) -> Spoil:
    """At first they praise their features, trained or not; then they have none."""

    def lie(site: str, reply: Message) -> Message | None:
        if site in liars and about_fit(reply):
            record = reply.content.config_records["update"]
            width = 1e30 if about(reply) == ("fit", 0) else 0.0
            said = json.loads(str(record["metrics"]))
            assert said["feature_std"] == 1.0
            record["metrics"] = json.dumps(said | {"feature_std": width, "feature_std_before": 1e30})
        return reply

    return lie


@pytest.mark.usefixtures("probe")
def test_one_sites_word_on_its_features_does_not_end_the_run(world: Path, tmp_path: Path) -> None:
    """The collapse rule looks at the median. Two of three could end it: the rule is there, and the lie arrives."""
    start(tmp_path / "run", config(world), spoil=lying("east"))
    start(tmp_path / "honest", config(world))
    rounds = [one for one in facts.read(tmp_path / "run" / "rounds.jsonl") if one.phase == "fit"]
    assert [one.sites["east"].status for one in rounds] == ["ok"] * 3
    assert [one.watch["feature_std"] for one in rounds] == [1.0] * 3
    assert weights_digest(tmp_path / "run") == weights_digest(tmp_path / "honest")
    with pytest.raises(RunFailed, match=r"fit round 1: feature_std fell to 0 from 1e\+30, .*have collapsed"):
        start(tmp_path / "two", config(world), spoil=lying("east", "south"))


@pytest.mark.usefixtures("probe")
def test_counts_of_a_modality_that_nobody_there_has_are_refused(world: Path, tmp_path: Path) -> None:
    """East has no T2; it claims samples of it, and sends the rows that go with them."""

    def lie(site: str, reply: Message) -> Message | None:
        if site == "east" and about(reply) == ("fit", 0):
            record = reply.content.config_records["update"]
            record["counts"] = json.dumps({**json.loads(str(record["counts"])), "to:T2": 16})
            sent = dict(tensors_of(reply.content.array_records["delta"]))
            sent |= {name: torch.ones(3, *sent[name].shape[1:]) for name in ("head.weight", "head.bias")}
            reply.content["delta"] = packed(sent)
        return reply

    start(tmp_path / "run", config(world, rounds=1), spoil=lie)
    last = facts.read(tmp_path / "run" / "rounds.jsonl")[-1]
    assert last.sites["east"].reason == "east: counts for to:T2, and by its inventory nobody there has T2"
    assert last.sites["north"].status == last.sites["south"].status == "ok"


@pytest.mark.usefixtures("probe")
def test_a_plan_outside_a_sites_policy_is_refused_by_that_site_alone(world: Path, tmp_path: Path) -> None:
    wanted = config(world, rounds=1)
    start(tmp_path / "run", wanted, policies={"east": {"methods": "amm_diff"}})
    start(tmp_path / "without", config(world, rounds=1, sites=("north", "south")))
    assert weights_digest(tmp_path / "run") == weights_digest(tmp_path / "without")
    entry = json.loads((tmp_path / "run" / "sites" / "east" / "ledger.jsonl").read_text().splitlines()[0])
    rule = "east: plan.method=probe: this site's policy allows only methods: amm_diff"
    assert entry["fields"]["refusal.why"] == rule
    assert entry["fields"]["refusal.kind"] == "PlanRefused"
    everywhere = {site: {"methods": "amm_diff"} for site in ("north", "east", "south")}
    with pytest.raises(RunFailed, match=f"only 0 sites passed the handshake: {rule}"):
        start(tmp_path / "nobody", wanted, policies=everywhere)


@pytest.mark.usefixtures("probe")
def test_a_site_whose_policy_cannot_be_read_takes_no_part(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip of the pen must not open the door, and what it was stays in the site's log."""
    monkeypatch.setattr(logging.getLogger("lacuna.site"), "disabled", False)  # MLflow's migrations disable all loggers
    state = tmp_path / "run" / "sites" / "east"
    state.mkdir(parents=True)
    (state / "site.toml").write_text('[policy]\nmethdos = ["amm_diff"]\n')
    start(tmp_path / "run", config(world, rounds=1))
    assert all(sorted(one.sites) == ["north", "south"] for one in facts.read(tmp_path / "run" / "rounds.jsonl"))
    entry = json.loads((state / "ledger.jsonl").read_text().splitlines()[0])
    assert entry["fields"]["refusal.why"] == "east: its own settings can't be read, see its log"
    assert "policy.methdos=['amm_diff']: unknown key" in caplog.text
