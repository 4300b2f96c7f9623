"""Fifty thousand messages that nobody would send, at the coordinator and at a site, from one seed:

    PYTHONPATH=.:tests python tests/support/rounds/fuzz.py --messages 50000 --seed 1

Each must end in one of the named errors. Nothing on a disk may be another than before but the books that are there to
say what came (a site's ledger and whom it trained on, the coordinator's receipts), which must be whole and have one
entry for each message; memory may not grow. Half of what claims to be signed is: by a site that is admitted, or by the
key of the run.
"""

import argparse
import logging
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from support.rounds.probe import Probe
from support.rounds.range import SHARES, Range

from client.site.keys import federation_key
from client.site.ledger import LEDGER, Ledger
from client.site.withdrawn import TRAINED
from server.journal.receipts import Receipts
from shared import methods
from shared.base.chain import Chain

MOST_GROWTH = 24.0  # MB that an allocator may keep, over any number of messages


@dataclass(kw_only=True)
class Found:
    """What came of a run of messages."""

    endings: Counter[tuple[str, str]] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    grown: float = 0.0  # MB of memory, from a tenth of the way on
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        for (what, how), n in sorted(self.endings.items()):
            yield f"{what:<20}{how:<18}{n:>7}"
        total = sum(self.endings.values())
        yield f"{total} messages in {self.seconds:.0f} s, memory grew by {self.grown:.1f} MB, nothing else changed"


def shoot(folder: Path, messages: int, seed: int, tell: Callable[[str], object] = lambda _: None) -> Found:
    """So many messages, in their shares; an AssertionError, or whatever crashed, where one got through."""
    range_ = Range(folder, seed)
    federation_key(range_.state)
    kinds = [kind for kind, share in SHARES.items() for _ in range(round(messages * share))]
    range_.dice.shuffle(kinds)
    found, before = Found(), range_.files()
    answered = len(list(Ledger(range_.state / LEDGER).entries()))
    begun, memory = time.monotonic(), 0.0
    try:
        for number, kind in enumerate(kinds):
            if number == len(kinds) // 10:
                memory = resident()
            try:
                found.endings[kind, range_.shots[kind]()] += 1
            except Exception:
                found.endings[kind, "CRASHED"] += 1
                found.crashes.append(f"message {number} of seed {seed}, one of {kind}: {traceback.format_exc()}")
                tell(found.crashes[-1])
            if number % 1000 == 999:
                tell(f"{number + 1} of {len(kinds)}: {time.monotonic() - begun:.0f} s, {resident():.0f} MB")
    except KeyboardInterrupt:
        tell("ended early; what came until now is checked")
    found.grown, found.seconds = resident() - memory, time.monotonic() - begun
    assert not found.crashes, "\n".join(found.crashes)
    after = range_.files()
    changed = [str(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    assert changed == [], changed
    assert range_.asked_of_east() <= {("run", range_.plan.config)}, "a plan was written down that nobody signed"
    entries = list(Ledger(range_.state / LEDGER).entries())
    assert len(entries) - answered == sum(n for (kind, _), n in found.endings.items() if kind in ("questions", "plans"))
    worked = list(Chain(range_.state / TRAINED).entries())  # what the run's key signed, and was whole after all
    assert len(worked) <= found.endings["plans", "taken"]
    kept = list(Receipts(range_.run).entries())
    assert len(kept) == sum(n for (kind, _), n in found.endings.items() if kind == "updates")
    assert found.grown < MOST_GROWTH, f"memory grew by {found.grown:.1f} MB"
    return found


def resident() -> float:
    """MB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--messages", type=int, default=50_000)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background: ends it early, and checks
    torch.set_num_threads(1)
    logging.getLogger("lacuna.site").setLevel(logging.CRITICAL)  # each no is in the books
    methods.METHODS["probe"] = Probe  # type: ignore[index]
    folder = Path(tempfile.mkdtemp(prefix="lacuna-fuzz-"))
    try:
        found = shoot(folder, asked.messages, asked.seed, lambda line: print(line, flush=True))
    finally:
        shutil.rmtree(folder)
    print("\n".join(found.lines()))


if __name__ == "__main__":
    main()
