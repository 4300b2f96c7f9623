"""Flower's SuperNode under guard, in the processes that `client/node/node.py` starts:

    python -P -m client.node.supernode node STATE PARENT <flags of flower-supernode>
    python -P -m client.node.supernode executor STATE PARENT <flags of flower-superexec>

Flower's programs are run as they are, but for one function, by which the node takes a message: it also looks at the
run and at its bundle, before anything of them is stored or unpacked, and answers for a refused one with an error.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Message

from client.node import family, flower
from client.node.flower import Fab, Run
from client.node.status import CONTACT
from client.site import bundle_guard
from client.site.ledger import LEDGER, Ledger
from shared.base.errors import PlanRefused
from shared.base.files import sha256, write_text

REFUSED = "lacuna: refused: "  # begins the line that the supervisor passes on


def main() -> None:
    role, state, parent, *flags = sys.argv[1:]
    family.die_with(int(parent))
    if role == "node":
        guard(Path(state))
        flower.run_supernode(flags)
    else:
        flower.run_executor(flags, lambda: family.end(lambda: family.beside(os.getpid()), 3.0))


def guard(state: Path) -> None:
    """From here on the node takes no run whose bundle could run anything. RunFailed if this Flower is another one."""
    tell = _teller(state / CONTACT)
    flower.watch_messages(partial(_pull, state, tell), partial(tell, {"doing": "idle"}))


def _pull(
    folder: Path, tell: Callable[[Mapping[str, Any]], None], pull: flower.Pull, given: Mapping[str, Any]
) -> int | None:
    """Take a message as Flower does, and look at the run and the bundle as they come in."""
    taken: list[Message] = []
    runs: dict[int, Run] = {}

    def receive() -> Any:
        got = given["receive"]()
        tell(
            {"doing": "idle"}
            if got is None
            else {
                "doing": "work",
                "run": str(got[0].metadata.run_id),
                "round": got[0].metadata.group_id,
                "what": got[0].metadata.message_type,
            }
        )
        if got is not None:
            taken.append(got[0])
        return got

    def get_run(run_id: int) -> Run:
        runs[run_id] = given["get_run"](run_id)
        return runs[run_id]

    def get_fab(fab_hash: str, run_id: int) -> Fab:
        fab: Fab = given["get_fab"](fab_hash, run_id)
        _admit(runs[run_id], fab)
        return fab

    try:
        return pull(**{**given, "receive": receive, "get_run": get_run, "get_fab": get_fab})
    except PlanRefused as refusal:
        message = taken[0]
        reason = str(refusal)
        print(f"{REFUSED}run {message.metadata.run_id}: {reason}", flush=True)
        _enter(folder / LEDGER, str(given["node_config"]["site"]), message, reason)
        return flower.refuse(message, reason, given)


def _admit(run: Run, fab: Fab) -> None:
    """PlanRefused unless it is a bundle without code, and the run is what the bundle says it is."""
    other = flower.other_task(run)
    if other is not None:
        raise PlanRefused(f"bundle: the run is a {ascii(other)[:40]}, not one of Lacuna's")
    bundle = bundle_guard.check(fab.content, run.fab_hash)
    named = {
        "hash": (fab.hash_str, run.fab_hash),  # Flower makes a path of all three
        "name": (run.fab_id, bundle.id),
        "version": (run.fab_version, bundle.version),
    }
    for key, (said, is_) in named.items():
        if said != is_:
            raise PlanRefused(f"bundle: its {key} is {ascii(is_)[:80]}, and the server calls it {ascii(said)[:80]}")
    error = flower.unusable(run, fab)
    if error is not None:
        print(f"bundle: Flower can't use it: {ascii(str(error))[:200]}", flush=True)  # it may name a path of this site
        raise PlanRefused(f"bundle: Flower can't use it: {type(error).__name__}, see the site's log")


def _enter(ledger: Path, site: str, message: Message, reason: str) -> None:
    """Enter a refusal in the ledger before it leaves: its reason is what leaves."""
    facts = {
        "bytes": len(reason.encode()),
        "tensors": [],
        "sha256": sha256(reason.encode()),
        "fields": {"refusal.site": site, "refusal.kind": "PlanRefused", "refusal.why": reason},
    }
    Ledger(ledger).release(lambda _: facts, {"run": str(message.metadata.run_id)})


def _teller(path: Path) -> Callable[..., None]:
    def tell(facts: Mapping[str, Any]) -> None:
        with suppress(OSError):  # a full disk must not end the node
            write_text(path, json.dumps({"time": time.time(), "pid": os.getpid(), **facts}), durable=False)

    return tell


if __name__ == "__main__":
    main()
