"""A run whose coordinator sees sums alone ends at the bits of one that sees every update."""

import dataclasses
from pathlib import Path

import pytest
from support.cohort.worlds import prepare_here, write_cohort
from support.rounds.federation import config, weights_digest
from support.rounds.spoilt import start

SITES = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sites: all have T1, four T2, three FLAIR."""
    root = tmp_path_factory.mktemp("five")
    for i, site in enumerate(SITES):
        held = tuple(m for m, n in (("T1", 5), ("T2", 4), ("FLAIR", 3)) if i < n)
        prepare_here(write_cohort(root / "sites" / site, site, [held] * 5, seed=i))
    return root


@pytest.mark.usefixtures("probe")
def test_same_bits(five: Path, tmp_path: Path) -> None:
    plain = config(five, min_sites=3, min_holders=3)
    start(tmp_path / "plain", plain)
    secure = dataclasses.replace(plain, federation=dataclasses.replace(plain.federation, secure=True))
    start(tmp_path / "secure", secure)
    assert weights_digest(tmp_path / "secure") == weights_digest(tmp_path / "plain")
