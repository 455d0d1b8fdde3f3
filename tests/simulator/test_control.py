"""The simulator's own HTTP interface and its audit."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import requests
import stripe

from marketplace.simulator import StripeSimulator


class Remote:
    def __init__(self, url: str) -> None:
        self.url = f"{url}/_simulator"

    def __call__(self, method: str, path: str, body: Any = None, expect: int = 200) -> Any:
        answer = requests.request(method, f"{self.url}/{path}", json=body, timeout=10)
        assert answer.status_code == expect, answer.text
        return answer.json()


@pytest.fixture
def remote(sim: StripeSimulator) -> Remote:
    return Remote(sim.url)


def test_the_clock_is_moved(remote: Remote, sim: StripeSimulator) -> None:
    before = remote("GET", "clock")["now"]
    assert remote("POST", "clock", {"advance": 3600})["now"] >= before + 3600
    assert remote("POST", "clock", {"freeze": True})["frozen"]
    assert remote("POST", "clock", {"set": 1_900_000_000})["now"] == 1_900_000_000
    assert not remote("POST", "clock", {"run": True})["frozen"]
    remote("POST", "clock", {"jump": 1}, expect=400)
    remote("POST", "clock", {"advance": "far"}, expect=400)


def test_faults_are_added_listed_and_cleared(remote: Remote, client: stripe.StripeClient, sim: StripeSimulator) -> None:
    made = remote("POST", "faults", {"action": "unavailable", "endpoint": "GET /v1/balance", "status": 502})
    assert [each["id"] for each in remote("GET", "faults")] == [made["id"]]
    with pytest.raises(stripe.APIError):
        client.v1.balance.retrieve()
    assert remote("DELETE", f"faults/{made['id']}") == {"removed": True}
    client.v1.balance.retrieve()
    remote("POST", "faults", {"action": "drop_before"})
    remote("DELETE", "faults")
    client.v1.balance.retrieve()
    assert "explode" in remote("POST", "faults", {"action": "explode"}, expect=400)["error"]
    remote("POST", "faults", {"action": "latency", "colour": "red"}, expect=400)


def test_requests_are_told(remote: Remote, client: stripe.StripeClient, sim: StripeSimulator) -> None:
    client.v1.balance.retrieve()
    told = remote("GET", "requests?limit=5")
    assert told["total"] == 1
    assert told["data"][0]["endpoint"] == "GET /v1/balance"
    assert told["data"][0]["status"] == 200
    assert told["in_flight_max"]["GET /v1/balance"] == 1


def test_things_happen_outside_the_api(remote: Remote, sim: StripeSimulator) -> None:
    seller = remote("POST", "dashboard/account", {"country": "FR"})["id"]
    transfer = remote("POST", "dashboard/transfer", {"amount": 700, "destination": seller})
    remote("POST", f"accounts/{seller}", {"pay_out": True})
    assert remote("POST", "dashboard/reversal", {"transfer": transfer["id"]}, expect=400)["error"]["code"] == (
        "balance_insufficient"
    )
    shown = remote("POST", f"accounts/{seller}", {"may_go_negative": True})
    assert shown["balances"][0]["available"] == 0
    assert remote("POST", "dashboard/reversal", {"transfer": transfer["id"], "amount": 200})["amount"] == 200
    charge = remote("POST", "dashboard/charge", {"amount": 1000})
    remote("POST", "settings", {"refund_status": "pending"})
    refund = remote("POST", "dashboard/refund", {"charge": charge["id"], "amount": 100})
    assert refund["status"] == "pending"
    assert remote("POST", f"refunds/{refund['id']}/succeed")["status"] == "succeeded"
    assert remote("POST", f"refunds/{refund['id']}/fail", {"reason": "declined"})["failure_reason"] == "declined"
    dispute = remote("POST", "disputes", {"charge": charge["id"]})
    assert remote("POST", f"disputes/{dispute['id']}", {"status": "won"})["status"] == "won"
    remote("POST", f"accounts/{seller}", {"capabilities": {"transfers": "inactive"}})
    assert sim.events(type="account.updated", account=seller)
    event = sim.events()[0]
    assert remote("POST", f"events/{event['id']}/resend") == {"endpoints": 0}
    assert sim.audit()["problems"] == []
    assert {each["request"]["id"] for each in sim.events(account="*")} == {None}


def test_keys_limits_webhooks_and_settings_are_set(
    remote: Remote, client: stripe.StripeClient, sim: StripeSimulator
) -> None:
    remote("POST", "keys", {"revoke": "sk_test_simulator1234"})
    with pytest.raises(stripe.AuthenticationError):
        client.v1.balance.retrieve()
    remote("POST", "keys", {"restore": "sk_test_simulator1234"})
    assert remote("POST", "limits", {"rate_limit": 1})["rate_limit"] == 1
    client.v1.balance.retrieve()
    with pytest.raises(stripe.RateLimitError):
        client.v1.balance.retrieve()
    assert remote("POST", "webhooks", {"duplicates": 0.5})["duplicates"] == 0.5
    remote("POST", "webhooks", {"duplicates": 5}, expect=400)
    remote("POST", "settings", {"mood": "bad"}, expect=400)
    remote("POST", "reset")
    assert remote("GET", "webhooks")["duplicates"] == 0


def test_an_unknown_address_lists_what_there_is(remote: Remote) -> None:
    assert "GET /_simulator/audit" in remote("GET", "nonsense", expect=404)["endpoints"]


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}])
def test_web_pages_cannot_reach_the_control(sim: StripeSimulator, headers: dict[str, str]) -> None:
    answer = requests.post(f"{sim.url}/_simulator/reset", headers=headers, timeout=10)
    assert answer.status_code == 403


def test_the_audit_tells_an_operation_done_twice(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any], remote: Remote
) -> None:
    params: Any = {"amount": 100, "metadata": {"op_id": "a-1", "order": "42"}}
    client.v1.transfers.reversals.create(transfer["id"], params, {"idempotency_key": "one"})
    assert remote("GET", "audit")["suspicious"] == []
    client.v1.transfers.reversals.create(transfer["id"], params, {"idempotency_key": "two"})
    found = remote("GET", "audit")
    assert len(found["suspicious"]) == 1
    assert "op_id=a-1" in found["suspicious"][0]
    assert found["ok"]
    (row,) = found["transfers"]
    assert [each["idempotency_key"] for each in row["reversals"]] == ["one", "two"]
    assert row["reversed_sum"] == row["amount_reversed"] == 200


def test_the_audit_finds_books_that_do_not_add_up(sim: StripeSimulator, transfer: dict[str, Any]) -> None:
    sim.world.balances[transfer["destination"], "eur"]["available"] += 1
    sim.world.store.table("acct_platform", "transfer").rows[transfer["id"]]["amount_reversed"] = 3
    found = sim.audit()
    assert not found["ok"]
    assert len(found["problems"]) == 2


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [value for name, value in attrs if name in {"src", "href"} and value]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_audit_page_stands_alone_and_escapes(sim: StripeSimulator, transfer: dict[str, Any]) -> None:
    sim.create_reversal(transfer["id"], 100, metadata={"op_id": "<script>alert(1)</script>"})
    sim.create_reversal(transfer["id"], 100, metadata={"op_id": "<script>alert(1)</script>"})
    for options in ({"params": {"format": "html"}}, {"headers": {"Accept": "text/html"}}):
        answer = requests.get(f"{sim.url}/_simulator/audit", timeout=10, **options)  # type: ignore[arg-type]
        assert answer.headers["Content-Type"].startswith("text/html")
    page = Page()
    page.feed(answer.text)
    page.close()
    assert page.open == []
    assert page.outside == []
    assert "<script>" not in answer.text
    assert "prefers-color-scheme: dark" in answer.text
    assert transfer["id"] in answer.text
