"""Work that a page started: one after another, each in a process of its own (work.py), seen while it goes on."""

import atexit
import json
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shared.page.ask import NotFound

MOST_WAITING, KEPT = 20, 50
COMMAND = (sys.executable, "-m", "client.page.work")


@dataclass(slots=True, kw_only=True)
class Work:
    id: str
    kind: Literal["fill", "send"]
    handle: str  # of the subject
    what: str  # FLAIR, T2: for the reader
    order: Mapping[str, Any]
    state: Literal["waits", "works", "done", "failed", "stopped"] = "waits"
    of: tuple[int, int] = (0, 0)
    said: Mapping[str, Any] = field(default_factory=dict)  # what came of it
    why: str = ""  # it failed
    began: float = 0.0
    took: float = 0.0
    process: subprocess.Popen[str] | None = None

    @property
    def goes_on(self) -> bool:
        return self.state in ("waits", "works")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began if self.state == "works" else self.took


class Jobs:
    def __init__(self) -> None:
        self._all: dict[str, Work] = {}
        self._waiting: queue.Queue[Work] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None

    def add(self, kind: Literal["fill", "send"], handle: str, what: str, order: Mapping[str, Any]) -> Work | None:
        """None: too many wait already."""
        work = Work(id=secrets.token_hex(8), kind=kind, handle=handle, what=what, order={**order, "kind": kind})
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            return None
        self._all[work.id] = work
        for old in [one.id for one in self._all.values() if not one.goes_on][: max(0, len(self._all) - KEPT)]:
            self._all.pop(old, None)
        if self._thread is None:
            self._thread = threading.Thread(target=self._go, daemon=True)
            self._thread.start()
            atexit.register(self._end)  # work that nobody would see the end of
        return work

    def find(self, name: str) -> Work:
        if name not in self._all:
            raise NotFound
        return self._all[name]

    def listing(self) -> list[Work]:
        """The latest first."""
        return list(self._all.values())[::-1]

    def of(self, handle: str) -> list[Work]:
        return [work for work in self.listing() if work.handle == handle and work.goes_on]

    def stop(self, work: Work) -> None:
        if work.state == "waits":
            work.state = "stopped"
        elif work.process is not None and work.state == "works":
            work.state = "stopped"
            work.process.terminate()

    def _end(self) -> None:
        for work in self.listing():
            self.stop(work)

    def _go(self) -> None:
        while True:
            work = self._waiting.get()
            if work.state == "waits":
                self._carry_out(work)

    def _carry_out(self, work: Work) -> None:
        work.state, work.began = "works", time.monotonic()
        with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            work.process = process
            if not work.goes_on:  # stopped just now
                process.terminate()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(work.order) + "\n")
            process.stdin.close()
            for line in process.stdout:
                said = _record(line)
                if "of" in said:
                    work.of = said["of"][0], said["of"][1]
                work.said, work.why = said.get("done", work.said), said.get("error", work.why)
        work.took, work.process = time.monotonic() - work.began, None
        if work.state == "works":
            work.state = "done" if process.returncode == 0 and not work.why else "failed"
            work.why = work.why or ("" if work.state == "done" else "the work ended without a word; see the terminal")


def _record(line: str) -> dict[str, Any]:
    """What the work says; a library's own line is nothing."""
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        return {}
