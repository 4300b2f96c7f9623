"""Work of a page goes on in a process of its own, one after another, and says how it ended."""

import sys
import time
from pathlib import Path

import pytest

from client.page import jobs
from client.page.jobs import Jobs, Work
from shared.page.ask import NotFound

WORKER = """
import json, sys, time
order = json.loads(sys.stdin.readline())
print("a library's own line", flush=True)
print(json.dumps({"of": [1, 2]}), flush=True)
time.sleep(order["seconds"])
if order["says"] == "fails": print(json.dumps({"error": "no brain"}))
elif order["says"] == "dies": sys.exit(3)
else: print(json.dumps({"done": {"made": ["FLAIR"]}}))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(jobs, "COMMAND", (sys.executable, str(tmp_path / "worker.py")))
    return Jobs()


def order(here: Jobs, says: str, seconds: float = 0.0) -> Work:
    work = here.add("fill", "handle", "FLAIR", {"says": says, "seconds": seconds})
    assert work is not None
    return work


def ended(work: Work) -> str:
    end = time.monotonic() + 60
    while work.goes_on and time.monotonic() < end:
        time.sleep(0.01)
    return work.state


def test_work_says_what_was_made_or_why_not(here: Jobs) -> None:
    good, bad, dead = order(here, "ends"), order(here, "fails"), order(here, "dies")
    assert (ended(good), good.said, good.of) == ("done", {"made": ["FLAIR"]}, (1, 2))
    assert (ended(bad), bad.why) == ("failed", "no brain")
    assert (ended(dead), dead.why) == ("failed", "the work ended without a word; see the terminal")
    assert [work.id for work in here.listing()] == [dead.id, bad.id, good.id]


def test_work_is_stopped_while_it_waits_and_while_it_goes_on(here: Jobs) -> None:
    first, second = order(here, "ends", 60.0), order(here, "ends")
    here.stop(second)
    assert ended(second) == "stopped"
    while first.of != (1, 2):
        time.sleep(0.01)
    here.stop(first)
    assert ended(first) == "stopped"
    third = order(here, "ends")
    assert ended(third) == "done"


def test_too_much_work_is_not_taken(here: Jobs) -> None:
    order(here, "ends", 60.0)
    taken = [here.add("fill", "handle", "T1", {"says": "ends", "seconds": 0}) for _ in range(jobs.MOST_WAITING + 2)]
    assert taken[-1] is None
    for work in here.listing():
        here.stop(work)


def test_work_that_nobody_knows_is_not_found(here: Jobs) -> None:
    with pytest.raises(NotFound):
        here.find("0" * 16)
