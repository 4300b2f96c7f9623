"""Private training through its whole path, on the probe, whose loss is deterministic: bounds, order, what leaves."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cohort.worlds import write_cohort
from support.privacy.privately import (
    EVERYONE,
    LR,
    PATTERNS,
    PROBE,
    Script,
    Spoilt,
    a_round,
    cohort_at,
    engine_of,
    noised_sum,
    plan_of,
    pool_of,
)
from support.rounds.probe import Net, Probe
from torch import Tensor, nn

from client.privacy import private
from client.privacy.private import Engine, shares_of, sum_private
from client.privacy.proof.proof import caught, run_audit
from shared.base.errors import BudgetSpent, PlanRefused, RunFailed
from shared.base.records import Batch
from shared.base.vocabulary import SHARED, source, target
from shared.data.cohort import Cohort
from shared.data.slices import Pool
from shared.trust.privacy import Query


def release(cohort: Cohort, net: nn.Module, script: Script, subjects: int | None = None, **changes: Any) -> Tensor:
    plan = plan_of(**changes)
    return noised_sum(a_round(PROBE, net, pool_of(PROBE, cohort, subjects), script, plan), plan)


# --- one subject ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [EVERYONE, (0, 2, 6)])
def test_one_subject_more_moves_the_sum_by_its_clip(cohort: Cohort, net: nn.Module, heads: Any) -> None:
    without = release(cohort, net, Script([i for i in heads if i < 6]), subjects=6)
    moved = float((release(cohort, net, Script(heads), subjects=7) - without).norm())
    assert 0.999 < moved <= 1.001  # its gradient is longer than the clip
    wide = float(
        (
            release(cohort, net, Script(heads), subjects=7, clip=1e3)
            - release(cohort, net, Script([i for i in heads if i < 6]), subjects=6, clip=1e3)
        ).norm()
    )
    assert 0 < wide * 1e3 < 100  # and is not lengthened to a clip that it does not reach


def test_a_subjects_gradient_is_the_mean_over_its_rows(cohort: Cohort, net: nn.Module) -> None:
    """However many slices and draws there are: below the clip nothing but the mean counts."""
    part = pool_of(PROBE, cohort).parts[0]
    (batch,) = part.all_of(1, 1000)
    owners = PROBE.owners(net, "fit")
    wanted = [p for name, p in sorted(net.named_parameters()) if name in owners]
    loss = PROBE.loss(net, batch, "fit", torch.Generator()).loss_B.mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted)]).double()
    options = {"clip": 1e3, "noise": 0.001, "slices": 1000}
    for more in ({"draws": 1}, {"draws": 3}, {"draws": 3, "rows": 5}):
        plan = plan_of(**options, **more)
        pool = pool_of(PROBE, cohort)
        sums = [noised_sum(a_round(PROBE, net, pool, Script(heads), plan), plan) for heads in ((), (1,))]
        torch.testing.assert_close((sums[1] - sums[0]) * 1e3, expected, rtol=2e-3, atol=2e-3 * float(expected.norm()))


def test_noise_in_pieces_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "MOST_NOISE", 700)
    assert caught(run_audit(tests=["noise", "sites"])) == set()


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_rows_at_once_change_nothing_but_memory(cohort: Cohort, net: nn.Module, rows: int) -> None:
    whole = release(cohort, net, Script((0, 3, 4)), slices=4, draws=2)
    parts = release(cohort, net, Script((0, 3, 4)), slices=4, draws=2, rows=rows)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_no_more_rows_at_once_than_asked_for(cohort: Cohort, net: nn.Module) -> None:
    for rows, slices, draws, longest in ((0, 4, 2, 8), (3, 4, 2, 3), (1, 2, 3, 1)):
        watched = Watched()
        a_round(watched, net, pool_of(PROBE, cohort), Script((0, 1)), plan_of(rows=rows, slices=slices, draws=draws))
        assert max(len(seen) for seen in watched.seen) == longest
        assert sum(len(seen) for seen in watched.seen) == 2 * slices * draws


def test_more_draws_change_neither_charge_nor_noise(cohort: Cohort, net: nn.Module) -> None:
    scripts = [Script(()) for _ in range(3)]
    plans = [{}, {"draws": 16}, {"slices": 5, "rows": 2}]
    sums = [release(cohort, net, script, **plan) for script, plan in zip(scripts, plans, strict=True)]
    assert all(torch.equal(sums[0], one) for one in sums)
    assert all(script.queries == [Query(noise=1.0, rate=0.5)] for script in scripts)


def test_who_is_not_finite_adds_nothing_and_is_counted_here(cohort: Cohort, net: nn.Module) -> None:
    plan, pool = plan_of(), pool_of(PROBE, cohort)
    spoilt = a_round(Spoilt(subject=6), net, pool, Script(EVERYONE), plan)
    without = a_round(PROBE, net, pool_of(PROBE, cohort, 6), Script(range(6)), plan)
    assert torch.equal(noised_sum(spoilt, plan), noised_sum(without, plan))
    assert (spoilt.watch, without.watch) == ({"lost": 1.0}, {"lost": 0.0})


def test_a_person_in_two_cohorts_throws_one_coin(cohort: Cohort, net: nn.Module, tmp_path: Path) -> None:
    again = cohort_at(write_cohort(tmp_path / "north", "north", PATTERNS[:3], seed=5))
    other = cohort_at(write_cohort(tmp_path / "east", "east", PATTERNS[:2], seed=6))
    pool = Pool(tuple(part for one in (cohort, again, other) for part in pool_of(PROBE, one).parts))
    script = Script((0,))
    a_round(PROBE, net, pool, script, plan_of())
    assert script.asked == [7 + 2]
    seen = {float(pool.unit(0, 1, torch.Generator().manual_seed(seed)).images_BMHW.sum()) for seed in range(40)}
    volumes = [float(b.images_BMHW.sum()) for part in pool.parts[:2] for b in part.all_of(0, 1)]
    assert seen <= set(volumes)
    assert all(any(float(b.images_BMHW.sum()) in seen for b in part.all_of(0, 1)) for part in pool.parts[:2])


# --- a step ---------------------------------------------------------------------------------------------------------


def test_a_draw_of_nobody_is_charged_noised_and_stepped(cohort: Cohort, net: nn.Module) -> None:
    script, plan = Script((), (), ()), plan_of(noise=1.7)
    trained = a_round(PROBE, net, pool_of(PROBE, cohort), script, plan, steps=3)
    assert script.queries == [plan.step] * 3
    values = noised_sum(trained, plan) / 1.7 / math.sqrt(3)
    assert 0.7 < float(values.std()) < 1.3
    assert all(bool(tensor.all()) for tensor in trained.delta.values())  # every weight of every layer


def test_the_charge_comes_before_coins_and_noise(cohort: Cohort, net: nn.Module) -> None:
    script = Script((0,), (1, 2))
    a_round(PROBE, net, pool_of(PROBE, cohort), script, plan_of(), steps=2)
    assert script.events.count("charge") == 2
    assert script.events[0] == "charge"
    assert script.events[script.events.index("charge", 1) - 1] == "bits"


def test_a_refused_charge_ends_the_round_before_anything_is_drawn(cohort: Cohort, net: nn.Module) -> None:
    script = Script((0,))

    def refuse(query: Query) -> None:
        raise BudgetSpent("spent")

    script.charge = refuse  # type: ignore[method-assign]
    with pytest.raises(BudgetSpent):
        a_round(PROBE, net, pool_of(PROBE, cohort), script, plan_of())
    assert script.events == []


def test_the_sum_is_divided_by_a_public_number(cohort: Cohort, net: nn.Module) -> None:
    """Whoever is drawn, and whatever the true number of subjects is."""
    pool = pool_of(PROBE, cohort)
    one, two = (a_round(PROBE, net, pool, Script((0,)), plan_of(size=size)).delta for size in (6, 12))
    for name in one:
        torch.testing.assert_close(one[name], 2 * two[name], rtol=1e-3, atol=1e-5)
    few = noised_sum(a_round(PROBE, net, pool_of(PROBE, cohort, 3), Script((0,)), plan_of()), plan_of())
    torch.testing.assert_close(few, noised_sum(a_round(PROBE, net, pool, Script((0,)), plan_of()), plan_of()))


def test_a_proximal_term_pulls_back_after_the_noise(cohort: Cohort, net: nn.Module) -> None:
    plan, pool = plan_of(), pool_of(PROBE, cohort)
    first = a_round(PROBE, net, pool, Script(()), plan).delta
    free = a_round(PROBE, net, pool, Script((), ()), plan, steps=2).delta
    held = a_round(PROBE, net, pool, Script((), ()), plan, steps=2, prox=0.002).delta
    for name in first:
        torch.testing.assert_close(held[name], free[name] - LR * 0.002 * first[name], rtol=1e-3, atol=1e-3)


def test_every_round_has_a_key_of_its_own(cohort: Cohort, net: nn.Module) -> None:
    pool, plan = pool_of(PROBE, cohort), plan_of(rate=1e-6)
    torch.manual_seed(0)
    one = noised_sum(a_round(PROBE, net, pool, Script(), plan, fresh=True), plan)
    torch.manual_seed(0)
    two = noised_sum(a_round(PROBE, net, pool, Script(), plan, fresh=True), plan)
    assert not bool((one == two).any())
    assert 0.7 < float(torch.cat([one, two]).std()) < 1.3


def test_weights_that_burst_end_the_round(cohort: Cohort, net: nn.Module) -> None:
    with pytest.raises(RunFailed, match=r"phase fit: \S+ is not finite"):
        a_round(PROBE, net, pool_of(PROBE, cohort), Script((0,)), plan_of(noise=1e4), lr=1e36)


def test_frozen_tensors_stay_and_get_no_gradient(cohort: Cohort, net: nn.Module) -> None:
    class Head(Probe):
        def owners(self, net: nn.Module, phase: str) -> Any:
            return {name: owner for name, owner in super().owners(net, phase).items() if name.startswith("head")}

    trained = a_round(Head(), net, pool_of(PROBE, cohort), Script(EVERYONE), plan_of())
    assert set(trained.delta) == {"head.weight", "head.bias"}
    assert net.stem.weight.grad is None  # type: ignore[union-attr]


# --- what leaves ----------------------------------------------------------------------------------------------------


def test_shares_are_those_of_the_patterns(net: nn.Module) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    shares = shares_of(PROBE, net, "fit", [("T1", "T2"), ("T1",)], 16, 16)
    assert shares[source("T1")] == shares[SHARED] == 1
    assert shares[source("T2")] == shares[target("T2")] == 0.5
    assert shares.get(source("FLAIR"), 0.0) == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_owner_without_a_share_stays(cohort: Cohort, net: nn.Module) -> None:
    shares = shares_of(PROBE, net, "fit", [("T1", "T2")], 16, 16)
    trained = a_round(PROBE, net, pool_of(PROBE, cohort), Script(()), plan_of(), shares=shares)
    assert trained.delta["head.weight"].shape[0] == 2
    assert set(trained.counts) == {SHARED, *(kind(m) for kind in (source, target) for m in ("T1", "T2"))}
    rare = a_round(PROBE, net, pool_of(PROBE, cohort), Script(()), plan_of(), shares={**shares, SHARED: 1e-9})
    assert rare.counts[SHARED] == 1  # nothing is told by a zero


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.BatchNorm2d(3), "BatchNorm2d"),
        (nn.SyncBatchNorm(3), "SyncBatchNorm"),
        (nn.InstanceNorm2d(3, track_running_stats=True), "InstanceNorm2d"),
    ],
)
def test_layers_that_mix_subjects_are_refused_by_name(
    cohort: Cohort, net: nn.Module, layer: nn.Module, name: str
) -> None:
    net.add_module("extra", nn.Sequential(layer))
    script = Script((0,))
    with pytest.raises(PlanRefused, match=rf"extra\.0: {name}"):
        a_round(PROBE, net, pool_of(PROBE, cohort), script, plan_of())
    assert script.events == []


def test_layers_that_do_not_mix_subjects_pass(net: nn.Module) -> None:
    net.add_module("extra", nn.Sequential(nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.InstanceNorm2d(3)))
    private.check_layers(net)


def test_a_buffer_that_changes_is_refused_by_name() -> None:
    class Counting(Net):
        def forward(self, x_BMHW: Tensor) -> Tensor:
            self.level.mean_M += 1e-3 * x_BMHW.mean(dim=(0, 2, 3))
            return super().forward(x_BMHW)

    with pytest.raises(PlanRefused, match=r"level\.mean_M: changes while the network looks"):
        shares_of(PROBE, Counting(3), "fit", [("T1",)], 16, 16)


def test_several_processes_are_refused(cohort: Cohort, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "processes", lambda: 2)
    with pytest.raises(PlanRefused, match="one process"):
        a_round(PROBE, net, pool_of(PROBE, cohort), Script((0,)), plan_of())


# --- 3D on a CPU ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched(Probe):
    seen: list[Batch] = dataclasses.field(default_factory=list)

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Any:
        self.seen.append(batch)
        return super().loss(net, batch, phase, generator)


@pytest.mark.parametrize(
    ("draws", "slices", "rows"), [(1, 1, 0), (1, 1, 1), (3, 1, 1), (3, 1, 2), (1, 5, 2), (4, 2, 3), (1, 99, 0)]
)
def test_a_solid_network_never_sees_one_row_on_a_cpu(
    cohort: Cohort, net: nn.Module, draws: int, slices: int, rows: int
) -> None:
    net.add_module("extra", nn.Conv3d(1, 1, 3))
    method = Watched()
    plan = plan_of(draws=draws, slices=slices, rows=rows)
    a_round(method, net, pool_of(PROBE, cohort), Script(EVERYONE), plan)
    assert min(len(batch) for batch in method.seen) >= 2


# --- sums -----------------------------------------------------------------------------------------------------------


def sums(cohort: Cohort, net: nn.Module, script: Script, subjects: int | None = None, **changes: Any) -> Tensor:
    plan = plan_of(**changes)
    found = sum_private(
        PROBE,
        net,
        pool_of(PROBE, cohort, subjects),
        "level",
        engine=engine_of(plan, script),
        rows=3,
    )
    assert sorted(found) == ["pixels_M", "total_M"]
    return torch.cat([found[name] for name in sorted(found)])


def own_sums(cohort: Cohort, net: nn.Module, subject: int) -> Tensor:
    """Of one subject, divided by its slices, in one pass over all of it."""
    part = pool_of(PROBE, cohort).parts[0]
    (batch,) = part.all_of(subject, 1000)
    found = PROBE.sums(net, batch, "level")
    return torch.cat([found[name] for name in sorted(found)]) / len(batch)


def unasked() -> Script:
    """Sums throw no coins: every subject takes part."""
    script = Script()
    script.asked.append(0)
    return script


@pytest.mark.parametrize("clip", [3.0, 1e6])
def test_sums_are_everyones_clipped_means_and_noise(cohort: Cohort, net: nn.Module, clip: float) -> None:
    expected = torch.zeros(6, dtype=torch.float64)
    for i in EVERYONE:
        own = own_sums(cohort, net, i)
        expected += own * min(1.0, clip / float(own.norm()))
    found = sums(cohort, net, unasked(), sums_clip=clip, sums_noise=0.001)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.006 * clip)
    wider = sums(cohort, net, unasked(), sums_clip=clip, sums_noise=5.001) - found
    again = sums(cohort, net, unasked(), sums_clip=clip, sums_noise=10.001) - found
    torch.testing.assert_close(again, 2 * wider, rtol=1e-3, atol=1e-3 * clip)


def test_one_subject_moves_the_sums_by_at_most_their_clip(cohort: Cohort, net: nn.Module) -> None:
    moved = (sums(cohort, net, unasked()) - sums(cohort, net, unasked(), subjects=6)).norm()
    assert float(moved) == pytest.approx(3.0, rel=1e-3)


def test_sums_are_charged_first_and_once_with_everyone_in(cohort: Cohort, net: nn.Module) -> None:
    script = unasked()
    sums(cohort, net, script, sums_noise=2.5)
    assert script.queries == [Query(noise=2.5, rate=1.0)]
    assert script.events[0] == "charge"


def test_the_noise_of_sums_has_its_size(cohort: Cohort, net: nn.Module) -> None:
    few = pool_of(PROBE, cohort, 1)
    engine = Engine(plan=plan_of(), charge=lambda _: None)
    found = [torch.cat(list(sum_private(PROBE, net, few, "level", engine=engine, rows=9).values())) for _ in range(60)]
    spread = torch.stack(found).std(dim=0).mean()
    assert float(spread) == pytest.approx(2.0 * 3.0, rel=0.15)


def test_a_subject_whose_sums_are_not_finite_adds_nothing(cohort: Cohort, net: nn.Module) -> None:
    class Sick(Probe):
        def sums(self, net: nn.Module, batch: Batch, phase: str) -> Any:
            found = super().sums(net, batch, phase)
            return {name: value * (torch.nan if 0 in batch.subject_B else 1) for name, value in found.items()}

    def of(method: Probe, subjects: Callable[[Cohort], Cohort]) -> dict[str, Tensor]:
        pool = pool_of(PROBE, subjects(cohort))
        script = unasked()
        return sum_private(method, net, pool, "level", engine=engine_of(plan_of(), script), rows=3)

    sick = of(Sick(), lambda c: c)
    without = of(PROBE, lambda c: dataclasses.replace(c, subjects=c.subjects[1:]))
    assert all(torch.equal(sick[name], without[name]) for name in sick)
