"""One round of which the coordinator sees sums alone: agreed, collected, asked to be seen, lifted.

What admission can't look at here, each site holds itself to; what came out of a sum is held to the same limits.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from server.rounds.admission import check_asked, check_forms
from server.rounds.aggregation import Mean, divided
from server.rounds.collect import Answers, Ask, Collector, room
from server.rounds.place import Place
from server.rounds.roster import Roster
from server.rounds.secure.asking import Asking
from server.rounds.secure.circles import Circles, Garbage, Saved
from server.rounds.secure.lifting import Lifted, streams
from server.rounds.spool import Shelf
from shared.base.disk.tensors import File, forms
from shared.base.errors import DataError, RunFailed, UpdateRejected
from shared.base.options import build, plain
from shared.base.owners import taken_shape
from shared.base.records import RELEASED, Owners, Phase, RoundPlan, Spent, Update
from shared.base.vocabulary import Owner, SiteName
from shared.plan.config import Federation
from shared.plan.integers import counted_over, scale_bits
from shared.plan.secure import (
    COUNTS,
    METRICS,
    SITES,
    Secured,
    bound_to,
    groups_of,
    hidden_owners,
    hidden_sums,
    metrics_from,
)
from shared.plan.settings import Limits
from shared.plan.sums import BITS
from shared.plan.tensors import Sourced, record_of, unpack
from shared.trust.secure.circle import EVERYBODY, Circle

Forms = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class Spoilt(RunFailed):
    """A round whose sum was seen and is none. Asked for again it is no better; of other sites none is ever seen."""

    def __init__(self, why: str, answers: Answers) -> None:
        super().__init__(why)
        self.answers = answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One round, as it is asked for before anything is hidden."""

    plan: RoundPlan
    sites: Sequence[SiteName]
    roster: Roster
    shelf: Shelf
    frozen: str
    accept: Callable[[Update], None]  # a site's word on its budget; or raises UpdateRejected


@dataclass(frozen=True, slots=True, kw_only=True)
class _What:
    """What is hidden in it."""

    groups: Sequence[Owner]
    sent: Callable[[Circle], tuple[Owners, Forms]]  # whose each tensor is, and of what form, once the circle is known
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    collector: Collector
    federation: Federation
    config: str  # as the sites read it
    folder: Path

    @property
    def circles(self) -> Circles:
        one = self.collector
        asking = Asking(grid=one.grid, lead=one.lead, receipts=one.receipts, deadline=self.federation.deadline)
        return Circles(
            asking=asking,
            federation=self.federation,
            leader=one.lead.leader,
            config=self.config,
            folder=self.folder,
        )

    def shelf(self, folder: Path, phase: str, round: int) -> Shelf:
        """Where the round's updates lie; those of a round whose sums were asked for are there still."""
        saved = self.circles.saved(phase, round)
        return Shelf(folder, keep=() if saved is None else tuple(saved.heads))

    def updates(self, part: Part, owners: Owners, place: Place, *, samples: int) -> tuple[Answers, Mean]:
        """A round of training: what its sites learnt together."""
        federation, limits = self.federation, self.federation.limits
        most = samples * len(part.sites)
        bits = scale_bits(max_abs=limits.entry, max_count=most, word=federation.word)
        dtype = torch.int32 if federation.word == 32 else torch.int64
        shapes = {name: (dtype, tuple(forms(part.plan.weights)[name].shape)) for name in owners}

        def sent(circle: Circle) -> tuple[Owners, Forms]:
            own = hidden_owners(owners, circle.groups)
            beside = {METRICS: (torch.int64, (len(RELEASED), 2)), COUNTS: (torch.int64, (len(circle.groups) - 1,))}
            return own, {name: {**shapes, **beside}[name] for name in own}

        answers, lifted = self._gather(part, _What(groups=groups_of(owners), sent=sent, bits=bits))
        few = sorted({*groups_of(owners)} - lifted.survivors.keys())
        if part.plan.round == 0 and few:
            said = f"keep their values, since too few sites hide them together: {', '.join(few)}"
            self.collector.view.note(f"{part.plan.phase}: {said}")
        counts = lifted.by_owner(COUNTS)
        holders = {owner: len(lifted.survivors[owner]) for owner in counts}

        def over(owner: Owner) -> int:
            return counts.get(counted_over(owner, owners, federation.estimator), 0)

        for owner, n in counts.items():
            if not 0 < n <= samples * holders[owner]:
                where = f"{part.plan.phase} round {part.plan.round}"
                raise Spoilt(f"{where}: {n} samples of {owner} by {holders[owner]} sites: some site lies", answers)
        trained = frozenset(o for o, n in holders.items() if n >= federation.min_holders and over(o) > 0)

        def mean(name: str) -> Tensor:
            return divided(lifted.total(name), owners[name], trained, over, bits)

        every = {name: forms(part.plan.weights)[name] for name in owners}
        delta = place.written("mean", every, _within(part.plan, owners, mean, limits, answers))
        return answers, Mean(delta=delta, trained=trained, holders=holders, counts=counts)

    def sums(
        self, part: Part, phase: Phase, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[Answers, dict[str, Tensor], dict[str, Tensor]]:
        """A round of a phase of sums: the totals, and how many sites are in each cell."""
        own = hidden_sums(shapes, phase)
        every = {name: (torch.int64, shape) for name, shape in shapes.items()}
        every |= {name: every[name.removeprefix(f"{SITES} ")] for name in own if name.startswith(SITES)}
        every[METRICS] = (torch.int64, (len(RELEASED), 2))
        what = _What(groups=[EVERYBODY], sent=lambda circle: (own, every), bits=BITS)
        answers, lifted = self._gather(part, what)
        totals = {name: lifted.total(name) for name in own if name != METRICS}
        members = {name.removeprefix(f"{SITES} "): totals.pop(name) for name in own if name.startswith(SITES)}
        return answers, totals, members

    # --- both

    def _gather(self, part: Part, what: _What) -> tuple[Answers, Lifted]:
        plan, circles = part.plan, self.circles
        saved = circles.saved(plan.phase, plan.round)
        if saved is None:
            saved, answers = self._collect(part, what)
            circles.save(saved)
        else:
            answers = _again(saved, part.shelf)
            self.collector.view.note(f"{plan.phase} round {plan.round}: its sums were asked for, and are again")
        own, known = what.sent(saved.said.circle)
        try:
            shares = circles.reveal(saved, part.roster)
            lifted = Lifted(
                owners=own,
                forms=known,
                updates=[part.shelf[site] for site in part.shelf.sites],
                survivors=saved.survivors,
                streams=streams(saved.said, saved.survivors, shares, saved.bound),
            )
        except Garbage as error:
            raise Spoilt(str(error), answers) from None
        except DataError as error:
            raise Spoilt(f"{plan.phase} round {plan.round}: {error}; nothing was changed", answers) from None
        answers.told = metrics_from(lifted.total(METRICS))
        return answers, lifted

    def _collect(self, part: Part, what: _What) -> tuple[Saved, Answers]:
        plan, federation, shelf = part.plan, self.federation, part.shelf
        agreed = self.circles.agree(plan, part.sites, what.groups, part.roster)
        circle = agreed.circle
        said = Secured(circle=circle, cards=agreed.cards, bits=what.bits)
        asked = replace(plan, secure=said.text())
        own, known = what.sent(circle)

        def take(update: Update) -> None:
            _admit(update, asked, circle, own, known, frozen=part.frozen)
            shelf.add(update)

        most = room(sum(math.prod(shape) * dtype.itemsize for dtype, shape in known.values()), len(known), 1)
        quorum = max(federation.min_sites, circle.enough(EVERYBODY))
        ask = Ask(plan=asked, sites=tuple(circle.boxes), most=most, shelf=shelf, take=take, quorum=quorum)
        answers = self.collector.collect(ask, part.roster)
        answers.sites |= agreed.left_out
        self._accept(part, answers, quorum)
        there = {o: tuple(site for site in shelf.sites if o in shelf[site].counts) for o in circle.groups}
        saved = Saved(
            phase=plan.phase,
            round=plan.round,
            bound=bound_to(replace(asked, sha256=answers.weights), said),
            said=said,
            sealed=agreed.sealed,
            survivors={owner: its for owner, its in there.items() if len(its) >= circle.enough(owner)},
            heads={site: _head(shelf[site]) for site in shelf.sites},
            facts=answers.sites,
        )
        return saved, answers

    def _accept(self, part: Part, answers: Answers, quorum: int) -> None:
        """What sites say of their budgets, once all have come: a site that is asked again says the same again."""
        for site in part.shelf.sites:
            try:
                part.accept(part.shelf[site])
            except UpdateRejected as rejected:
                part.shelf.drop(site)
                del answers.metrics[site]
                answers.sites[site] = replace(answers.sites[site], status="rejected", reason=str(rejected))
        if len(answers.ok) < quorum:
            said = "; ".join(one.reason for one in answers.sites.values() if one.status == "rejected")
            where = f"{part.plan.phase} round {part.plan.round}"
            raise RunFailed(
                f"{where}: {len(answers.ok)} updates admitted, quorum={quorum} ({said}); nothing was changed"
            )


def _admit(update: Update, plan: RoundPlan, circle: Circle, owners: Owners, known: Forms, *, frozen: str) -> None:
    """UpdateRejected unless it has the form of a hidden update; its numbers say nothing."""
    site = update.site
    check_asked("update is", update, plan, frozen)
    groups = {owner for owner, _ in circle.of(site)}
    strange = set(update.counts) - groups
    if strange or EVERYBODY not in update.counts or set(update.counts.values()) != {1}:
        raise UpdateRejected(
            f"{site}: hides groups {sorted(update.counts)[:3]}, its circle has it in {sorted(groups)[:3]}"
        )
    if update.metrics:
        raise UpdateRejected(f"{site}: tells {sorted(update.metrics)[:3]} in the open, where sums alone are seen")
    expected = {
        name: (dtype, shape)
        for name, (dtype, whole) in known.items()
        if (shape := taken_shape(whole, owners[name], update.counts)) is not None
    }
    check_forms(update, expected)


def _within(
    plan: RoundPlan, owners: Owners, mean: Callable[[str], Tensor], limits: Limits, answers: Answers
) -> Iterator[tuple[str, Tensor]]:
    """No mean of updates within the limits is beyond them: then some site has sent what it should not, and nobody knows
    which."""
    square = 0.0
    for name in owners:
        value = mean(name)
        largest = value.abs().max().item() if value.numel() else 0.0
        square += torch.linalg.vector_norm(value, dtype=torch.float64).item() ** 2
        if not largest <= limits.entry or not math.sqrt(square) <= limits.norm:
            raise Spoilt(
                f"{plan.phase} round {plan.round}: the mean of the updates has an entry of {largest:.3g} in {name} "
                f"and a norm of {math.sqrt(square):.3g} or more; the limits for each are {limits.entry:g} and "
                f"{limits.norm:g}: some site sent what it should not, and in sums nobody can tell which. Nothing was "
                "changed",
                answers,
            )
        yield name, value


def _head(update: Update) -> dict[str, object]:
    return {
        "run": update.run,
        "schema": update.schema,
        "counts": dict(update.counts),
        "frozen": update.frozen,
        "spent": None if update.spent is None else plain(update.spent),
    }


def _again(saved: Saved, shelf: Shelf) -> Answers:
    """The updates of a round that was killed after its sums were asked for, as they lie there."""
    answers = Answers(sites=dict(saved.facts))
    for site, head in saved.heads.items():
        path = shelf.file(site)
        if not path.exists():
            raise DataError(f"{path}: missing; the update of {site} was in a sum that was asked for: no other can be")
        spent = head["spent"]
        update = Update(
            site=site,
            run=head["run"],
            phase=saved.phase,
            round=saved.round,
            schema=head["schema"],
            delta=unpack(record_of(Sourced(File(path), path.stat().st_size))),
            counts=head["counts"],
            frozen=head["frozen"],
            spent=None if spent is None else build(Spent, spent, "spent"),
        )
        shelf.add(update)
        answers.metrics[site] = {}
    return answers
