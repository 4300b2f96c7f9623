"""A child of the site's node: `client.node.supernode` in a group of its own, whose lines go to the log."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from client.site.keys import OPENED
from shared.base import doors

LOGGER = "lacuna.node"
QUIET = {  # nothing calls out, nothing is installed, nothing but the installed packages is imported
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONUNBUFFERED": "1",
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_log = logging.getLogger(LOGGER)


class Child:
    """`client.node.supernode` in a group of its own; its lines go to the log."""

    def __init__(self, role: str, state: Path, flags: list[str], key: Path) -> None:
        command = [sys.executable, "-P", "-m", doors.SUPERNODE, role, str(state), str(os.getpid()), *flags]
        home = str(state / "flwr")
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        self._process = subprocess.Popen(
            command,
            env=os.environ | QUIET | {"FLWR_HOME": home, "PATH": path, OPENED: str(key)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._words: list[str] = []  # from "Exit Code" on
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def code(self) -> int | None:
        return self._process.poll()

    def ended(self) -> str:
        code = self._process.poll()
        if code is None:
            return "lives"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def ask(self) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()

    def close(self) -> None:
        self._process.wait(20)
        self._reader.join(2)  # a process that holds its end of the pipe was ended before

    def last_words(self) -> str:
        self._reader.join(2)
        return " ".join(word for word in self._words if word)[:500]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = _COLOUR.sub("", raw.decode("utf-8", "replace")).rstrip()
            if "Exit Code:" in line or (self._words and len(self._words) < 4):
                self._words.append(line.strip())
            if line:
                _log.info("%s", line)
