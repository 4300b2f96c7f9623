"""Few bits: what they mean is the same at both ends, within half a step, and nothing else can be said in them."""

import json
import math
from typing import Any

import pytest
import torch
from flwr.app import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.base.disk.tensors import Memory, Tensors, forms
from shared.plan import packed, tensors
from shared.plan.packed import Coded

WHOLE = st.lists(st.integers(-7, 7), min_size=1, max_size=33)


def through(sent: dict[str, Any]) -> Tensors:
    """As the other end reads them."""
    return tensors.unpack(tensors.pack(Tensors(sent)))


@given(numbers=WHOLE, code=st.sampled_from(list(packed.MOST)), exponent=st.integers(-100, 20))
@settings(max_examples=60, deadline=None)
def test_whole_numbers_come_through_as_they_are(numbers: list[int], code: str, exponent: int) -> None:
    whole = torch.tensor(numbers, dtype=torch.int8)
    back = through({"w": packed.encoded(whole, code, exponent), "plain": torch.ones(2)})
    found = forms(back)["w"]
    assert isinstance(found, Coded)
    assert torch.equal(found.whole(), whole)
    assert not found.stray()
    assert torch.equal(back["w"].double(), whole.double() * 2.0**exponent)
    assert found.nbytes == math.ceil(len(numbers) / (2 if code == "int4" else 1))
    assert torch.equal(back["plain"], torch.ones(2))


@given(value=st.floats(-1e5, 1e5, width=32), code=st.sampled_from(list(packed.MOST)))
@settings(max_examples=100, deadline=None)
def test_a_number_is_meant_within_half_a_step_where_it_is_not_cut_off(value: float, code: str) -> None:
    numbers = torch.tensor([value, value / 3, 0.0])
    exponent = packed.exponent_for(abs(value), code)
    off = (packed.meant(packed.quantised(numbers, code, exponent), exponent).double() - numbers.double()).abs()
    assert off.max().item() <= 2.0**exponent / 2
    assert exponent == packed.LEAST_EXPONENT or abs(value) > packed.MOST[code] * 2.0 ** (exponent - 1)


def test_quantising_changes_nothing_of_what_is_quantised() -> None:
    numbers = torch.tensor([0.3, -0.7], dtype=torch.float64)
    packed.quantised(numbers, "int4", -2)
    assert numbers.tolist() == [0.3, -0.7]


def test_sums_of_few_bits_are_the_same_bits_in_any_order() -> None:
    draw = torch.Generator().manual_seed(0)
    read = [
        packed.encoded(torch.randint(-7, 8, (50,), generator=draw, dtype=torch.int8), "int4", k).read().double()
        for k in (-9, -7, -12, -9)
    ]
    fixed = [(value * 2.0**30).long() * n for value, n in zip(read, (3, 8, 1, 5), strict=True)]
    assert torch.equal(sum(fixed), sum(reversed(fixed)))
    assert all(
        torch.equal(whole.double() / 2.0**30 / n, v) for whole, n, v in zip(fixed, (3, 8, 1, 5), read, strict=True)
    )


def test_bf16_is_a_plain_cast() -> None:
    value = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    back = through({"w": packed.cast(value)})
    assert torch.equal(back["w"], value.bfloat16().float())
    assert forms(back)["w"].nbytes == 2 * value.numel()
    assert through({"w": packed.cast(torch.tensor([math.nan]))})["w"].isnan().all()  # for admission to find


def test_an_empty_tensor_and_one_number_come_through() -> None:
    back = through({"none": packed.encoded(torch.zeros(0, 3, dtype=torch.int8), "int4", -3)})
    assert back["none"].shape == (0, 3)
    assert not forms(back)["none"].stray()  # type: ignore[union-attr]
    one = through({"one": packed.encoded(torch.tensor(-7, dtype=torch.int8), "int4", -3)})["one"]
    assert one.shape == ()
    assert one.item() == -7 / 8


def said(entries: list[Any], data: bytes) -> Tensors:
    text = json.dumps(entries).encode()
    whole = len(text).to_bytes(8, "little") + text + data
    return tensors.unpack(tensors.record_of(Array("uint8", (len(whole),), tensors.STYPE, whole)))


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        (["w", "int4", [3]], b"\x88\x88"),  # no exponent
        (["w", "int4", [3], -3, -3], b"\x88\x88"),
        (["w", "int4", [3], "-3"], b"\x88\x88"),
        (["w", "int4", [3], -3.0], b"\x88\x88"),
        (["w", "int4", [3], True], b"\x88\x88"),
        (["w", "int4", [3], None], b"\x88\x88"),
        (["w", "int4", [3], -101], b"\x88\x88"),
        (["w", "int4", [3], 21], b"\x88\x88"),
        (["w", "int4", [3], 10**400], b"\x88\x88"),
        (["w", "int4", [3], -3], b"\x88"),  # too few bytes
        (["w", "int4", [3], -3], b"\x88\x88\x88"),  # too many
        (["w", "int4", [2**60], -3], b"\x88"),
        (["w", "int8", [2], -3], b"\1"),
        (["w", "int2", [4], -3], b"\1"),
        (["w", "bfloat16", [1], -3], b"\0\0"),
        (["w", "bfloat16", [1]], b"\0"),
        (["w", "float32", [1], -3], b"\0\0\0\0"),
    ],
)
def test_a_list_that_nobody_writes_is_none(entry: list[Any], data: bytes) -> None:
    with pytest.raises(ValueError, match=r"exponent|bytes|ours"):
        said([entry], data)


@pytest.mark.parametrize(
    ("code", "shape", "data"),
    [
        ("int4", [2], b"\x08"),  # upper half -8
        ("int4", [2], b"\x80"),  # lower half
        ("int4", [1], b"\x18"),  # something in the half that is left over
        ("int8", [2], b"\x01\x80"),  # -128
    ],
)
def test_what_is_out_of_its_range_is_stray(code: str, shape: list[int], data: bytes) -> None:
    found = forms(said([["w", code, shape, -3]], data))["w"]
    assert isinstance(found, Coded)
    assert found.stray()


def test_a_step_is_added_and_anything_else_put_in_its_place() -> None:
    before: dict[str, Tensor] = {"a": torch.tensor([1.0, -2.0]), "b": torch.zeros(2), "c": torch.tensor([5])}
    step = packed.encoded(torch.tensor([1, -4], dtype=torch.int8), "int8", -2)
    after = packed.stepped(before, through({"a": step, "c": torch.tensor([6])}))
    assert {name: after[name].tolist() for name in after} == {"a": [1.25, -3.0], "b": [0.0, 0.0], "c": [6]}


def test_what_lies_in_memory_is_not_copied() -> None:
    assert isinstance(packed.encoded(torch.zeros(4, dtype=torch.int8), "int8", 0).source, Memory)
