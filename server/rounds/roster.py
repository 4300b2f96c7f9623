"""Who takes part: nodes found, inventories taken, and whether the federation can teach what the run asks for."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from server.federation.lead import Lead
from server.flower import bundle_refused
from server.journal.facts import Coverage, coverage
from server.mail import Lost, pull
from shared.base.errors import ConfigError, LacunaError, PlanRefused, PlanWaits, RunFailed, UpdateRejected
from shared.base.randomness import seed_of
from shared.base.records import Inventory
from shared.base.vocabulary import Modality, SiteName
from shared.methods import Method
from shared.plan import sealed, wire
from shared.plan.config import Federation
from shared.plan.settings import RunSettings

POLL_SECONDS = 0.5
ASK_AGAIN_SECONDS = 5.0  # between two looks at whether a person said yes, before round 1
MOST = 2**22  # bytes of an inventory
SILENT = "no answer to the handshake"


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """The sites of a run, by name, and what each holds."""

    nodes: dict[SiteName, int]
    inventories: dict[SiteName, Inventory]
    refusals: dict[str, str]  # sites, or nodes, that said no at the handshake
    left: dict[SiteName, str] = field(default_factory=dict)  # since then, for good, and why

    def willing(self, phase: str) -> list[SiteName]:
        return [
            site for site in sorted(self.nodes) if phase not in self.inventories[site].refused and site not in self.left
        ]

    def unwilling(self, phase: str) -> dict[SiteName, str]:
        """Why each of the others takes no part."""
        refused = {site: self.inventories[site].refused.get(phase) for site in sorted(self.nodes)}
        return {site: why for site, why in refused.items() if why is not None} | self.left

    def held_by_fewer(
        self, least: int, sites: Sequence[SiteName], modalities: Sequence[Modality]
    ) -> tuple[Modality, ...]:
        """Which modalities some of these sites hold, and fewer than so many."""
        holders = {m: sum(m in self.inventories[site].summed for site in sites) for m in modalities}
        return tuple(m for m, n in holders.items() if 0 < n < least)

    def drawn(self, phase: str, round: int, *, seed: int, federation: Federation) -> list[SiteName]:
        """Choose the sites asked in a round: all that are willing, or a fraction of them drawn by seed."""
        willing = self.willing(phase)
        n = max(min(federation.min_sites, len(willing)), round_up(federation.fraction * len(willing)))
        ordered = sorted(willing, key=lambda site: seed_of(seed, phase, round, site, "roster"))
        return sorted(ordered[:n])

    def patterns(self, modalities: Sequence[Modality]) -> list[list[Modality]]:
        """Which modalities some training subject has together: no count, no site."""
        found = {pattern for inventory in self.inventories.values() for pattern in inventory.patterns}
        return sorted(([m for m in modalities if m in pattern] for pattern in found), key=lambda p: (len(p), p))


def round_up(value: float) -> int:
    return -int(-value // 1)


@dataclass(kw_only=True)
class Handshake:
    """Asks nodes what they hold; between rounds also those that came since, did not answer, or wait for a person's yes.

    `check` raises UpdateRejected for a site that can't take part.
    """

    grid: Grid
    settings: RunSettings
    federation: Federation
    run: str
    lead: Lead
    check: Callable[[Inventory], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
    waiting: dict[int, str] = field(default_factory=dict)  # node -> why it has no part yet
    under_way: dict[int, str] = field(default_factory=dict)  # node -> the message that asks it again
    questions: dict[int, str] = field(default_factory=dict)  # node -> the hash of what it was asked last
    settled: set[int] = field(default_factory=set)  # nodes that have said what they hold, or no
    gathered: bool = False

    def gather(self) -> Roster:
        """Before round 1: wait for the quorum, ask every node, refuse duplicates by name.

        Where only people's yes is lacking for the quorum, they are waited for until the deadline.
        """
        federation, end = self.federation, time.monotonic() + self.federation.deadline
        roster = Roster(nodes={}, inventories={}, refusals={})
        expected = federation.min_sites if federation.named is None else len(federation.named)
        nodes = wait_for_nodes(self.grid, expected, federation.deadline)
        while True:
            for node, reply in self._ask(nodes):
                self._hear(node, reply, roster)
            nodes = [node for node, why in self.waiting.items() if why != SILENT]
            if len(roster.nodes) >= federation.min_sites or not nodes or time.monotonic() > end:
                break
            time.sleep(ASK_AGAIN_SECONDS)
        if not federation.mixed_preparation:
            for site, why in mixed(roster.inventories).items():
                roster.refusals[site] = why
                self.say(f"refused: {site}: {why}")
                del roster.nodes[site], roster.inventories[site]
        if len(roster.nodes) < federation.min_sites:
            reasons = "; ".join(sorted({**roster.refusals, **_by_node(self.waiting)}.values())) or "no more nodes came"
            raise RunFailed(
                f"min_sites={federation.min_sites}: only {len(roster.nodes)} sites passed the handshake: {reasons}"
            )
        self.gathered = True
        return roster

    def again(self, roster: Roster) -> bool:
        """Between rounds: whoever has come, or says yes by now, joins. Nobody's answer is waited for here."""
        before = len(roster.nodes)
        for node in sorted({*self.waiting, *self.grid.get_node_ids()} - self.settled):
            if node not in self.under_way:
                (message_id,) = self.grid.push_messages([self._message(node)])
                if not message_id:  # Flower could not take it
                    continue
                self.under_way[node] = message_id
            for reply in pull(self.grid, self.under_way[node], most=MOST):
                del self.under_way[node]
                self._hear(node, reply, roster)
        return len(roster.nodes) > before

    def _check_like(self, inventory: Inventory, roster: Roster) -> None:
        """A late site's images must be prepared as the run's are by now."""
        known = {one.preparation for one in roster.inventories.values()}
        if len(known) == 1 and inventory.preparation not in known:
            raise UpdateRejected(f"{inventory.site}: {_unlike(inventory.preparation, *known)}")

    def _ask(self, nodes: Sequence[int]) -> list[tuple[int, Message | None]]:
        """One query to every node; None for those that did not answer in time."""
        sent = {}
        for node in nodes:
            (sent[node],) = self.grid.push_messages([self._message(node)])
        replies: dict[int, Message] = {}
        end = time.monotonic() + self.federation.deadline
        while len(replies) < len(sent) and time.monotonic() < end:
            for node, message_id in sent.items():
                if node not in replies:
                    for reply in pull(self.grid, message_id, most=MOST):
                        replies[node] = reply
            if len(replies) < len(sent):
                time.sleep(POLL_SECONDS)
        return [(node, replies.get(node)) for node in nodes]

    def _message(self, node: int) -> Message:
        query = wire.Query(run=self.run, config=self.settings.text(), schema=self.settings.schema)
        content = wire.pack_query(query, self.lead.leader, until=time.time() + self.federation.deadline)
        self.questions[node] = wire.question(content)
        return Message(content, node, MessageType.QUERY, ttl=self.federation.deadline, group_id="handshake")

    def _hear(self, node: int, reply: Message | None, roster: Roster) -> None:
        known, why = self.waiting.pop(node, None), SILENT
        try:
            if reply is not None and bundle_refused(reply):
                raise PlanRefused(f"node {node}: {reply.error.reason}")  # said by client/node/supernode.py
            if reply is not None and not reply.has_error():
                self._admit(node, reply, roster)
                self.settled.add(node)
                return
        except (PlanWaits, Lost) as error:
            why = str(error)
        except LacunaError as error:
            roster.refusals[f"node {node}"] = str(error)
            self.settled.add(node)
            self.say(f"refused: {error}")
            return
        self.waiting[node] = why
        if why != known:
            self.say(f"node {node}: {why}")

    def _admit(self, node: int, reply: Message, roster: Roster) -> None:
        came = sealed.receive(reply.content)
        came.check(self.questions[node], self.lead.sites)
        refusal = wire.refusal_in(reply.content)
        if refusal is not None:
            raise refusal
        inventory = wire.unpack_inventory(reply.content)
        site, wanted = inventory.site, self.federation.named
        if site != came.site:
            raise UpdateRejected(f"{came.site}: calls itself {site}")
        if site in self.federation.without:
            raise UpdateRejected(f"{site}: takes no part in this run (federation.without)")
        if inventory.schema != self.settings.schema:
            raise UpdateRejected(f"{site}: schema {inventory.schema[:12]} differs from the run's")
        if site in roster.nodes:
            raise UpdateRejected(f"{site}: a second node calls itself so")
        self.check(inventory)
        if self.gathered and not self.federation.mixed_preparation:
            self._check_like(inventory, roster)
        if wanted is None or site in wanted:
            roster.nodes[site], roster.inventories[site] = node, inventory


def mixed(inventories: Mapping[SiteName, Inventory]) -> dict[SiteName, str]:
    """Sites whose images were prepared unlike the others', and why they are refused.

    What most of the willing sites have is the run's preparation; among equals, that of the first site by name. A site
    that takes no part in some phase has no vote.
    """
    digests = [inventories[site].preparation for site in sorted(inventories) if not inventories[site].refused]
    if not digests:
        return {}
    chosen = max(dict.fromkeys(digests), key=digests.count)  # the first of the most common
    return {
        site: _unlike(inventory.preparation, chosen)
        for site, inventory in sorted(inventories.items())
        if inventory.preparation != chosen
    }


def _unlike(preparation: str, chosen: str) -> str:
    return (
        f"its images were prepared as {_named(preparation)}, the run's as {_named(chosen)}: ingest and prepare them "
        "again with the options of the others, or set federation.mixed_preparation=true"
    )


def _by_node(waiting: Mapping[int, str]) -> dict[str, str]:
    return {f"node {node}": why for node, why in waiting.items()}


def _named(digest: str) -> str:
    return digest[:12] or "(not by lacuna-site ingest)"


def check_coverage(roster: Roster, method: Method, targets: Sequence[Modality] | None) -> Coverage:
    """Find what can be taught at all. A target that nobody holds, or holds beside no other modality, is PlanRefused."""
    found = coverage(list(roster.inventories.values()), method.modalities)
    for target in method.targets if targets is None else targets:
        if target not in method.targets:
            raise ConfigError(f"federation.targets={target}: the method makes {', '.join(method.targets)}")
        if found.holders(target) == 0:
            raise PlanRefused(
                f"federation.targets={target}: no site holds {target}, so nobody can supervise it; "
                f"leave it out or bring in a site that has it"
            )
        if len(method.modalities) > 1 and not any(
            found.pairs[source][target].sites for source in method.modalities if source != target
        ):
            raise PlanRefused(
                f"federation.targets={target}: no subject at any site has {target} beside another modality, "
                f"so no source -> {target} pair can be supervised"
            )
    return found


def wait_for_nodes(grid: Grid, expected: int, deadline: float) -> list[int]:
    end = time.monotonic() + deadline
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= expected:
            return nodes
        if time.monotonic() > end:
            raise RunFailed(f"deadline={deadline:.0f}: {len(nodes)} nodes connected, {expected} are needed")
        time.sleep(POLL_SECONDS)
