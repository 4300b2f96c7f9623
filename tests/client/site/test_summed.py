"""Of whom a site has sent sums: which second sum would be a subtraction."""

from pathlib import Path

import pytest

from client.site.summed import FILE, Person, remember, too_near


def people(numbers: range, *modalities: str, images: str = "a") -> dict[str, Person]:
    return {f"sub-{i:02d}": Person(modalities=tuple(sorted(modalities)), images=f"{images}{i}") for i in numbers}


FIRST = people(range(10), "T1", "T2") | people(range(10, 20), "T1")
SECOND = {
    "the same": (FIRST, False),
    "nobody in common": (people(range(50, 60), "T1", "T2"), False),
    "five more": (FIRST | people(range(20, 25), "T1"), False),
    "one more": (FIRST | people(range(20, 21), "T1"), True),
    "four more": (FIRST | people(range(20, 24), "T1"), True),
    "one less": ({name: person for name, person in FIRST.items() if name != "sub-03"}, True),
    "one for another": (
        {**{n: p for n, p in FIRST.items() if n != "sub-03"}, **people(range(30, 31), "T1", "T2")},
        True,
    ),
    "six more, of whom one has T2": (FIRST | people(range(20, 25), "T1") | people(range(25, 26), "T1", "T2"), True),
    "five others with T2, one of them besides T1": (
        FIRST | people(range(20, 24), "T2") | people(range(24, 25), "T1", "T2"),
        True,
    ),
    "one who was scanned again": (FIRST | people(range(3, 4), "T1", "T2", images="b"), True),
    "all were prepared anew": (
        people(range(10), "T1", "T2", images="b") | people(range(10, 20), "T1", images="b"),
        False,
    ),
    "T2 is not summed any more": (people(range(20), "T1"), False),
}


@pytest.mark.parametrize("what", SECOND)
def test_a_second_sum_is_refused_where_a_subtraction_would_be_about_few(what: str, tmp_path: Path) -> None:
    remember(tmp_path, "first", FIRST, 5)
    second, refused = SECOND[what]
    said = too_near(tmp_path, second, 5)
    assert (said is not None) is refused, said
    if refused:
        assert "min_subjects=5" in str(said)
        assert "run first" in str(said)
        assert "sub-" not in str(said)


def test_every_sum_before_counts_and_a_set_is_kept_once(tmp_path: Path) -> None:
    assert too_near(tmp_path, FIRST, 5) is None
    for run in ("first", "again"):
        assert remember(tmp_path, run, FIRST, 5) is None
    remember(tmp_path, "other", people(range(50, 70), "T1"), 5)
    assert len((tmp_path / FILE).read_text().splitlines()) == 2
    assert too_near(tmp_path, FIRST | people(range(20, 21), "T1"), 5) is not None
    assert too_near(tmp_path, people(range(50, 71), "T1"), 5) is not None
    assert too_near(tmp_path, people(range(50, 71), "T1"), 1) is None  # as in a simulation
