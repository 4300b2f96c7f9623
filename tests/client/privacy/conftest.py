"""A cohort of seven people with all patterns that matter, and the probe's network."""

import pytest
from support.cohort.worlds import write_cohort
from support.privacy.privately import PATTERNS, PROBE, cohort_at
from torch import nn

from shared.data.cohort import Cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return cohort_at(write_cohort(tmp_path_factory.mktemp("site") / "north", "north", PATTERNS))


@pytest.fixture
def net() -> nn.Module:
    return PROBE.build(0)
