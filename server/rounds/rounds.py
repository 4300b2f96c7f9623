"""The round, seen from above: plan -> roster -> send -> admit -> fold in -> step -> average -> save -> release.

A round without quorum changes nothing. Everything random is derived from (run seed, phase, round, site), and a
checkpoint is written after every round, so a killed run resumes to the same bits as an uninterrupted one.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor, nn

from server.journal import facts
from server.journal.events import CoverageFound, PhaseStarted, RoundFinished, SiteFinished, SiteStarted, View
from server.journal.facts import RoundFacts, SiteFacts
from server.journal.receipts import Receipts
from server.journal.tracking import Tracker
from server.journal.version import code_version
from server.rounds import ema, ledgers, prior
from server.rounds.admission import admit, admit_sums, sums_form
from server.rounds.aggregation import Fold, Mean, keep_untrained, scale_bits
from server.rounds.ledgers import Ledgers
from server.rounds.release import release
from server.rounds.roster import Handshake, Roster, check_coverage
from server.rounds.spool import Spool
from server.rounds.strategies import STRATEGIES, RobustStrategy, Strategy
from server.rounds.validation import Validator
from shared.base import checkpoint
from shared.base.errors import BudgetSpent, ConfigError, RunFailed, UpdateRejected
from shared.base.options import build
from shared.base.owners import frozen
from shared.base.records import Owners, Phase, RoundPlan, Update
from shared.base.vocabulary import Owner, SiteName, Weights
from shared.plan import lora, wire
from shared.plan.config import Config
from shared.plan.training import PhaseTraining

POLL_SECONDS = 0.2


@dataclass(kw_only=True)
class Place:
    """Where a run stands: exactly what a checkpoint holds."""

    phase: int
    round: int  # the next one to do
    done: int  # rounds over all phases
    weights: Weights
    ema: Weights
    state: Weights  # the strategy's
    seen: dict[Owner, int] = field(default_factory=dict)  # rounds in which each group was trained, in this phase
    first_watch: dict[str, float] = field(default_factory=dict)  # for the collapse rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One round's question and how its answers are judged."""

    plan: RoundPlan
    sites: tuple[SiteName, ...]
    take: Callable[[Update], None]  # admits and folds in, or raises UpdateRejected


@dataclass(kw_only=True)
class Answers:
    sites: dict[SiteName, SiteFacts] = field(default_factory=dict)
    metrics: dict[SiteName, Mapping[str, float]] = field(default_factory=dict)  # of the sites folded in

    @property
    def ok(self) -> list[SiteName]:
        return sorted(self.metrics)


class Rounds:
    """One run of a federation over any Flower grid."""

    def __init__(
        self, grid: Grid, config: Config, *, folder: Path, view: View, tracker: Tracker, validator: Validator | None
    ) -> None:
        self.grid, self.config, self.folder, self.view = grid, config, folder, view
        self.tracker, self.validator = tracker, validator
        self.method = config.build_method()
        self.settings = config.for_sites()
        self.strategy: Strategy = build_strategy(config)
        self.run_name = config.run or folder.name
        self.ledgers = Ledgers.of(config, folder)
        self.receipts = Receipts(folder)
        self.phases = self.settings.phases(self.method)
        net = self.settings.build_net(self.method)  # for its names and first values; the network itself is not kept
        self.prior = prior.find(config)
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
            check=self.ledgers.greet,
            say=self.view.note,
        )
        roster = handshake.gather()
        self._cover(roster)
        self.tracker.sync()
        place = self._restore()
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
                self._begin(place, owners)
            while place.round < of:
                if handshake.again(roster):
                    self._cover(roster)
                if phase.kind == "sums":
                    self._sums_round(place, phase, roster)
                else:
                    self._train_round(place, phase, owners, roster, of)
            self._end(place, index, owners)
        return self._release(place, roster)

    def _cover(self, roster: Roster) -> None:
        coverage = check_coverage(roster, self.method, self.config.federation.targets)
        facts.save_coverage(self.folder / "inventory.json", coverage)
        self.view.tell(CoverageFound(found=coverage))

    def _nobody(self, phase: Phase, roster: Roster) -> bool:
        """A site alone lacks what some phases teach; in a federation `targets` says what must be learnable."""
        held = [pattern for inventory in roster.inventories.values() for pattern in inventory.patterns]
        return bool(held) and all(self.method.lacks(pattern, phase.name) is not None for pattern in held)

    # --- one phase

    def _begin(self, place: Place, owners: Owners) -> None:
        trainable = {name: place.weights[name] for name in owners}
        place.state = self.strategy.begin(trainable)
        place.ema = {**place.ema, **trainable}  # values are never changed in place, so none is copied
        place.seen, place.first_watch = {}, {}

    def _end(self, place: Place, index: int, owners: Owners) -> None:
        """What no later phase trains goes on as its average."""
        later = set().union(*(self.owners[phase.name] for phase in self.phases[index + 1 :]))
        settled = {name: place.ema[name] for name in owners if name not in later}
        place.weights = {**place.weights, **settled}
        place.phase, place.round, place.state = index + 1, 0, {}
        self._save(place)

    def _rounds_in(self, phase: Phase) -> int:
        return 1 if phase.kind == "sums" else self.config.training[phase.name].rounds

    # --- one round

    def _train_round(self, place: Place, phase: Phase, owners: Owners, roster: Roster, of: int) -> None:
        started = time.monotonic()
        federation, options = self.config.federation, self.config.training[phase.name]
        drawn = roster.drawn(phase.name, place.round, seed=self.config.seed, federation=federation)
        samples = options.steps * options.batch
        fold: Fold | Spool
        if self.strategy.needs_all:
            fold = Spool(self.folder / "spool", owners, place.weights)
        else:
            bits = scale_bits(max_abs=federation.limits.entry, max_count=samples * len(drawn))
            fold = Fold(owners, place.weights, bits=bits, estimator=federation.estimator)

        around = frozen(place.weights, owners)

        def take(update: Update) -> None:
            admitted = admit(
                update,
                run=self.run_name,
                phase=phase.name,
                round=place.round,
                schema=self.settings.schema,
                weights=place.weights,
                owners=owners,
                frozen=around,
                limits=federation.limits,
                samples=samples,
            )
            self.ledgers.accept(update)
            fold.add(admitted)

        answers = self._collect(Ask(plan=self._plan(place, phase), sites=tuple(drawn), take=take), roster)
        mean = self._mean(fold)
        self._step(place, owners, mean, options)
        mean = dataclasses.replace(mean, delta={})  # a model's size of memory, not needed any more
        watch = self._watch(place, phase, answers)
        last = place.round + 1 == of and phase == self.phases[-1]
        validation = self._validate(place, force=last) if phase == self.phases[-1] else None
        self._finish_round(place, phase, answers, started, of=of, mean=mean, watch=watch, validation=validation)
        self._check_collapse(place, phase, watch)

    def _sums_round(self, place: Place, phase: Phase, roster: Roster) -> None:
        """Sums are small: kept by site and added in the order of names, so the total is the same bits each time."""
        started = time.monotonic()
        kept: dict[SiteName, Weights] = {}
        net = self.settings.build_net(self.method)
        net.load_state_dict(dict(place.weights))
        form = sums_form(self.method, net, phase.name, self.settings.grid)
        around = frozen(place.weights, {})

        def take(update: Update) -> None:
            admitted = admit_sums(
                update,
                run=self.run_name,
                phase=phase.name,
                round=place.round,
                schema=self.settings.schema,
                frozen=around,
                form=form,
            )
            self.ledgers.accept(update)
            kept[update.site] = admitted.delta

        sites = tuple(roster.willing(phase.name))
        answers = self._collect(Ask(plan=self._plan(place, phase), sites=sites, take=take), roster)
        totals: dict[str, Tensor] = {}
        for site in sorted(kept):
            for name, value in kept[site].items():
                totals[name] = totals[name] + value if name in totals else value
        self.method.settle(net, phase.name, totals)
        settled = {n: v for n, v in state_of(net).items() if not torch.equal(v, place.weights[n])}
        place.weights, place.ema = {**place.weights, **settled}, {**place.ema, **settled}
        self._finish_round(place, phase, answers, started, of=1)

    def _plan(self, place: Place, phase: Phase) -> RoundPlan:
        return RoundPlan(
            run=self.run_name,
            phase=phase.name,
            round=place.round,
            config=self.settings.text(),
            schema=self.settings.schema,
            weights=place.weights,
        )

    def _collect(self, ask: Ask, roster: Roster) -> Answers:
        """Send, wait, admit, fold in; ask again those that gave nothing. Without quorum: RunFailed, nothing changed."""
        federation, answers = self.config.federation, Answers()
        content = wire.pack_plan(ask.plan)
        waiting = list(ask.sites)
        for attempt in range(federation.retries + 1):
            self._attempt(ask, roster, content, waiting, answers)
            if len(answers.ok) >= federation.min_sites:
                return answers
            waiting = [site for site in ask.sites if answers.sites[site].status in ("error", "timeout")]
            if not waiting:
                break
            if attempt < federation.retries:
                self.view.note(f"no quorum ({len(answers.ok)} of {federation.min_sites}): asking {waiting} again")
        said = {site: f"{f.status} {f.reason}" for site, f in answers.sites.items() if f.status != "ok"}
        reasons = "; ".join(f"{site}: {why}" for site, why in {**roster.unwilling(ask.plan.phase), **said}.items())
        raise RunFailed(
            f"{ask.plan.phase} round {ask.plan.round}: {len(answers.ok)} updates admitted, "
            f"min_sites={federation.min_sites} after {federation.retries} retries ({reasons}); nothing was changed"
        )

    def _attempt(
        self, ask: Ask, roster: Roster, content: RecordDict, waiting: list[SiteName], answers: Answers
    ) -> None:
        deadline = self.config.federation.deadline
        end = time.monotonic() + deadline
        sent: dict[str, SiteName] = {}
        down = wire.size(content)
        for site in waiting:
            own = wire.address(content, self.ledgers.known(site))
            message = Message(own, roster.nodes[site], MessageType.TRAIN, ttl=deadline, group_id=str(ask.plan.round))
            (message_id,) = self.grid.push_messages([message])
            sent[message_id] = site
        while sent and time.monotonic() < end:
            arrived = 0
            for message_id, site in list(sent.items()):  # one id a pull: one update alive at a time
                if time.monotonic() > end:
                    break
                self.view.tell(SiteStarted(site=site))
                for reply in self.grid.pull_messages([message_id]):
                    del sent[message_id]
                    arrived += 1
                    answers.sites[site] = self._received(reply, site, ask, answers, roster, down)
                    self.view.tell(SiteFinished(site=site, result=answers.sites[site]))
            if sent and not arrived:
                time.sleep(POLL_SECONDS)
        for site in sent.values():
            answers.sites[site] = SiteFacts(status="timeout", reason=f"no answer in {deadline:.0f} s", bytes_down=down)
            self.view.tell(SiteFinished(site=site, result=answers.sites[site]))

    def _received(
        self, reply: Message, site: SiteName, ask: Ask, answers: Answers, roster: Roster, down: int
    ) -> SiteFacts:
        """Judged, with a receipt kept of it; taken first, since reading an update empties it."""
        came = None if reply.has_error() else wire.received(reply.content)
        found = self._judge(reply, site, ask, answers, roster, down)
        if came is not None:
            self.receipts.keep(site, ask.plan, came, found)
        return found

    def _judge(
        self, reply: Message, site: SiteName, ask: Ask, answers: Answers, roster: Roster, down: int
    ) -> SiteFacts:
        if reply.has_error():
            return SiteFacts(status="error", reason=f"{reply.error.code}: {reply.error.reason}", bytes_down=down)
        up = wire.size(reply.content)
        refusal = wire.refusal_in(reply.content)
        if refusal is not None:
            status: facts.Status = "error" if isinstance(refusal, RunFailed) else "refused"
            if isinstance(refusal, BudgetSpent):
                roster.left[site] = str(refusal)
                self.view.note(f"{site} leaves the roster: {refusal}")
            return SiteFacts(status=status, reason=str(refusal), bytes_up=up, bytes_down=down)
        try:
            update = wire.unpack_update(reply, site)
            ask.take(update)
        except UpdateRejected as rejected:
            return SiteFacts(status="rejected", reason=str(rejected), bytes_up=up, bytes_down=down)
        answers.metrics[site] = update.metrics
        return SiteFacts(
            status="ok",
            loss=update.metrics.get("loss"),
            samples=int(update.metrics.get("samples", 0)),
            seconds=update.metrics.get("seconds", 0.0),
            bytes_up=up,
            bytes_down=down,
            epsilon_spent=None if update.spent is None else update.spent.epsilon,
        )

    # --- arithmetic

    def _mean(self, fold: Fold | Spool) -> Mean:
        min_holders = self.config.federation.min_holders
        if isinstance(fold, Fold):
            return fold.mean(min_holders=min_holders)
        robust: RobustStrategy = self.strategy  # type: ignore[assignment]  # needs_all says that it is one
        mean = fold.mean(robust, min_holders=min_holders)
        fold.clear()
        return mean

    def _step(self, place: Place, owners: Owners, mean: Mean, options: PhaseTraining) -> None:
        old = {name: place.weights[name] for name in owners}
        stepped, state = self.strategy.step(old, mean.delta, place.state)
        kept = keep_untrained(old, stepped, owners, mean.trained)
        place.weights = {**place.weights, **kept}
        by_kind = {key: owners[key.split("/", 1)[1]] for key in state}
        place.state = keep_untrained(place.state, state, by_kind, mean.trained)
        place.ema, place.seen = ema.follow(
            place.ema,
            place.weights,
            owners,
            mean.trained,
            place.seen,
            decay=options.ema,
            steps=options.steps,
        )

    def _watch(self, place: Place, phase: Phase, answers: Answers) -> dict[str, float]:
        """What the phase keeps an eye on: the median over sites, which one of three or more can't move at will."""
        if phase.collapse is None:
            return {}
        name = phase.collapse[0]
        values = [m[name] for site in answers.ok if name in (m := answers.metrics[site])]
        if not values:
            return {}
        watch = {name: median(values)}
        place.first_watch = watch | place.first_watch
        return watch

    def _check_collapse(self, place: Place, phase: Phase, watch: Mapping[str, float]) -> None:
        if phase.collapse is None:
            return
        name, fraction = phase.collapse
        if name in watch and watch[name] < fraction * place.first_watch[name]:
            raise RunFailed(
                f"{phase.name} round {place.round - 1}: {name} fell to {watch[name]:.3g} from "
                f"{place.first_watch[name]:.3g}, below {fraction:g} of its start: the features have collapsed"
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
            loss=_weighted_loss(answers),
            watch=watch or {},
            holders=mean.holders if mean else {},
            counts=mean.counts if mean else {},
            sites=answers.sites,
            bytes_up=sum(f.bytes_up for f in answers.sites.values()),
            bytes_down=sum(f.bytes_down for f in answers.sites.values()),
            refusals=tuple(f.reason for f in answers.sites.values() if f.status in ("refused", "rejected")),
            quorum=True,
            validation=validation,
        )
        facts.append(self.folder / "rounds.jsonl", done)  # first: a round done twice counts once
        place.round += 1
        place.done += 1
        self._save(place)
        self.tracker.sync(done)
        self.view.tell(RoundFinished(one=done))

    def _save(self, place: Place) -> None:
        tensors = {f"weights/{name}": value for name, value in place.weights.items()}
        averaged = {n: v for n, v in place.ema.items() if v is not place.weights.get(n)}
        tensors |= {f"ema/{name}": value for name, value in averaged.items()}
        tensors |= {f"state/{name}": value for name, value in place.state.items()}
        record = {
            "phase": place.phase,
            "round": place.round,
            "done": place.done,
            "seen": place.seen,
            "first_watch": place.first_watch,
            "schema": self.settings.schema,
        }
        step = 2 * place.done + (place.round == 0)  # the end of a phase comes after its last round
        checkpoint.save_step(self.folder / "checkpoints", step, tensors, record)

    def _restore(self) -> Place:
        found = checkpoint.load_latest(self.folder / "checkpoints")
        if found is None:
            first, self.initial = self.initial, {}  # not held beside the weights of later rounds
            return Place(phase=0, round=0, done=0, weights=first, ema=first, state={})
        self.initial = {}
        tensors, record = found
        if record["schema"] != self.settings.schema:
            raise ConfigError(f"resume={self.run_name}: its checkpoint is of another method, grid or version of lacuna")
        group: dict[str, dict[str, Tensor]] = {"weights": {}, "ema": {}, "state": {}}
        for key, value in tensors.items():
            kind, name = key.split("/", 1)
            group[kind][name] = value
        self.view.note(f"going on after {record['done']} finished rounds")
        return Place(
            phase=record["phase"],
            round=record["round"],
            done=record["done"],
            weights=group["weights"],
            ema={**group["weights"], **group["ema"]},
            state=group["state"],
            seen=record["seen"],
            first_watch=record["first_watch"],
        )

    def _release(self, place: Place, roster: Roster) -> Path:
        history = facts.read(self.folder / "rounds.jsonl")
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
            "privacy": ledgers.record(self.config, history, self.ledgers, self.prior.told() if self.prior else None),
            "data": prior.trained_on(self.config),
        }
        return release(self.folder / "final", self.config, lora.merged(place.ema), provenance)


def build_strategy(config: Config) -> Strategy:
    name = config.strategy.name
    if name not in STRATEGIES:
        raise ConfigError(f"strategy={name}: must be one of {', '.join(STRATEGIES)}")
    strategy = build(STRATEGIES[name], config.strategy.options, "strategy")
    if strategy.needs_all and config.federation.estimator == "delta":
        raise ConfigError(f"federation.estimator=delta: strategy {name} has no such form, only masked")
    return strategy


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in net.state_dict().items()}


def _weighted_loss(answers: Answers) -> float | None:
    weighted = [(m["loss"], m["samples"]) for m in answers.metrics.values() if "loss" in m and m.get("samples")]
    total = sum(n for _, n in weighted)
    return sum(loss * n for loss, n in weighted) / total if total else None
