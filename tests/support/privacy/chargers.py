"""Processes of their own that charge a privacy ledger; run from a fork server that has imported what they need."""

import multiprocessing
import os
import random
import time
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from client.privacy.budget import Budget
from shared.base.errors import BudgetSpent
from shared.trust.privacy import Query

TERMS: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-5, "size": 200}
CHEAP = Query(noise=500.0, rate=1.0)  # thousands of these fit; at rate 1 its cost is worked out at once
STEP = Query(noise=2.0, rate=0.1)


def six_charges(folder: Path) -> Path:
    """A ledger of seven rows: the budget, and six charges of three runs."""
    with Budget.open(folder, **TERMS) as ledger:
        for n in range(6):
            ledger.charge(STEP if n % 2 else CHEAP, n + 1, run=f"run-{n // 2}", phase="translate", round=n)
    return folder


@cache
def processes() -> ForkServerContext:
    """Children of this start in hundredths of a second, with Opacus loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "opacus.accountants", "client.privacy.budget"])
    return context


def charge_and_release(folder: Path, released: Path) -> None:
    """Until killed: what a private step does, as far as the ledger and the outside see it."""
    log = os.open(released, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with Budget.open(folder, **TERMS) as ledger:
        while True:
            ledger.charge(CHEAP, 1, run="r", phase="p", round=0)
            os.write(log, b".")


def take_turns(folder: Path, name: str, query: Query, go: Path) -> None:
    """Opens, charges once, closes, and again, until the budget is spent."""
    _wait_for(go, name)
    while True:
        with Budget.open(folder, wait=120) as ledger:
            try:
                ledger.charge(query, 1, run=name, phase="p", round=0)
            except BudgetSpent:
                return
        time.sleep(random.uniform(0.02, 0.04))


def without_the_lock(folder: Path, name: str, query: Query, go: Path) -> None:
    """As if someone had removed the lock file: several hold the ledger open and charge at once."""
    ledger = Budget.open(folder, wait=120)
    (folder / "lock").unlink()
    _wait_for(go, name)
    while True:
        try:
            ledger.charge(query, 1, run=name, phase="p", round=0)
        except BudgetSpent:
            os._exit(0)  # all at once, so none of them may write the mark
        time.sleep(random.uniform(0.0, 0.01))


def hold(folder: Path, go: Path) -> None:
    with Budget.open(folder, **TERMS):
        go.touch()
        time.sleep(600)


def _wait_for(go: Path, name: str) -> None:
    go.with_name(f"{name}.ready").touch()
    while not go.exists():
        time.sleep(0.005)
