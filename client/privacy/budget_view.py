"""What `lacuna-site budget` says: what a privacy budget comes to, run by run, and what a planned run would add.

Epsilons are rounded up and what is left is rounded down: no reader is told of more privacy than there is.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from client.privacy.budget import Budget
from client.privacy.budget_files import enrolled
from shared.base.errors import BudgetSpent, ConfigError
from shared.plan.settings import RunSettings
from shared.trust import privacy
from shared.trust.privacy import Query, Spending


def facts(budget: Budget) -> dict[str, Any]:
    return {
        "ledger": budget.id,
        "made": budget.made,
        "size": budget.size,
        "delta": budget.delta,
        "budget": budget.budget,
        "epsilon": budget.epsilon(),
        "bound": budget.bound(),
        "left": budget.left(),
        "latched": budget.latched,
        "rows": budget.sequence,
        "head": budget.head,
        "runs": [
            {
                "run": one.run,
                "phases": dict(one.phases),
                "queries": _queries(one.spending),
                "epsilon": privacy.epsilon(one.spending, budget.delta),
                "first": one.first,
                "last": one.last,
            }
            for one in budget.by_run()
        ],
        "decisions": [
            {"time": row.time, "kind": row.kind, "budget": row.budget, "size": row.size, "run": row.run, "why": row.why}
            for row in budget.decisions()
        ],
    }


def lines(said: Mapping[str, Any]) -> Iterator[str]:
    """Say the same for a person, a line each."""
    yield f"{'spent':<12}epsilon {up(said['epsilon'])} (PRV), {up(said['bound'])} by the gate (RDP)"
    yield f"{'budget':<12}epsilon {said['budget']:g}, delta {said['delta']:g}, about {said['size']} subjects"
    closed = "; a run was refused, and nothing is admitted until the budget is raised" if said["latched"] else ""
    yield f"{'left':<12}epsilon {down(said['left'])} by the gate{closed}"
    yield f"{'chain':<12}whole, {said['rows']} rows, head {said['head'][:16]}; ledger {said['ledger'][:16]}"
    if said["runs"]:
        rows: list[tuple[str, ...]] = [("run", "phases", "steps", "noise", "rate", "epsilon alone", "when")]
        rows += [_cells(run) for run in said["runs"]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        yield ""
        yield from ("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows)
    yield ""
    for one in said["decisions"]:
        if one["kind"] == "budget":
            yield f"{when(one['time'])}  budget {one['budget']:g}, about {one['size']} subjects: {one['why']}"
        else:
            yield f"{when(one['time'])}  refused to {one['run']}: {one['why']}"


# --- a planned run --------------------------------------------------------------------------------------------------


def read_settings(path: Path) -> RunSettings:
    """Read a run's config.json, or what the coordinator sends to the sites."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plan {path}: is no run's config.json: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"--plan {path}: is no run's config.json: must be a group of keys")
    return RunSettings.of_run(found) if "federation" in found else RunSettings.parse(json.dumps(found))


def planned(settings: RunSettings) -> Spending:
    """Count all that a run would ask of a private site's subjects; nothing where it does not ask for privacy."""
    if settings.privacy.mode == "off":
        return {}
    if settings.privacy.noise is None:
        raise ConfigError("privacy.noise=null: must be a number in a plan; `lacuna` writes it into a run's config.json")
    return settings.queries(settings.build_method())


def what_if(folder: Path, settings: RunSettings) -> dict[str, Any]:
    """What a run would cost alone, and with all before; at a site that is not enrolled yet, under the run's terms."""
    more, known = planned(settings), enrolled(folder)
    if not known:
        budget, delta, spent, latched = settings.privacy.epsilon, settings.privacy.delta, {}, False
    else:
        with Budget.look(folder) as here:
            budget, delta, spent, latched = here.budget, here.delta, here.spending(), here.latched
    total = privacy.together(spent, more)
    return {
        "enrolled": known,
        "private": settings.privacy.mode != "off",
        "queries": _queries(more),
        "budget": budget,
        "delta": delta,
        "alone": {"epsilon": privacy.epsilon(more, delta), "bound": privacy.bound(more, delta)},
        "total": {"epsilon": privacy.epsilon(total, delta), "bound": privacy.bound(total, delta)},
        "fits": not more or (not latched and privacy.fits(spent, more, budget=budget, delta=delta)),
        "latched": latched,
    }


def plan_lines(said: Mapping[str, Any]) -> Iterator[str]:
    if not said["private"]:
        yield "the run asks for no differential privacy: it would not be charged, and nothing would bound what it tells"
        return
    for query in said["queries"]:
        yield f"{'planned':<12}{query['steps']} steps at noise {query['noise']:g}, rate {query['rate']:g}"
    yield f"{'alone':<12}epsilon {_both(said['alone'])}"
    yield f"{'in all':<12}epsilon {_both(said['total'])}"
    whose = "" if said["enrolled"] else " (the run's own: this site has made none yet)"
    yield f"{'budget':<12}epsilon {said['budget']:g}, delta {said['delta']:g}{whose}"
    if said["fits"]:
        yield "it fits"


def refuse(said: Mapping[str, Any]) -> None:
    """End with exit code 4 for a plan that does not fit."""
    if not said["fits"]:
        why = (
            "an earlier run was refused for it, and nothing is admitted since"
            if said["latched"]
            else f"with this run {up(said['total']['bound'])} would be spent, by the gate"
        )
        raise BudgetSpent(f"the plan does not fit the budget of epsilon {said['budget']:g} at {said['delta']:g}: {why}")


# --- words ----------------------------------------------------------------------------------------------------------


def up(epsilon: float) -> str:
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:g}"


def down(epsilon: float) -> str:
    return f"{math.floor(epsilon * 100 + 1e-9) / 100:g}"


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _queries(spending: Mapping[Query, int]) -> list[dict[str, Any]]:
    return [{"noise": query.noise, "rate": query.rate, "steps": steps} for query, steps in sorted(spending.items())]


def _both(epsilons: Mapping[str, float]) -> str:
    return f"{up(epsilons['epsilon'])} (PRV), {up(epsilons['bound'])} by the gate (RDP)"


def _cells(run: Mapping[str, Any]) -> tuple[str, ...]:
    queries = run["queries"]
    return (
        run["run"],
        ", ".join(run["phases"]),
        " + ".join(str(query["steps"]) for query in queries),
        " + ".join(f"{query['noise']:g}" for query in queries),
        " + ".join(f"{query['rate']:g}" for query in queries),
        up(run["epsilon"]),
        f"{when(run['first'])} to {when(run['last'])}",
    )
