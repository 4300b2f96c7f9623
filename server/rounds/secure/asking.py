"""Questions beside a round's work: each site is asked its own; its answer bears its signature, and gets a receipt."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.federation.lead import Lead
from server.journal.facts import SiteFacts, Status
from server.journal.receipts import Receipts
from server.mail import Lost, forget, pull, push
from shared.base.errors import LacunaError, UpdateRejected
from shared.base.vocabulary import SiteName
from shared.plan import sealed, wire
from shared.trust.secure.circle import Circle

POLL_SECONDS = 0.1
Hear: TypeAlias = Callable[[SiteName, RecordDict], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    grid: Grid
    lead: Lead
    receipts: Receipts
    deadline: float

    def until(self) -> float:
        """How long a question of now is good for."""
        return time.time() + self.deadline

    def ask(
        self,
        circle: Circle,
        questions: Mapping[SiteName, RecordDict],
        nodes: Mapping[SiteName, int],
        *,
        most: int,
        hear: Hear,
        enough: Callable[[], bool] = lambda: False,
    ) -> dict[SiteName, SiteFacts]:
        """Ask each; gives what is known of those that are not heard.

        `hear` raises UpdateRejected for an answer that is none. Once there is `enough`, nobody else is waited for.
        """
        end, why = time.monotonic() + self.deadline, dict[SiteName, SiteFacts]()
        asked = {site: wire.question(content) for site, content in questions.items()}
        messages = [
            Message(content, nodes[site], MessageType.QUERY, ttl=self.deadline, group_id=str(circle.round))
            for site, content in questions.items()
        ]
        sent = dict(zip(push(self.grid, messages), questions, strict=True))
        while sent and not enough() and time.monotonic() < end:
            arrived = 0
            for message_id, site in list(sent.items()):
                for reply in pull(self.grid, message_id, most=most):
                    del sent[message_id]
                    arrived += 1
                    said = self._heard(reply, site, circle, asked[site], hear)
                    if said is not None:
                        why[site] = said
            if sent and not arrived:
                time.sleep(POLL_SECONDS)
        forget(self.grid, list(sent))
        late = SiteFacts(status="timeout", reason=f"no answer in {self.deadline:.0f} s")
        return why | dict.fromkeys(sent.values(), late)

    def _heard(
        self,
        reply: Message,
        site: SiteName,
        circle: Circle,
        question: str,
        hear: Hear,
    ) -> SiteFacts | None:
        if reply.has_error():
            return SiteFacts(status="error", reason=f"{reply.error.code}: {reply.error.reason}")
        try:
            came = sealed.receive(reply.content)
        except Lost as lost:
            return SiteFacts(status="error", reason=str(lost))
        try:
            if came.site != site:
                raise UpdateRejected(f"{site}: its reply is signed in the name of {came.site or 'nobody'}")
            came.check(question, self.lead.sites)
            refusal = wire.refusal_in(reply.content)
            if refusal is not None:
                raise refusal
            hear(site, reply.content)
        except LacunaError as error:
            status: Status = "rejected" if isinstance(error, UpdateRejected) else "refused"
            found = SiteFacts(status=status, reason=str(error), bytes_up=came.bytes)
            self.receipts.keep(site, circle, came, found)
            return found
        self.receipts.keep(site, circle, came, SiteFacts(status="ok", bytes_up=came.bytes))
        return None
