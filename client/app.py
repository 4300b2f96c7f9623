"""Flower ClientApp: wiring only. The same app runs in `lacuna simulate`, in Ray and on a SuperNode."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.round import work
from client.site.ledger import LEDGER, Ledger
from client.site.site import Site, find_site, own_values
from shared.base.errors import ConfigError, LacunaError, PlanRefused, RunFailed
from shared.plan import wire

log = logging.getLogger("lacuna.site")
app = ClientApp()


@app.query()
def inventory(message: Message, context: Context) -> Message:
    """What this site holds, before round 1."""
    return _answer(message, context, _inventory)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of local work."""
    return _answer(message, context, _round)


def _inventory(site: Site, content: RecordDict) -> RecordDict:
    run, config, schema = wire.unpack_query(content)
    return wire.pack_inventory(work.take_inventory(site, run, config, schema))


def _round(site: Site, content: RecordDict) -> RecordDict:
    return wire.pack_update(work.do_round(site, wire.unpack_plan(content)))


def _answer(message: Message, context: Context, do: Callable[[Site, RecordDict], RecordDict]) -> Message:
    """Do the work, and enter the reply in the ledger before it is handed over. Of a failure only its kind leaves."""
    own = own_values(context.node_config)
    name = str(own["site"])
    try:
        content = do(_own_site(own), message.content)
    except LacunaError as error:
        log.warning("%s: %s", type(error).__name__, error)
        said = PlanRefused(f"{name}: {error}") if isinstance(error, ConfigError) else error
        content = wire.pack_refusal(name, said)
    except Exception as error:  # the text of an unknown error may name a subject: it stays in the local log
        log.exception("site %s: the work failed", name)
        failed = RunFailed(f"{name}: {type(error).__name__} in local work, see its log")
        content = wire.pack_refusal(name, failed)
    Ledger(Path(str(own["state"])) / LEDGER).release(partial(wire.seal, content), wire.asked(message.content))
    return Message(content, reply_to=message)


def _own_site(own: Mapping[str, Any]) -> Site:
    """Read the site's own settings; what is wrong with them (paths, hosts) stays in its log."""
    try:
        return find_site(own)
    except ConfigError as error:
        log.error("site %s: %s", own["site"], error)
        raise PlanRefused(f"{own['site']}: its own settings can't be read, see its log") from None
