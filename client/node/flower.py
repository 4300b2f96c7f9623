"""The inside of Flower that a site's node is built on: the one file of `client` that imports Flower's private modules.

Private is all of `flwr` but `flwr.app`, `flwr.clientapp`, `flwr.serverapp` and `flwr.simulation`: any version may
change it. Where another Flower is installed than the one in constraints.txt, `watch_messages` says so and nothing runs.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from flwr.app import Error, Message
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.corestate import in_memory_corestate, sql_corestate
from flwr.supercore.exit import add_exit_handler
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal as internal

from shared.base.errors import RunFailed

__all__ = ["Fab", "Run", "other_task", "refuse", "run_executor", "run_supernode", "unusable", "watch_messages"]

Pull = Callable[..., int | None]
TAKES = {"state", "object_store", "receive", "get_run", "get_fab", "node_config"}  # by name, in the pull


def run_supernode(flags: Sequence[str]) -> None:
    """`flower-supernode`, whose workers have 90 seconds to start, not 30, which are too few on a busy machine."""
    from flwr.supernode.cli.flower_supernode import flower_supernode

    for state in (in_memory_corestate, sql_corestate):  # and a dead one is missed after 90
        vars(state).update(HEARTBEAT_DEFAULT_INTERVAL=90, HEARTBEAT_PATIENCE=1)
    sys.argv = ["flower-supernode", *flags]
    flower_supernode()


def run_executor(flags: Sequence[str], at_exit: Callable[[], None]) -> None:
    """`flower-superexec`, which starts the workers."""
    from flwr.supercore.cli.flower_superexec import flower_superexec

    sys.argv = ["flower-superexec", *flags]
    add_exit_handler(at_exit, run_before_force_exit=True)
    flower_superexec()


def watch_messages(take: Callable[[Pull, Mapping[str, Any]], int | None], sent: Callable[[], None]) -> None:
    """From here on `take` is called in place of the function by which the node takes a message, with that function and
    what Flower hands to it, and `sent` after replies were sent. RunFailed if this Flower is another one."""
    pull, push = internal._pull_and_store_message, internal._push_messages
    if not set(signature(pull).parameters) >= TAKES or not set(signature(push).parameters) >= {"state", "send"}:
        raise RunFailed("flwr: is not the version that this Lacuna guards; install the one in constraints.txt")

    def watched_pull(**given: Any) -> int | None:
        return take(pull, given)

    def watched_push(**given: Any) -> None:
        push(**given)
        sent()

    internal._pull_and_store_message = watched_pull  # type: ignore[assignment]
    internal._push_messages = watched_push  # type: ignore[assignment]


def refuse(message: Message, reason: str, given: Mapping[str, Any]) -> int:
    """Answers as Flower does for a bundle that is not signed, so that the server hears of it at once; gives the run."""
    reply = Message(Error(ErrorCode.INVALID_FAB, reason), reply_to=message)
    internal._insert_message(reply, given["state"], given["object_store"])
    return int(message.metadata.run_id)


def other_task(run: Run) -> str | None:
    """What the run is instead of a ServerApp's; None if it is one."""
    return None if run.primary_task_type == TaskType.SERVER_APP else str(run.primary_task_type)


def unusable(run: Run, fab: Fab) -> Exception | None:
    """Why Flower could not use the bundle, in what it does with it next, where an error would end the node."""
    try:
        get_fused_config_from_fab(fab.content, run)
    except Exception as error:
        return error
    return None
