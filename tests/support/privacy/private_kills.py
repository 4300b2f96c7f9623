"""Kill -9 a private federation again and again, and look at its ledgers each time: run as a program.

    python tests/support/privacy/private_kills.py FOLDER KILLS SEED

Everything is imported once; each attempt is a fork that is killed at a random moment, some rows of its ledgers later,
and goes on in the next. Prints one JSON line of what was seen.
"""

import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

STEPS = 4


def main(root: Path, kills: int, seed: int) -> None:
    from server.runs import simulation
    from server.runs.local_grid import LocalGrid
    from server.runs.serve import serve
    from shared.base.options import plain
    from shared.trust.privacy import Query, epsilon

    wanted, folder = written(root, kills)
    nodes = simulation._node_configs(wanted, folder, simulation.find_cohorts(wanted))
    app = simulation.client_app()
    step, sums = Query(noise=3.0, rate=0.3), Query(noise=20.0, rate=1.0)
    epsilon({step: 1, sums: 1}, 1e-5)  # opacus is imported here, once for all forks

    moments = random.Random(seed)
    killed, least_over, ended = 0, 10**9, False
    while not ended:
        child = os.fork()
        if child == 0:
            try:
                serve(LocalGrid(app, nodes), folder, quiet=True)
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(3)
        if killed < kills:
            wait_for(child, nodes, rows(nodes) + moments.randrange(24))
            time.sleep(moments.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        ended = not os.WIFSIGNALED(status)
        killed += not ended
        if ended and os.WEXITSTATUS(status):
            sys.exit(f"seed {seed}: an attempt failed with {os.WEXITSTATUS(status)}")
        least_over = min([least_over, *look(folder, nodes, {step: STEPS, sums: 1})])
    left = {site: ledger(Path(node["state"])) for site, node in nodes.items()}
    said = {
        "killed": killed,
        "rounds": wanted.training["fit"].rounds,
        "least_over": least_over,
        "finished": (folder / "final" / "model.json").exists(),
        "spending": {site: [[q.noise, q.rate, n] for q, n in found.items()] for site, found in left.items()},
        "told": json.loads((folder / "ledgers.json").read_text()),
        "plan": plain(wanted.privacy),
    }
    print(json.dumps(said))


def written(root: Path, kills: int) -> tuple[Any, Path]:
    """A private federation of two sites with more rounds than kills: its configuration, and the run's folder."""
    from dataclasses import replace

    import torch
    from support.cohort.worlds import write_world
    from support.rounds.federation import config, write
    from support.rounds.probe import Probe

    from shared.methods import METHODS
    from shared.plan.training import PhaseTraining
    from shared.trust.privacy import Privacy

    torch.set_num_threads(1)
    METHODS["probe"] = Probe  # type: ignore[index]
    world = write_world(root / "world", {"north": [("T1", "T2")] * 5, "east": [("T1", "T2", "FLAIR")] * 5})
    rounds = max(8, kills + kills // 4)
    training = {"fit": PhaseTraining(rounds=rounds, steps=STEPS, batch=4, lr=0.01, ema=0.9)}
    privacy = Privacy(mode="on", noise=3.0, rate=0.3, epsilon=1e3, sums_noise=20.0)
    wanted = replace(config(world), training=training, privacy=privacy)
    return wanted, write(root / "run", wanted)


def wait_for(child: int, nodes: Mapping[str, Mapping[str, str]], wanted: int) -> None:
    """Until the ledgers hold so many rows together, or the child has ended by itself."""
    while rows(nodes) < wanted and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.005)


def rows(nodes: Mapping[str, Mapping[str, str]]) -> int:
    return sum(_rows(Path(node["state"]) / "privacy" / "ledger.db") for node in nodes.values())


def _rows(path: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as file:
            return int(file.execute("SELECT COUNT(*) FROM rows").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not made yet


def ledger(state: Path) -> Mapping[object, int]:
    from client.privacy.budget import Budget

    budget = Budget.look(state / "privacy")
    found = budget.spending()
    budget.close()
    return found


def look(folder: Path, nodes: Mapping[str, Mapping[str, str]], of: Mapping[object, int]) -> list[int]:
    """By site, charged less released: every round that the coordinator has folded in was asked of the ledger before."""
    from client.privacy.budget_files import enrolled
    from server.journal import facts

    history = facts.read(folder / "rounds.jsonl")
    over = []
    for site, node in nodes.items():
        if not enrolled(Path(node["state"]) / "privacy"):
            over.append(0 if not history else -1)
            continue
        charged = sum(ledger(Path(node["state"])).values())
        released = sum(
            1 if one.phase == "level" else STEPS
            for one in history
            if site in one.sites and one.sites[site].status == "ok"
        )
        over.append(charged - released)
    return over


if __name__ == "__main__":
    here = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(here), str(here.parent)]
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
