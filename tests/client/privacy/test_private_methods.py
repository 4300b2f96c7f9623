"""The private step of every method in the table, against one-by-one autograd and a subject more."""

import math
from collections.abc import Mapping

import pytest
import torch
from support.cohort.worlds import write_cohort
from support.model.methods import awake
from support.privacy.privately import Script, a_round, cohort_at, engine_of, noised_sum, plan_of, pool_of
from torch import Tensor, nn

from client.privacy.private import sum_private
from shared.base.options import build
from shared.base.records import Batch
from shared.data.cohort import Cohort
from shared.data.slices import Pool
from shared.methods import METHODS, Method
from shared.trust.privacy import PrivacyPlan

pytestmark = pytest.mark.slow  # left out of `make fast`

MODALITIES = ("T1", "T1CE", "T2", "FLAIR")
OPTIONS: Mapping[str, Mapping[str, object]] = {
    "amm_diff": {"anchor": "ridge"},
    "aca_diff": {"depth": 16, "height": 16, "width": 16},
    "ldm": {"depth": 16, "height": 16, "width": 16},
    "mmdm": {"target": "FLAIR", "slab": 3},
    "bbdm": {"target": "FLAIR", "slab": 1},
    "ddpm": {"target": "FLAIR", "slab": 3},
    "pix2pix": {"target": "FLAIR", "slab": 1},
}
PATTERNS = [MODALITIES, ("T1", "FLAIR"), MODALITIES, ("T1", "T2", "FLAIR")]
HEADS = (0, 1, 3)  # the last is the one more


def make(name: str) -> Method:
    options = {"modalities": list(MODALITIES), "size": "tiny", "precision": "fp32", **OPTIONS.get(name, {})}
    return build(METHODS[name], options, "method")


PHASES = [(name, phase.name) for name in METHODS for phase in make(name).phases if phase.kind == "train"]
SUMS = [(name, phase.name) for name in METHODS for phase in make(name).phases if phase.kind == "sums"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return cohort_at(write_cohort(tmp_path_factory.mktemp("site") / "north", "north", PATTERNS))


def prepared(method: Method, cohort: Cohort) -> nn.Module:
    net = awake(method.build(0))
    for phase in method.phases:
        if phase.kind == "sums":
            pool = pool_of(method, cohort)
            method.settle(net, phase.name, method.sums(net, next(pool.in_order(50)), phase.name))
    return net


def one_by_one(method: Method, net: nn.Module, pool: Pool, phase: str, plan: PrivacyPlan) -> tuple[Tensor, list[float]]:
    """Each drawn subject's gradient in one pass by torch.autograd.grad, clipped and added up; and their norms."""
    net.train()
    owners = method.owners(net, phase)
    parameters = dict(net.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in owners)
    wanted = [parameters[name] for name in sorted(owners)]
    seeds = Script(())
    seeds.charge(plan.step)
    seeds.bits(99)
    total = torch.zeros(sum(p.numel() for p in wanted), dtype=torch.float64)
    norms = []
    for unit in HEADS:
        seed = int(seeds.bits(1)[0]) >> 1
        batch = pool.unit(unit, plan.slices, torch.Generator().manual_seed(seed))
        twice = [i for i in range(len(batch)) for _ in range(plan.draws)]
        rows = Batch(
            images_BMHW=batch.images_BMHW[twice],
            exists_BM=batch.exists_BM[twice],
            shown_BM=batch.shown_BM[twice],
            subject_B=batch.subject_B[twice],
            clinical=tuple(batch.clinical[i] for i in twice),
        )
        loss = method.loss(net, rows, phase, torch.Generator().manual_seed(seed ^ 1)).loss_B.mean()
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        flat = torch.cat(
            [torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(grads, wanted, strict=True)]
        ).double()
        norms.append(float(flat.norm()))
        total += flat * min(1.0, plan.clip / max(norms[-1], 1e-12))
    return total / plan.clip, norms


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_the_step_is_the_clipped_sum_of_each_subjects_own_gradient(name: str, phase: str, cohort: Cohort) -> None:
    method, plan = make(name), plan_of(clip=0.02)
    net = prepared(method, cohort)
    pool, fewer = pool_of(method, cohort), pool_of(method, cohort, 3)
    noise = noised_sum(a_round(method, net, pool, Script(()), plan, phase=phase), plan)
    everyone = noised_sum(a_round(method, net, pool, Script(HEADS), plan, phase=phase), plan)
    without = noised_sum(a_round(method, net, fewer, Script(HEADS[:-1]), plan, phase=phase), plan)

    expected, norms = one_by_one(method, net, pool, phase, plan)
    unable = sum(method.lacks(pattern, phase) is not None for pattern in PATTERNS)  # a site does not draw them
    assert sum(norm > plan.clip for norm in norms) >= len(norms) - unable, "every clip acts"
    assert all(norm > plan.clip or norm == 0 for norm in norms)
    assert float((everyone - noise - expected).norm()) < 2e-3 * float(expected.norm())

    moved = float((everyone - without).norm())
    assert moved <= 1.001
    assert (moved > 0.99) == (method.lacks(PATTERNS[HEADS[-1]], phase) is None)


@pytest.mark.parametrize(("name", "phase"), PHASES)
def test_rows_at_once_leave_the_length_of_a_step(name: str, phase: str, cohort: Cohort) -> None:
    """Noise and times fall otherwise, so not the same gradient; but one subject's clip all the same."""
    method, plan = make(name), plan_of(clip=0.02, rows=1, draws=3)
    net, pool = prepared(method, cohort), pool_of(method, cohort)
    noise = noised_sum(a_round(method, net, pool, Script(()), plan, phase=phase), plan)
    one = noised_sum(a_round(method, net, pool, Script((2,)), plan, phase=phase), plan) - noise
    assert 0.99 < float(one.norm()) <= 1.001


@pytest.mark.parametrize(("name", "phase"), SUMS)
def test_sums_of_every_method_move_by_at_most_their_clip(name: str, phase: str, cohort: Cohort) -> None:
    method, plan = make(name), plan_of(sums_clip=0.5)
    net = prepared(method, cohort)
    found = []
    for subjects in (3, 4):
        script = Script()
        script.asked.append(0)
        pool = pool_of(method, cohort, subjects)
        found.append(sum_private(method, net, pool, phase, engine=engine_of(plan, script), rows=5))
    moved = math.sqrt(sum(float((found[1][key] - found[0][key]).square().sum()) for key in found[0]))
    assert moved == pytest.approx(0.5, rel=2e-3)
