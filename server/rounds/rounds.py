"""The round, seen from above: plan -> roster -> send -> admit -> fold in -> step -> average -> save -> release.

A round without quorum changes nothing. Everything random is derived from (run seed, phase, round, site), and a
checkpoint is written after every round, so a killed run resumes to the same bits as an uninterrupted one.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from flwr.serverapp import Grid
from torch import Tensor, nn

from server.federation.lead import Lead
from server.journal import facts
from server.journal.events import CoverageFound, PhaseStarted, RoundFinished, View
from server.journal.facts import RoundFacts
from server.journal.receipts import Receipts
from server.journal.tracking import Tracker
from server.journal.version import code_version
from server.rounds import ledgers, prior
from server.rounds.admission import admit, admit_sums, check_held, sums_shapes
from server.rounds.aggregation import Mean
from server.rounds.collect import Answers, Ask, Collector, room
from server.rounds.company import out_of_norm, out_of_sums
from server.rounds.lean.down import Down
from server.rounds.lean.up import Up
from server.rounds.ledgers import Ledgers
from server.rounds.place import Place, begin, restore
from server.rounds.release import release
from server.rounds.roster import Handshake, Roster, check_coverage
from server.rounds.secure.hidden import Hidden, Part, Spoilt
from server.rounds.spool import Shelf
from server.rounds.step import build_strategy, check_collapse, mean_of, start, step, watch
from server.rounds.validation import Validator, worse
from shared.base.disk.tensors import Tensors, load
from shared.base.errors import ConfigError, RunFailed
from shared.base.owners import frozen
from shared.base.records import Owners, Phase, RoundPlan, Update
from shared.base.vocabulary import SiteName
from shared.plan import lora
from shared.plan.config import Config
from shared.plan.packed import listed_by
from shared.plan.sums import Company, to_numbers
from shared.trust.privacy import Spending


class Rounds:
    """One run of a federation over any Flower grid."""

    def __init__(
        self, grid: Grid, config: Config, *, folder: Path, view: View, tracker: Tracker, validator: Validator | None
    ) -> None:
        self.grid, self.config, self.folder, self.view = grid, config, folder, view
        self.tracker, self.validator = tracker, validator
        self.method = config.build_method()
        self.settings = config.for_sites()
        self.strategy = build_strategy(config)
        self.run_name = config.name_of(folder)
        self.ledgers, self.lead = Ledgers.of(config, folder), Lead.read(folder)
        self.down = Down(file=folder / "step", how=config.federation.down)
        self.collector = Collector(
            grid=grid,
            federation=config.federation,
            lead=self.lead,
            ledgers=self.ledgers,
            receipts=Receipts(folder),
            view=view,
            down=self.down,
        )
        self.hidden = Hidden(
            collector=self.collector, federation=config.federation, config=self.settings.text(), folder=folder
        )
        self.phases = self.settings.phases(self.method)
        net = self.settings.build_net(self.method)  # for its names and first values; the network itself is not kept
        self.prior = prior.find(config)
        self.joined: dict[SiteName, int] = {}  # rounds that were done before each site's first part
        self.last: dict[SiteName, int] = {}  # each site's last round in this phase
        self.initial = prior.initial(self.prior, config, state_of(net))
        self.owners = {
            phase.name: {} if phase.kind == "sums" else self.settings.owners(self.method, net, phase.name)
            for phase in self.phases
        }
        for phase in self.phases:
            if phase.kind == "train" and not self.owners[phase.name]:
                raise ConfigError(
                    f"tuning.only={list(config.tuning.only)}: names no tensor that phase {phase.name} trains"
                )

    def run(self) -> Path:
        """All phases, from the last checkpoint on; gives the released folder."""
        handshake = Handshake(
            grid=self.grid,
            settings=self.settings,
            federation=self.config.federation,
            run=self.run_name,
            lead=self.lead,
            check=self.ledgers.greet,
            say=self.view.note,
        )
        roster = handshake.gather()
        self._cover(roster)
        self.tracker.sync()
        place = self._place()
        for index, phase in enumerate(self.phases):
            if index < place.phase:
                continue
            if place.round == 0 and self._nobody(phase, roster):
                self.view.note(f"{phase.name}: no subject of any site can train it; it stays as it is")
                place.phase = index + 1
                continue
            of = self._rounds_in(phase)
            self.view.tell(PhaseStarted(phase=phase.name, of=of, first=place.round))
            owners = self.owners[phase.name]
            if place.round == 0:
                start(place, self.strategy, owners, self.down)
            while place.round < of:
                if handshake.again(roster):
                    self._cover(roster)
                if phase.kind == "sums":
                    self._sums_round(place, phase, roster, of)
                else:
                    self._train_round(place, phase, owners, roster, of)
            self._end(place, index, owners)
        self.down.end()
        return self._release(place, roster)

    def _cover(self, roster: Roster) -> None:
        coverage = check_coverage(roster, self.method, self.config.federation.targets)
        facts.save_coverage(self.folder / "inventory.json", coverage)
        self.view.tell(CoverageFound(found=coverage))

    def _nobody(self, phase: Phase, roster: Roster) -> bool:
        """Can nobody's subjects train this phase? So with some sites alone; in a federation `targets` looks to it."""
        held = [pattern for inventory in roster.inventories.values() for pattern in inventory.patterns]
        return bool(held) and all(self.method.lacks(pattern, phase.name) is not None for pattern in held)

    def _place(self) -> Place:
        """Where the run stood when it was last saved, or its beginning."""
        scratch = self.folder / "place"
        found = restore(self.folder / "checkpoints", scratch, schema=self.settings.schema, run=self.run_name)
        first, self.initial = self.initial, {}  # on the disk from here on
        if found is None:
            return begin(scratch, first)
        for done, one in enumerate(facts.read(self.folder / "rounds.jsonl")[: found.done]):
            for site in (site for site, result in one.sites.items() if result.status == "ok"):
                self.joined.setdefault(site, done)
                if one.phase == self.phases[min(found.phase, len(self.phases) - 1)].name:
                    self.last[site] = one.round
        self.view.note(f"going on after {found.done} finished rounds")
        return found

    # --- one phase

    def _end(self, place: Place, index: int, owners: Owners) -> None:
        """Whatever no later phase trains keeps the value of its average from here on."""
        later = set().union(*(self.owners[phase.name] for phase in self.phases[index + 1 :]))
        settled = [name for name in owners if name not in later]
        ema = place.ema.entries
        place.weights = Tensors({**place.weights.entries, **{name: ema[name] for name in settled}})
        place.equal(settled)
        self.down.changed(settled)
        self.last = {}
        place.phase, place.round, place.state = index + 1, 0, Tensors({})
        self._save(place)

    def _rounds_in(self, phase: Phase) -> int:
        return phase.rounds if phase.kind == "sums" else self.config.training[phase.name].rounds

    # --- one round

    def _train_round(self, place: Place, phase: Phase, owners: Owners, roster: Roster, of: int) -> None:
        started = time.monotonic()
        options = self.config.training[phase.name]
        shelf = self._shelf(place, phase)
        try:
            answers, mean = self._updates(place, phase, owners, roster, shelf)
        except Spoilt as spoilt:  # the run goes on from the next round
            spoilt.answers.undone = str(spoilt)
            self._finish_round(place, phase, spoilt.answers, started, of=of)
            shelf.clear()
            raise
        before = place.standing()
        step(place, self.strategy, owners, mean, options, self.down)
        watched = watch(place, phase, answers)
        last = place.round + 1 == of and phase == self.phases[-1]
        validation = self._validate(place, force=last) if phase == self.phases[-1] else None
        gone = worse(validation, facts.read(self.folder / "rounds.jsonl"), self.config.validation.gate)
        if gone is not None:
            place.go_back(before)
            self.down.go_back()
            answers.undone = f"{phase.name} round {place.round}: not taken: {gone}"
            self.view.note(answers.undone)
        self._finish_round(place, phase, answers, started, of=of, mean=mean, watch=watched, validation=validation)
        shelf.clear()  # not before: of hidden updates a killed round needs these very ones
        if answers.told is None:  # of all together one site's word would end the run
            check_collapse(place, phase, watched)

    def _updates(
        self, place: Place, phase: Phase, owners: Owners, roster: Roster, shelf: Shelf
    ) -> tuple[Answers, Mean]:
        """Ask the drawn sites for a round's updates; admit each as it arrives, and hold all against each other."""
        federation = self.config.federation
        drawn = roster.drawn(phase.name, place.round, seed=self.config.seed, federation=federation)
        samples = self.config.training[phase.name].samples
        plan = dataclasses.replace(self._plan(place, phase), scales=listed_by(place.scales, owners))
        around, up = frozen(place.weights, owners), Up(how=federation.up, scales=place.scales, last=self.last)

        if federation.secure:
            part = self._part(plan, drawn, roster, shelf, frozen=around, phase=phase)
            return self.hidden.updates(part, owners, place, samples=samples)

        def take(update: Update) -> None:
            admitted = admit(update, plan, owners=owners, frozen=around, limits=federation.limits, samples=samples)
            up.check(admitted)
            check_held(admitted, roster.inventories[update.site])
            self.ledgers.accept(update, self._asks(update, phase))
            shelf.add(admitted)

        def settle() -> dict[SiteName, str]:  # a robust strategy outvotes the odd one, and needs its number
            return shelf.set_aside({} if self.strategy.needs_all else out_of_norm(shelf, federation.limits))

        values = sum(math.prod(place.weights.entries[name].shape) for name in owners)
        most = room(values, len(owners), up.width)
        ask = Ask(plan=plan, sites=tuple(drawn), most=most, shelf=shelf, take=take, settle=settle)
        answers = self.collector.collect(ask, roster)
        for site, why in up.lost.items():
            self.view.note(f"{site}: {why}")
            answers.sites[site] = dataclasses.replace(answers.sites[site], reason=answers.sites[site].reason or why)
        place.scales = up.next(answers.ok)
        every = samples * len(drawn)
        mean = mean_of(shelf, self.strategy, owners, place.weights, federation=federation, most=every)
        few = sorted(owner for owner, n in mean.holders.items() if n and owner not in mean.trained)
        if place.round == 0 and few:
            self.view.note(f"{phase.name}: keep their values, since too few sites train them: {', '.join(few)}")
        return answers, mean

    def _sums_round(self, place: Place, phase: Phase, roster: Roster, of: int) -> None:
        """Integers, so the total is the same bits in any order; what fewer sites than the policy asks for have is left
        out."""
        started, least = time.monotonic(), self.config.federation.min_holders
        totals: dict[str, Tensor] = {}
        company, shelf = Company(phase), self._shelf(place, phase)
        net = self.settings.build_net(self.method)
        load(net, place.weights)
        shapes = sums_shapes(self.method, net, phase.name, self.settings.grid)
        sites = tuple(roster.willing(phase.name))
        hidden = roster.held_by_fewer(least, sites, self.method.modalities)
        plan, around = dataclasses.replace(self._plan(place, phase), hidden=hidden), frozen(place.weights, {})

        def take(update: Update) -> None:
            admitted = admit_sums(update, plan, frozen=around, shapes=shapes, sites=len(sites))
            self.ledgers.accept(update, self._asks(update, phase))
            shelf.add(admitted)

        def settle() -> dict[SiteName, str]:
            limits = self.config.federation.limits
            return shelf.set_aside(out_of_sums(shelf, phase, roster.inventories, limits))

        most = room(sum(math.prod(shape) for shape in shapes.values()), len(shapes), 8)
        if self.config.federation.secure:
            part = self._part(plan, sites, roster, shelf, frozen=around, phase=phase)
            try:
                answers, totals, members = self.hidden.sums(part, phase, shapes)
            except Spoilt as spoilt:
                why = (
                    f"{spoilt}. Without these sums there is no model: a new run, by another name, may have other sites"
                )
                raise RunFailed(why) from None
            company = Company.told(phase, members, to_numbers(totals))
        else:
            ask = Ask(plan=plan, sites=sites, most=most, shelf=shelf, take=take, settle=settle)
            answers = self.collector.collect(ask, roster)
            for update in shelf.emptied():
                sums = dict(update.delta)
                company.meet(to_numbers(sums))
                for name, value in sums.items():
                    totals[name] = totals[name] + value if name in totals else value
        kept, left_out = company.keep(totals, least)
        if place.round == 0 and (hidden or left_out):
            few = f"{', '.join(hidden) or 'no modality'}, and {left_out} cells besides"
            self.view.note(f"{phase.name}: left out, since fewer than {least} sites hold it: {few}")
        self.method.settle(net, phase.name, to_numbers(kept))
        settled = {n: v.clone() for n, v in state_of(net).items() if not torch.equal(v, place.weights[n])}
        place.weights = Tensors({**place.weights.entries, **settled})
        place.equal(settled)
        self.down.changed(settled)
        self._finish_round(place, phase, answers, started, of=of)
        shelf.clear()

    def _part(
        self, plan: RoundPlan, sites: Sequence[SiteName], roster: Roster, shelf: Shelf, *, frozen: str, phase: Phase
    ) -> Part:
        def accept(update: Update) -> None:
            self.ledgers.accept(update, self._asks(update, phase))

        return Part(plan=plan, sites=sites, roster=roster, shelf=shelf, frozen=frozen, accept=accept)

    def _asks(self, update: Update, phase: Phase) -> Spending:
        """What a round of this phase asks of a private site's budget."""
        return {} if update.spent is None else self.settings.round_queries(phase)

    def _shelf(self, place: Place, phase: Phase) -> Shelf:
        folder = self.folder / "spool"
        return self.hidden.shelf(folder, phase.name, place.round) if self.config.federation.secure else Shelf(folder)

    def _plan(self, place: Place, phase: Phase) -> RoundPlan:
        return RoundPlan(
            run=self.run_name,
            phase=phase.name,
            round=place.round,
            config=self.settings.text(),
            schema=self.settings.schema,
            weights=place.weights,
        )

    def _validate(self, place: Place, *, force: bool) -> dict[str, float | None] | None:
        every = self.config.validation.every
        if self.validator is None or not every or ((place.round + 1) % every and not force):
            return None
        return self.validator.validate(lora.merged(place.ema), place.round)

    # --- what is kept

    def _finish_round(
        self,
        place: Place,
        phase: Phase,
        answers: Answers,
        started: float,
        *,
        of: int,
        mean: Mean | None = None,
        watch: Mapping[str, float] | None = None,
        validation: Mapping[str, float | None] | None = None,
    ) -> None:
        done = RoundFacts(
            phase=phase.name,
            round=place.round,
            of=of,
            ended=time.time(),
            seconds=time.monotonic() - started,
            loss=answers.loss,
            watch=watch or {},
            holders=mean.holders if mean else {},
            counts=mean.counts if mean else {},
            sites=answers.sites,
            bytes_up=sum(f.bytes_up for f in answers.sites.values()),
            bytes_down=sum(f.bytes_down for f in answers.sites.values()),
            refusals=answers.refusals,
            quorum=True,
            validation=validation,
        )
        facts.append(self.folder / "rounds.jsonl", done)  # first: a round done twice counts once
        place.round += 1
        place.done += 1
        for site in answers.ok:
            self.joined.setdefault(site, place.done - 1)
            self.last[site] = done.round
        self._save(place)
        self.tracker.sync(done)
        self.view.tell(RoundFinished(one=done))

    def _save(self, place: Place) -> None:
        place.save(self.folder / "checkpoints", schema=self.settings.schema, before=set(self.joined.values()))
        self.hidden.circles.done()

    def _release(self, place: Place, roster: Roster) -> Path:
        history = facts.read(self.folder / "rounds.jsonl")
        from_prior = self.prior.for_provenance() if self.prior else None
        provenance = {
            "run": self.run_name,
            "rounds": {phase.name: self._rounds_in(phase) for phase in self.phases},
            "sites": len(roster.nodes),
            "patterns": roster.patterns(self.method.modalities),
            "seed": self.config.seed,
            "code": code_version(),
            "torch": torch.__version__,
            "strategy": self.config.strategy.name,
            "last_loss": history[-1].loss if history else None,
            "privacy": ledgers.record(self.config, history, self.ledgers, from_prior),
            "data": prior.trained_on(self.config),
        }
        net = self.method.build(self.config.seed)
        load(net, lora.merged(place.ema))
        net.forget()
        return release(self.folder / "final", self.config, state_of(net), provenance)


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in net.state_dict().items()}
