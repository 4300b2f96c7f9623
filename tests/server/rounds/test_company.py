"""What one site's answer may be beside the others', and who is held against whom."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from server.rounds.company import most_people, out_of_norm, out_of_sums
from server.rounds.spool import Shelf
from shared.base.records import Inventory, Phase, Spent, Update
from shared.plan.settings import Limits
from shared.plan.sums import to_integers

SPENT = Spent(ledger="ab" * 16, sequence=7, head="cd" * 32, epsilon=1.0, budget=8.0, delta=1e-5, size=70, others=0)
PHASE = Phase(name="p", kind="sums", cells=dict.fromkeys(("total", "count"), ("count", 1)))
LIMITS = Limits(relative=3.0, apart=1.0, weight=10.0)


def shelf(folder: Path, sent: dict[str, dict[str, torch.Tensor]], private: tuple[str, ...] = ()) -> Shelf:
    kept = Shelf(folder / "spool")
    for site, delta in sent.items():
        spent = SPENT if site in private else None
        kept.add(Update(site=site, run="r", phase="p", round=0, schema="", delta=delta, counts={}, spent=spent))
    return kept


def norms(folder: Path, *, private: tuple[str, ...] = (), **sizes: float) -> set[str]:
    kept = shelf(folder, {site: {"w": torch.full((4,), size)} for site, size in sizes.items()}, private)
    return set(out_of_norm(kept, LIMITS))


def test_a_norm_is_held_against_the_median_of_three_or_more(tmp_path: Path) -> None:
    assert norms(tmp_path, a=1.0, b=1.2, c=3.5) == set()
    assert norms(tmp_path, a=1.0, b=1.2, c=3.7) == {"c"}
    assert norms(tmp_path, a=1e-9, b=1.0, c=1.0) == set()  # small is no harm
    assert norms(tmp_path, a=1.0, b=1e6) == set()  # of two nobody knows which
    assert norms(tmp_path, a=0.0, b=0.0, c=1.0) == set()
    assert norms(tmp_path, a=1.0, b=1.0, c=9.0, d=9.0, e=1.0) == {"c", "d"}


def test_private_updates_are_held_against_private_ones(tmp_path: Path) -> None:
    assert norms(tmp_path, private=("c",), a=1.0, b=1.0, c=50.0) == set()
    assert norms(tmp_path, private=("c",), a=1.0, b=1.0, d=9.0, c=50.0) == {"d"}
    assert norms(tmp_path, private=("a", "b", "c"), a=1.0, b=1.0, c=50.0) == {"c"}


def test_a_cell_that_is_not_told_is_as_many_as_it_can_be() -> None:
    held = Inventory(site="a", schema="", subjects=8, patterns={("T1",): 7, ("T2",): -5})
    assert most_people(held) == 11
    assert most_people(dataclasses.replace(held, patterns={})) == 1


def said(folder: Path, sums: dict[str, tuple[float, float]], **people: int) -> dict[str, Any]:
    """By site: its mean and its count in two cells."""
    sent = {
        site: to_integers({"total": torch.full((2,), mean * n), "count": torch.full((2,), n)})
        for site, (mean, n) in sums.items()
    }
    known = {s: Inventory(site=s, schema="", subjects=n, patterns={("T1",): n}) for s, n in people.items()}
    return out_of_sums(shelf(folder, sent), PHASE, known, LIMITS)


def test_sums_of_large_and_small_sites_may_differ_as_their_people_do(tmp_path: Path) -> None:
    assert said(tmp_path, {"a": (0.5, 500.0), "b": (0.6, 60.0), "c": (0.3, 50_000.0)}, a=10, b=1, c=1000) == {}
    few = said(tmp_path, {"a": (0.5, 500.0), "b": (0.6, 60.0), "c": (0.3, 50_000.0)}, a=10, b=1, c=10)
    assert list(few) == ["c"]
    assert "counts for 1e+04 in count" in few["c"]


def test_a_mean_may_lie_as_far_from_the_median_as_that_from_nought(tmp_path: Path) -> None:
    assert said(tmp_path, {"a": (0.5, 10.0), "b": (0.6, 10.0), "c": (1.1, 10.0)}, a=1, b=1, c=1) == {}
    assert list(said(tmp_path, {"a": (0.5, 10.0), "b": (0.6, 10.0), "c": (1.3, 10.0)}, a=1, b=1, c=1)) == ["c"]
    assert list(said(tmp_path, {"a": (0.5, 10.0), "b": (0.6, 10.0), "c": (-0.6, 10.0)}, a=1, b=1, c=1)) == ["c"]
    assert said(tmp_path, {"a": (0.5, 10.0), "b": (-9.0, 10.0)}, a=1, b=1) == {}
