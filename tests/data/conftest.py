"""The default anatomy, prepared once for all tests of a run."""

from pathlib import Path

import pytest

from shared.data import anatomy


@pytest.fixture(scope="session")
def mni_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("anatomy")
    anatomy.prepare(None, cache)
    return cache
