"""What goes on in a run, written into its folder as it goes on, for whoever looks from another process.

    events.jsonl   what the view was told (events.py), a line each: the follower tells it to a view of its own
    outcome.json   how the run ended by its own word; none while it goes on, or where it was killed
    .working       locked by the process that works on the run, and says which one that is

A lock is let go by the kernel however its process dies, so a killed run is known at once, and two processes never write
to one run.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from server.journal import events, facts
from server.journal.events import Began, Event, Note, RoundFinished, SiteFinished, SiteStarted, View
from shared.base import options
from shared.base.disk import locks
from shared.base.errors import ConfigError, DataError, LacunaError, RunFailed
from shared.base.files import make_folder, write_json
from shared.base.vocabulary import SiteName

EVENTS, OUTCOME, WORKING = "events.jsonl", "outcome.json", ".working"
PATIENCE = 20.0  # for the process before to let go of the run
FOREIGN = ("httpx", "httpcore", "flwr")  # their errors are of the wire, not the run's own word

ERRORS: Mapping[str, type[LacunaError]] = {kind.__name__: kind for kind in LacunaError.__subclasses__()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended, in its own words."""

    state: Literal["finished", "failed", "stopped"]
    kind: str = ""  # of the error: RunFailed, ConfigError, ...
    message: str = ""
    code: int = 0  # to exit with
    at: float  # seconds since 1970

    def error(self) -> LacunaError | None:
        """What the command that follows the run ends with."""
        if self.state == "finished":
            return None
        error = ERRORS.get(self.kind, LacunaError)(
            self.message if self.kind in ERRORS else f"{self.kind}: {self.message}"
        )
        error.exit_code = self.code
        return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The process that works on a run, or that did last."""

    pid: int
    host: str
    flower_run: int  # Flower's number of it; 1 in a simulation
    since: float


# --- in: by the process that works on the run


@contextmanager
def working(folder: Path, flower_run: int = 1) -> Iterator[None]:
    """Nobody else works on the run until the block ends, and how it ended is written down."""
    make_folder(folder)
    with _held(folder) as lock:
        worker = Worker(pid=os.getpid(), host=socket.gethostname(), flower_run=flower_run, since=time.time())
        _rewrite(lock, json.dumps(options.plain(worker)))
        (folder / OUTCOME).unlink(missing_ok=True)
        try:
            yield
        except Exception as error:
            found = outcome_of(error)
            if found is not None:
                with suppress(OSError):  # of a full disk not even this can be said; whoever follows finds out
                    write_outcome(folder, found)
            raise
        write_outcome(folder, Outcome(state="finished", at=time.time()))


def outcome_of(error: Exception) -> Outcome | None:
    """The run's own word; None where the wire broke, or the run was ended from outside."""
    if type(error).__module__.split(".")[0] in FOREIGN:
        return None
    if isinstance(error, LacunaError):
        kind, code = type(error).__name__, error.exit_code
    elif isinstance(error, OSError):  # a full disk, a folder that can't be written
        kind, code = RunFailed.__name__, RunFailed.exit_code
    else:
        kind, code = type(error).__name__, LacunaError.exit_code
    return Outcome(state="failed", kind=kind, message=facts.words(str(error)), code=code, at=time.time())


def write_outcome(folder: Path, outcome: Outcome) -> None:
    write_json(folder / OUTCOME, options.plain(outcome))


@contextmanager
def recorded(shown: View, folder: Path) -> Iterator[View]:
    """A view that also writes down what it is told; what a killed process left half written is cut off."""
    with (folder / EVENTS).open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        view = Recorded(shown, file)
        view.tell(Began())
        yield view


class Recorded(View):
    """Tells another view, and the file."""

    def __init__(self, shown: View, file: IO[bytes]) -> None:
        self._shown, self._file = shown, file
        self._at_work: set[SiteName] = set()

    def tell(self, event: Event) -> None:
        self._shown.tell(event)
        match event:
            case SiteStarted(site=site) if site in self._at_work:
                return
            case SiteStarted(site=site):
                self._at_work.add(site)
            case SiteFinished(site=site):
                self._at_work.discard(site)
            case Note(text=text):
                event = Note(text=facts.words(text))
        self._file.write(events.line(event, time.time()))
        self._file.flush()


# --- out: to whoever looks


class Tail:
    """The events of a run, those that are there and then those that come."""

    def __init__(self, folder: Path) -> None:
        self._path, self._offset = folder / EVENTS, 0

    def new(self) -> list[Event]:
        """Whole lines since the last time."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() < self._offset:  # a line that was half written has been cut off
                self._offset = file.tell()
            file.seek(self._offset)
            whole, _, _torn = file.read().rpartition(b"\n")
        if not whole:
            return []
        self._offset += len(whole) + 1
        try:
            return [event for line in whole.splitlines() if (event := events.parse(line)) is not None]
        except (ValueError, TypeError, KeyError, ConfigError) as error:
            raise DataError(f"{self._path.name}: a line is damaged: {error}") from None


def latest(told: list[Event]) -> list[Event]:
    """What one who comes late needs: all since the run was last taken up, of the sites only the round that goes on."""
    began = max((i for i, event in enumerate(told) if isinstance(event, Began)), default=0)
    since = told[began:]
    last = max((i for i, event in enumerate(since) if isinstance(event, RoundFinished)), default=-1)
    return [event for i, event in enumerate(since) if i > last or not isinstance(event, SiteStarted | SiteFinished)]


def read_outcome(folder: Path) -> Outcome | None:
    try:
        return options.build(Outcome, dict(json.loads((folder / OUTCOME).read_text())), "outcome")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, ConfigError) as error:
        raise DataError(f"{folder.name}/{OUTCOME}: damaged: {error}") from None


def worker(folder: Path) -> Worker | None:
    """Who works on the run, or did last."""
    try:
        return options.build(Worker, dict(json.loads((folder / WORKING).read_text())), "worker")
    except (OSError, ValueError, TypeError, ConfigError):
        return None  # nobody yet, or killed while it wrote: who holds the lock is told by the lock


def at_work(folder: Path) -> bool:
    """Does a process work on the run now?"""
    return locks.is_held(folder / WORKING)


@contextmanager
def _held(folder: Path) -> Iterator[IO[str]]:
    handle = locks.take(folder / WORKING, wait=PATIENCE, mode=0o666)
    if handle is None:
        other = worker(folder)
        who = "" if other is None else f", process {other.pid} on {other.host}"
        raise RunFailed(f"{folder.name}: another process works on this run{who}")
    with os.fdopen(handle, "r+", encoding="ascii") as lock:
        yield lock


def _rewrite(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
