"""What a site does when it is asked: take its inventory, or one round of a phase."""

import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from client.privacy.private_work import PrivateSite, check_people, private_site
from client.round.text import check_text
from client.site import plans
from client.site.checks import check, check_round, check_schema, is_private, why_not
from client.site.site import Site
from shared.base import checkpoint
from shared.base.errors import PlanRefused
from shared.base.owners import frozen
from shared.base.records import Batch, Inventory, Owners, RoundPlan, Spent, Update
from shared.base.vocabulary import LOCAL, Modality, Weights
from shared.clinical.attach import attach
from shared.data.cohort import Cohort, cache_folder
from shared.data.missing import suppress
from shared.data.preparation import hash_json
from shared.data.slices import Pool, Slices
from shared.methods import Method
from shared.plan.settings import RunSettings
from shared.plan.training import find_device, pool, train

SUM_BATCH = 64  # slices at a time in a phase of sums


def take_inventory(site: Site, run: str, config: str, schema: str) -> Inventory:
    """What this site holds for a run; PlanRefused where its policy, or a person here, does not let it take part."""
    with plans.considered(site, run, config) as plan:
        settings = RunSettings.parse(config)
        check_schema(site, settings, schema)
        method = settings.build_method()
        check(site, settings, method)
        private = is_private(site, settings)
        plan.allowed_here()
        return _inventory(site, settings, method, schema, private=private)


def _inventory(site: Site, settings: RunSettings, method: Method, schema: str, *, private: bool) -> Inventory:
    check_text(site, method)
    cohorts = open_cohorts(site, settings)
    patterns = present(cohorts, method.modalities)
    phases = settings.phases(method)
    why = {phase.name: why_not(site, method, patterns, phase.name) for phase in phases}
    inventory = Inventory(
        site=site.name,
        schema=schema,
        subjects=at_least(patterns, settings.min_cell),
        patterns=suppress(patterns, settings.min_cell),
        refused={phase: reason for phase, reason in why.items() if reason is not None},
        preparation=preparation_of(cohorts),
    )
    if not private:
        return inventory
    check_people(cohorts)
    with private_site(site, settings, sum(patterns.values())) as own:
        dear = {phase.name: own.too_dear(phase) for phase in phases}
        return dataclasses.replace(
            inventory,
            subjects=own.plan.size,
            patterns=own.told(patterns),
            refused={phase: reason for phase, reason in dear.items() if reason is not None} | dict(inventory.refused),
            spent=own.spent(),
        )


def of_use(cohort: Cohort, method: Method, phase: str, *, split: str | None) -> Slices:
    """What of a cohort can train a phase, in the form that the method sees."""
    return Slices(
        cohort,
        method.modalities,
        split=split,
        slab=method.slab,
        only=lambda held: bool(held) and method.lacks(held, phase) is None,
    )


def preparation_of(cohorts: Sequence[Cohort]) -> str:
    """One digest for the site. Cohorts that were prepared in different ways have one of their own, like no other's."""
    digests = sorted({cohort.preparation for cohort in cohorts})
    return digests[0] if len(digests) == 1 else hash_json(["several", *digests])


def at_least(patterns: Mapping[tuple[Modality, ...], int], min_cell: int) -> int:
    """Subjects of the cells that are told, and one for each that is not: a sum must not tell what is hidden."""
    return sum(n if n >= min_cell else 1 for n in patterns.values())


def do_round(site: Site, plan: RoundPlan) -> Update:
    """Do one round's work; refuse before anything is read where the policy, a person here or the day's hours say no."""
    with plans.considered(site, plan.run, plan.config, phase=plan.phase, round=plan.round) as considered:
        settings = RunSettings.parse(plan.config)
        check_schema(site, settings, plan.schema)
        method = settings.build_method()
        check(site, settings, method)
        check_round(site, settings, method, plan.phase, plan.round)
        private = is_private(site, settings)
        considered.allowed_here()
        return _round(site, plan, settings, considered.work(), private=private)


def _round(site: Site, plan: RoundPlan, settings: RunSettings, work: plans.Work, *, private: bool) -> Update:
    device = find_device(site.device)
    method, net = build(plan.config, str(device))
    encoder = check_text(site, method)
    if encoder is not None:  # in a simulation sites take turns on one network, each with its own
        attach(net, encoder)
    cohorts = open_cohorts(site, settings)
    patterns = present(cohorts, method.modalities)
    why = why_not(site, method, patterns, plan.phase)
    if why is not None:
        raise PlanRefused(f"{site.name}: takes no part in {plan.phase}: {why}")
    phase = next(p for p in method.phases if p.name == plan.phase)
    slices = Pool(tuple(of_use(cohort, method, plan.phase, split="train") for cohort in cohorts))
    net.load_state_dict(plan.weights)
    owners = {} if phase.kind == "sums" else settings.owners(method, net, plan.phase)
    plan = dataclasses.replace(plan, weights={})  # the network has them: not held twice
    around = frozen(net.state_dict(), owners)
    if not private:
        if phase.kind == "sums":
            return _sum(site, plan, method, net, slices, work, around)
        return _train(site, plan, settings, method, net, slices, device, work, None, owners, around)
    with private_site(site, settings, sum(patterns.values()), go_on=work.go_on) as own:
        own.check(plan, phase)
        if phase.kind == "sums":
            sums = own.sum(plan, method, net, slices)
            return _update(site, plan, delta=sums, counts={}, metrics={}, frozen=around, spent=own.spent())
        return _train(site, plan, settings, method, net, slices, device, work, (own, patterns), owners, around)


def _train(
    site: Site,
    plan: RoundPlan,
    settings: RunSettings,
    method: Method,
    net: nn.Module,
    slices: Pool,
    device: torch.device,
    work: plans.Work,
    private: tuple[PrivateSite, Mapping[tuple[Modality, ...], int]] | None,
    owners: Owners,
    around: str,
) -> Update:
    personal = [name for name, owner in owners.items() if owner == LOCAL]
    _load_personal(site, plan, net, personal)
    if private is None:
        trained = train(
            method,
            net,
            slices.draw,
            phase=plan.phase,
            options=settings.training[plan.phase],
            owners=owners,
            round=plan.round,
            seed=(settings.seed, site.name),
            device=device,
            on_step=lambda *_: work.go_on(),
        )
        metrics = {"loss": trained.loss, "samples": trained.samples, "seconds": trained.seconds, **trained.watch}
    else:
        own, patterns = private
        trained = own.train(plan, method, net, slices, owners, patterns, device)
        metrics = {"samples": float(trained.samples)}
    _save_personal(site, plan, net, personal)
    return _update(
        site,
        plan,
        delta=trained.delta,
        counts=trained.counts,
        metrics=metrics,
        frozen=around,
        spent=None if private is None else private[0].spent(),
    )


def _sum(
    site: Site, plan: RoundPlan, method: Method, net: nn.Module, slices: Pool, work: plans.Work, around: str
) -> Update:
    started = time.monotonic()
    at_once = max(1, SUM_BATCH // method.slab)
    sums = pool(method, net, _while_allowed(slices.in_order(at_once), work), plan.phase)
    seconds = time.monotonic() - started
    return _update(
        site, plan, delta=sums, counts={}, metrics={"samples": len(slices), "seconds": seconds}, frozen=around
    )


def _while_allowed(batches: Iterable[Batch], work: plans.Work) -> Iterator[Batch]:
    for batch in batches:
        work.go_on()
        yield batch


def _update(
    site: Site,
    plan: RoundPlan,
    *,
    delta: Weights,
    counts: dict[str, int],
    metrics: dict[str, float],
    frozen: str,
    spent: Spent | None = None,
) -> Update:
    return Update(
        site=site.name,
        run=plan.run,
        phase=plan.phase,
        round=plan.round,
        schema=plan.schema,
        delta=delta,
        counts=counts,
        metrics=site.policy.releasable(metrics),
        frozen=frozen,
        spent=spent,
    )


def open_cohorts(site: Site, settings: RunSettings) -> list[Cohort]:
    return [Cohort.open(cache_folder(folder, settings.grid)) for folder in site.cohorts]


def present(cohorts: Sequence[Cohort], modalities: Sequence[Modality]) -> dict[tuple[Modality, ...], int]:
    """Training subjects' patterns over all cohorts, in the method's words and order; subjects with none left out."""
    patterns: dict[tuple[Modality, ...], int] = {}
    for cohort in cohorts:
        for held, n in cohort.patterns("train").items():
            pattern = tuple(m for m in modalities if m in held)
            if pattern:
                patterns[pattern] = patterns.get(pattern, 0) + n
    return patterns


@functools.lru_cache(maxsize=1)
def build(config: str, device: str) -> tuple[Method, nn.Module]:
    """Kept between messages: in a simulation hundreds of sites take turns on one network."""
    settings = RunSettings.parse(config)
    method = settings.build_method()
    return method, settings.build_net(method).to(device)


def _load_personal(site: Site, plan: RoundPlan, net: nn.Module, names: list[str]) -> None:
    """The personal layers as they stood after the round before; in the first round the coordinator's."""
    file = _personal_file(site, plan, plan.round - 1)
    if names and file.exists():
        net.load_state_dict(load_file(file), strict=False)


def _save_personal(site: Site, plan: RoundPlan, net: nn.Module, names: list[str]) -> None:
    if not names:
        return
    state = net.state_dict()
    file = _personal_file(site, plan, plan.round)
    checkpoint.save_tensors(file, {name: state[name] for name in names})
    _personal_file(site, plan, plan.round - 3).unlink(missing_ok=True)


def _personal_file(site: Site, plan: RoundPlan, round: int) -> Path:
    return site.state / "personal" / plan.run / f"{plan.phase}-{round:06d}.safetensors"
