"""The site's key: stable names, whole references, kept intervals, and nobody else at the file."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.ingest.clean.identity import KEY_FILE, LEAST_SHIFT, MOST_SHIFT, Identity
from shared.base.errors import ConfigError, DataError

HERE = Identity(key=bytes(range(32)))
ELSEWHERE = Identity(key=bytes(32))


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    first = Identity.open(tmp_path / "state")
    assert ((tmp_path / "state" / KEY_FILE).stat().st_mode & 0o777) == 0o600
    assert ((tmp_path / "state").stat().st_mode & 0o777) == 0o700
    assert Identity.open(tmp_path / "state") == first
    assert Identity.open(tmp_path / "other") != first
    assert [p.name for p in (tmp_path / "state").iterdir()] == [KEY_FILE]
    assert first.key.hex() not in repr(first)


def test_processes_that_start_together_share_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = {made.key for made in pool.map(Identity.open, [tmp_path] * 32)}
    assert len(keys) == 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o700])
def test_a_key_that_others_may_reach_is_refused(tmp_path: Path, mode: int) -> None:
    Identity.open(tmp_path)
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(ConfigError, match=r"lets others at it; must be 0600"):
        Identity.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 64, b"g" * 64])
def test_a_damaged_key_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    Identity.open(tmp_path)
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match="must be 64 hexadecimal digits"):
        Identity.open(tmp_path)
    assert (tmp_path / KEY_FILE).read_bytes() == content


def test_a_subject_is_stable_over_visits_and_unknown_elsewhere() -> None:
    name = HERE.subject("12345")
    assert HERE.subject("12345 ") == HERE.subject("12345\0") == name  # DICOM pads to even length
    assert name != HERE.subject("12346")
    assert name != ELSEWHERE.subject("12345")
    assert name.removeprefix("sub-").isalnum()
    assert len({HERE.subject(str(n)) for n in range(5000)}) == 5000
    for empty in ("", " ", "\0"):
        with pytest.raises(DataError, match="PatientID: empty"):
            HERE.subject(empty)


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=6))
def test_a_uid_becomes_a_valid_one_of_a_uuid(parts: list[int]) -> None:
    uid = ".".join(["1", "3", *map(str, parts)])
    made = HERE.uid(uid)
    number = int(made.removeprefix("2.25."))
    assert made == f"2.25.{number}"
    assert len(made) <= 64
    assert uuid.UUID(int=number).variant == uuid.RFC_4122
    assert uuid.UUID(int=number).version == 8
    assert made == HERE.uid(uid + "\0")
    assert made != ELSEWHERE.uid(uid)


def test_what_dicom_defines_keeps_its_uid() -> None:
    assert HERE.uid("1.2.840.10008.5.1.4.1.1.4") == "1.2.840.10008.5.1.4.1.1.4"
    assert HERE.uid("") == ""


@given(
    st.dates(date(1950, 1, 1), date(2030, 1, 1)),
    st.dates(date(1950, 1, 1), date(2030, 1, 1)),
    st.text("0123456789", min_size=1),
)
def test_the_time_between_visits_is_kept(first: date, second: date, patient: str) -> None:
    moved = [HERE.date(day.strftime("%Y%m%d"), patient) for day in (first, second)]
    days = [date(int(m[:4]), int(m[4:6]), int(m[6:])) for m in moved]
    assert days[1] - days[0] == second - first
    assert (days[0] - first).days == HERE.shift_days(patient)
    assert -MOST_SHIFT <= HERE.shift_days(patient) <= -LEAST_SHIFT


def test_patients_are_moved_by_different_distances() -> None:
    assert len({HERE.shift_days(str(n)) for n in range(200)}) > 150


@pytest.mark.parametrize("text", ["", "2018", "20181340", "00010101", "yesterday", "٢٠١٨٠١٠١", "201801011"])
def test_what_is_no_date_is_dropped(text: str) -> None:
    assert HERE.date(text, "1") == ""


def test_the_old_way_to_write_a_date_is_understood() -> None:
    assert HERE.date("2018.05.26", "1") == HERE.date("20180526", "1") == HERE.date("2018-05-26", "1") != ""
