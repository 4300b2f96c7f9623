"""A relay in the wrong hands, and a coordinator that would rather not say: what a site believes is signed.

A SuperLink that changes, holds back, repeats or invents messages; a ServerApp that was taken over; a stranger.
"""

import copy
import dataclasses
import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ConfigRecord, RecordDict
from support.rounds.federation import config, weights_digest
from support.rounds.probe import Probe
from support.rounds.relay import leader_of, relay, reworded, told
from support.rounds.spoilt import sign

from server.federation import lead
from server.journal import facts
from shared import methods
from shared.base.errors import RunFailed
from shared.trust.keys import new_site_key
from shared.trust.warrant import OWN_KEY, Leader, Warrant, issue

pytestmark = pytest.mark.slow  # left out of `make fast`

Stash = dict[str, RecordDict]  # what went by before
Down = Callable[[RecordDict, Stash, Path], object]  # what becomes of east's plan of a round; the path is the run's


def flipped(name: str) -> Callable[..., None]:
    """One bit of the tensors."""

    def change(content: RecordDict, *_: object) -> None:
        record = content.array_records[name]
        array = record["tensors"]
        data = bytearray(array.data)
        data[-3] ^= 1
        record["tensors"] = Array(dtype=array.dtype, shape=tuple(array.shape), stype=array.stype, data=bytes(data))

    return change


def words(**changes: Any) -> Down:
    return lambda content, stash, run: reworded(content, **changes)


def settings(own: bool, **changes: Any) -> Down:
    """Other settings; `own`: signed by the run's key."""

    def change(content: RecordDict, stash: Stash, run: Path) -> None:
        other = json.dumps({**json.loads(told(content)["config"]), **changes}, sort_keys=True)
        reworded(content, leader_of(run) if own else None, config=other)

    return change


def by_the_leader(**changes: Any) -> Down:
    return lambda content, stash, run: reworded(content, leader_of(run), **changes)


def replaced(what: str) -> Down:
    def change(content: RecordDict, stash: Stash, run: Path) -> None:
        for key in list(content):
            del content[key]
        for key, record in copy.deepcopy(stash[what]).items():
            content[key] = record

    return change


def strangers(content: RecordDict, stash: Stash, run: Path) -> None:
    """A federation of one's own, which says all that the true one says."""
    signing, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    reworded(content, Leader(warrant=issue(warrant_of(run, key), signing), key=key))


def with_anothers_warrant(content: RecordDict, stash: Stash, run: Path) -> None:
    """The true warrant, and a key that is not the one in it."""
    reworded(content, dataclasses.replace(leader_of(run), key=Ed25519PrivateKey.generate()))


def with_a_longer_warrant(content: RecordDict, stash: Stash, run: Path) -> None:
    record = content.config_records["plan"]
    line, _, text = bytes(record["warrant"]).partition(b"\n")  # type: ignore[arg-type]
    until = json.loads(text)["until"]
    record["warrant"] = line + b"\n" + text.replace(str(until).encode(), str(until + 10**8).encode())


def with_a_warrant_that_ended(content: RecordDict, stash: Stash, run: Path) -> None:
    from shared.trust.keys import read_signing_key

    key = Ed25519PrivateKey.generate()
    old = dataclasses.replace(warrant_of(run, key), until=int(time.time()) - 3600)
    reworded(content, Leader(warrant=issue(old, read_signing_key(run / "sites" / lead.MADE_UP)), key=key))


def warrant_of(run: Path, key: Ed25519PrivateKey) -> Warrant:
    found = json.loads(leader_of(run).warrant.partition(b"\n")[2])
    return Warrant(**{**found, "key": key.public_key().public_bytes_raw().hex()})


def unsigned(content: RecordDict, *_: object) -> None:
    content["plan"] = ConfigRecord({key: str(value) for key, value in told(content).items()})


# name -> what reaches east instead of its plan of a round, and what east says of it
ATTACKS: dict[str, tuple[Down, str]] = {
    "other weights": (flipped("weights"), "east: the message was signed with other weights"),
    "another round": (words(round=0), "east: the message was changed, or is not of the key"),
    "another phase": (words(phase="level"), "east: the message was changed, or is not of the key"),
    "another site's plan": (replaced("north"), "east: the message is for site 'north'"),
    "weaker settings": (settings(False, min_cell=1), "east: the message was changed, or is not of the key"),
    "weaker settings, by the run's own key": (
        settings(True, min_cell=1),
        "east: the message is of another run, or has other settings, than run run was signed with",
    ),
    "another run, by the run's own key": (
        by_the_leader(run="other"),
        "east: the message is of another run, or has other settings, than run run was signed with",
    ),
    "a path for a run": (by_the_leader(run="../../elsewhere"), "east: the message is of another run"),
    "a plan that was held back": (
        by_the_leader(until=time.time() - 3600),
        r"east: the message held until \d{4}-.* UTC, and the clock here says",
    ),
    "a plan that never ends": (by_the_leader(until=None), "east: the message can't be read: 'run, config, until'"),
    "a round that is no number": (by_the_leader(round="1"), "east: the message is malformed: ValueError: 1 must be"),
    "a round out of all bounds": (by_the_leader(round=2**64), "east: the message is malformed: ValueError: 18446"),
    "a phase as long as a book": (by_the_leader(phase="x" * 10**6), "east: the message is malformed: ValueError"),
    "words without end": (by_the_leader(phase="x" * 2**22), "east: the message is over 2097152 bytes"),
    "a query where a plan should be": (by_the_leader(what="query"), "east: the message is malformed: ValueError"),
    "a plan without the federation's key": (
        strangers,
        "east: the message has its warrant from the key .*, not from the one that the installed kit brought",
    ),
    "a true warrant in other hands": (with_anothers_warrant, "east: the message was changed, or is not of the key"),
    "a warrant made longer": (with_a_longer_warrant, "east: the message has a warrant that was changed"),
    "a warrant that ended": (with_a_warrant_that_ended, "east: the message has a warrant that held until .* makes ano"),
    "no signature": (unsigned, "east: the message is malformed: KeyError"),
    "nothing at all": (replaced("nothing"), "east: the message is malformed: KeyError"),
    "more than was signed": (
        lambda content, stash, run: content.update({"known": ConfigRecord({"sequence": 0})}),
        "east: the message is malformed: ValueError: it must be a plan and its weights",
    ),
    "a plan that was done before": (replaced("done"), "east: the message was answered before"),
}


@pytest.fixture(scope="module")
def attacked(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which something else comes of each of east's plans; beside it the same run with east silent."""
    folder = tmp_path_factory.mktemp("relayed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "probe", Probe)  # type: ignore[arg-type]
        stash: Stash = {"nothing": RecordDict()}

        def down(site: str, content: RecordDict) -> None:
            if "plan" not in content.config_records or told(content)["phase"] != "fit":
                return
            number = told(content)["round"]
            stash[site] = copy.deepcopy(
                content
            )  # asked in the order east, north, south: north's is of the round before
            if site == "east" and number == 1:
                stash["done"] = copy.deepcopy(content)
            if site == "east" and number >= 2:
                list(ATTACKS.values())[number - 2][0](content, stash, folder / "run")

        relay(folder / "run", config(world, rounds=len(ATTACKS) + 2), down=down)
    return folder / "run"


@pytest.mark.parametrize("name", ATTACKS)
def test_a_site_does_nothing_that_the_federation_did_not_sign(name: str, attacked: Path) -> None:
    number = list(ATTACKS).index(name) + 2
    one = next(f for f in facts.read(attacked / "rounds.jsonl") if (f.phase, f.round) == ("fit", number))
    assert one.sites["north"].status == one.sites["south"].status == "ok"
    assert one.sites["east"].status in ("refused", "rejected")
    assert one.sites["east"].bytes_up < 2000
    said = refusals(attacked)[number - 2]["fields"]["refusal.why"]
    assert re.match(ATTACKS[name][1], said), said
    if one.sites["east"].status == "refused":  # the question was the coordinator's own, so it hears the reason
        assert one.sites["east"].reason == said


def refusals(run: Path) -> list[dict[str, Any]]:
    """What east's ledger has of its noes."""
    entries = [json.loads(line) for line in (run / "sites" / "east" / "ledger.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "refusal.kind" in entry["fields"]]


def test_what_was_not_signed_leaves_no_trace_at_a_site_but_the_no(attacked: Path) -> None:
    """Neither among its plans, nor as what the ledger says it was asked."""
    from client.site.plans import listing

    (plan,) = listing(attacked / "sites" / "east")
    assert (plan.run, len([one for one in plan.asked if one.phase == "fit"])) == ("run", 2)
    assert len(refusals(attacked)) == len(ATTACKS)
    assert {entry["run"] for entry in refusals(attacked)} == {None}


# --- the way back ---------------------------------------------------------------------------------------------------


def counts(content: RecordDict, *_: object) -> None:
    record = content.config_records["update"]
    record["counts"] = json.dumps({key: n // 2 for key, n in json.loads(str(record["counts"])).items()})


def forged_no(content: RecordDict, *_: object) -> None:
    for key in list(content):
        if key != "signed":
            del content[key]
    content["refusal"] = ConfigRecord({"site": "east", "kind": "BudgetSpent", "why": "forged"})


def in_norths_name(content: RecordDict, stash: Stash, run: Path) -> None:
    """South, which is admitted, says that it is north."""
    content.config_records["update"]["site"] = "north"
    content["signed"] = ConfigRecord({**content.config_records["signed"], "site": "north"})


def by_a_stranger(content: RecordDict, stash: Stash, run: Path) -> None:
    own = run / "stranger"
    if not (own / OWN_KEY).exists():
        (own / OWN_KEY).parent.mkdir(parents=True)
        (own / OWN_KEY).write_bytes(new_site_key())
        (own / OWN_KEY).chmod(0o600)
    sign(content, own, "east", "0" * 64)


def of_round_0(content: RecordDict, stash: Stash, run: Path) -> None:
    """What it signed before, and the words of today."""
    replaced("east 0")(content, stash, run)
    content.config_records["update"]["round"] = stash["number"].config_records["is"]["it"]


UP: dict[str, tuple[Down, str]] = {
    "weights that were changed": (flipped("delta"), "east: its key did not sign this reply to this question"),
    "counts that were changed": (counts, "east: its key did not sign this reply to this question"),
    "an answer to another round": (replaced("east 0"), "east: its key did not sign this reply to this question"),
    "that, with other words": (of_round_0, "east: its key did not sign this reply to this question"),
    "another site's answer": (replaced("south"), "east: its reply is signed in the name of south"),
    "another site in its name": (in_norths_name, "east: its reply is signed in the name of north"),
    "a no that it never said": (forged_no, "east: its key did not sign this reply to this question"),
    "a stranger's signature": (by_a_stranger, "east: its key did not sign this reply to this question"),
    "no signature": (lambda content, *_: content.pop("signed"), "east: its reply is signed in the name of nobody"),
}


@pytest.fixture(scope="module")
def returned(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("returned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "probe", Probe)  # type: ignore[arg-type]
        stash: Stash = {}

        def up(site: str, content: RecordDict) -> None:
            if "update" not in content.config_records or content.config_records["update"]["phase"] != "fit":
                return
            number = int(str(content.config_records["update"]["round"]))
            stash[site] = copy.deepcopy(content)
            stash.setdefault(f"{site} 0", copy.deepcopy(content))
            stash["number"] = RecordDict({"is": ConfigRecord({"it": number})})
            if site == "east" and number >= 1 and number <= len(UP):
                list(UP.values())[number - 1][0](content, stash, folder / "run")

        relay(folder / "run", config(world, rounds=len(UP) + 2), up=up)
    return folder / "run"


@pytest.mark.parametrize("name", UP)
def test_no_answer_is_taken_that_its_site_did_not_sign(name: str, returned: Path) -> None:
    number = list(UP).index(name) + 1
    one = next(f for f in facts.read(returned / "rounds.jsonl") if (f.phase, f.round) == ("fit", number))
    assert one.sites["east"].status == "rejected"
    assert re.match(UP[name][1], one.sites["east"].reason), one.sites["east"].reason
    assert one.sites["north"].status == one.sites["south"].status == "ok"


def test_a_site_that_was_talked_over_is_in_the_next_round_again(returned: Path) -> None:
    last = facts.read(returned / "rounds.jsonl")[-1]
    assert last.sites["east"].status == "ok"


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize("what", ["another number of subjects", "another site's name", "no signature"])
def test_an_inventory_that_was_changed_on_the_way_is_no_inventory(what: str, world: Path, tmp_path: Path) -> None:
    def up(site: str, content: RecordDict) -> None:
        if site != "east" or "inventory" not in content.config_records:
            return
        if what == "another number of subjects":
            content.config_records["inventory"]["subjects"] = 10**6
        elif what == "another site's name":
            content.config_records["inventory"]["site"] = "west"
            content["signed"] = ConfigRecord({**content.config_records["signed"], "site": "west"})
        else:
            content.pop("signed")

    relay(tmp_path / "run", config(world, rounds=1), up=up)
    relay(tmp_path / "silent", config(world, rounds=1, sites=("north", "south")))
    assert weights_digest(tmp_path / "run") == weights_digest(tmp_path / "silent")


@pytest.mark.usefixtures("probe")
def test_an_admitted_site_does_not_get_in_under_anothers_name(world: Path, tmp_path: Path) -> None:
    """South answers first, as north, with its own key; today north itself is then the second that calls itself so."""

    def up(site: str, content: RecordDict) -> None:
        if site == "east" and "inventory" in content.config_records:  # the first to be heard
            content.config_records["inventory"]["site"] = "north"
            sign(content, tmp_path / "run" / "sites" / "east", "north", "")

    relay(tmp_path / "run", config(world, rounds=1), up=up)
    assert all(sorted(one.sites) == ["north", "south"] for one in facts.read(tmp_path / "run" / "rounds.jsonl"))


@pytest.mark.usefixtures("probe")
def test_a_site_without_a_kit_or_a_key_takes_no_part(world: Path, tmp_path: Path) -> None:
    from shared.trust.warrant import TRUSTED

    def down(site: str, content: RecordDict) -> None:
        if site in ("east", "south"):
            (tmp_path / "run" / "sites" / site / {"east": TRUSTED, "south": OWN_KEY}[site]).unlink(missing_ok=True)

    with pytest.raises(RunFailed, match=r"min_sites=2: only 1 sites passed the handshake: .*its own settings can't"):
        relay(tmp_path / "run", config(world, rounds=1), down=down)


# --- names that become paths ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("probe")
def test_a_runs_name_is_no_path(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed by the federation itself, with personal layers, whose files lie in a folder of the run's name."""
    monkeypatch.setattr(logging.getLogger("lacuna.site"), "disabled", False)  # MLflow's migrations disable all loggers
    from shared.base.errors import ConfigError

    for name in ("../../../../elsewhere", "a/b", "", ".", "..", "/tmp/x", "x\0", "x" * 129):
        with pytest.raises(ConfigError, match="run="):
            dataclasses.replace(config(world), run=name)
        with pytest.raises(ConfigError, match="run="):
            Warrant(federation="f", run=name, settings="0" * 64, key="0" * 64, until=0)
    lying = Ed25519PrivateKey.generate()

    def down(site: str, content: RecordDict) -> None:
        run = tmp_path / "run"
        from shared.base.files import canonical
        from shared.trust.keys import read_signing_key
        from shared.trust.signed import Signature
        from shared.trust.warrant import _WARRANT

        record = {**json.loads(leader_of(run).warrant.partition(b"\n")[2]), "run": "../../../../elsewhere"}
        record["key"] = lying.public_key().public_bytes_raw().hex()
        text, signing = canonical(record, indent=None), read_signing_key(run / "sites" / lead.MADE_UP)
        warrant = Signature.make(signing, _WARRANT + text).line() + text
        reworded(content, Leader(warrant=warrant, key=lying), run=record["run"])

    with pytest.raises(RunFailed, match="only 0 sites passed"):
        relay(tmp_path / "run", config(world, rounds=1, keep_local=("head.*",)), down=down)
    (entry,) = refusals(tmp_path / "run")
    assert "PlanRefused, whose words name a path" in entry["fields"]["refusal.why"]  # they are in the site's log:
    assert "warrant.run='../../../../elsewhere': must match" in caplog.text
    assert [path.name for path in tmp_path.rglob("elsewhere")] == []
