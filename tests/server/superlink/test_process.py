"""The SuperLink's own process: Flower's, with one value changed, and that value really reaches the database."""

import subprocess
import sys

LOOK = """
import sqlite3
from flwr.supercore import sql_mixin
from flwr.superlink import cli
from server.superlink import process as superlink_process
cli.flower_superlink = lambda: None
superlink_process.main()
connection = sqlite3.connect(":memory:")
sql_mixin._set_sqlite_pragmas(connection, None)
print(*connection.execute("PRAGMA busy_timeout").fetchone(), *connection.execute("PRAGMA foreign_keys").fetchone())
"""


def test_the_database_is_waited_for_longer_than_flower_does_and_all_else_is_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", LOOK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["60000", "1"]
