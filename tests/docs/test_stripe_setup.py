"""docs/stripe-setup.md: exactly the events that are handled, the calls that are made, the version that is pinned."""

import re
from pathlib import Path

from marketplace import inbox
from marketplace.gateway import stripe_api

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "stripe-setup.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]


def test_the_events_are_exactly_those_with_a_handler() -> None:
    events = {row[0].strip("`"): row[1] for row in ROWS if row[1] in {"account", "Connect"}}
    expected = {name: "Connect" if name in inbox.CONNECTED_ACCOUNT_TYPES else "account" for name in inbox.HANDLERS}
    assert events == expected


def test_the_calls_are_exactly_those_of_the_gateway() -> None:
    source = (ROOT / "marketplace" / "gateway" / "stripe_api.py").read_text()
    made = set(re.findall(r"self\._client\.([a-z_.]+)\(", source))
    assert made == {
        "transfers.create",
        "transfers.list",
        "transfers.retrieve",
        "transfers.reversals.create",
        "transfers.reversals.list",
        "refunds.create",
        "refunds.list",
        "balance.retrieve",
        "balance_transactions.list",
        "disputes.list",
        "events.list",
        "payment_intents.create",
        "accounts.create",
    }
    listed = {call for row in ROWS for call in re.findall(r"`((?:GET|POST) /v1/[^`]+)`", row[0])}
    assert len(listed) == len(made)


def test_the_pinned_version_is_named() -> None:
    assert f"**`{stripe_api.API_VERSION}`**" in PAGE
