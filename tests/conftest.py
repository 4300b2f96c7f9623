"""Where tests write, and fixtures that several parts share."""

import os
import shutil
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch

torch.set_num_threads(1)  # two test processes share two cores

MEMORY = Path("/dev/shm")
ROOM = 4 * 2**30  # bytes; a run leaves far less until its end
if (
    "TMPDIR" not in os.environ
    and os.environ.get("LACUNA_CONTAINERS") != "1"  # an engine mounts folders of a real disk
    and MEMORY.is_dir()
    and shutil.disk_usage(MEMORY).free > ROOM
):  # what is written is waited for, for real, some fifty times a round: most of the suite's time on a busy disk
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

from support.cohort.worlds import write_world  # noqa: E402
from support.dicom.orthanc import orthanc, pacs  # noqa: E402, F401
from support.rounds.probe import Probe  # noqa: E402

from shared import methods  # noqa: E402

SITES = {
    "north": [("T1", "T2")] * 5 + [("T1",)],
    "east": [("T1", "FLAIR")] * 5,
    "south": [("T1", "T2", "FLAIR")] * 5,
}

APART = (  # the longest tests, the longest first: each goes to whichever process is free
    "tests/test_engines.py",
    "tests/test_kill.py",
    "tests/benchmarks/",
    "tests/shared/model/test_bundle.py::test_the_exported_denoiser",
    "tests/test_private_federation.py::test_kill_9",
    "tests/client/page/test_in_chromium.py",
    "tests/client/site/test_site.py",
    "tests/client/ingest/image/test_register.py::test_twenty",
    "tests/shared/methods/baselines/test_baselines.py::test_what_is_exported",
    "tests/shared/methods/nets/test_unet.py",
    "tests/docs/test_extending.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Any other file goes to one process whole, which makes its fixtures once. (xdist 3.8's own groups are ignored
    under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if _place(nodeid) < len(APART) else nodeid.split("::")[0]

    return ByFile(config, log)


def _place(nodeid: str) -> int:
    return next((i for i, start in enumerate(APART) if nodeid.startswith(start)), len(APART))


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row more in the table of methods, for this test."""
    monkeypatch.setitem(cast(MutableMapping[str, Any], methods.METHODS), "probe", Probe)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites with different missing modalities, 16^3."""
    return write_world(tmp_path_factory.mktemp("world"), SITES)
