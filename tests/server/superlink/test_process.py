"""The SuperLink's own process: Flower's, with a few values changed, and they really reach the database."""

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
for name in ("busy_timeout", "foreign_keys", "cache_size", "mmap_size"):
    print(*connection.execute(f"PRAGMA {name}").fetchone() or [0])
"""


def test_the_database_is_waited_for_longer_and_takes_less_memory_than_flowers_and_all_else_is_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", LOOK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["60000", "1", "-2000", "0"]
