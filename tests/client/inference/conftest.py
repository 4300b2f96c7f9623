"""What several tests of `reconstruct` begin with."""

from pathlib import Path

import pytest
from support.model.models import ANY_TINY, release


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(tmp_path_factory.mktemp("run") / "final", "any2all", ANY_TINY)
