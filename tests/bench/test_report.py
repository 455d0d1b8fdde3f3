"""Bars and verdicts."""

import json
import re
from typing import Any

import pytest

from bench import __main__ as command
from bench import report
from bench.report import Row, at_least, at_most
from tests.structure.sources import ROOT


def row(*values: float, worst: bool = False, measurement: str = "claim") -> Row:
    return Row(measurement, "a figure", at_most(1.5, "×"), values, worst=worst)


def results_of(when: str, *rows: Row) -> dict[str, Any]:
    machine = {"when": when, "packages": {}, "compared_with": {}}
    noise = [{"measurement": each.measurement, "busy": 0.1, "steal": 0.0, "loop_ms": 20.0} for each in rows]
    return report.results(machine=machine, rows=rows, noise=noise)


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
    assert "| a figure | ≤ 1.5 × | 2.00 × |  | **not met** |" in report.markdown([row(2.0).as_json()])
    assert "**not met**" not in report.markdown([row(1.0).as_json()])
    assert row(2.0).as_json()["met"] is False


def test_what_ran_again_replaces_its_own_results_and_no_others() -> None:
    older = results_of("monday", row(1.0, measurement="idle"), row(1.1, measurement="claim"))
    newer = results_of("tuesday", row(1.2, measurement="claim"), row(1.3, measurement="pages"))

    merged = report.merged(older, newer, ["idle", "pages", "claim"])

    assert [(each["measurement"], each["median"]) for each in merged["rows"]] == [
        ("idle", 1.0),
        ("pages", 1.3),
        ("claim", 1.2),
    ]
    assert [each["measurement"] for each in merged["noise"]] == ["idle", "pages", "claim"]
    assert [(run["when"], run["measurements"]) for run in merged["runs"]] == [
        ("monday", ["idle"]),
        ("tuesday", ["claim", "pages"]),
    ]


def test_a_run_of_which_nothing_is_left_is_not_told_of() -> None:
    older, newer = (results_of(when, row(1.0)) for when in ("monday", "tuesday"))

    assert [run["when"] for run in report.merged(older, newer, ["claim"])["runs"]] == ["tuesday"]


def test_the_page_says_which_run_a_result_is_of_where_there_are_several() -> None:
    several = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    first = several["runs"][0]
    another = {**first, "when": "2030-01-01 00:00 UTC", "measurements": ["claim", "idle"]}

    shown = report.page({**several, "runs": [first, another]})

    assert "Run of `claim`, `idle` on 2030-01-01 00:00 UTC" in shown
    assert f"Run on {first['when']}" in report.page({**several, "runs": [first]})


def test_the_results_of_a_real_run_stand_in_the_docs_as_they_were_measured() -> None:
    written = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    page = command.MARKED.search((ROOT / "docs" / "benchmarks.md").read_text())
    assert page is not None
    assert {each["measurement"] for each in written["rows"]} == set(command.MEASUREMENTS)
    assert {name for run in written["runs"] for name in run["measurements"]} == set(command.MEASUREMENTS)
    for run in written["runs"]:
        assert run["when"] in page[0]
    for each in written["rows"]:
        # What takes minutes is measured once.
        assert len(each["values"]) >= (1 if each["measurement"] in {"idle", "memory"} else 3)
        verdict = "met" if each["met"] else r"\*\*not met\*\*"
        assert re.search(rf"^\| {re.escape(each['figure'])} \| .* \| {verdict} \|", page[0], re.MULTILINE), each
