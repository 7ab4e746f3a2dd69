from __future__ import annotations

import csv
from io import StringIO

import pytest

from firstkit.accounting.exports import csv_lines, node_hour_columns, usage_columns
from firstkit.accounting.grouping import Grouping, NodeHourGrouping


def test_columns_in_the_order_asked_for_and_each_once() -> None:
    numbers = ("requests", "prompt_tokens", "completion_tokens", "estimated", "failed")
    assert usage_columns([Grouping.MODEL, "day", "model"]) == ("model", "day", *numbers)


def test_the_columns_of_node_hours_are_the_same_by_month_and_whole() -> None:
    always = ("since", "until", "cluster", "account", "submit_as", "project_id", "project")
    numbers = ("node_hours", "tokens", "requests")
    assert node_hour_columns([]) == node_hour_columns(["month"]) == (*always, *numbers)
    assert node_hour_columns([NodeHourGrouping.MODEL]) == (*always, "model", *numbers)


def test_numbers_are_plain_and_what_is_not_known_is_empty() -> None:
    rows: list[dict[str, object]] = [{"a": 1_234_567.5, "b": 10**15, "c": None}, {"a": 1e-6, "b": 0, "c": ""}]
    assert list(csv_lines("abc", rows)) == ["a,b,c\n", "1234567.500000,1000000000000000,\n", "0.000001,0,\n"]


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1"])  # noqa: RUF001
def test_names_that_a_spreadsheet_would_run_are_quoted(name: str) -> None:
    text = "".join(csv_lines("a", [{"a": name}]))
    assert list(csv.reader(StringIO(text, newline=""))) == [["a"], ["'" + name.replace("\r", "\n")]]


def test_other_names_are_as_they_are() -> None:
    names = ["astro-2026", 'the "big" one, of course', "a=b", "two\nlines", "é"]
    text = "".join(csv_lines("a", [{"a": name} for name in names]))
    assert [row["a"] for row in csv.DictReader(StringIO(text, newline=""))] == names
