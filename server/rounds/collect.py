"""One round's plan, sent to its sites, and their answers: waited for, judged, and asked for again without quorum."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from server.federation.lead import Lead
from server.journal.events import SiteFinished, SiteStarted, View
from server.journal.facts import SiteFacts, Status
from server.journal.receipts import Receipts
from server.mail import Lost, forget, pull, push
from server.rounds.ledgers import Ledgers
from server.rounds.roster import Roster
from server.rounds.spool import Shelf
from shared.base.errors import BudgetSpent, RunFailed, UpdateRejected
from shared.base.records import RoundPlan, Update
from shared.base.vocabulary import SiteName
from shared.plan import sealed, wire
from shared.plan.config import Federation

POLL_SECONDS = 0.2
NAMED, BESIDE = 256, 2**20  # bytes of a tensor's name and form, and of all that is no tensor


def room(values: int, tensors: int, width: int) -> int:
    """The most bytes of an answer with so many values of so many bytes; Flower adds little to each object."""
    return values * width + values * width // 64 + tensors * NAMED + BESIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One round's question and how its answers are judged."""

    plan: RoundPlan
    sites: tuple[SiteName, ...]
    most: int  # bytes of an answer
    shelf: Shelf  # where its tensors go as they come
    take: Callable[[Update], None]  # admits and keeps, or raises UpdateRejected
    settle: Callable[[], Mapping[SiteName, str]] = dict  # takes out again what differs from all others', and says why
    quorum: int | None = None  # admitted updates without which nothing is changed; None: the federation's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one site was sent."""

    question: str  # its hash
    bytes: int


@dataclass(kw_only=True)
class Answers:
    sites: dict[SiteName, SiteFacts] = field(default_factory=dict)
    metrics: dict[SiteName, Mapping[str, float]] = field(default_factory=dict)  # of the sites folded in
    came: dict[SiteName, sealed.Received] = field(default_factory=dict)
    weights: str = ""  # the hash of what they were asked with
    told: Mapping[str, float] | None = None  # of all together, where no site's own is seen

    undone: str = ""  # why the round is not taken after all

    @property
    def refusals(self) -> tuple[str, ...]:
        said = tuple(one.reason for one in self.sites.values() if one.status in ("refused", "rejected"))
        return (*said, self.undone) if self.undone else said

    @property
    def ok(self) -> list[SiteName]:
        return sorted(self.metrics)

    @property
    def loss(self) -> float | None:
        """The mean over the sites, weighed by their samples."""
        if self.told is not None:
            return self.told.get("loss")
        weighted = [(m["loss"], m["samples"]) for m in self.metrics.values() if "loss" in m and m.get("samples")]
        total = sum(n for _, n in weighted)
        return sum(loss * n for loss, n in weighted) / total if total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Carries a round's messages over any Flower grid."""

    grid: Grid
    federation: Federation
    lead: Lead
    ledgers: Ledgers
    receipts: Receipts
    view: View
    late: list[str] = field(default_factory=list)  # questions whose deadline is over, and that may be answered yet

    def collect(self, ask: Ask, roster: Roster) -> Answers:
        """Send, wait, admit, fold in; ask again those that gave nothing. Without quorum: RunFailed, nothing changed."""
        federation, packed = self.federation, wire.pack_weights(ask.plan.weights)
        answers, quorum = Answers(weights=packed.sha256), ask.quorum or federation.min_sites
        waiting = list(ask.sites)
        for attempt in range(federation.retries + 1):
            self._attempt(ask, roster, packed, waiting, answers)
            for site, why in ask.settle().items():
                answers.sites[site] = replace(answers.sites[site], status="rejected", reason=why)
                del answers.metrics[site]
                self.receipts.keep(site, ask.plan, answers.came[site], answers.sites[site], after=True)
                self.view.tell(SiteFinished(site=site, result=answers.sites[site]))
            if len(answers.ok) >= quorum:
                return answers
            waiting = [site for site in ask.sites if answers.sites[site].status in ("error", "timeout")]
            if not waiting:
                break
            if attempt < federation.retries:
                self.view.note(f"no quorum ({len(answers.ok)} of {quorum}): asking {waiting} again")
        key = "min_sites" if quorum == federation.min_sites else "quorum"
        said = {site: f"{f.status} {f.reason}" for site, f in answers.sites.items() if f.status != "ok"}
        reasons = "; ".join(f"{site}: {why}" for site, why in {**roster.unwilling(ask.plan.phase), **said}.items())
        raise RunFailed(
            f"{ask.plan.phase} round {ask.plan.round}: {len(answers.ok)} updates admitted, "
            f"{key}={quorum} after {federation.retries} retries ({reasons}); nothing was changed"
        )

    def _attempt(
        self, ask: Ask, roster: Roster, packed: wire.Packed, waiting: list[SiteName], answers: Answers
    ) -> None:
        deadline = self.federation.deadline
        end = time.monotonic() + deadline
        forget(self.grid, self.late)
        asked: dict[SiteName, Asked] = {}
        messages = []
        for site in waiting:
            plan = replace(ask.plan, known=self.ledgers.known(site))
            own = wire.pack_plan(plan, packed, self.lead.leader, to=site, until=time.time() + deadline)
            asked[site] = Asked(question=wire.question(own), bytes=sealed.size(own))
            messages.append(
                Message(own, roster.nodes[site], MessageType.TRAIN, ttl=deadline, group_id=str(ask.plan.round))
            )
        sent = dict(zip(push(self.grid, messages), waiting, strict=True))  # the weights once for all
        while sent and time.monotonic() < end:
            arrived = 0
            for message_id, site in list(sent.items()):  # one id a pull: one update alive at a time
                if time.monotonic() > end:
                    break
                self.view.tell(SiteStarted(site=site))
                for reply in pull(self.grid, message_id, most=ask.most):
                    del sent[message_id]
                    arrived += 1
                    answers.sites[site] = self._received(reply, site, ask, answers, roster, asked[site])
                    self.view.tell(SiteFinished(site=site, result=answers.sites[site]))
            if sent and not arrived:
                time.sleep(POLL_SECONDS)
        forget(self.grid, list(sent))
        self.late.extend(sent)
        for site in sent.values():
            answers.sites[site] = SiteFacts(
                status="timeout", reason=f"no answer in {deadline:.0f} s", bytes_down=asked[site].bytes
            )
            self.view.tell(SiteFinished(site=site, result=answers.sites[site]))

    def _received(
        self, reply: Message, site: SiteName, ask: Ask, answers: Answers, roster: Roster, asked: Asked
    ) -> SiteFacts:
        """Judge a reply that this site signed, and keep a receipt of it, whose figures are taken first."""
        down = asked.bytes
        if reply.has_error():
            return SiteFacts(status="error", reason=f"{reply.error.code}: {reply.error.reason}", bytes_down=down)
        try:
            came = answers.came[site] = sealed.receive(reply.content, onto=ask.shelf.file(site))
        except Lost as lost:  # asked again
            ask.shelf.drop(site)
            return SiteFacts(status="error", reason=str(lost), bytes_down=down)
        try:
            if came.site != site:
                raise UpdateRejected(f"{site}: its reply is signed in the name of {came.site or 'nobody'}")
            came.check(asked.question, self.lead.sites)
            found = self._judge(reply, site, ask, answers, roster, down)
        except UpdateRejected as rejected:
            found = SiteFacts(status="rejected", reason=str(rejected), bytes_up=came.bytes, bytes_down=down)
        if found.status != "ok":
            ask.shelf.drop(site)
        self.receipts.keep(site, ask.plan, came, found)
        return found

    def _judge(
        self, reply: Message, site: SiteName, ask: Ask, answers: Answers, roster: Roster, down: int
    ) -> SiteFacts:
        up = sealed.size(reply.content)
        refusal = wire.refusal_in(reply.content)
        if refusal is not None:
            status: Status = "error" if isinstance(refusal, RunFailed) else "refused"
            if isinstance(refusal, BudgetSpent):
                roster.left[site] = str(refusal)
                self.view.note(f"{site} leaves the roster: {refusal}")
            return SiteFacts(status=status, reason=str(refusal), bytes_up=up, bytes_down=down)
        update = wire.unpack_update(reply, site)
        ask.take(update)
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
