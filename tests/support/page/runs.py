"""Runs as they lie on the coordinator's disk, a few rounds in."""

import json
import time
from pathlib import Path

from server.journal import facts
from server.journal.facts import Coverage, Pair, RoundFacts, SiteCoverage, SiteFacts
from shared.base.options import plain
from shared.plan.config import load


def make_run(runs: Path, name: str, rounds: int = 3, *, reason: str = "", seed: int = 0) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    config = load([f"run={name}", f"runs={runs}", f"seed={seed}", "tracking.uri=sqlite:///runs/mlflow.db"])
    (folder / "config.json").write_text(config.text())
    for number in range(rounds):
        sites = {
            "north": SiteFacts(status="ok", loss=1.0 - 0.1 * number, samples=40, seconds=2.0, bytes_up=1000),
            "south": SiteFacts(status="refused", reason=reason) if reason else SiteFacts(status="ok", loss=0.9),
        }
        one = RoundFacts(
            phase="translate",
            round=number,
            of=10,
            ended=time.time(),
            seconds=2.0,
            loss=0.95 - 0.1 * number,
            sites=sites,
            holders={"shared": 2, "to:FLAIR": 1},
            counts={"shared": 80, "to:FLAIR": 40},
            bytes_up=1000,
            refusals=(f"south: {reason}",) if reason else (),
            validation={"psnr/FLAIR": 18.0 + number},
        )
        facts.append(folder / "rounds.jsonl", one)
    pair = {"T1": Pair(sites=2, at_least=7, at_most=11), "FLAIR": Pair(sites=0, at_least=0, at_most=0)}
    found = Coverage(
        modalities=("T1", "FLAIR"),
        sites={"north": SiteCoverage(subjects=7, patterns={"T1": 7})},
        pairs={"T1": pair, "FLAIR": {"T1": pair["FLAIR"], "FLAIR": pair["T1"]}},
    )
    (folder / "inventory.json").write_text(json.dumps(plain(found)))
    return folder
