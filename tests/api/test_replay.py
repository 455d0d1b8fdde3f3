"""POST /api/webhook-events/{id}/replay/."""

from typing import Any

import pytest
from rest_framework.test import APIClient

from marketplace.models import WebhookEvent
from tests.api.conftest import VIEWS, client_of, problem
from tests.factories import SellerFactory, UserFactory, WebhookEventFactory

REPLAY = "/api/webhook-events/{}/replay/"
BODY = {"reason": "the seller is there now"}


@pytest.fixture
def replayer(db: None) -> APIClient:
    return client_of(UserFactory(username="ada", staff=True, permissions=[*VIEWS, "replay_webhookevent"]))


def failed_event(**fields: Any) -> WebhookEvent:
    """Of an account whose seller is there now."""
    seller = SellerFactory()
    account = seller.stripe_account_id
    return WebhookEventFactory(
        **{"given_up": True, **fields},
        type="account.updated",
        stripe_account_id=account,
        data_object={"id": account, "object": "account", "capabilities": {"transfers": "active"}},
    )


def test_an_event_is_applied_and_shown_with_its_history(replayer: APIClient) -> None:
    event = failed_event()
    response = replayer.post(REPLAY.format(event.pk), BODY)
    shown = response.json()
    assert response.status_code == 200
    assert (shown["status"], shown["replay_count"], shown["last_error_code"]) == ("processed", 1, "")
    assert shown["outcome"] == f"{event.stripe_account_id} is up to date"
    assert [(entry["actor"], entry["reason"]) for entry in shown["history"]] == [
        ("inbox", shown["outcome"]),
        ("user:ada", BODY["reason"]),
    ]


def test_one_that_fails_again_is_shown_as_it_is(replayer: APIClient) -> None:
    event = WebhookEventFactory(given_up=True, type="refund.created", data_object={"id": "re_1"})
    shown = replayer.post(REPLAY.format(event.pk), BODY).json()
    assert (shown["status"], shown["last_error_code"], shown["retry_count"]) == ("failed", "MalformedEvent", 1)


def test_one_that_was_applied_is_refused(replayer: APIClient) -> None:
    event = WebhookEventFactory()
    refused = problem(replayer.post(REPLAY.format(event.pk), BODY), 409, "not-allowed-now")
    assert refused["detail"] == f"{event} is processed: only one that failed or was ignored can be replayed"


def test_a_double_click_makes_one_replay(replayer: APIClient) -> None:
    event = failed_event()
    first, second = (replayer.post(REPLAY.format(event.pk), BODY) for _ in range(2))
    assert first.status_code == 200
    problem(second, 409, "not-allowed-now")
    event.refresh_from_db()
    assert event.replay_count == 1


@pytest.mark.parametrize("reason", [None, "", "   ", "x" * 501, 5, "a\0b"])
def test_a_reason_is_demanded(reason: Any, replayer: APIClient) -> None:
    event = failed_event()
    refused = problem(replayer.post(REPLAY.format(event.pk), {"reason": reason}), 400, "invalid-request")
    assert list(refused["errors"]) == ["reason"]
    event.refresh_from_db()
    assert event.replay_count == 0


def test_who_is_not_signed_in_is_401(db: None) -> None:
    problem(client_of(None).post(REPLAY.format(failed_event().pk), BODY), 401)


@pytest.mark.parametrize("permissions", [None, VIEWS, ["replay_webhookevent"]])
def test_without_the_permissions_nothing_is_replayed(permissions: list[str] | None, db: None) -> None:
    user = UserFactory() if permissions is None else UserFactory(staff=True, permissions=permissions)
    event = failed_event()
    problem(client_of(user).post(REPLAY.format(event.pk), BODY), 403)
    event.refresh_from_db()
    assert event.replay_count == 0


def test_an_event_that_is_not_there_is_not_found(replayer: APIClient) -> None:
    problem(replayer.post(REPLAY.format(10**6), BODY), 404)


# --- By type ----------------------------------------------------------------------------------------------------------

BY_TYPE = "/api/webhook-events/replay/"
OF_ACCOUNTS = {"type": "account.updated", **BODY}


def replayed(client: APIClient, **body: Any) -> dict[str, Any]:
    response = client.post(BY_TYPE, {**OF_ACCOUNTS, **body})
    assert response.status_code == 200, response.content
    return dict(response.json())


def test_all_of_a_type_that_failed_are_applied_again_the_oldest_first(replayer: APIClient) -> None:
    events = [failed_event() for _ in range(3)]
    other = WebhookEventFactory(given_up=True, type="refund.created", data_object={"id": "re_1"})
    assert replayed(replayer, limit=2) == {
        "found": 2,
        "processed": 2,
        "ignored": 0,
        "failed": 0,
        "skipped": 0,
        "last": events[1].pk,
    }
    assert replayed(replayer, after=events[1].pk, limit=2)["last"] == events[2].pk
    assert set(WebhookEvent.objects.filter(status="processed")) == set(events)
    other.refresh_from_db()
    assert (other.status, other.replay_count) == ("failed", 0)


def test_those_that_fail_again_are_counted_and_passed_over_by_who_goes_on(replayer: APIClient) -> None:
    event = WebhookEventFactory(given_up=True, type="refund.created", data_object={"id": "re_1"})
    tally = replayed(replayer, type="refund.created")
    assert (tally["found"], tally["failed"], tally["last"]) == (1, 1, event.pk)
    assert replayed(replayer, type="refund.created", after=event.pk) == {**dict.fromkeys(tally, 0), "last": event.pk}


def test_ignored_ones_are_replayed_where_they_are_asked_for(replayer: APIClient) -> None:
    event = failed_event(given_up=False, ignored=True)
    assert replayed(replayer)["found"] == 0
    assert replayed(replayer, status="ignored")["processed"] == 1
    event.refresh_from_db()
    assert event.status == "processed"


def test_a_page_of_exactly_as_many_as_asked_for_asks_for_no_more(replayer: APIClient) -> None:
    failed_event()
    assert replayed(replayer, limit=1)["found"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"type": "refund.succeeded"}, "type"),
        ({"status": "processed"}, "status"),
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"after": -1}, "after"),
        ({"reason": ""}, "reason"),
        ({"kind": "x"}, "kind"),
    ],
)
def test_what_is_not_a_replay_by_type_is_refused(replayer: APIClient, body: dict[str, Any], field: str) -> None:
    event = failed_event()
    refused = problem(replayer.post(BY_TYPE, {**OF_ACCOUNTS, **body}), 400, "invalid-request")
    assert list(refused["errors"]) == [field]
    event.refresh_from_db()
    assert event.replay_count == 0


def test_replaying_by_type_needs_the_permission(db: None) -> None:
    client = client_of(UserFactory(staff=True, permissions=VIEWS))
    refused = problem(client.post(BY_TYPE, OF_ACCOUNTS), 403)
    assert "marketplace.replay_webhookevent" in refused["detail"]
