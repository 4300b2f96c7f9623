"""Each thing an update may not be, by name; and an honest one passes unchanged."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from server.rounds.admission import admit, admit_sums
from shared.base.disk.tensors import Tensors
from shared.base.errors import UpdateRejected
from shared.base.records import Cut, Owners, RoundPlan, Update
from shared.base.vocabulary import LOCAL, SHARED
from shared.plan import packed
from shared.plan.settings import Limits

OWNERS: Owners = {"body": SHARED, "head": Cut(dim=0, owners=("to:T1", "to:T2")), "own": LOCAL}
WEIGHTS = {"body": torch.zeros(3), "head": torch.zeros(2, 4), "own": torch.zeros(1)}
HONEST = Update(
    site="north",
    run="r",
    phase="p",
    round=3,
    schema="s" * 64,
    frozen="f" * 64,
    delta={"body": torch.ones(3), "head": torch.ones(1, 4)},
    counts={SHARED: 6, "to:T1": 6, "to:T2": 0},
)


PLAN = RoundPlan(run="r", phase="p", round=3, config="", schema="s" * 64, weights=WEIGHTS)


def judge(update: Update) -> Update:
    return admit(
        update,
        PLAN,
        owners=OWNERS,
        frozen="f" * 64,
        limits=Limits(norm=10.0, entry=4.0),
        samples=8,
    )


def with_delta(**delta: torch.Tensor) -> Callable[[Update], Update]:
    return lambda u: dataclasses.replace(u, delta={**u.delta, **delta})


def with_counts(**counts: int) -> Callable[[Update], Update]:
    return lambda u: dataclasses.replace(u, counts={**u.counts, **{k.replace("_", ":"): v for k, v in counts.items()}})


HOSTILE = {
    "another run": (lambda u: dataclasses.replace(u, run="old"), "this is r/p/3"),
    "replayed round": (lambda u: dataclasses.replace(u, round=2), "this is r/p/3"),
    "around another autoencoder": (lambda u: dataclasses.replace(u, frozen="0" * 64), "frozen weights"),
    "another schema": (lambda u: dataclasses.replace(u, schema="x" * 64), "schema"),
    "nan": (with_delta(body=torch.tensor([1.0, torch.nan, 1.0])), "over the limit"),
    "infinity": (with_delta(body=torch.tensor([1.0, torch.inf, 1.0])), "over the limit"),
    "huge entry": (with_delta(body=torch.tensor([5.0, 0.0, 0.0])), "entry of 5"),
    "huge norm": (with_delta(head=torch.full((1, 4), 3.9), body=torch.full((3,), 3.9)), "norm"),
    "wrong dtype": (with_delta(body=torch.ones(3, dtype=torch.float64)), "float64"),
    "wrong shape": (with_delta(head=torch.ones(2, 4)), "shape"),
    "extra tensor": (with_delta(backdoor=torch.ones(3)), "backdoor"),
    "a tensor it does not own": (with_delta(own=torch.ones(1)), "own"),
    "missing tensor": (lambda u: dataclasses.replace(u, delta={"body": u.delta["body"]}), "head"),
    "count below zero": (with_counts(shared=-1), "count"),
    "count above the round": (with_counts(shared=9), "at most 8 samples"),
    "count of an unknown owner": (with_counts(to_CT=1), "unknown owners"),
    "claims a slice without sending it": (with_counts(to_T2=2), "shape"),
    "counts without shared": (with_counts(shared=0), "none for 'shared'"),
    "counts for what never leaves": (with_counts(local=1), "never leaves"),
}


def test_an_honest_update_passes_unchanged() -> None:
    assert judge(HONEST) is HONEST


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_update_is_rejected_by_name(name: str) -> None:
    change, says = HOSTILE[name]
    with pytest.raises(UpdateRejected, match="north") as caught:
        judge(change(HONEST))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.tensor([torch.nan], dtype=torch.float64), "float64"),
        (torch.ones(1), "float32"),
        (torch.tensor([-(2**63)]), "over the limit"),
        (torch.tensor([2**57]), "over the limit"),
    ],
)
def test_hostile_sums_are_rejected(value: torch.Tensor, says: str) -> None:
    with pytest.raises(UpdateRejected, match=says):
        admit_sums(
            dataclasses.replace(HONEST, delta={"gram": value}), PLAN, frozen="f" * 64, shapes={"gram": (1,)}, sites=3
        )


def test_what_few_bits_mean_is_judged_as_if_all_had_come() -> None:
    def in_bits(value: float) -> Update:
        whole = {name: torch.full_like(delta, value) for name, delta in HONEST.delta.items()}
        return dataclasses.replace(HONEST, delta=Tensors({name: packed.cast(delta) for name, delta in whole.items()}))

    judge(in_bits(1.0))
    for value, says in ((torch.nan, "entry of nan"), (1e3, "entry of 1e.03, over the limit"), (3.9, "norm")):
        with pytest.raises(UpdateRejected, match=says):
            judge(in_bits(value))
