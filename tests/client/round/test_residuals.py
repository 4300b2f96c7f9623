"""What few bits leave unsaid is kept, exactly, and taken up again: once, and by the right update."""

import logging
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.round.residuals import KEPT, Rests, in_bits
from client.site.site import Site
from shared.base.disk.tensors import forms
from shared.base.errors import RunFailed
from shared.base.records import NO_REST, Cut, Owners, RoundPlan, Update
from shared.plan.packed import Bits, Coded, listed_by

OWNERS: Owners = {"w": "shared", "cut": Cut(dim=1, owners=("to:a", "to:b", "to:a")), "mine": "local"}
WHOLE = {"w": torch.zeros(7), "cut": torch.zeros(2, 3)}
SCALES = {"w": -6, "cut": -7}


def site(folder: Path) -> Site:
    return Site(name="north", cohorts=(), state=folder)


def plan(round: int, scales: dict[str, int] | None = None) -> RoundPlan:
    listed = listed_by(SCALES if scales is None else scales, OWNERS)
    return RoundPlan(run="r", phase="fit", round=round, config="{}", schema="s", weights={}, scales=listed)


def update(round: int, delta: dict[str, Tensor], counts: dict[str, int]) -> Update:
    return Update(site="north", run="r", phase="fit", round=round, schema="s", delta=delta, counts=counts)


def send(
    folder: Path,
    asked: RoundPlan,
    delta: dict[str, Tensor],
    *,
    counts: dict[str, int] | None = None,
    up: Bits = "int4",
    done: int | None = None,
    private: bool = False,
) -> Update:
    counts = counts or {"shared": 4, "to:a": 4, "to:b": 4}
    made = update(asked.round, {name: value.clone() for name, value in delta.items()}, counts)
    rests = Rests.of(site(folder), "r", private=private)
    return in_bits(rests, asked, made, owners=OWNERS, whole=WHOLE, up=up, done=done)


def drawn(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: 0.05 * torch.randn(value.shape, generator=draw) for name, value in WHOLE.items()}


def rest(folder: Path, round: int, name: str, *, private: bool = False) -> Tensor:
    return Rests.of(site(folder), "r", private=private).before("fit", round + 1, None)[0][name]


def exact(values: list[Tensor]) -> list[Fraction]:
    return [sum((Fraction(v.flatten()[i].item()) for v in values), Fraction(0)) for i in range(values[0].numel())]


@pytest.mark.parametrize("up", ["int4", "int8"])
def test_all_that_was_sent_and_the_rest_are_exactly_all_that_was_learnt(up: Bits, tmp_path: Path) -> None:
    learnt, sent = [], []
    for n in range(6):  # the first by the site's own exponents, then ones that cut off, then changing ones
        learnt.append(drawn(n))
        asked = plan(n, {} if n == 0 else {"w": -8 + n, "cut": -5 - n})
        sent.append(send(tmp_path, asked, learnt[-1], up=up, done=n - 1 if n else None).delta)
    for name in WHOLE:
        left = rest(tmp_path, 5, name)
        assert left.abs().max() > 0
        assert exact([s[name] for s in sent] + [left]) == exact([one[name] for one in learnt])


def test_the_first_is_in_int8_by_the_sites_own_exponent_which_cuts_nothing_off(tmp_path: Path) -> None:
    found = send(tmp_path, plan(0, {}), drawn(0))
    form = forms(found.delta)["w"]
    assert isinstance(form, Coded)
    assert form.code == "int8"
    assert (rest(tmp_path, 0, "w").abs() <= 2.0**form.exponent / 2).all()
    again = forms(send(tmp_path, plan(1), drawn(1), done=0).delta)["w"]
    assert isinstance(again, Coded)
    assert (again.code, again.exponent) == ("int4", SCALES["w"])


def test_a_slice_without_a_count_keeps_its_rest_untouched(tmp_path: Path) -> None:
    send(tmp_path, plan(0), drawn(0))
    before = rest(tmp_path, 0, "cut")
    only_a = {"w": drawn(1)["w"], "cut": drawn(1)["cut"][:, [0, 2]]}
    found = send(tmp_path, plan(1), only_a, counts={"shared": 4, "to:a": 4, "to:b": 0}, done=0)
    after = rest(tmp_path, 1, "cut")
    assert found.delta["cut"].shape == (2, 2)
    assert torch.equal(after[:, 1], before[:, 1])
    assert not torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert "mine" not in found.delta


def test_a_tensor_that_is_not_sent_keeps_its_rest(tmp_path: Path) -> None:
    send(tmp_path, plan(0), drawn(0))
    send(tmp_path, plan(1), {"w": drawn(1)["w"]}, counts={"shared": 4}, done=0)
    assert torch.equal(rest(tmp_path, 1, "cut"), rest(tmp_path, 0, "cut"))


def test_a_round_asked_again_is_answered_with_the_same_bits(tmp_path: Path) -> None:
    send(tmp_path, plan(0), drawn(0))
    first = send(tmp_path, plan(1), drawn(1), done=0)
    send(tmp_path, plan(2), drawn(2), done=1)
    again = send(tmp_path, plan(1), drawn(1), done=0)
    assert again.rest == first.rest == 0
    assert all(torch.equal(again.delta[name], first.delta[name]) for name in WHOLE)
    assert Rests.of(site(tmp_path), "r", private=False).rounds("fit") == [0, 1]  # the later one was of another course


def test_few_are_kept_and_after_a_pause_the_last_is_taken(tmp_path: Path) -> None:
    for n in (0, 1, 2, 5, 9):
        found = send(tmp_path, plan(n), drawn(n))
    assert found.rest == 5
    assert Rests.of(site(tmp_path), "r", private=False).rounds("fit") == [2, 5, 9][-KEPT:]


def test_a_lost_rest_is_said_and_an_older_one_is_not_taken_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(3):
        send(tmp_path, plan(n), drawn(n))
    Rests.of(site(tmp_path), "r", private=False).file("fit", 2).unlink()
    with caplog.at_level(logging.WARNING, "lacuna.site"):
        found = send(tmp_path, plan(3), drawn(3), done=2)
    assert "north: fit round 3: what few bits left unsaid in round 2 is lost" in caplog.text
    assert found.rest == NO_REST
    fresh = send(tmp_path / "other", plan(3), drawn(3))
    assert all(torch.equal(found.delta[name], fresh.delta[name]) for name in WHOLE)


def test_rests_of_private_and_of_other_updates_never_mix(tmp_path: Path) -> None:
    """What was not noised must not ride on what is."""
    send(tmp_path, plan(0), drawn(0))
    found = send(tmp_path, plan(1), drawn(1), private=True)
    alone = send(tmp_path / "other", plan(1), drawn(1), private=True)
    assert found.rest == NO_REST
    assert all(torch.equal(found.delta[name], alone.delta[name]) for name in WHOLE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_sent(value: float, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="north: fit round 0: its update is no finite numbers"):
        send(tmp_path, plan(0), {"w": torch.full((7,), value)})
    assert Rests.of(site(tmp_path), "r", private=False).rounds("fit") == []


def test_fp32_is_left_as_it_is_and_bf16_cast(tmp_path: Path) -> None:
    assert all(torch.equal(send(tmp_path, plan(0), drawn(0), up="fp32").delta[n], drawn(0)[n]) for n in WHOLE)
    cast = send(tmp_path, plan(0), drawn(0), up="bf16")
    assert all(torch.equal(cast.delta[n], drawn(0)[n].bfloat16().float()) for n in WHOLE)
    assert not (tmp_path / "residuals").exists()
