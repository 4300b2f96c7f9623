"""The engine's laws: differences are paired, units weigh alike, intervals are Student's, words and files agree."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest

from shared.model import tables
from shared.model.tables import Column, Frame, compare, interval, records, screen, tidy, write_csv

pytestmark = pytest.mark.slow  # left out of `make fast`

COLUMNS = ("task", "model", "subject", "metric", "value")


def scores(values: dict[str, list[float]], task: str = "easy") -> Frame:
    return tidy([(task, m, s, "psnr", v) for m, own in values.items() for s, v in enumerate(own)], COLUMNS)


def compared(frame: Frame, first: str = "one") -> Frame:
    return compare(frame, ["task", "metric"], "model", ["subject"], first).set_index("model")


def test_the_interval_is_student_s() -> None:
    lead = compared(scores({"one": [1.0, 2.0, 3.0], "two": [0.0, 0.0, 0.0]})).loc["two"]
    assert (lead["lead"], lead["high"]) == (pytest.approx(2.0), pytest.approx(2 + 4.302653 / math.sqrt(3)))
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, lead["low"], lead["high"], 3))
    assert interval([4.0]) == (4.0, -math.inf, math.inf, 1)


def test_differences_are_paired_over_the_units_that_both_have() -> None:
    table = compared(scores({"one": [1.0, 20.0, 300.0], "two": [0.0, 19.0, math.nan], "three": [math.inf] * 3}))
    assert list(table.index) == ["one", "two"]  # nothing finite was measured of the third
    assert (table.loc["two", "lead"], table.loc["two", "low"], table.loc["two", "pairs"]) == (1.0, 1.0, 2)
    assert (table.loc["one", "n"], table.loc["two", "n"]) == (3, 2)
    assert math.isnan(table.loc["one", "lead"])
    assert compared(scores({"one": [1.0]}), "nobody")["lead"].isna().all()


def test_a_unit_counts_once_however_many_values_it_has() -> None:
    rows = [("easy", "one", subject, "psnr", value) for subject, value in ((0, 1.0), (0, 3.0), (1, 8.0))]
    assert compared(tidy(rows, COLUMNS)).loc["one", "mean"] == 5.0


def test_rows_keep_their_order_and_an_empty_table_has_its_columns() -> None:
    both = tables.stacked([scores({"z": [1.0], "a": [2.0]}, "late"), scores({"z": [3.0], "a": [4.0]}, "early")])
    table = compare(both, ["task"], "model", ["subject"], "z")
    assert list(zip(table["task"], table["model"], strict=True)) == [
        ("late", "z"),
        ("late", "a"),
        ("early", "z"),
        ("early", "a"),
    ]
    assert list(compare(both[:0], ["task"], "model", ["subject"]).columns) == list(table.columns)


def test_words_say_a_title_once_and_nothing_where_nothing_was_measured() -> None:
    table = compare(scores({"one": [1.0, 2.0], "two": [0.0, 0.5]}), ["task", "metric"], "model", ["subject"], "one")
    cells = (
        Column("PSNR", "psnr", tables.mean(1)),
        Column("reach", "psnr", tables.mean_with_reach(1)),
        Column("SSIM", "ssim", tables.mean(1)),
        Column("first - this", "psnr", tables.lead(1)),
        Column("short", "psnr", tables.lead_with_reach(1)),
    )
    assert screen(records(table), ("task", "model"), "metric", cells) == (
        ("task", "model", "PSNR", "reach", "SSIM", "first - this", "short"),
        [
            ("easy", "one", "1.5", "1.5 ± 6.4", "–", "", ""),
            ("", "two", "0.2", "0.2 ± 3.2", "–", "+1.2 [-1.9, +4.4]", "+1.2 ± 3.2"),
        ],
    )
    alone = compare(scores({"one": [1.0], "two": [0.0]}), ["task", "metric"], "model", ["subject"], "one")
    assert screen(records(alone), ("task", "model"), "metric", cells[3:])[1][1] == ("", "two", "+1.0", "+1.0")


def test_a_file_has_seven_digits_or_all(tmp_path: Path) -> None:
    table = tidy([("a", 1 / 3, 2), ("b", math.nan, 3), ("c", math.inf, 4)], ("name", "value", "n"))
    write_csv(table, tmp_path / "new" / "short.csv", ("name", "value", "n"))
    assert (tmp_path / "new" / "short.csv").read_text() == "name,value,n\na,0.3333333,2\nb,,3\nc,inf,4\n"
    write_csv(table, tmp_path / "exact.csv", ("value",), exact=True, blank="nan")
    with (tmp_path / "exact.csv").open() as file:
        assert float(next(csv.DictReader(file))["value"]) == 1 / 3
    assert list(tables.read_csv(tmp_path / "exact.csv")["value"]) == [str(1 / 3), "nan", "inf"]


def test_no_table_is_loaded_where_none_is_made() -> None:
    """Of a site's node, a round and the commands' help."""
    code = "import sys, client.app, client.cli.cli, server.app, server.cli.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "server.app" in done.stdout.split()
    assert not {"pandas", "shared.model.tables"} & set(done.stdout.split())
