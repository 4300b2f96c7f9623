"""Fixtures that several parts share."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch

torch.set_num_threads(1)  # two test processes share two cores

from support.cohort.worlds import write_world  # noqa: E402
from support.dicom.orthanc import orthanc, pacs  # noqa: E402, F401
from support.rounds.probe import Probe  # noqa: E402

from shared import methods  # noqa: E402

SITES = {
    "north": [("T1", "T2")] * 5 + [("T1",)],
    "east": [("T1", "FLAIR")] * 5,
    "south": [("T1", "T2", "FLAIR")] * 5,
}


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row more in the table of methods, for this test."""
    monkeypatch.setitem(cast(MutableMapping[str, Any], methods.METHODS), "probe", Probe)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites with different missing modalities, 16^3."""
    return write_world(tmp_path_factory.mktemp("world"), SITES)
