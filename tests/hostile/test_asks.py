"""A coordinator that asks for what holds one person: one slice's gradient, one person's slices, the same round again.

It leads the run, so all that it asks is signed; what stands against it is the site's own policy. Every rule is tried
alone, at a site whose other rules let everything pass.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cohort.worlds import prepare_here, write_cohort
from support.rounds.federation import config
from support.rounds.relay import leader_of, relay, reworded, told
from torch import Tensor, nn

from client.privacy.budget import Budget
from client.round import work
from client.site.policy import Policy
from client.site.site import Site
from shared.base.errors import PlanRefused
from shared.base.owners import digest, take
from shared.base.randomness import generator
from shared.base.records import Batch, RoundPlan, Update
from shared.data.cohort import Cohort, cache_folder
from shared.data.slices import Pool
from shared.methods import Method
from shared.plan import tensors, wire
from shared.plan.config import Config
from shared.plan.settings import Choice
from shared.plan.training import PhaseTraining
from shared.trust.privacy import Privacy

pytestmark = [pytest.mark.usefixtures("probe"), pytest.mark.slow]

MODALITIES = ["T1", "T2", "FLAIR"]
LAX = {"min_samples": 1, "min_subjects": 1, "min_cell": 1, "min_holders": 1, "max_rounds": 10**9, "repeats": "any"}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cohorts of one hospital each. Of `rare` the last is alone in FLAIR; in `never` that image was never taken."""
    whole, two, root = [tuple(MODALITIES)] * 5, [("T1", "T2")], tmp_path_factory.mktemp("hospital")
    cohorts = {
        "whole": whole,
        "few": whole[:4],
        "mixed": whole + two * 5,
        "rare": two * 5 + whole[:1],
        "never": two * 6,
    }
    for name, patterns in cohorts.items():
        prepare_here(write_cohort(root / "sites" / name, "north", patterns))
    return root


def site(world: Path, state: Path, name: str = "whole", **rules: Any) -> Site:
    """`rules`: those of its policy that are not lax; "default" is the default."""
    said = {key: getattr(Policy(), key) if value == "default" else value for key, value in rules.items()}
    return Site(name="north", cohorts=(world / "sites" / name,), state=state, policy=Policy(**(LAX | said)))


def wanted(world: Path, *, seed: int = 3, privacy: Privacy | None = None, min_cell: int = 1, **training: Any) -> Config:
    options: dict[str, Any] = {"rounds": 2, "steps": 1, "batch": 1, "lr": 0.01, "optimizer": "sgd", "clip": 0.0}
    made = config(world, min_holders=1, min_cell=min_cell)
    fit = PhaseTraining(**(options | training))
    return dataclasses.replace(made, seed=seed, training={"fit": fit}, privacy=privacy or Privacy())


def asked(run: Config, weights: dict[str, Tensor] | None = None, **changes: Any) -> RoundPlan:
    settings = run.for_sites()
    values = weights or dict(settings.build_net(settings.build_method()).state_dict())
    plan = RoundPlan(
        run="r",
        phase="fit",
        round=0,
        config=settings.text(),
        schema=settings.schema,
        weights=values,
        sha256=digest(values),
    )
    return dataclasses.replace(plan, **changes)


def left(update: Update) -> dict[str, Tensor]:
    """The update's tensors, out of the bytes that leave."""
    return dict(tensors.unpack(wire.pack_update(update).array_records["delta"]))


# --- one slice's gradient -------------------------------------------------------------------------------------------

LR = 100.0  # large against the weights, so that they round nothing away
ANY2ALL = {"modalities": MODALITIES, "size": "tiny", "precision": "fp32", "told": 0.0}


def inverted(plan: RoundPlan, update: Update, truth: Batch, steps: int) -> float:
    """Gradient inversion: images whose gradient is the one that left. Gives their PSNR, in dB.

    Noise, times and which slices are drawn follow from the run's seed, which the coordinator chose; of `truth` only
    its form is read (and at the end, how near one came).
    """
    from shared.plan.settings import RunSettings

    settings = RunSettings.parse(plan.config)
    method = settings.build_method()
    net = settings.build_net(method)
    net.load_state_dict(plan.weights)
    net.train()
    sent = {name: -value / LR for name, value in left(update).items()}
    owners, held = settings.owners(method, net, "prior"), [owner for owner, n in update.counts.items() if n]
    names = [name for name, value in sent.items() if value.norm() > 0]
    images = torch.full_like(truth.images_BMHW, 0.3).requires_grad_()
    search = torch.optim.LBFGS([images], max_iter=steps, history_size=50, line_search_fn="strong_wolfe")

    def distance() -> Tensor:
        found = gradient_of(method, net, dataclasses.replace(truth, images_BMHW=images), settings.seed, names)
        mine = {name: take(value, owners[name], held) for name, value in found.items()}
        far = sum(((mine[n] - sent[n]).square().sum() / sent[n].square().sum() for n in names), torch.zeros(()))
        (images.grad,) = torch.autograd.grad(far, [images])
        return far.detach()

    for _ in range(4):  # each with a fresh memory
        search.step(distance)
        search.state.clear()
    return -10 * math.log10((images.detach() - truth.images_BMHW).square().mean().item())


def gradient_of(method: Method, net: nn.Module, batch: Batch, seed: int, names: list[str]) -> dict[str, Tensor]:
    loss = method.loss(net, batch, "prior", generator("cpu", seed, "north", "prior", 0, 0, "noise")).loss_B.mean()
    weights = dict(net.named_parameters())
    found = torch.autograd.grad(loss, [weights[name] for name in names], create_graph=True)
    return dict(zip(names, found, strict=True))


def inversion(world: Path, batch: int) -> tuple[RoundPlan, Callable[[Site], Update], Batch]:
    """A question of one step of so many slices, whose weights the coordinator has moved off their zeros."""
    one = PhaseTraining(rounds=1, steps=1, batch=batch, lr=LR, optimizer="sgd", clip=0.0)
    run = dataclasses.replace(
        config(world, min_holders=1), method=Choice(name="any2all", options=ANY2ALL), training={"prior": one}
    )
    settings = run.for_sites()
    dice = torch.Generator().manual_seed(0)
    moved = {
        name: value + 0.05 * torch.randn(value.shape, generator=dice) if value.is_floating_point() else value
        for name, value in settings.build_net(settings.build_method()).state_dict().items()
    }
    plan = asked(run, moved, phase="prior")
    cohort = Cohort.open(cache_folder(world / "sites" / "whole", run.grid))
    drawn = Pool((work.of_use(cohort, settings.build_method(), "prior", split="train"),))
    truth = drawn.draw(batch, generator("cpu", settings.seed, "north", "prior", 0, 0, "draw"))
    return plan, lambda here: work.do_round(here, plan), truth


def test_an_image_is_read_off_one_slices_gradient_and_the_defaults_refuse_to_give_it(
    hospital: Path, tmp_path: Path
) -> None:
    """Any2All, one SGD step of one slice: what leaves is that slice, at over 30 dB."""
    plan, ask, truth = inversion(hospital, 1)
    assert inverted(plan, ask(site(hospital, tmp_path / "lax")), truth, 40) > 30
    for rules, says in (
        (
            {"min_samples": "default"},
            "plan.training.prior=1 steps of 1 = 1 samples: .* min_samples: at least 32",
        ),
        ({"min_subjects": "default"}, r"prior round 0: its slices were of fewer people .* \(min_subjects=5\)"),
        ({"min_holders": "default"}, "plan.min_holders=1: .* min_holders: at least 3"),
    ):
        with pytest.raises(PlanRefused, match=says):
            ask(site(hospital, tmp_path / next(iter(rules)), **rules))


def test_the_same_attack_on_what_the_defaults_let_pass_finds_no_image(hospital: Path, tmp_path: Path) -> None:
    """A step of 32 slices of 5 people, all of them sought at once: what is found is as far off as a flat picture."""
    plan, ask, truth = inversion(hospital, 32)
    rules = {"min_samples": "default", "min_subjects": "default"}
    update = ask(site(hospital, tmp_path, **rules))
    flat = -10 * math.log10((truth.images_BMHW - truth.images_BMHW.mean()).square().mean().item())
    assert inverted(plan, update, truth, 10) < flat + 3


# --- one person's slices --------------------------------------------------------------------------------------------


def people_drawn(world: Path, run: Config) -> int:
    """What a coordinator can work out of its own seed: how many people its draws are of, if there are five."""
    cohort = Cohort.open(cache_folder(world / "sites" / "whole", run.grid))
    pool = Pool((work.of_use(cohort, run.build_method(), "fit", split="train"),))
    fit = run.training["fit"]
    drawn = (
        pool.draw(fit.batch, generator("cpu", run.seed, "north", "fit", 0, step, "draw")) for step in range(fit.steps)
    )
    return len({number for batch in drawn for number in batch.subject_B.tolist()})


def test_a_seed_that_was_ground_until_it_draws_one_person_gets_nothing(hospital: Path, tmp_path: Path) -> None:
    seed = next(n for n in range(10**4) if people_drawn(hospital, wanted(hospital, seed=n, batch=4)) == 1)
    plan = asked(wanted(hospital, seed=seed, batch=4))
    assert work.do_round(site(hospital, tmp_path / "lax"), plan).counts["shared"] == 4
    with pytest.raises(PlanRefused, match=r"its slices were of fewer people than this site's policy asks for \(min_s"):
        work.do_round(site(hospital, tmp_path / "north", min_subjects="default"), plan)


def test_an_update_is_the_same_bits_without_the_one_rare_image(hospital: Path, tmp_path: Path) -> None:
    """North has one FLAIR: its rows and columns would be that person's alone, and the rest would know of it."""
    plan = asked(wanted(hospital, steps=8, batch=8))
    lax = work.do_round(site(hospital, tmp_path / "lax", "rare"), plan)
    assert lax.counts["to:FLAIR"] > 0
    assert left(lax)["head.weight"].shape == (3, 6)
    north = work.do_round(site(hospital, tmp_path / "north", "rare", min_subjects="default"), plan)
    assert (north.counts["to:FLAIR"], north.counts["from:FLAIR"]) == (0, 0)
    assert left(north)["head.weight"].shape == (2, 6)
    assert left(north)["stem.weight"].shape == (6, 2)
    never = work.do_round(site(hospital, tmp_path / "never", "never"), plan)
    assert (north.counts, digest(north.delta)) == (never.counts, digest(never.delta))


def test_the_part_of_an_update_that_few_of_many_happened_to_train_stays(hospital: Path, tmp_path: Path) -> None:
    """Five have FLAIR, and the round's draws are of three of them: as if FLAIR had not been trained."""
    drawn = asked(wanted(hospital, batch=8, seed=4))
    lax = work.do_round(site(hospital, tmp_path / "lax", "mixed"), drawn)
    north = work.do_round(site(hospital, tmp_path / "north", "mixed", min_subjects="default"), drawn)
    assert 0 < lax.counts["to:FLAIR"] < 5 < lax.counts["shared"]
    assert (north.counts["to:FLAIR"], north.counts["shared"]) == (0, lax.counts["shared"])
    assert torch.equal(left(north)["head.weight"], left(lax)["head.weight"][:2])
    assert torch.equal(left(north)["body.weight"], left(lax)["body.weight"])


def test_a_site_of_fewer_people_takes_no_part(hospital: Path, tmp_path: Path) -> None:
    plan = asked(wanted(hospital, steps=8, batch=8))
    with pytest.raises(PlanRefused, match=r"has fewer training subjects than its policy asks for \(5\)"):
        work.do_round(site(hospital, tmp_path, "few", min_subjects="default"), plan)


def test_a_plan_does_not_have_small_cells_told(hospital: Path, tmp_path: Path) -> None:
    """`min_cell = 1` in the plan told that one person here has FLAIR; a stricter one is kept."""
    run = wanted(hospital, batch=64).for_sites()

    def told_by(here: Site, min_cell: int) -> dict[tuple[str, ...], int]:
        settings = dataclasses.replace(run, min_cell=min_cell)
        return dict(work.take_inventory(here, "r", settings.text(), settings.schema).patterns)

    whole, rare = ("T1", "T2"), ("T1", "T2", "FLAIR")
    assert told_by(site(hospital, tmp_path / "lax", "rare"), 1) == {whole: 5, rare: 1}
    here = site(hospital, tmp_path / "north", "rare", min_cell="default")
    assert told_by(here, 1) == {whole: 5, rare: -5}
    assert told_by(here, 9) == {whole: -9, rare: -9}


# --- as often as one likes ------------------------------------------------------------------------------------------


def test_a_round_is_not_done_again_with_other_weights(hospital: Path, tmp_path: Path) -> None:
    """With the same it is, to the bit, as a run that goes on after a kill needs it; also by another process."""
    plan = asked(wanted(hospital))
    here = site(hospital, tmp_path, repeats="default")
    first = work.do_round(here, plan)
    again = work.do_round(dataclasses.replace(here), plan)
    assert digest(first.delta) == digest(again.delta)
    other = {name: value + 1 for name, value in plan.weights.items()}
    for changes in (
        {"weights": other, "sha256": digest(other)},
        {"config": asked(wanted(hospital, seed=4)).config},
        {"hidden": ("T1",)},
    ):
        with pytest.raises(PlanRefused, match="fit round 0 of run r was asked before with other weights or settings"):
            work.do_round(here, dataclasses.replace(plan, **changes))
    work.do_round(here, dataclasses.replace(plan, round=1, weights=other, sha256=digest(other)))
    assert digest(work.do_round(here, plan).delta) == digest(first.delta)


def test_a_server_app_that_was_taken_over_asks_a_round_twice(world: Path, tmp_path: Path) -> None:
    """In a run, signed by the run's own key: round 0 with the weights of round 2."""

    def down(name: str, content: Any) -> None:
        if name == "east" and "plan" in content.config_records and told(content)["round"] == 2:
            reworded(content, leader_of(tmp_path / "run"), round=0)

    relay(tmp_path / "run", config(world), down=down)
    entries = [json.loads(x) for x in (tmp_path / "run" / "sites" / "east" / "ledger.jsonl").read_text().splitlines()]
    (no,) = [entry["fields"]["refusal.why"] for entry in entries if "refusal.kind" in entry["fields"]]
    assert no.startswith("east: fit round 0 of run run was asked before with other weights or settings")


def test_a_run_of_more_rounds_than_the_policy_has_is_refused(hospital: Path, tmp_path: Path) -> None:
    run = wanted(hospital, rounds=2000).for_sites()
    with pytest.raises(PlanRefused, match=r"plan.rounds=2001: .* max_rounds: at most 2000, over all phases of a run"):
        work.take_inventory(site(hospital, tmp_path, max_rounds="default"), "r", run.text(), run.schema)


# --- a budget -------------------------------------------------------------------------------------------------------

PRIVATE = Privacy(mode="on", noise=3.0, rate=0.3, epsilon=1e9, sums_noise=20.0)


def handshake(here: Site, run: Config) -> Any:
    settings = run.for_sites()
    return work.take_inventory(here, "r", settings.text(), settings.schema)


def test_no_plan_makes_a_sites_privacy_budget(hospital: Path, tmp_path: Path) -> None:
    """The first plan's epsilon, 1e9 if it liked, was this site's budget for life."""
    with pytest.raises(PlanRefused, match=r"plan.privacy.mode=on: .* no privacy budget, and no plan makes one"):
        handshake(site(hospital, tmp_path), wanted(hospital, privacy=PRIVATE))
    assert not (tmp_path / "privacy").exists()


@pytest.mark.parametrize("key", ["epsilon", "delta"])
def test_a_plan_lies_within_the_budget_that_the_site_made(key: str, hospital: Path, tmp_path: Path) -> None:
    Budget.open(tmp_path / "privacy", epsilon=50.0, delta=1e-5, size=10).close()
    within = dataclasses.replace(PRIVATE, epsilon=50.0, delta=1e-5)
    assert handshake(site(hospital, tmp_path), wanted(hospital, privacy=within)).spent.budget == 50.0
    beyond = dataclasses.replace(within, **{key: {"epsilon": 50.1, "delta": 2e-5}[key]})
    with pytest.raises(PlanRefused, match=f"plan.privacy.{key}=.*: this site's privacy budget has {key} "):
        handshake(site(hospital, tmp_path), wanted(hospital, privacy=beyond))
