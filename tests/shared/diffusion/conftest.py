"""What several tests of operators begin with."""

import pytest
from support.model.draws import Draw


@pytest.fixture
def one() -> Draw:
    return Draw((0, 1))
