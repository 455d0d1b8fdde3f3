"""docs/operations.md names every setting, log line, metric and system check, and no other; its numbers are right."""

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest

from marketplace import selectors, throttle
from marketplace.workers import heartbeat, loop, stripe_queue
from tests.structure.sources import ROOT, python_files
from veza import settings
from veza.env import parse_duration

PAGE = (ROOT / "docs" / "operations.md").read_text()
# Wherever its lines are broken.
TEXT = " ".join(PAGE.split())
# The simulator is a program of its own, with a page of its own.
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in python_files("marketplace", "veza")
    if "simulator" not in path.parts
}
LEVELS = {"debug", "info", "warning", "error", "exception"}


def table(heading: str, first: str) -> list[list[str]]:
    """The names in each row of the section's table whose head begins so; their cells' first column."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = section.split(f"\n| {first}")[1].split("\n\n")[0].splitlines()[2:]
    return [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in rows]


def logged(source: str) -> Iterator[str]:
    """The events of the log lines in a module: first arguments, and the two that queues name as attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            first = node.args[0] if node.args else None
            if ast.unparse(node.func.value) == "logger" and isinstance(first, ast.Constant):
                yield str(first.value)
        elif ast.unparse(node).startswith(("answered = '", "settled = '")):
            assert isinstance(node, ast.Assign)
            yield str(ast.literal_eval(node.value))


def test_every_setting_has_its_group() -> None:
    (groups,) = re.findall(r"^## Settings\n.+?(\| group .+?)\n\n", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`([A-Z][A-Z0-9_]+)`", groups)) == set(settings.env.read)


def test_the_log_lines_are_exactly_those_of_the_code() -> None:
    listed = {name for names in table("Logs", "event ") for name in names}
    assert listed == {event for source in SOURCES.values() for event in logged(source)}


def test_the_log_lines_of_queues_are_seen() -> None:
    seen = set(logged(SOURCES["marketplace/workers/reversal.py"]))
    assert {"reversal_answered", "reversal_settled"} <= seen


@pytest.mark.parametrize("head", ["gauge ", "counter or histogram "])
def test_the_metrics_are_exactly_those_of_the_code(head: str) -> None:
    module = "monitoring" if head == "gauge " else "metrics"
    made = set(re.findall(r'"(veza_\w+)"', SOURCES[f"marketplace/{module}.py"]))
    assert {name for names in table("Health and metrics", head) for name in names} == made


def test_the_runbook_names_no_metric_that_does_not_exist() -> None:
    known = {name for source in SOURCES.values() for name in re.findall(r'"(veza_\w+)"', source)}
    for page in ("operations.md", "runbook.md"):
        assert set(re.findall(r"\bveza_\w+", (ROOT / "docs" / page).read_text())) <= known


def test_the_system_checks_are_exactly_those_of_the_code() -> None:
    listed = {name for names in table("Settings", "check ") for name in names}
    assert listed == set(re.findall(r'"(marketplace\.[EW]\d+)"', SOURCES["marketplace/checks.py"]))


def default(name: str) -> str:
    return settings.env.read[name].default


def test_the_longest_attempt_is_that_of_the_code(settings: Any) -> None:
    for name in ("STRIPE_CONNECT_TIMEOUT", "STRIPE_READ_TIMEOUT"):
        setattr(settings, name, parse_duration(default(name)))
    said = f"{stripe_queue.attempt().total_seconds():.0f} s"
    assert f"at most | one attempt: {said}" in TEXT
    assert f"and {stripe_queue.ATTEMPT_MARGIN.total_seconds():.0f} s to spare, {said} with the defaults" in TEXT
    assert f"these {stripe_queue.shortest_lease().total_seconds():.0f} s" in TEXT
    assert f"a settle is tried again for {loop.SETTLING_SECONDS:.0f} s" in TEXT


def test_the_numbers_of_claims_are_those_of_the_code() -> None:
    ahead = int(default("REVERSAL_BATCH_SIZE")) * 3 // 2
    assert f"free thread ({ahead} rows by default)" in TEXT
    assert f"{ahead + int(default('REVERSAL_CONCURRENCY'))} rows by default" in TEXT


def test_the_numbers_of_the_allowance_are_those_of_the_code() -> None:
    a_second = int(default("STRIPE_MAX_REQUESTS_PER_SECOND")) * throttle.UTILISATION
    assert f"{throttle.UTILISATION:.1%}".replace("%", " %") in TEXT
    assert f"({a_second:.1f} a second)" in TEXT
    assert f"No call waits more than {throttle.LONGEST_WAIT.total_seconds():.0f} s for its turn" in TEXT
    assert f"half is forgotten every {throttle.HALF_FORGOTTEN_SECONDS} seconds" in TEXT
    assert f"space the requests {throttle.SLOWER - 1:.0%} wider".replace("%", " %") in TEXT
    assert f"each further one within {throttle.AGAIN_SECONDS} s half as wide again" in TEXT
    assert throttle.SLOWER_AGAIN == 1.5


def test_the_numbers_of_breaker_and_heartbeat_are_those_of_the_code() -> None:
    assert f"came from {throttle.OPENS_AFTER} different sellers" in TEXT
    assert f"from {throttle.OPENS_AFTER_ROWS} different rows of fewer sellers" in TEXT
    assert f"is doubted | from {throttle.DOUBTED_AFTER.total_seconds() / 3600:.0f} hour on" in TEXT
    assert f"starts again within {throttle.LARGEST_PROBE_INTERVAL.total_seconds():.0f} s of Stripe's return" in TEXT
    every, dead = (int(each.total_seconds()) for each in (selectors.HEARTBEAT_INTERVAL, selectors.DEAD_AFTER))
    assert f"the row it writes every {every} s (`marketplace_workerheartbeat`) is younger than {dead} s" in TEXT
    assert f"From {heartbeat.LONGEST_SNAPSHOT_SECONDS // 60} minutes on each worker warns" in TEXT
