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
