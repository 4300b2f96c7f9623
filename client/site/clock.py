"""A site's own time, which a clock set forward does not hurry, nor one set back hold up: for what counts by the day.

From the first message after the machine was started it goes by the machine's own ticking. How long the machine was
off only its clock can say, and that is believed once for each start; it never goes back.
"""

import sqlite3
import time
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
SCHEMA = "CREATE TABLE IF NOT EXISTS clock (boot TEXT PRIMARY KEY, ahead REAL NOT NULL);"  # of the ticking, in seconds


def now(file: sqlite3.Connection) -> float:
    """Seconds since 1970, as this site counts them; `file` holds the clock and what was asked."""
    boot, ticks = _ticking()
    known = "SELECT ahead FROM clock WHERE boot = ?"
    found = file.execute(known, (boot,)).fetchone()
    if found is None:
        ((last,),) = file.execute("SELECT coalesce(max(at), 0) FROM asked")
        file.execute("INSERT OR IGNORE INTO clock (boot, ahead) VALUES (?, ?)", (boot, max(time.time(), last) - ticks))
        found = file.execute(known, (boot,)).fetchone()
    return float(found[0]) + ticks


def _ticking() -> tuple[str, float]:
    """Which start of the machine this is, and how long ago it was, sleep and all."""
    return _BOOT.read_text().strip(), time.clock_gettime(time.CLOCK_BOOTTIME)
