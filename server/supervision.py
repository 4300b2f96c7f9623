"""`lacuna follow`: watch a submitted run from outside, and submit it again where it was killed.

What a run says of itself is in its folder (server/chronicle.py): its outcome, and a lock that its process holds. What
Flower says comes second, and late: a dead ServerApp is "running" there for 45 s. A run that failed by its own word is
never submitted again; one that was killed is, from its checkpoint, unless it dies MOST times without finishing a round.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server import chronicle, progress, runs, submission
from server.chronicle import Outcome, Tail
from server.progress import View
from server.submission import Submission
from server.superlink import FlowerRun, Unreachable
from shared.errors import LacunaError, RunFailed

MOST = 4  # submissions without a round finished between them
POLL_SECONDS = 0.5
ASK_SECONDS = 3.0  # between two questions to the SuperLink
LONGEST_PAUSE = 60.0
LONGEST_SILENCE = 1800.0  # of a SuperLink, where nobody works on the run
SUPERVISOR = ".supervised"

Verdict = Literal["on", "over", "stopped", "dead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What can be seen of a run. `working` was looked at before `outcome`: a run writes its word, then lets go."""

    working: bool  # a process holds the run
    outcome: Outcome | None
    began: bool  # the ServerApp of this submission has had the run
    flower: FlowerRun | None  # None: the SuperLink gave no answer
    stop: bool  # somebody asked for it

    def verdict(self) -> Verdict:
        if self.working:
            return "on"
        if self.outcome is not None:
            return "over"
        if not self.began and (self.flower is None or not self.flower.over):
            return "on"  # not taken up yet
        return "stopped" if self.stop else "dead"


def follow(folder: Path, *, quiet: bool = False) -> None:
    """Until the run has ended; raises what it ended with. Supervises it unless another follower does."""
    submission.check_exists(folder)
    if submission.find(folder) is None and not chronicle.at_work(folder):
        _end(folder)  # a simulation that is over
        return
    title = runs.title(folder, runs.read_config(folder))
    with progress.live(title, quiet=quiet) as view, _sole(folder, view) as sole:
        _Follower(folder, view, supervises=sole).follow()
    _end(folder)


def pause(tried: int) -> float:
    """Seconds before the next submission."""
    return min(LONGEST_PAUSE, 2.0 ** (tried - 1))


class _Follower:
    def __init__(self, folder: Path, view: View, *, supervises: bool) -> None:
        self.folder, self.view, self.supervises = folder, view, supervises
        self.tail = Tail(folder)
        self.asked, self.flower = 0.0, None  # type: float, FlowerRun | None
        self.heard = time.monotonic()  # when the SuperLink last answered
        self.told = ""

    def follow(self) -> None:
        for event in chronicle.latest(self.tail.new()):
            event.tell(self.view)
        while True:
            sent = submission.find(self.folder)
            sight = self._look(sent)
            for event in self.tail.new():
                event.tell(self.view)
            verdict = sight.verdict()
            if verdict == "over":
                return
            if verdict == "stopped":
                submission.settled(self.folder)
                return
            if verdict == "dead":
                if sent is None:
                    raise RunFailed(f"{self.folder.name}: was interrupted {submission.standing(self.folder)}")
                if self.supervises:
                    self._again(sent)
                else:
                    self._say("it was killed: whoever supervises it submits it again")
            time.sleep(POLL_SECONDS)

    def _look(self, sent: Submission | None) -> Sight:
        working = chronicle.at_work(self.folder)
        outcome = chronicle.read_outcome(self.folder)
        worker = chronicle.worker(self.folder)
        began = worker is not None and (sent is None or worker.flower_run == sent.flower_run)
        if not working and not began and sent is not None and outcome is None:
            self._ask(sent)
        return Sight(
            working=working,
            outcome=outcome,
            began=began,
            flower=self.flower,
            stop=sent is not None and sent.stop,
        )

    def _ask(self, sent: Submission) -> None:
        """How Flower sees a run that no ServerApp has yet; says what it waits for."""
        if time.monotonic() - self.asked < ASK_SECONDS:
            return
        self.asked = time.monotonic()
        try:
            found = sent.link.run(sent.flower_run)
        except (Unreachable, RunFailed) as error:
            self.flower = None
            self._say(f"{error}; waiting for it")
            if time.monotonic() - self.heard > LONGEST_SILENCE:
                raise RunFailed(f"{self.folder.name}: {error}, for {LONGEST_SILENCE:.0f} s now") from None
            return
        self.heard = time.monotonic()
        self.flower = found if found is not None else FlowerRun(status="finished", details="the SuperLink forgot it")
        if not self.flower.over:
            self._say(f"submitted; {self.flower.status}: waits for an executor (flower-superexec) at the server")

    def _again(self, sent: Submission) -> None:
        """From its checkpoint."""
        rounds = submission.finished_rounds(self.folder)
        tried = sent.tried if rounds == sent.rounds else 0
        why = f" ({self.flower.details})" if self.flower is not None and self.flower.details else ""
        if tried >= MOST:
            failed = RunFailed(
                f"its ServerApp died {tried} times in a row {submission.standing(self.folder)}, with no round "
                f"finished between{why}; `lacuna resume {self.folder.name}` tries again"
            )
            found = chronicle.outcome_of(failed)
            assert found is not None
            chronicle.write_outcome(self.folder, found)
            return
        seconds = pause(max(tried, 1))
        self.view.note(
            f"its ServerApp was killed {submission.standing(self.folder)}{why}: submitting it again in {seconds:.0f} s"
        )
        time.sleep(seconds)
        if chronicle.at_work(self.folder) or submission.find(self.folder) != sent:
            return  # somebody else was faster, or asked for a stop
        try:
            sent.link.stop(sent.flower_run)  # Flower holds a dead one for running
            submission.hand_over(self.folder, sent.link, times=sent.times, tried=tried)
        except (Unreachable, RunFailed) as error:
            self._say(f"{error}; trying again")
            if time.monotonic() - self.heard > LONGEST_SILENCE:
                raise RunFailed(f"{self.folder.name}: {error}, for {LONGEST_SILENCE:.0f} s now") from None
        else:
            self.heard, self.flower, self.told = time.monotonic(), None, ""

    def _say(self, text: str) -> None:
        """Once, not at every look."""
        if text != self.told:
            self.view.note(text)
            self.told = text


def _end(folder: Path) -> None:
    """As the run did."""
    found = chronicle.read_outcome(folder)
    if found is None:
        if runs.finished(folder):
            return
        raise RunFailed(f"{folder.name}: nobody works on it; it stands {submission.standing(folder)}")
    error: LacunaError | None = found.error()
    if error is not None:
        raise error


@contextmanager
def _sole(folder: Path, view: View) -> Iterator[bool]:
    """One follower supervises; the others watch."""
    with (folder / SUPERVISOR).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sole = True
        except BlockingIOError:
            sole = False
            view.note("another `lacuna` supervises this run; this one only watches")
        yield sole
