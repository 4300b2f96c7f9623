"""What a site does when it is asked: take its inventory, or one round of a phase."""

import functools
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from client.policy import check_schema, why_not
from client.site import Site
from shared.config import RunSettings
from shared.data.cohort import Cohort, cache_folder
from shared.data.missing import suppress
from shared.data.slices import Slices
from shared.errors import PlanRefused
from shared.methods import Method
from shared.owners import keep_local
from shared.records import Inventory, RoundPlan, Update
from shared.training import find_device, pool, train
from shared.vocabulary import LOCAL, Weights


def take_inventory(site: Site, config: str, schema: str) -> Inventory:
    settings = RunSettings.parse(config)
    check_schema(site, settings, schema)
    method, cohort = settings.build_method(), open_cohort(site, settings)
    patterns = {
        tuple(m for m in method.modalities if m in pattern): 0 for pattern in cohort.patterns("train")
    }  # in the method's words and order
    for pattern, n in cohort.patterns("train").items():
        patterns[tuple(m for m in method.modalities if m in pattern)] += n
    refused = {p.name: why for p in method.phases if (why := why_not(site, method, cohort, p.name)) is not None}
    return Inventory(
        site=site.name,
        schema=schema,
        subjects=sum(patterns.values()),
        patterns=suppress(patterns, settings.min_cell),
        refused=refused,
    )


def do_round(site: Site, plan: RoundPlan) -> Update:
    settings = RunSettings.parse(plan.config)
    check_schema(site, settings, plan.schema)
    device = find_device(site.device)
    method, net = build(plan.config, str(device))
    cohort = open_cohort(site, settings)
    why = why_not(site, method, cohort, plan.phase)
    if why is not None:
        raise PlanRefused(f"{site.name}: takes no part in {plan.phase}: {why}")
    slices = Slices(cohort, method.modalities, split="train")
    phase = next(p for p in method.phases if p.name == plan.phase)
    net.load_state_dict(plan.weights)
    if phase.kind == "sums":
        return _sum(site, plan, method, net, slices)
    return _train(site, plan, settings, method, net, slices, device)


def _train(
    site: Site,
    plan: RoundPlan,
    settings: RunSettings,
    method: Method,
    net: nn.Module,
    slices: Slices,
    device: torch.device,
) -> Update:
    owners = keep_local(method.owners(net, plan.phase), settings.keep_local)
    personal = [name for name, owner in owners.items() if owner == LOCAL]
    _load_personal(site, plan, net, personal)
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
    )
    _save_personal(site, plan, net, personal)
    return _update(
        site,
        plan,
        delta=trained.delta,
        counts=trained.counts,
        metrics={"loss": trained.loss, "samples": trained.samples, "seconds": trained.seconds, **trained.watch},
    )


def _sum(site: Site, plan: RoundPlan, method: Method, net: nn.Module, slices: Slices) -> Update:
    started = time.monotonic()
    sums = pool(method, net, slices.in_order(64), plan.phase)
    seconds = time.monotonic() - started
    return _update(site, plan, delta=sums, counts={}, metrics={"samples": len(slices), "seconds": seconds})


def _update(
    site: Site, plan: RoundPlan, *, delta: Weights, counts: dict[str, int], metrics: dict[str, float]
) -> Update:
    return Update(
        site=site.name,
        run=plan.run,
        phase=plan.phase,
        round=plan.round,
        schema=plan.schema,
        delta=delta,
        counts=counts,
        metrics=metrics,
    )


def open_cohort(site: Site, settings: RunSettings) -> Cohort:
    return Cohort.open(cache_folder(site.cohort, settings.grid))


@functools.lru_cache(maxsize=1)
def build(config: str, device: str) -> tuple[Method, nn.Module]:
    """Kept between messages: in a simulation hundreds of sites take turns on one network."""
    settings = RunSettings.parse(config)
    method = settings.build_method()
    return method, method.build(settings.seed).to(device)


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
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file({name: state[name].detach().cpu().contiguous() for name in names}, partial)
    partial.replace(file)
    _personal_file(site, plan, plan.round - 3).unlink(missing_ok=True)


def _personal_file(site: Site, plan: RoundPlan, round: int) -> Path:
    return site.state / "personal" / plan.run / f"{plan.phase}-{round:06d}.safetensors"
