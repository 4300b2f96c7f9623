"""`make test-containers`: one engine, one set of images and one deployed federation for all of them.

LACUNA_SCENE=FOLDER: work on the federation that a killed run left up. LACUNA_KEEP_ENGINE=1: leave the engine up.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from containers.deployed import Deployed
from containers.engine import Engine, NoEngine, build, engine
from containers.lookups import Lookups, recorded

if os.environ.get("LACUNA_CONTAINERS") != "1":
    collect_ignore_glob = ["test_*.py"]  # the ordinary suite starts no engine

ORDER = (
    "test_images",
    "test_training",
    "test_hidden",
    "test_lookups",
    "test_reach",
    "test_around",
    "test_figures",
    "test_faults",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs no container first, then the parts that need the least; what breaks things last."""
    items.sort(key=lambda item: next((i for i, name in enumerate(ORDER) if f"containers/{name}" in str(item.path)), -1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were skipped: one line for all that have the same reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    for why in sorted({str(report.longrepr[2]) for report in skipped}):
        terminalreporter.write_line(why.removeprefix("Skipped: "))


@pytest.fixture(scope="session")
def docker() -> Iterator[Engine]:
    try:
        with engine() as found:
            build(found)
            yield found
    except NoEngine as none:
        pytest.skip(f"SKIPPED, no containers here: {none}")


@dataclass(frozen=True, kw_only=True)
class Scene:
    deployed: Deployed
    lookups: Lookups


@pytest.fixture(scope="session")
def scene(docker: Engine) -> Iterator[Scene]:
    if left := os.environ.get("LACUNA_SCENE"):
        deployed = Deployed(engine=docker, folder=Path(left))
        with recorded(docker, Path(tempfile.mkdtemp()) / "lookups") as lookups:
            deployed.renew()
            yield Scene(deployed=deployed, lookups=lookups)
        return
    folder = Path(tempfile.mkdtemp(prefix="lacuna-containers-", dir="/var/tmp"))
    folder.chmod(0o755)  # the containers' user must come through
    deployed = Deployed(engine=docker, folder=folder)
    deployed.down()  # what a killed run left behind
    try:
        with recorded(docker, folder / "lookups") as lookups:
            deployed.make()
            deployed.up()
            yield Scene(deployed=deployed, lookups=lookups)
    finally:
        deployed.down()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def deployed(scene: Scene) -> Deployed:
    return scene.deployed
