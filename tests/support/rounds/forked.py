"""`lacuna` in processes of its own, without the seconds that each takes to import torch: forks of one that has it.

`Forked` is the test's side. `python -m support.rounds.forked` reads a command a line, forks, and gives the process id;
once the command has ended, its exit code.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn

HERE = Path(__file__).parents[2]


class Forked:
    """One command at a time, each in a session of its own; what it says is in `log`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.rounds.forked", str(log)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._pid = 0

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.runs():
            self.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it ends with that
        self._process.wait()
        self._process.stdout.close()

    def start(self, *words: str) -> None:
        assert self._process.stdin is not None
        print(json.dumps(words), file=self._process.stdin, flush=True)
        self._pid = int(self._said())

    def runs(self) -> bool:
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        return self._pid > 0

    def kill(self) -> None:
        """As kill -9 does, of the command and of all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, or less than 0: the signal that ended it."""
        code = int(self._said())
        self._pid = 0
        return code

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


# --- the other side


def main(log: Path) -> None:
    import torch

    from server.cli import cli
    from server.runs import serve, simulation  # noqa: F401  # what `lacuna simulate` imports when it begins

    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(cli.main, ["lacuna", *json.loads(line)], log)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(entry: Callable[[], None], argv: list[str], log: Path) -> NoReturn:
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
