"""Five sites of the probe, of which all have T1, four T2 and three FLAIR; and what of a round a reply is."""

import dataclasses
from pathlib import Path
from typing import Any

from flwr.app import Message
from support.cohort.worlds import prepare_here, write_cohort
from support.rounds.federation import config

from shared.plan.config import Config

SITES = ("a", "b", "c", "d", "e")
PARTS = ("dealt", "update", "shares")


def make_five(root: Path) -> Path:
    for i, site in enumerate(SITES):
        held = tuple(m for m, n in (("T1", 5), ("T2", 4), ("FLAIR", 3)) if i < n)
        prepare_here(write_cohort(root / "sites" / site, site, [held] * 5, seed=i))
    return root


def plain(world: Path, **federation: Any) -> Config:
    """A round of sums and one of training, whose every update the coordinator sees."""
    return config(world, **{"rounds": 1, "min_sites": 3, "min_holders": 3, "retries": 0, **federation})


def secure(world: Path, **federation: Any) -> Config:
    made = plain(world, **federation)
    return dataclasses.replace(made, federation=dataclasses.replace(made.federation, secure=True))


def part(reply: Message) -> str:
    """Which of a round's answers it is, or what else."""
    if not reply.has_content():
        return "error"
    return next((name for name in PARTS if name in reply.content.config_records), "other")
