"""All that Lacuna knows of the inside of Flower's SuperNode, in the processes that `client/node/node.py` starts:

    python -P -m client.node.supernode node STATE <flags of flower-supernode>
    python -P -m client.node.supernode executor STATE <flags of flower-superexec>

Flower's programs are run as they are, but for one function, by which the node takes a message: it also looks at the
run and at its bundle, before anything of them is stored or unpacked, and answers for a refused one with an error.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any

from flwr.app import Error, Message
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.corestate import in_memory_corestate, sql_corestate
from flwr.supercore.exit import add_exit_handler
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal as flower

from client.node import family
from client.node.status import CONTACT
from client.site import bundle_guard
from client.site.ledger import Ledger
from shared.base.errors import PlanRefused, RunFailed
from shared.base.files import sha256

LEDGER = "ledger.jsonl"
TAKES = {
    "state",
    "object_store",
    "receive",
    "get_run",
    "get_fab",
    "node_config",
}  # by name, in the function that is replaced
REFUSED = "lacuna: refused: "  # begins the line that the supervisor passes on


def main() -> None:
    role, state, parent, *flags = sys.argv[1:]
    family.die_with(int(parent))
    if role == "node":
        from flwr.supernode.cli.flower_supernode import flower_supernode

        sys.argv = ["flower-supernode", *flags]
        guard(Path(state))
        be_patient()
        flower_supernode()
    else:
        from flwr.supercore.cli.flower_superexec import flower_superexec

        sys.argv = ["flower-superexec", *flags]
        add_exit_handler(lambda: family.end(lambda: family.beside(os.getpid()), 3.0), run_before_force_exit=True)
        flower_superexec()


def be_patient() -> None:
    """A worker has 90 seconds to start, not 30, which are too few on a busy machine; a dead one is missed after 90."""
    for state in (in_memory_corestate, sql_corestate):
        vars(state).update(HEARTBEAT_DEFAULT_INTERVAL=90, HEARTBEAT_PATIENCE=1)


def guard(state: Path) -> None:
    """From here on the node takes no run whose bundle could run anything. RunFailed if this Flower is another one."""
    pull, push = flower._pull_and_store_message, flower._push_messages
    if not set(signature(pull).parameters) >= TAKES or not set(signature(push).parameters) >= {"state", "send"}:
        raise RunFailed("flwr: is not the version that this Lacuna guards; install the one in constraints.txt")
    tell = _teller(state / CONTACT)

    def guarded(**given: Any) -> int | None:
        return _pull(pull, state, tell, **given)

    def told(**given: Any) -> None:
        push(**given)
        tell({"doing": "idle"})

    flower._pull_and_store_message = guarded  # type: ignore[assignment]
    flower._push_messages = told  # type: ignore[assignment]


def _pull(
    pull: Callable[..., int | None], folder: Path, tell: Callable[[Mapping[str, Any]], None], **given: Any
) -> int | None:
    """Flower's own, with the run and the bundle looked at as they come in."""
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
        return pull(**(given | {"receive": receive, "get_run": get_run, "get_fab": get_fab}))
    except PlanRefused as refusal:
        message = taken[0]
        reason = str(refusal)
        print(f"{REFUSED}run {message.metadata.run_id}: {reason}", flush=True)
        _enter(folder / LEDGER, str(given["node_config"]["site"]), message, reason)
        # as Flower answers for a bundle that is not signed, so the server hears of it at once
        reply = Message(Error(ErrorCode.INVALID_FAB, reason), reply_to=message)
        flower._insert_message(reply, given["state"], given["object_store"])
        return int(message.metadata.run_id)


def _admit(run: Run, fab: Fab) -> None:
    """PlanRefused unless it is a bundle without code, and the run is what the bundle says it is."""
    if run.primary_task_type != TaskType.SERVER_APP:
        raise PlanRefused(f"bundle: the run is a {ascii(run.primary_task_type)[:40]}, not one of Lacuna's")
    bundle = bundle_guard.check(fab.content, run.fab_hash)
    named = {
        "hash": (fab.hash_str, run.fab_hash),  # Flower makes a path of all three
        "name": (run.fab_id, bundle.id),
        "version": (run.fab_version, bundle.version),
    }
    for key, (said, is_) in named.items():
        if said != is_:
            raise PlanRefused(f"bundle: its {key} is {ascii(is_)[:80]}, and the server calls it {ascii(said)[:80]}")
    try:
        get_fused_config_from_fab(fab.content, run)  # what Flower does next, where an error would end the node
    except Exception as error:
        raise PlanRefused(f"bundle: Flower can't use it: {type(error).__name__}: {ascii(str(error))[:200]}") from None


def _enter(ledger: Path, site: str, message: Message, reason: str) -> None:
    """What leaves with a refusal is its reason: it is in the ledger before it does."""
    facts = {
        "bytes": len(reason.encode()),
        "tensors": [],
        "sha256": sha256(reason.encode()),
        "fields": {"refusal.site": site, "refusal.kind": "PlanRefused", "refusal.why": reason},
    }
    Ledger(ledger).release(lambda _: facts, {"run": str(message.metadata.run_id)})


def _teller(path: Path) -> Callable[..., None]:
    path.parent.mkdir(parents=True, exist_ok=True)

    def tell(facts: Mapping[str, Any]) -> None:
        partial = path.with_suffix(".partial")
        with suppress(OSError):  # a full disk must not end the node
            partial.write_text(json.dumps({"time": time.time(), "pid": os.getpid(), **facts}))
            os.replace(partial, path)

    return tell


if __name__ == "__main__":
    main()
