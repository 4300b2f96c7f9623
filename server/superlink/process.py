"""Flower's SuperLink, patient on a busy machine: `python -P -m server.superlink.process <flags of flower-superlink>`.

Flower waits five seconds for SQLite's lock and then answers 500, at which a site throws its update away and the
executor ends. Here it waits for a minute, in which whoever asked asks again. And a ServerApp has 90 seconds to start,
not 30.
"""

from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.corestate import in_memory_corestate, sql_corestate
from flwr.superlink.cli import flower_superlink

DATABASE = "60000"  # milliseconds
START = (
    90  # seconds for a task to begin; after as many without a sign of life it is over (in Flower 30, and twice that)
)


def main() -> None:
    pragmas = dict(SQLITE_PRAGMAS)
    if "busy_timeout" not in pragmas or not hasattr(sql_corestate, "HEARTBEAT_PATIENCE"):
        raise SystemExit("superlink: this version of Flower is another one; see server/superlink/process.py")
    vars(sql_mixin).update(SQLITE_PRAGMAS=tuple((pragmas | {"busy_timeout": DATABASE}).items()))
    for state in (in_memory_corestate, sql_corestate):
        vars(state).update(HEARTBEAT_DEFAULT_INTERVAL=START, HEARTBEAT_PATIENCE=1)
    flower_superlink()


if __name__ == "__main__":
    main()
