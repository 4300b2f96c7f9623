"""Flower ClientApp: wiring only. The same app runs in `lacuna simulate`, in Ray and on a SuperNode."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.round import secure, work
from client.site.keys import federation_key, own_key
from client.site.ledger import LEDGER, Ledger
from client.site.plans import answer_once
from client.site.site import Site, find_site, own_values
from client.site.told import told
from shared.base.chain import Link
from shared.base.errors import ConfigError, LacunaError, PlanRefused, RunFailed
from shared.plan import sealed, wire
from shared.plan.beside import Deal, Reveal, pack_shares
from shared.trust.warrant import Reader

log = logging.getLogger("lacuna.site")
app = ClientApp()
Asked: TypeAlias = dict[str, str | int]  # run, phase, round
Work: TypeAlias = "Callable[[Site, RecordDict, Reader, Asked], RecordDict]"


@app.query()
def inventory(message: Message, context: Context) -> Message:
    """What this site holds, before round 1; and what it is asked beside a round's work."""
    asked = next((do for what, do in _BESIDE.items() if what in message.content.config_records), _inventory)
    return _answer(message, context, asked)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of local work."""
    return _answer(message, context, _round)


def _inventory(site: Site, content: RecordDict, reader: Reader, asked: Asked) -> RecordDict:
    query = wire.unpack_query(content, reader)
    answer_once(site, wire.question(content))
    asked["run"] = query.run
    return wire.pack_inventory(work.take_inventory(site, query.run, query.config, query.schema))


def _round(site: Site, content: RecordDict, reader: Reader, asked: Asked) -> RecordDict:
    plan = wire.unpack_plan(content, reader)
    answer_once(site, wire.question(content))
    asked |= {"run": plan.run, "phase": plan.phase, "round": plan.round}
    return wire.pack_update(work.do_round(site, plan))


def _deal(site: Site, content: RecordDict, reader: Reader, asked: Asked) -> RecordDict:
    question = Deal.read(content, reader)
    answer_once(site, wire.question(content))
    asked |= {"run": question.circle.run, "phase": question.circle.phase, "round": question.circle.round}
    return work.do_deal(site, question).pack(site.name)


def _reveal(site: Site, content: RecordDict, reader: Reader, asked: Asked) -> RecordDict:
    question = Reveal.read(content, reader)
    answer_once(site, wire.question(content))
    asked |= {"run": question.circle.run, "phase": question.circle.phase, "round": question.circle.round}
    return pack_shares(site.name, secure.reveal(site, question.circle, question.survivors, question.sealed))


_BESIDE: Mapping[str, Work] = {wire.DEAL: _deal, wire.REVEAL: _reveal}


def _answer(message: Message, context: Context, do: Work) -> Message:
    """Answer; where not even a no can be signed or written down, Flower tells the coordinator this error's words."""
    try:
        return _signed(message, context, do)
    except RunFailed:
        raise
    except Exception as error:
        log.exception("nothing is answered")
        raise RunFailed(f"{type(error).__name__}, see the site's log") from None


def _signed(message: Message, context: Context, do: Work) -> Message:
    """Do the work; the reply is in the ledger and signed before it is handed over.

    The ledger says what was asked once that is known to be the federation's question.
    """
    own = own_values(context.node_config)
    name, state = str(own["site"]), Path(str(own["state"]))
    key, question, asked = _own_key(name, state), wire.question(message.content), Asked()
    try:
        content = do(_own_site(own), message.content, _reader(name, state), asked)
    except LacunaError as error:
        log.warning("%s: %s", type(error).__name__, error)
        content = wire.pack_refusal(name, told(name, error))
    except Exception as error:
        log.exception("site %s: the work failed", name)
        content = wire.pack_refusal(name, told(name, error))

    def seal(before: Link) -> Mapping[str, Any]:
        facts = sealed.seal(content, before)
        sealed.sign(content, facts["sha256"], key, name, question)
        return facts

    Ledger(state / LEDGER).release(seal, asked)
    return Message(content, reply_to=message)


def _own_key(name: str, state: Path) -> EllipticCurvePrivateKey:
    """Without it nothing can be answered: Flower says so to the coordinator, and no more than this."""
    try:
        return own_key(state)
    except ConfigError as error:
        log.error("site %s: %s", name, error)
        raise RunFailed(f"{name}: has no key to sign its answers with, see its log") from None


def _reader(name: str, state: Path) -> Reader:
    try:
        return Reader(site=name, trusted=federation_key(state), now=time.time())
    except ConfigError as error:
        raise _own_fault(name, error) from None


def _own_site(own: Mapping[str, Any]) -> Site:
    try:
        return find_site(own)
    except ConfigError as error:
        raise _own_fault(str(own["site"]), error) from None


def _own_fault(name: str, error: ConfigError) -> PlanRefused:
    """What is wrong with the site's own settings (paths, hosts) stays in its log."""
    log.error("site %s: %s", name, error)
    return PlanRefused(f"{name}: its own settings can't be read, see its log")
