"""What a site's node is doing, from the two records that it keeps: for a person, and for a container's health check."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "node"
HEALTH, CONTACT = f"{FOLDER}/health.json", f"{FOLDER}/contact.json"
GONE = 30.0  # seconds without a beat after which nobody is there
SILENT = 90.0  # seconds without an answer from the server


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    healthy: bool  # runs, and has the server's ear or works
    running: bool
    doing: str  # absent | ended | starting | waiting | connected | working | silent
    said: str  # one line
    restarts: int = 0


def status(state: Path, *, now: float | None = None) -> NodeStatus:
    now = time.time() if now is None else now
    health = read_record(state / HEALTH)
    if health is None:
        return NodeStatus(healthy=False, running=False, doing="absent", said="no node has run with this state")
    age, doing, why = now - float(health["time"]), str(health["doing"]), health.get("why")
    restarts = int(health.get("restarts", 0))
    if doing == "ended" or age > GONE:
        said = f"no node runs; the last one {'ended' if doing == 'ended' else 'vanished'} {_ago(age)}"
        said += f": {why}" if why else ""
        return NodeStatus(healthy=False, running=False, doing="ended", said=said, restarts=restarts)
    if doing != "connected":
        said = why or "starting"
        return NodeStatus(healthy=False, running=True, doing=doing, said=said, restarts=restarts)
    alone = f"; its container reaches {health['gate']} alone" if health.get("gate") else ""
    contact = read_record(state / CONTACT) or {"time": 0.0, "doing": "idle"}
    last = now - float(contact["time"])
    if contact["doing"] == "work":
        of = f"round {contact['round']} of run {contact['run']}" if contact.get("round") else f"run {contact['run']}"
        said = f"works on {of} ({contact.get('what')}), since {last:.0f} s{alone}"
        return NodeStatus(healthy=True, running=True, doing="working", said=said, restarts=restarts)
    if last > SILENT:
        said = f"the server last answered {_ago(last)}; {why or 'the node tries again and again'}"
        return NodeStatus(healthy=False, running=True, doing="silent", said=said, restarts=restarts)
    said = f"connected, waits for work; the server answered {_ago(last)}{alone}"
    return NodeStatus(healthy=True, running=True, doing="connected", said=said, restarts=restarts)


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a record of the node; None while there is none, or it is not whole."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _ago(seconds: float) -> str:
    for size, word in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word} ago"
    return f"{max(seconds, 0):.0f} s ago"
