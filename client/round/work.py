"""What a site does when it is asked: take its inventory, or one round of a phase."""

import dataclasses
import functools
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from client.privacy.private_work import PrivateSite, check_people, private_site
from client.round import secure, sums
from client.round.held import weights_of
from client.round.residuals import Rests, in_bits
from client.round.text import check_text
from client.site import plans, withdrawn
from client.site.checks import check, check_round, check_samples, check_schema, is_private, min_cell, why_not
from client.site.site import Site
from client.site.summed import Person
from shared.base import checkpoint
from shared.base.disk.tensors import let_go, load
from shared.base.errors import PlanRefused
from shared.base.owners import frozen
from shared.base.records import Batch, Inventory, Owners, Phase, RoundPlan, Spent, Update
from shared.base.vocabulary import LOCAL, SHARED, Modality, Weights
from shared.clinical.attach import attach
from shared.data.cohort import Cohort, cache_folder
from shared.data.missing import suppress
from shared.data.preparation import hash_json
from shared.data.slices import Pool, Slices
from shared.methods import Method
from shared.plan.beside import Deal, Dealt
from shared.plan.settings import RunSettings
from shared.plan.sums import to_integers
from shared.plan.training import Trained, find_device, train

SUM_BATCH = 64  # slices at a time in a phase of sums


def take_inventory(site: Site, run: str, config: str, schema: str) -> Inventory:
    """Say what this site holds for a run; PlanRefused where its policy, or a person here, says no."""
    with plans.considered(site, run, config) as plan:
        settings = RunSettings.parse(config)
        check_schema(site, settings, schema)
        method = settings.build_method()
        check(site, settings, method)
        private = is_private(site, settings)
        if not private:
            check_samples(site, settings, method)
        plan.allowed_here()
        return _inventory(site, run, settings, method, schema, private=private)


def _inventory(site: Site, run: str, settings: RunSettings, method: Method, schema: str, *, private: bool) -> Inventory:
    check_text(site, method)
    cohorts = open_cohorts(site, settings)
    patterns = present(cohorts, method.modalities)
    phases = settings.phases(method)
    why = {phase.name: why_not(site, method, patterns, phase.name) for phase in phases}
    least = min_cell(site, settings)
    inventory = Inventory(
        site=site.name,
        schema=schema,
        subjects=at_least(patterns, least),
        patterns=suppress(patterns, least),
        refused={phase: reason for phase, reason in why.items() if reason is not None},
        preparation=preparation_of(cohorts),
        box=secure.box(site, run).text() if settings.secure else "",
    )
    if not private:
        refused = dict(inventory.refused)
        summed: set[Modality] = set()
        for phase in phases:
            people = sums.people_of(cohorts, method, phase.name, least=site.policy.min_subjects)
            if phase.kind == "sums":
                summed |= {m for person in people.values() for m in person.modalities}
            said = sums.why_not(site, people) if phase.kind == "sums" else sums.too_few(site, people)
            if said is not None:
                refused.setdefault(phase.name, said)
        return dataclasses.replace(inventory, refused=refused, summed=tuple(sorted(summed)))
    check_people(cohorts)
    with private_site(site, settings, sum(patterns.values())) as own:
        dear = {phase.name: own.too_dear(phase) for phase in phases}
        return dataclasses.replace(
            inventory,
            subjects=own.plan.size,
            patterns=own.public_patterns(patterns),
            summed=tuple(sorted({m for pattern in own.public_patterns(patterns) for m in pattern})),
            refused={phase: reason for phase, reason in dear.items() if reason is not None} | dict(inventory.refused),
            spent=own.spent(),
        )


def of_use(
    cohort: Cohort, method: Method, phase: str, *, split: str | None, hidden: Collection[Modality] = ()
) -> Slices:
    """Select what of a cohort can train a phase, in the form that the method sees."""
    return Slices(
        cohort,
        method.modalities,
        split=split,
        slab=method.slab,
        only=lambda held: bool(held) and method.lacks(held, phase) is None,
        hidden=hidden,
    )


def preparation_of(cohorts: Sequence[Cohort]) -> str:
    """One digest for the site. Of cohorts prepared in different ways it is like no other site's."""
    digests = sorted({cohort.preparation for cohort in cohorts})
    return digests[0] if len(digests) == 1 else hash_json(["several", *digests])


def at_least(patterns: Mapping[tuple[Modality, ...], int], min_cell: int) -> int:
    """The number of subjects that is sent: cells too small to be told count as one subject each."""
    return sum(n if n >= min_cell else 1 for n in patterns.values())


def do_deal(site: Site, question: Deal) -> Dealt:
    """Keys and shares for a round; refused where the round would be."""
    circle = question.circle
    with plans.considered(site, circle.run, question.config, phase=circle.phase, round=circle.round) as considered:
        settings = RunSettings.parse(question.config)
        method = settings.build_method()
        check(site, settings, method)
        check_round(site, settings, method, circle.phase, circle.round)
        considered.allowed_here()
        card, sealed = secure.deal(site, circle)
        return Dealt(card=card, sealed=sealed)


def do_round(site: Site, plan: RoundPlan) -> Update:
    """Do one round's work; refuse before anything is read where the policy, a person here or the day's hours say no."""
    with plans.considered(site, plan.run, plan.config, phase=plan.phase, round=plan.round) as considered:
        settings = RunSettings.parse(plan.config)
        check_schema(site, settings, plan.schema)
        method = settings.build_method()
        check(site, settings, method)
        check_round(site, settings, method, plan.phase, plan.round)
        private = is_private(site, settings)
        if not private:
            check_samples(site, settings, method)
        considered.allowed_here()
        considered.once(plan)
        sent = secure.again(site, plan) if settings.secure else None
        if sent is not None:
            return sent
        return _round(site, plan, settings, considered.work(), private=private)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One round here: what is asked, the network as the coordinator sent it, and this site's slices for the phase."""

    site: Site
    plan: RoundPlan
    settings: RunSettings
    method: Method
    net: nn.Module
    slices: Pool
    owners: Owners
    frozen: str  # the hash of what is not trained

    def update(
        self, *, delta: Weights, counts: dict[str, int], metrics: dict[str, float], spent: Spent | None = None
    ) -> Update:
        return Update(
            site=self.site.name,
            run=self.plan.run,
            phase=self.plan.phase,
            round=self.plan.round,
            schema=self.plan.schema,
            delta=delta,
            counts=counts,
            metrics=self.site.policy.releasable(metrics),
            frozen=self.frozen,
            spent=spent,
            holds=self.plan.digest,
        )


def _round(site: Site, plan: RoundPlan, settings: RunSettings, work: plans.Work, *, private: bool) -> Update:
    device = find_device(site.device)
    method, net = build(plan.config, str(device))
    encoder = check_text(site, method)
    if encoder is not None:  # in a simulation sites take turns on one network, each with its own
        attach(net, encoder)
    rests = Rests.of(site, plan.run, private=private)
    cohorts = open_cohorts(site, settings)
    patterns = present(cohorts, method.modalities)
    why = why_not(site, method, patterns, plan.phase)
    if why is not None:
        raise PlanRefused(f"{site.name}: takes no part in {plan.phase}: {why}")
    phase = next(p for p in method.phases if p.name == plan.phase)
    people, hidden = dict[str, Person](), tuple[Modality, ...]()
    if not private:
        least = site.policy.min_subjects
        people = sums.people_of(cohorts, method, phase.name, least=least, hidden=plan.hidden)
        few = sums.too_few(site, people)
        if few is not None:
            raise PlanRefused(f"{site.name}: takes no part in {plan.phase}: {few}")
        told = {m for person in people.values() for m in person.modalities}
        hidden = tuple(m for m in method.modalities if m not in told)
    weights = weights_of(site, plan)
    load(net, weights)
    let_go(weights)  # the network has them: not held twice
    owners = {} if phase.kind == "sums" else settings.owners(method, net, plan.phase)
    task = Task(
        site=site,
        plan=plan,
        settings=settings,
        method=method,
        net=net,
        slices=Pool(tuple(of_use(cohort, method, plan.phase, split="train", hidden=hidden) for cohort in cohorts)),
        owners=owners,
        frozen=frozen(net.state_dict(), owners),
    )
    present_now = withdrawn.remember(site, plan.run, plan.phase, plan.round, task.slices)
    update = _work(task, work, phase, people, patterns, private=private)
    withdrawn.check_all_stayed(site, present_now)
    if phase.kind == "train":
        done = work.last_done(plan.phase, plan.round)
        update = in_bits(rests, plan, update, owners=owners, whole=net.state_dict(), up=settings.up, done=done)
    return secure.hidden(site, plan, update, owners, phase, settings) if settings.secure else update


def _work(
    task: Task,
    work: plans.Work,
    phase: Phase,
    people: Mapping[str, Person],
    patterns: Mapping[tuple[Modality, ...], int],
    *,
    private: bool,
) -> Update:
    if not private:
        return _sum(task, work, phase, people) if phase.kind == "sums" else _train(task, work)
    with private_site(task.site, task.settings, sum(patterns.values()), go_on=work.go_on) as own:
        own.check(task.plan, phase)
        return _sum_privately(task, own) if phase.kind == "sums" else _train_privately(task, own, patterns)


def _train(task: Task, work: plans.Work) -> Update:
    with _personal_layers(task):
        trained = train(
            task.method,
            task.net,
            task.slices.draw,
            phase=task.plan.phase,
            options=task.settings.training[task.plan.phase],
            owners=task.owners,
            round=task.plan.round,
            seed=(task.settings.seed, task.site.name),
            on_step=lambda *_: work.go_on(),
        )
    trained = _in_company(task, trained)
    metrics = {"loss": trained.loss, "samples": trained.samples, "seconds": trained.seconds, **trained.watch}
    return task.update(delta=trained.delta, counts=trained.counts, metrics=metrics)


def _in_company(task: Task, trained: Trained) -> Trained:
    """Without the parts that too few people trained in this round; PlanRefused where that is all of it."""
    least = task.site.policy.min_subjects
    few = [owner for owner, n in trained.counts.items() if n > 0 and trained.people[owner] < least]
    if few and (SHARED in few or len(few) == sum(n > 0 for n in trained.counts.values())):
        raise PlanRefused(
            f"{task.site.name}: {task.plan.phase} round {task.plan.round}: its slices were of fewer people than this "
            f"site's policy asks for (min_subjects={least})"
        )
    return trained.without(few, task.owners) if few else trained


def _train_privately(task: Task, own: PrivateSite, patterns: Mapping[tuple[Modality, ...], int]) -> Update:
    with _personal_layers(task):
        trained = own.train(task.plan, task.method, task.net, task.slices, task.owners, patterns)
    metrics = {"samples": float(trained.samples)}
    return task.update(delta=trained.delta, counts=trained.counts, metrics=metrics, spent=own.spent())


def _sum(task: Task, work: plans.Work, phase: Phase, people: Mapping[str, Person]) -> Update:
    started = time.monotonic()

    def batches(unit: int) -> Iterator[Batch]:
        return _while_allowed(task.slices.unit_in_order(unit, max(1, SUM_BATCH // task.method.slab)), work)

    sent = sums.sum_people(task.site, task.plan.run, task.method, task.net, task.slices, phase, people, batches=batches)
    metrics = {"samples": len(task.slices), "seconds": time.monotonic() - started}
    return task.update(delta=sent, counts={}, metrics=metrics)


def _sum_privately(task: Task, own: PrivateSite) -> Update:
    noised = own.sum(task.plan, task.method, task.net, task.slices)
    return task.update(delta=to_integers(noised), counts={}, metrics={}, spent=own.spent())


def _while_allowed(batches: Iterable[Batch], work: plans.Work) -> Iterator[Batch]:
    for batch in batches:
        work.go_on()
        yield batch


def open_cohorts(site: Site, settings: RunSettings) -> list[Cohort]:
    """Those of this site, without whoever has left."""
    return withdrawn.without_them(
        (Cohort.open(cache_folder(folder, settings.grid)) for folder in site.cohorts), site.state
    )


def present(cohorts: Sequence[Cohort], modalities: Sequence[Modality]) -> dict[tuple[Modality, ...], int]:
    """Count training subjects' patterns over all cohorts, in the method's order; subjects with none are left out."""
    patterns: dict[tuple[Modality, ...], int] = {}
    for cohort in cohorts:
        for held, n in cohort.patterns("train").items():
            pattern = tuple(m for m in modalities if m in held)
            if pattern:
                patterns[pattern] = patterns.get(pattern, 0) + n
    return patterns


@functools.lru_cache(maxsize=1)
def build(config: str, device: str) -> tuple[Method, nn.Module]:
    """Build method and network; kept between messages: in a simulation hundreds of sites take turns on one network."""
    settings = RunSettings.parse(config)
    method = settings.build_method()
    return method, settings.build_net(method).to(device)


@contextmanager
def _personal_layers(task: Task) -> Iterator[None]:
    """Load the personal layers of the round before (in the first the coordinator's); keep them after the block."""
    names = [name for name, owner in task.owners.items() if owner == LOCAL]
    before = _personal_file(task, -1)
    if names and before.exists():
        task.net.load_state_dict(load_file(before), strict=False)
    yield
    if not names:
        return
    state, file = task.net.state_dict(), _personal_file(task, 0)
    checkpoint.save_tensors(file, {name: state[name] for name in names})
    _personal_file(task, -3).unlink(missing_ok=True)


def _personal_file(task: Task, later: int) -> Path:
    plan = task.plan
    return task.site.state / "personal" / plan.run / f"{plan.phase}-{plan.round + later:06d}.safetensors"
