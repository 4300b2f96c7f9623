"""A federation, empty or with three sites."""

from pathlib import Path

import pytest
from support.flower.federations import enter, make


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    return make(tmp_path / "federation")


@pytest.fixture
def three(federation: Path, tmp_path: Path) -> Path:
    """With three sites that have joined."""
    for name in ("north", "east", "south"):
        enter(federation, tmp_path / name, name)
    return federation
