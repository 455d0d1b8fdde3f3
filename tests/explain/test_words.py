"""Spans in sentences, addresses in Stripe's dashboard, the runbook's entries."""

from datetime import timedelta

import pytest
from django.conf import LazySettings

from marketplace.explain import links, runbook
from marketplace.explain.words import span
from tests.docs.test_links import ROOT, anchors


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3601, "1 h"),
        (3900, "1 h 5 min"),
        (45 * 86400, "45 d"),
        (86400 + 3599, "1 d"),
    ],
)
def test_a_span_has_its_two_largest_units(seconds: float, said: str) -> None:
    assert span(timedelta(seconds=seconds)) == said


@pytest.mark.parametrize("base", ["", "https://api.stripe.com"])
@pytest.mark.parametrize(("live", "mode"), [(False, "test/"), (True, "")])
def test_the_dashboard_is_that_of_the_keys_mode(base: str, live: bool, mode: str, settings: LazySettings) -> None:
    settings.STRIPE_SECRET_KEY, settings.STRIPE_LIVEMODE, settings.STRIPE_API_BASE = "rk_x", live, base

    assert links.dashboard(links.TRANSFER, "tr_1") == f"https://dashboard.stripe.com/{mode}connect/transfers/tr_1"
    assert links.dashboard(links.REQUEST, "req_1") == f"https://dashboard.stripe.com/{mode}logs/req_1"


@pytest.mark.parametrize(
    ("key", "base", "stripe_id"), [("rk_x", "http://127.0.0.1:12111", "tr_1"), ("", "", "tr_1"), ("rk_x", "", "")]
)
def test_there_is_no_dashboard_of_the_simulator(key: str, base: str, stripe_id: str, settings: LazySettings) -> None:
    settings.STRIPE_SECRET_KEY, settings.STRIPE_API_BASE = key, base

    assert links.dashboard(links.TRANSFER, stripe_id) == ""


def test_every_entry_of_the_runbook_has_the_address_that_its_heading_has() -> None:
    known = anchors(ROOT / "docs" / "runbook.md")
    assert {runbook.NOTHING_MOVES, runbook.BREAKER_OPEN, runbook.NO_WORKER} <= set(runbook.entries())
    for heading in runbook.entries():
        page, anchor = runbook.address(heading).split("#")
        assert page == "docs/runbook.md"
        assert anchor in known


def test_no_entry_runs_on_into_the_next_section() -> None:
    assert all("\n## " not in text for text in runbook.entries().values())
    assert runbook.entries()["`unknown_order`"].endswith("Not ours: nothing.")
    assert (runbook.of_code("no_such"), runbook.of_status("completed"), runbook.address("")) == ("", "", "")
