"""The default anatomy, prepared once for all tests of a run, with the network out of reach; a test's own numbers."""

import socket
from pathlib import Path

import numpy as np
import pytest

from shared.data.phantom import anatomy


@pytest.fixture(scope="session")
def mni_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    cache = tmp_path_factory.mktemp("anatomy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        anatomy.prepare(None, cache)
    return cache


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """The same numbers in every run, others in every test."""
    return np.random.default_rng(list(request.node.name.encode()))
