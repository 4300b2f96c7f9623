"""kill -9 at any moment, then the same command with resume=RUN: the final weights are the same bits."""

import random
import signal
import time
from pathlib import Path

import pytest
from support.cohort.worlds import write_world
from support.rounds.federation import weights_digest
from support.rounds.forked import Forked

pytestmark = pytest.mark.slow  # left out of `make fast`

SITES = {"north": [("T1", "T2")] * 2, "east": [("T1", "FLAIR")] * 2, "south": [("T2", "FLAIR")] * 2}
ROUNDS = 6


def command(world: Path, runs: Path, *more: str) -> list[str]:
    return [
        "simulate",
        "size=tiny",
        "tracking=none",
        "method.modalities=[T1,T2,FLAIR]",
        f"training.translate.rounds={ROUNDS}",
        "strategy=fedadam",
        f"world={world}",
        f"runs={runs}",
        *more,
    ]


@pytest.mark.slow
def test_kill_9_at_random_moments_and_resume_ends_in_the_same_bits(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", SITES, edge=32)
    dice = random.Random(time.time_ns())  # other moments every time; a failure names the seed below
    seed = dice.randrange(2**32)
    moments = random.Random(seed)
    killed, kills = 0, 0
    with Forked(tmp_path / "log") as lacuna:
        lacuna.start(*command(world, tmp_path, "run=whole"))
        assert lacuna.wait() == 0, lacuna.log.read_text()[-2000:]
        while not (tmp_path / "broken" / "final" / "model.json").exists():
            again = (tmp_path / "broken" / "config.json").exists()
            lacuna.start(*command(world, tmp_path, "resume=broken" if again else "run=broken"))
            if kills < 4:
                _wait_until_it_works(lacuna, tmp_path / "broken" / "sites")
                time.sleep(moments.uniform(0.0, 2.5))
                lacuna.kill()
                kills += 1
            code = lacuna.wait()
            killed += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL), f"seed {seed}: {lacuna.log.read_text()[-2000:]}"
    assert killed >= 1, f"seed {seed}: every kill came too late"
    assert weights_digest(tmp_path / "whole") == weights_digest(tmp_path / "broken"), f"seed {seed}"


def _wait_until_it_works(lacuna: Forked, sites: Path) -> None:
    """Past its start: a site has answered since."""
    started = time.time()
    while lacuna.runs() and time.time() - started < 120:
        if any(p.stat().st_mtime >= started for p in sites.glob("*/ledger.jsonl")):
            return
        time.sleep(0.05)
