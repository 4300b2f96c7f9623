"""A chart: rounded, folded, checked, and silent about what it holds."""

from pathlib import Path

import pytest

from shared.base.errors import ConfigError
from shared.clinical import FIELDS, Chart, chart_of, unfit
from shared.data.bids import read_participants


def test_scores_are_rounded_and_diagnoses_folded_when_made() -> None:
    chart = Chart(diagnosis=" cn ", mmse=21.6, adas13=28.4, cdrsb=4.3)
    assert (chart.diagnosis, chart.mmse, chart.adas13, chart.cdrsb) == ("HC", 22.0, 28.0, 4.5)
    assert [Chart(diagnosis=d).diagnosis for d in ("ad", "Dementia", "LMCI", "NC", "HC")] == [
        "AD",
        "AD",
        "MCI",
        "HC",
        "HC",
    ]
    assert Chart(mmse=22.4) == Chart(mmse=22)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("mmse", 31.0, r"mmse=31.0: must be a number in \[0, 30\]"),
        ("mmse", 30.4, r"mmse=30.4: must be a number in \[0, 30\]"),
        ("mmse", float("nan"), r"mmse=nan: must be a number in \[0, 30\]"),
        ("mmse", True, r"mmse=True: must be"),
        ("adas13", -1, r"adas13=-1: must be a number in \[0, 85\]"),
        ("cdrsb", "4", r"cdrsb='4': must be a number in \[0, 18\]"),
        ("diagnosis", "PD", r"diagnosis='PD': must be one of AD, MCI, HC"),
        ("diagnosis", 1, r"diagnosis=1: must be one of AD, MCI, HC"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_rule(field: str, value: object, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        Chart(**{field: value})  # type: ignore[arg-type]


def test_only_the_allowed_fields_are_read() -> None:
    row = {"diagnosis": "AD", "mmse": 22.0, "adas13": 28.0, "cdrsb": 4.5, "age": 71.0, "sex": "F"}
    assert chart_of(row, FIELDS) == Chart(diagnosis="AD", mmse=22, adas13=28, cdrsb=4.5)
    assert chart_of(row, ("mmse",)) == Chart(mmse=22)
    assert chart_of(row, ()) == Chart()
    assert chart_of({}, FIELDS) == Chart()
    with pytest.raises(ConfigError, match="fields='age': must be among diagnosis"):
        chart_of(row, ("age",))


def test_a_value_that_does_not_fit_is_left_out_and_named_without_it() -> None:
    """An error would leave a site that trains."""
    row = {"diagnosis": "secret-word", "mmse": 331.0, "cdrsb": 4.5}
    assert chart_of(row, FIELDS) == Chart(cdrsb=4.5)
    assert list(unfit(row)) == ["diagnosis", "mmse"]
    assert "331" not in str(unfit(row))
    assert "secret" not in str(unfit(row))
    assert unfit(row, ("cdrsb",)) == {}


def test_a_chart_does_not_print_what_it_holds() -> None:
    chart = Chart(diagnosis="AD", mmse=22)
    assert repr(chart) == str(chart) == "Chart of diagnosis, mmse"
    assert repr(Chart()) == "Chart of nothing"


def test_a_score_that_is_left_out_is_remarked_at_the_site(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tmmse\tcdrsb\tdiagnosis\nsub-1\t31\t4.5\tglioma\n")
    row = read_participants(tmp_path)["sub-1"]
    assert [remark.why for remark in row.remarks] == [
        "mmse=31.0: must be a number in [0, 30]; models that read the chart leave it out"
    ]
    assert chart_of(row.clinical, FIELDS) == Chart(cdrsb=4.5)
