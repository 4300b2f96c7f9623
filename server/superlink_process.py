"""Flower's SuperLink, patient with its database: `python -P -m server.superlink_process <flags of flower-superlink>`.

Flower waits five seconds for SQLite's lock and then answers 500, after which a site throws its update away and the
executor ends. A disk that others write to makes it wait longer than that now and then. Here it waits for a minute, in
which whoever asked asks again.
"""

from flwr.supercore import sql_mixin
from flwr.superlink.cli import flower_superlink

PATIENCE = "60000"  # milliseconds


def main() -> None:
    pragmas = dict(sql_mixin.SQLITE_PRAGMAS)
    if "busy_timeout" not in pragmas:
        raise SystemExit("superlink: this version of Flower sets no busy_timeout; see server/superlink_process.py")
    sql_mixin.SQLITE_PRAGMAS = tuple((pragmas | {"busy_timeout": PATIENCE}).items())
    flower_superlink()


if __name__ == "__main__":
    main()
