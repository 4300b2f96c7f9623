"""A recorder (recorder.py) beside every container from the moment that it starts."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from containers.deployed import PROJECT
from containers.engine import Engine

RECORDER = Path(__file__).with_name("recorder.py")


@dataclass(kw_only=True)
class Lookups:
    folder: Path
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)  # by container's name

    def heard(self) -> dict[str, list[dict[str, object]]]:
        """What each container did, by its name."""
        return {
            path.stem: [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(self.folder.glob("*.jsonl"))
        }

    def names(self) -> dict[str, set[str]]:
        return {name: {str(one["asks"]) for one in heard if "asks" in one} for name, heard in self.heard().items()}

    def calls(self) -> dict[str, set[str]]:
        """Addresses called, by container."""
        found = {}
        for name, heard in self.heard().items():
            found[name] = {str(one["calls"][0]) for one in heard if isinstance(one.get("calls"), list)}  # type: ignore[index]
        return found


@contextmanager
def recorded(engine: Engine, folder: Path) -> Iterator[Lookups]:
    """Until the block ends, every container that starts is listened to."""
    folder.mkdir()
    lookups = Lookups(folder=folder)
    events = subprocess.Popen(
        ["docker", "events", "--filter", "event=start", "--format", "{{.Actor.Attributes.name}}"],
        env=engine.environment,
        stdout=subprocess.PIPE,
    )

    def follow() -> None:
        assert events.stdout is not None
        for line in events.stdout:
            name = line.decode().strip()
            if name.startswith(f"{PROJECT}-"):
                _listen(engine, lookups, name)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield lookups
    finally:
        events.terminate()
        events.wait(10)
        thread.join(10)
        if events.stdout is not None:
            events.stdout.close()
        for process in lookups.processes.values():
            process.kill()
            process.wait()


def _listen(engine: Engine, lookups: Lookups, name: str) -> None:
    with suppress(AssertionError):  # it ended at once
        namespace = f"/proc/{engine.pid(name)}/ns/net"
        before = lookups.processes.pop(name, None)
        if before is not None:  # the container was started again: its old network is gone
            before.kill()
            before.wait()
        lookups.processes[name] = subprocess.Popen(
            [
                "nsenter",
                f"--net={namespace}",
                sys.executable,
                "-S",
                str(RECORDER),
                str(lookups.folder / f"{name}.jsonl"),
            ]
        )
