"""The wire: bit-exact both ways, closed to anything that is not listed, and never trusting."""

import dataclasses
import hashlib
import json
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.base.errors import BudgetSpent, DataError, PlanRefused, RunFailed, UpdateRejected
from shared.base.records import Inventory, RoundPlan, Update
from shared.plan import sealed, wire
from shared.trust.warrant import Leader, Reader, Warrant, issue

UPDATE = Update(
    site="north",
    run="r",
    phase="translate",
    round=7,
    schema="abc",
    delta={"w": torch.randn(3, 2), "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4)},
    counts={"shared": 8, "to:T1": 0},
    metrics={"loss": 0.5, "samples": 8.0, "seconds": 1.25},
)


@pytest.fixture(autouse=True)
def _inside_flower() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def sent(content: RecordDict) -> Message:
    return Message(content, 2, "train")


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_any_float32_survives_bit_for_bit(bits: list[int]) -> None:
    """Subnormals, negative zero, infinities and every nan payload included."""
    tensor = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    update = dataclasses.replace(UPDATE, delta={"w": tensor})
    back = wire.unpack_update(sent(wire.pack_update(update)), "north")
    assert torch.equal(back.delta["w"].view(torch.int32), tensor.view(torch.int32))


def test_update_and_plan_round_trip() -> None:
    back = wire.unpack_update(sent(wire.pack_update(UPDATE)), "north")
    assert back.delta.keys() == UPDATE.delta.keys()
    assert all(torch.equal(back.delta[k], UPDATE.delta[k]) for k in UPDATE.delta)
    assert dataclasses.replace(back, delta={}) == dataclasses.replace(UPDATE, delta={})
    weights = {"w": torch.randn(2), "sums": torch.randn(2, dtype=torch.float64), "n": torch.tensor([3])}
    plan = RoundPlan(run="r", phase="p", round=0, config="{}", schema="s", weights=weights, known=(3, "f" * 64))
    signing, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    led = Warrant(
        federation="f",
        run="r",
        settings=hashlib.sha256(b"{}").hexdigest(),
        key=key.public_key().public_bytes_raw().hex(),
        until=100,
    )
    leader, packed = Leader(warrant=issue(led, signing), key=key), wire.pack_weights(weights)
    for site in ("north", "east"):  # the tensors are shared by all sites: reading them must not empty them
        content = wire.pack_plan(plan, packed, leader, to=site, until=50.0)
        again = wire.unpack_plan(content, Reader(site=site, trusted=signing.public_key(), now=0.0))
        assert all(torch.equal(again.weights[k], weights[k]) for k in weights)
        assert dataclasses.replace(again, weights={}, sha256="") == dataclasses.replace(plan, weights={})
        assert again.sha256 == packed.sha256


def test_inventory_round_trip() -> None:
    inventory = Inventory(
        site="a-1", schema="s", subjects=9, patterns={("T1", "T2"): 9, ("T1",): -5}, refused={"p": "no"}
    )
    assert wire.unpack_inventory(wire.pack_inventory(inventory)) == inventory


def test_metrics_that_are_not_listed_have_no_way_out() -> None:
    leaky = dataclasses.replace(UPDATE, metrics={**UPDATE.metrics, "subject_17_psnr": 31.0})
    content = wire.pack_update(leaky)
    assert "subject_17" not in str(content.config_records["update"]["metrics"])


@pytest.mark.parametrize("error", [PlanRefused("a"), BudgetSpent("b"), DataError("c"), RunFailed("d")])
def test_a_refusal_keeps_its_kind(error: Exception) -> None:
    back = wire.refusal_in(wire.pack_refusal("north", error))  # type: ignore[arg-type]
    assert type(back) is type(error)
    assert str(back) == str(error)


def changed(record: str, key: str, value: Any) -> RecordDict:
    content = wire.pack_update(UPDATE)
    content.config_records[record][key] = value
    return content


def with_form(shape: object, data: bytes, dtype: object = "float32", name: object = "w") -> RecordDict:
    """An update whose one tensor is said to be this."""
    forms = json.dumps([[name, dtype, shape]]).encode()
    return with_data(len(forms).to_bytes(8, "little") + forms + data)


def with_data(data: bytes, stype: str = "lacuna.tensors", name: str = "tensors") -> RecordDict:
    content = wire.pack_update(UPDATE)
    content["delta"] = ArrayRecord({name: Array("uint8", (len(data),), stype, data)})
    return content


MALFORMED = {
    "counts are no JSON": lambda: changed("update", "counts", "{"),
    "counts are a list": lambda: changed("update", "counts", "[1]"),
    "counts are fractions": lambda: changed("update", "counts", '{"shared": 1.5}'),
    "counts are booleans": lambda: changed("update", "counts", '{"shared": true}'),
    "an unlisted metric": lambda: changed("update", "metrics", '{"mmse": 22}'),
    "a metric that is nan": lambda: changed("update", "metrics", '{"loss": NaN}'),
    "another site's name": lambda: changed("update", "site", "south"),
    "a round that is text": lambda: changed("update", "round", "x"),
    "nested JSON": lambda: changed("update", "counts", "[" * 100_000),
    "no update record": lambda: RecordDict({"x": ConfigRecord({"a": 1})}),
    "no tensors": lambda: RecordDict({"update": wire.pack_update(UPDATE).config_records["update"]}),
    "truncated bytes": lambda: with_form([3, 2], b"\0" * 23),
    "more bytes than the shape": lambda: with_form([3, 2], b"\0" * 28),
    "a shape that would fill the memory": lambda: with_form([1 << 40, 2], b"\0" * 24),
    "a negative shape": lambda: with_form([-3, -2], b"\0" * 24),
    "a shape of fractions": lambda: with_form([1.5, 4], b"\0" * 24),
    "a shape of booleans": lambda: with_form([True, 6], b"\0" * 24),
    "a shape that is none": lambda: with_form(None, b"\0" * 24),
    "a type that is not ours": lambda: with_form([1], b"\x80\x04.", dtype="object"),
    "a type that is a list": lambda: with_form([6], b"\0" * 24, dtype=["float32"]),
    "a name that is a number": lambda: with_form([6], b"\0" * 24, name=3),
    "a tensor twice": lambda: twice(),
    "forms that are no list": lambda: with_data((2).to_bytes(8, "little") + b"17"),
    "forms nested without end": lambda: with_data((100_000).to_bytes(8, "little") + b"[" * 100_000),
    "forms longer than the message": lambda: with_data(b"\xff" * 8 + b"[]"),
    "no bytes at all": lambda: with_data(b""),
    "a pickled array": lambda: with_data(b"\x80\x04.", stype="pickle"),
    "an array of another name": lambda: with_data(b"\x02" + b"\0" * 7 + b"[]", name="w"),
    "numpy's own format": lambda: numpy_form(torch.zeros(3, 2)),
}


def twice() -> RecordDict:
    forms = json.dumps([["w", "float32", [3]], ["w", "float32", [3]]]).encode()
    return with_data(len(forms).to_bytes(8, "little") + forms + b"\0" * 24)


def numpy_form(tensor: torch.Tensor) -> RecordDict:
    content = wire.pack_update(UPDATE)
    content["delta"] = ArrayRecord({"w": Array(tensor.numpy())})
    return content


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_update_is_rejected_by_the_senders_name(name: str) -> None:
    with pytest.raises(UpdateRejected, match="north: malformed"):
        wire.unpack_update(sent(MALFORMED[name]()), "north")


@pytest.mark.parametrize("site", ["", "../etc", "a b", "x" * 65, "-rf", "a/b"])
def test_a_site_name_that_is_no_name_is_refused(site: str) -> None:
    inventory = Inventory(site=site, schema="s", subjects=1, patterns={})
    with pytest.raises(UpdateRejected, match="site name"):
        wire.unpack_inventory(wire.pack_inventory(inventory))


def test_the_description_for_the_ledger_changes_with_every_bit() -> None:
    one = sealed.describe(wire.pack_update(UPDATE))
    flipped = {**UPDATE.delta, "w": UPDATE.delta["w"].clone()}
    flipped["w"][0, 0] = -flipped["w"][0, 0]
    other = sealed.describe(wire.pack_update(dataclasses.replace(UPDATE, delta=flipped)))
    assert one["sha256"] != other["sha256"]
    assert one["bytes"] == other["bytes"] > 24
