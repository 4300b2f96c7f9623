"""Flower's own programs, without the seconds that each takes to import torch: forked from a process that has it.

`Warm` is the test's side. `python -m support.flower.warm` reads a line of JSON for each program to start, and gives its
process id. What is started is Flower's console script as it is, with two differences: an executor (flower-superexec)
forks flwr-serverapp and flwr-clientapp instead of starting them, and a SuperNode looks for messages every 0.3 s, not 3.
The apps are processes of their own all the same, and can be killed.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parents[2]
SCRIPTS = {
    "flower-superlink": "server.superlink.process:main",  # as deployed: patient with its database
    "flower-supernode": "flwr.supernode.cli:flower_supernode",
    "flower-superexec": "flwr.supercore.cli:flower_superexec",
    "flwr-serverapp": "flwr.superlink.cli:flwr_serverapp",
    "flwr-clientapp": "flwr.supernode.cli:flwr_clientapp",
}
END_WITH_PARENT = 1  # PR_SET_PDEATHSIG
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
    "OMP_NUM_THREADS": "1",
}


class Warm:
    """Starts programs, knows their ids, and ends all that are left."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where packages are looked for before ours."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.flower.warm"],
            env=os.environ | QUIET | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started: list[int] = []

    def start(self, name: str, *flags: str, home: Path, log: Path) -> int:
        home.mkdir(parents=True, exist_ok=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([name, *flags, str(home), str(log)]), file=self._process.stdin, flush=True)
        pid = int(self._process.stdout.readline())
        self._started.append(pid)
        return pid

    def kill(self, pid: int) -> None:
        """As kill -9 does, and it is gone when this returns."""
        os.kill(pid, signal.SIGKILL)
        while alive(pid):
            time.sleep(0.02)

    def close(self) -> None:
        for pid in reversed(self._started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.killpg(self._process.pid, signal.SIGKILL)  # an app that does not see that its executor is gone ends too
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- the other side


def main() -> None:
    entries = {name: _load(reference) for name, reference in SCRIPTS.items()}
    _load("client.app:app")
    _load("server.app:app")
    _warm(entries)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # ends when its test does, and what it started with it
    for line in sys.stdin:
        name, *flags, home, log = json.loads(line)
        print(_fork(entries[name], [name, *flags], home=home, log=Path(log)), flush=True)


def _load(reference: str) -> Any:
    import importlib

    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def _warm(entries: dict[str, Callable[[], None]]) -> None:
    """Fork where Flower starts a program, and look more often."""
    import torch
    from flwr.supercore.superexec.executor import subprocess_executor
    from flwr.supernode import start_client_internal

    torch.set_num_threads(1)

    class Forks:
        DEVNULL = subprocess.DEVNULL

        @staticmethod
        def Popen(args: list[str], **_: Any) -> None:
            _fork(entries[args[0]], args, home=None, log=None)

    class Hurried:
        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

        @staticmethod
        def sleep(seconds: float) -> None:
            time.sleep(min(seconds, 0.3))

    subprocess_executor.subprocess = Forks  # type: ignore[attr-defined]
    start_client_internal.time = Hurried()  # type: ignore[attr-defined]


def _fork(entry: Callable[[], None], argv: list[str], *, home: str | None, log: Path | None) -> int:
    pid = os.fork()
    if pid == 0:
        if log is not None:
            ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
        _become(entry, argv, home, log)
    return pid


def _become(entry: Callable[[], None], argv: list[str], home: str | None, log: Path | None) -> NoReturn:
    from flwr.supercore.exit import exit_handler

    exit_handler.registered_exit_handlers.clear()
    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    executor = argv[0] == "flower-superexec"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN if executor else signal.SIG_DFL)
    if home is not None:
        os.environ["FLWR_HOME"] = home
    if log is not None:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((0, null), (1, out), (2, out)):
            os.dup2(new, old)
    sys.argv = argv
    code = 1
    try:
        entry()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
