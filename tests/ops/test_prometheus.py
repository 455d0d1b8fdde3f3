"""Alert rules and the dashboard: they can be read, ask for metrics that exist, and lead to the runbook."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.docs.test_links import anchors

ROOT = Path(__file__).resolve().parents[2]
GROUPS = yaml.safe_load((ROOT / "ops" / "prometheus" / "alerts.yml").read_text())["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"]]
DASHBOARD = json.loads((ROOT / "ops" / "grafana" / "veza.json").read_text())
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
# What is scraped of a histogram besides its name.
PARTS = ("_bucket", "_sum", "_count")


def selectors_of(expression: str) -> Iterator[Any]:
    """Each choice of a series in it."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
            child = getattr(node, name, None)
            if child is not None and not isinstance(child, str):
                visit(child)
        for argument in getattr(node, "args", None) or []:
            visit(argument)

    visit(promql_parser.parse(expression))
    assert found, expression
    yield from found


def known() -> set[str]:
    """The names that the program gives, with those that a histogram's parts have."""
    made: set[str] = set()
    for module in ("monitoring", "metrics"):
        made |= set(re.findall(r'"(veza_\w+)"', (ROOT / "marketplace" / f"{module}.py").read_text()))
    return made | {name + part for name in made if name.endswith("_seconds") for part in PARTS}


@pytest.mark.parametrize("expression", [pytest.param(rule["expr"], id=rule["alert"]) for rule in ALERTS] + QUERIES)
def test_what_is_asked_for_exists(expression: str) -> None:
    for selector in selectors_of(expression):
        assert selector.name in known(), selector.name


def test_a_name_that_does_not_exist_is_seen() -> None:
    (selector,) = selectors_of('histogram_quantile(0.5, sum by (le) (rate(veza_nothing_bucket{a="b"}[5m])))')
    assert selector.name == "veza_nothing_bucket"
    assert selector.name not in known()
    with pytest.raises(ValueError, match=r".+"):
        promql_parser.parse("sum by (")


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule["alert"]) for rule in ALERTS])
def test_each_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Veza[A-Z]\w+", rule["alert"])
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor in anchors(ROOT / page), rule["annotations"]["runbook"]


def test_alerts_have_names_of_their_own_and_stand_in_the_manual() -> None:
    names = [rule["alert"] for rule in ALERTS]
    assert len(names) == len(set(names))
    manual = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"`(Veza\w+)`", manual)) == set(names)


def test_the_dashboard_has_ids_and_places_of_its_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)
