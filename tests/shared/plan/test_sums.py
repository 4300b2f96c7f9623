"""Cells of a sum: who is in them, what is left out with them, and integers that no order changes."""

import pytest
import torch

from shared.base.errors import RunFailed
from shared.base.records import Phase
from shared.plan.sums import BITS, MOST, MOST_TOTAL, SHARE, Company, to_integers, to_numbers

PHASE = Phase(name="s", kind="sums", cells={"x": ("n", 2), "n": ("n", 2), "w": ("k", 1), "k": ("k", 1)})


def person(n: list[float], k: list[list[float]]) -> dict[str, torch.Tensor]:
    n_2D = torch.tensor([n, n], dtype=torch.float64)
    k_KD = torch.tensor(k, dtype=torch.float64)
    return {"n": n_2D, "x": 0.5 * n_2D[..., None].expand(2, len(n), 3), "k": k_KD, "w": k_KD.sum(1, keepdim=True) + 7}


def kept(people: list[dict[str, torch.Tensor]], least: int) -> tuple[dict[str, torch.Tensor], int]:
    company = Company(PHASE)
    for one in people:
        company.meet(one)
    totals = {name: torch.stack([one[name] for one in people]).sum(0) for name in people[0]}
    return company.keep(totals, least, share=SHARE)


def test_a_cell_with_too_few_is_left_out_with_all_that_goes_with_it() -> None:
    people = [person([1, 1, 0], [[9, 9], [9, 0]])] * 3 + [person([1, 0, 0], [[9, 0], [9, 0]])]
    found, left_out = kept(people, 4)
    assert found["n"].tolist() == [[4, 0, 0]] * 2
    assert found["x"][0].tolist() == [[2.0] * 3, [0.0] * 3, [0.0] * 3]
    assert found["k"].tolist() == [[0, 0], [36, 0]]  # three have the second feature of the first kind
    assert found["w"].flatten().tolist() == [0.0, 4 * 16.0]
    assert left_out == 2 + 1


def test_nobody_may_be_more_than_half_of_a_cell() -> None:
    crowd, giant = [person([1, 1, 1], [[2, 2], [2, 2]])] * 5, person([1, 1, 1], [[2, 2], [11, 2]])
    assert kept([*crowd, giant], 5)[0]["k"].tolist() == [[12, 12], [0, 0]]
    assert kept([*crowd, *crowd, giant], 5)[0]["k"].tolist() == [[22, 22], [31, 22]]


def test_a_trace_of_a_person_is_no_person() -> None:
    found, _ = kept([person([1, 1, 1], [[0.4, 0.4], [3, 3]])] * 9, 5)
    assert found["k"].tolist() == [[0, 0], [27, 27]]


def test_integers_are_the_same_bits_in_any_order_and_never_overflow() -> None:
    values = [torch.randn(50, dtype=torch.float64) * 10.0**i for i in range(8)]
    sent = [to_integers({"x": value})["x"] for value in values]
    assert torch.equal(sum(sent[1:], sent[0]), sum(reversed(sent[:-1]), sent[-1]))
    for value, one in zip(values, sent, strict=True):
        torch.testing.assert_close(to_numbers({"x": one})["x"], value, rtol=0, atol=2.0**-BITS)
    assert MOST_TOTAL * 2**BITS <= 2**62
    for wrong in (torch.nan, torch.inf, -2 * MOST):
        with pytest.raises(RunFailed, match="x is beyond"):
            to_integers({"x": torch.tensor([wrong], dtype=torch.float64)})
