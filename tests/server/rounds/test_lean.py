"""A step in few bits is the server's own; nothing of what it leaves over is lost, and units follow the updates."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.rounds.lean.down import Down
from server.rounds.lean.up import Up
from shared.base.disk.tensors import Tensors
from shared.base.errors import UpdateRejected
from shared.base.owners import digest
from shared.base.records import NO_REST, Cut, Update
from shared.plan import packed
from shared.plan.packed import Bits
from shared.plan.tensors import unpack

CUT, EVERY = Cut(dim=0, owners=("to:a", "to:b")), frozenset({"to:a", "to:b"})


def down(folder: Path) -> Down:
    return Down(file=folder / "step", how="int8")


def drawn(seed: int) -> Tensor:
    return 0.01 * torch.randn(2, 5, generator=torch.Generator().manual_seed(seed))


def test_steps_and_what_is_left_over_come_to_all_that_was_wanted(tmp_path: Path) -> None:
    server, rest, weight = down(tmp_path), torch.zeros(2, 5), torch.zeros(2, 5)
    wanted = torch.zeros(2, 5)
    for n in range(5):
        with server.stepping():
            weight, rest = server.take("w", weight, weight + drawn(n), rest, CUT, EVERY)
        wanted = wanted + drawn(n)
        assert rest.abs().max() > 0
    assert torch.allclose(weight + rest, wanted, rtol=0, atol=1e-7)
    assert not torch.equal(weight, wanted)


def test_a_slice_that_nobody_trained_stays_and_keeps_its_rest(tmp_path: Path) -> None:
    server, weight, rest = down(tmp_path), drawn(0), drawn(1)
    new = weight.clone()
    new[0] += 1
    with server.stepping():
        after, left = server.take("w", weight, new, rest, CUT, frozenset({"to:a"}))
    assert torch.equal(after[1], weight[1])
    assert torch.equal(left[1], rest[1])
    assert not torch.equal(after[0], weight[0])


def test_what_nobody_trained_is_not_sent(tmp_path: Path) -> None:
    server, weight = down(tmp_path), drawn(0)
    with server.stepping():
        server.take("w", weight, weight, drawn(1), CUT, frozenset())
    assert server.steps == {}


def test_who_holds_the_last_weights_is_sent_the_step_to_the_new_ones(tmp_path: Path) -> None:
    """And comes to the same bits; what changed otherwise comes whole, and whoever was not heard is sent it all."""
    server, old = down(tmp_path), Tensors({"w": drawn(0), "sums": torch.zeros(2, dtype=torch.float64), "n": drawn(9)})
    first = server.offer(old)
    assert first.to("north").base == first.to("east").base == ""
    server.heard(update("north", {}, holds=first.digest))
    with server.stepping():
        after, _ = server.take("w", old["w"], old["w"] + drawn(1), torch.zeros(2, 5), CUT, EVERY)
    server.changed(["sums"])
    new = Tensors({**old.entries, "w": after, "sums": torch.ones(2, dtype=torch.float64)})
    second = server.offer(new)
    north, east = second.to("north"), second.to("east")
    assert (north.base, east.base) == (first.digest, "")
    sent = unpack({"tensors": north.array})  # type: ignore[arg-type]
    assert sorted(sent) == ["sums", "w"]
    assert digest(packed.stepped(old, sent)) == second.digest == north.digest == digest(new)
    assert second.to("north").base == ""  # it has not answered since: asked again it is sent all


def update(site: str, delta: dict[str, Tensor | packed.Coded], *, holds: str = "", rest: int = NO_REST) -> Update:
    return Update(
        site=site, run="r", phase="p", round=1, schema="s", delta=Tensors(delta), counts={}, holds=holds, rest=rest
    )


def coded(numbers: list[int], code: str, exponent: int) -> packed.Coded:
    return packed.encoded(torch.tensor(numbers, dtype=torch.int8), code, exponent)


def test_units_follow_the_updates_up_at_once_and_down_by_halves() -> None:
    up = Up(how="int4", scales={"a": -4, "b": -4, "c": -4}, last={})
    for site in ("east", "north", "out"):
        big = 7 if site != "out" else 1
        delta = {"a": coded([big, -big], "int4", -4), "b": coded([0, 0, 0, 1], "int4", -4), "d": coded([9], "int8", -9)}
        up.check(update(site, delta))
    found = up.next(["north", "east"])
    assert found["a"] == -3  # 1.5 times 7/16 is over 7/16
    assert found["b"] == -5  # what it was is far below, but no more than a half
    assert found["c"] == -4  # nobody sent it
    assert 7 * 2.0 ** found["d"] >= 1.5 * 9 * 2.0**-9 > 7 * 2.0 ** (found["d"] - 1)


def test_a_lost_rest_is_noticed_and_a_later_one_is_none() -> None:
    up = Up(how="int4", scales={}, last={"a": 3, "b": 3, "c": 3})
    for site, rest in (("a", 3), ("b", 4), ("c", 2), ("new", NO_REST)):
        up.check(update(site, {}, rest=rest))
    assert up.lost == {"c": "has lost what few bits left unsaid in its update of round 3"}
    plain = dataclasses.replace(up, how="fp32", lost={})
    plain.check(update("a", {}))
    assert plain.lost == {}


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_before_there_is_a_unit_a_site_says_its_own_and_then_the_plan_does(how: Bits) -> None:
    Up(how=how, scales={}, last={}).check(update("north", {"w": coded([9], "int8", -7)}))
    told = Up(how=how, scales={"w": -5}, last={})
    told.check(update("north", {"w": coded([1], how, -5)}))
    with pytest.raises(UpdateRejected, match=r"north: w is in units of 2\^-7, the plan's are 2\^-5"):
        told.check(update("north", {"w": coded([1], how, -7)}))


def test_other_bits_than_asked_for_are_refused() -> None:
    up = Up(how="fp32", scales={}, last={})
    with pytest.raises(UpdateRejected, match="north: w came as int8, the plan asks for float32"):
        up.check(update("north", {"w": coded([1], "int8", -3)}))
    up = Up(how="int4", scales={}, last={})
    with pytest.raises(UpdateRejected, match="north: w came as int4, the plan asks for int8"):
        up.check(update("north", {"w": coded([1], "int4", -3)}))
