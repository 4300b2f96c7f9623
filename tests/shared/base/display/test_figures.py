"""Numbers are short."""

import pytest

from shared.base.display import figures


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (100_000, "100 kB"),
        (999_600, "1.0 MB"),
        (3e15, "3000 TB"),
    ],
)
def test_sizes_are_short(count: float, text: str) -> None:
    assert figures.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.44, "0.4 s"), (59.4, "59.4 s"), (65, "1:05"), (7384, "2:03:04")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text
