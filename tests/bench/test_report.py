"""Bars and verdicts."""

import json
import re

import pytest

from bench import __main__ as command
from bench import report
from bench.report import Row, at_least, at_most
from tests.structure.sources import ROOT


def row(*values: float, worst: bool = False) -> Row:
    return Row("claim", "a figure", at_most(1.5, "×"), values, worst=worst)


@pytest.mark.parametrize(
    ("bar", "just_met", "just_missed", "shown"),
    [
        (at_least(0.9, "%", 1), 0.9, 0.8999, "≥ 90 %"),
        (at_most(1.4, "×"), 1.4, 1.4001, "≤ 1.4 ×"),
        (at_most(0.005, "%", 2), 0.005, 0.0051, "≤ 0.5 %"),
        (at_most(150, "MB", 1), 150, 150.1, "≤ 150 MB"),
        (at_least(3, "×"), 3, 2.99, "≥ 3 ×"),
        (at_most(20, decimals=0), 20, 21, "≤ 20"),
    ],
)
def test_a_bar_is_met_from_its_limit_on(bar: report.Bar, just_met: float, just_missed: float, shown: str) -> None:
    assert bar.is_met_by(just_met)
    assert not bar.is_met_by(just_missed)
    assert str(bar) == shown


def test_the_repetition_in_the_middle_decides() -> None:
    assert row(1.0, 1.2, 9.0).is_met
    assert not row(1.0, 1.6, 1.7).is_met


def test_where_a_bar_must_never_be_broken_the_worst_decides() -> None:
    assert not row(1.0, 1.2, 1.6, worst=True).is_met


def test_a_missed_bar_is_said_in_the_table_and_in_the_json() -> None:
    assert "**not met**" in report.markdown([row(2.0)])
    assert "**not met**" not in report.markdown([row(1.0)])
    assert row(2.0).as_json()["met"] is False


def test_the_results_of_a_real_run_stand_in_the_docs_as_they_were_measured() -> None:
    written = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    page = command.MARKED.search((ROOT / "docs" / "benchmarks.md").read_text())
    assert page is not None
    assert {each["measurement"] for each in written["rows"]} == set(command.MEASUREMENTS)
    assert written["machine"]["repetitions"] >= 3
    for each in written["rows"]:
        verdict = "met" if each["met"] else r"\*\*not met\*\*"
        assert re.search(rf"^\| {re.escape(each['figure'])} \| .* \| {verdict} \|", page[0], re.MULTILINE), each
