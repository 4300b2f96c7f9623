"""Fewer bytes both ways: the same bits however a run was carried and broken off; what is lost, or a lie, is said."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from flwr.app import Array, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from support.rounds.federation import config, weights_digest, write
from support.rounds.spoilt import Spoil, SpoiltGrid, about, saying, start

from client.site.ledger import LEDGER, Ledger
from server.journal import facts
from server.journal.facts import RoundFacts
from server.runs import simulation
from server.runs.local_grid import LocalGrid
from server.runs.serve import serve
from shared.base.disk.tensors import Tensors, forms, lying_in
from shared.base.owners import digest
from shared.plan import packed, wire
from shared.plan.config import Config
from shared.plan.tensors import STYPE, pack, unpack
from shared.trust.privacy import Privacy

pytestmark = [pytest.mark.usefixtures("probe"), pytest.mark.slow]


def lean(world: Path, **changes: Any) -> Config:
    return config(world, **{"up": "int4", "down": "int8", "min_holders": 1, "min_sites": 2, **changes})


def fits(run: Path) -> list[RoundFacts]:
    return [one for one in facts.read(run / "rounds.jsonl") if one.phase == "fit"]


def reading(message: Message) -> dict[str, Any]:
    """What a plan says."""
    return dict(json.loads(cast(bytes, message.content.config_records["plan"]["text"])))


class Watched(SpoiltGrid):
    """Keeps what every plan says, and the forms of what it sends."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.plans: list[tuple[str, dict[str, Any], dict[str, str]]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            if "plan" in message.content.config_records:
                sent = forms(unpack(message.content.array_records["weights"]))
                kinds = {name: packed.kind(form) for name, form in sent.items()}
                self.plans.append((self._names[message.metadata.dst_node_id], reading(message), kinds))
            yield from super().push_messages([message])


class Carried(LocalGrid):
    """As a SuperLink carries messages: cut into objects, put together again at the other end."""

    def _answer(self, message: Message) -> Message:
        carried = saying_to(message, again(message.content))
        reply = super()._answer(carried)
        return saying(reply, again(reply.content))


def again(content: RecordDict) -> RecordDict:
    objects = {number: one.deflate() for number, one in get_all_nested_objects(content).items()}
    found = inflate_object_from_contents(content.object_id, objects)
    assert isinstance(found, RecordDict)
    return found


def saying_to(message: Message, content: RecordDict) -> Message:
    message.content = content
    return message


def over(grid: type[LocalGrid], folder: Path, wanted: Config, spoil: Spoil | None = None) -> Any:
    write(folder, wanted)
    made = grid(simulation.client_app(), simulation._node_configs(wanted, folder, simulation.find_cohorts(wanted)))
    if spoil is not None:
        made.spoil = spoil  # type: ignore[attr-defined]
    serve(made, folder, quiet=True)
    return made


def test_however_it_is_carried_or_broken_off_it_is_the_same_bits(world: Path, tmp_path: Path) -> None:
    """Resumed, its sites have answered the round already: they are asked again, and sent all weights this time."""
    wanted = lean(world, strategy="fedadam", min_sites=3)
    grid = over(Watched, tmp_path / "whole" / "run", wanted)
    said = [(plan["base"], plan["digest"], kinds) for site, plan, kinds in grid.plans if site == "east"]
    assert [base for base, _, _ in said] == ["", *(now for _, now, _ in said[:-1])]
    assert said[1][2] == {"level.mean_M": "float32"}  # all that a phase of sums has settled
    assert set(said[2][2].values()) == set(said[3][2].values()) == {"int8"}
    east = tmp_path / "whole" / "run" / "sites" / "east"
    assert digest(lying_in(east / "held" / "run.safetensors")) == said[-1][1]
    entries = [entry for entry in Ledger(east / LEDGER).entries() if entry["phase"] == "fit"]
    assert [{tensor[1] for tensor in entry["tensors"]} for entry in entries] == [{"int8"}, {"int4"}, {"int4"}]
    assert all(0 < entry["norm"] < 10 for entry in entries)

    over(Carried, tmp_path / "carried" / "run", wanted)
    left = [("fit", 2), ("fit", 0)]

    def stop(site: str, reply: Message) -> Message | None:
        if left and site == "south" and about(reply) == left[-1]:
            left.pop()
            raise KeyboardInterrupt
        return reply

    broken = tmp_path / "broken" / "run"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            start(broken, wanted, spoil=stop)
    start(broken, wanted, spoil=stop)
    assert [f.reason for one in fits(broken) for f in one.sites.values()] == [""] * 9
    assert len({weights_digest(tmp_path / name / "run") for name in ("whole", "carried", "broken")}) == 1


def test_a_site_that_lost_weights_or_its_rest_is_named_and_goes_on(world: Path, tmp_path: Path) -> None:
    sites = tmp_path / "run" / "sites"

    def forget(site: str, reply: Message) -> Message | None:
        if about(reply) == ("fit", 0):
            lost = {"north": "held", "east": "residuals"}.get(site)
            if lost is not None:
                shutil.rmtree(sites / site / lost)
        return reply

    grid = over(Watched, tmp_path / "run", lean(world), forget)
    first, second, third = (one.sites for one in fits(tmp_path / "run"))
    assert [one["north"].status for one in (first, second, third)] == ["ok", "error", "ok"]
    assert "this site holds none of run run: it needs all of them" in second["north"].reason
    assert [plan["base"] != "" for site, plan, _ in grid.plans if site == "north"] == [False, True, True, False]
    assert [one["east"].status for one in (first, second, third)] == ["ok", "ok", "ok"]
    lost = "has lost what few bits left unsaid in its update of round 0"
    assert [one["east"].reason for one in (first, second, third)] == ["", lost, ""]
    assert all(one["south"].status == "ok" and not one["south"].reason for one in (first, second, third))


def test_without_quorum_it_is_asked_again_in_the_same_round(world: Path, tmp_path: Path) -> None:
    def forget(site: str, reply: Message) -> Message | None:
        if site == "east" and about(reply) == ("fit", 0):
            held = tmp_path / "run" / "sites" / "east" / "held" / "run.safetensors"
            held.write_bytes(held.read_bytes()[:-1])
        return reply

    over(Watched, tmp_path / "run", lean(world, min_sites=3, rounds=2), forget)
    assert [one.sites["east"].status for one in fits(tmp_path / "run")] == ["ok", "ok"]


def test_a_private_update_is_put_into_few_bits_after_its_noise(world: Path, tmp_path: Path) -> None:
    """So nothing is charged for it, and its rest is of noised numbers alone."""
    privacy = Privacy(mode="on", noise=3.0, rate=0.3, epsilon=50.0, sums_noise=20.0)
    start(tmp_path / "run", replace(lean(world, rounds=2), privacy=privacy))
    start(tmp_path / "plain", replace(lean(world, rounds=2, up="fp32"), privacy=privacy))
    few, all_ = fits(tmp_path / "run"), fits(tmp_path / "plain")
    assert {f.status for one in few for f in one.sites.values()} == {"ok"}
    assert [one.epsilons for one in few] == [one.epsilons for one in all_]
    kept = sorted(path.name for path in (tmp_path / "run" / "sites" / "east" / "residuals" / "run").iterdir())
    assert kept == ["private-0-fit-000000.safetensors", "private-0-fit-000001.safetensors"]


# --- a site that lies


def entry(name: str, change: Callable[[packed.Coded], object]) -> Callable[[RecordDict], None]:
    def attack(content: RecordDict) -> None:
        every = dict(unpack(content.array_records["delta"]).entries)
        every[name] = change(every[name])  # type: ignore[arg-type, assignment]
        content["delta"] = pack(Tensors(every))

    return attack


def raw(change: Callable[[bytes], bytes]) -> Callable[[RecordDict], None]:
    def attack(content: RecordDict) -> None:
        data = change(bytes(content.array_records["delta"]["tensors"].data))
        content.array_records["delta"]["tensors"] = Array("uint8", (len(data),), STYPE, data)

    return attack


def head(key: str, value: int | str) -> Callable[[RecordDict], None]:
    def attack(content: RecordDict) -> None:
        cast(ConfigRecord, content.config_records["update"])[key] = value

    return attack


ATTACKS: list[tuple[Callable[[RecordDict], None], str]] = [
    (entry("body.weight", lambda e: packed.encoded(e.whole(), "int8", 20)), "east: body.weight has an entry of"),
    (
        entry("stem.bias", lambda e: packed.encoded(e.whole(), "int4", e.exponent + 1)),
        "east: stem.bias is in units of 2",
    ),
    (
        entry("stem.bias", lambda e: packed.encoded(e.whole(), "int8", e.exponent)),
        "came as int8, the plan asks for int4",
    ),
    (entry("stem.bias", lambda e: e.read()), "east: stem.bias came as float32, the plan asks for int4"),
    (entry("stem.bias", lambda e: packed.cast(e.read())), "east: stem.bias came as bfloat16, the plan asks for int4"),
    (
        entry("stem.bias", lambda e: packed.encoded(e.whole()[:5], "int4", e.exponent)),
        "stem.bias has shape (5,), expected",
    ),
    (raw(lambda data: data[:-1] + b"\x08"), "east: stem.weight has a number out of the range of int4"),
    (raw(lambda data: data[:-1]), "east: malformed update: ValueError: stem.weight: 5 bytes are left for shape"),
    (raw(lambda data: data + b"\x88"), "east: malformed update: ValueError: 1 bytes too many"),
    (raw(lambda data: data.replace(b"int4", b"int2", 1)), "int2 is not one of ours"),
    (raw(lambda data: data.replace(b", -", b", 9", 1)), "east: malformed update: ValueError: exponent 9"),
    (head("rest", -2), "east: malformed update: ValueError: -1 must be a whole number from 0"),
    (head("holds", "a1"), "east: malformed update: ValueError: 'a1' must be empty or 64 hex digits"),
]


def test_a_site_that_lies_about_its_bits_is_refused_in_one_line(world: Path, tmp_path: Path) -> None:
    def lie(site: str, reply: Message) -> Message | None:
        found = about(reply)
        if site == "east" and found is not None and found[0] == "fit":
            ATTACKS[found[1]][0](reply.content)
        return reply

    start(tmp_path / "run", lean(world, rounds=len(ATTACKS)), spoil=lie)
    for (_, says), one in zip(ATTACKS, fits(tmp_path / "run"), strict=True):
        east = one.sites["east"]
        assert east.status == "rejected", (says, east)
        assert says in east.reason
        assert "\n" not in east.reason
        assert one.sites["north"].status == one.sites["south"].status == "ok"


def test_the_plans_words_are_checked_too() -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        wire._digest("ab")
    with pytest.raises(ValueError, match="exponent 21"):
        packed.exponent(21)
