"""What an operator does to webhook events in the admin, through the inbox."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from marketplace.models import WebhookEvent
from tests.api.conftest import VIEWS
from tests.api.test_replay import failed_event
from tests.factories import UserFactory, WebhookEventFactory

LIST = "admin:marketplace_webhookevent_changelist"
REASON = "the seller is there now"


@pytest.fixture
def user(db: None) -> User:
    return UserFactory(username="ada", staff=True, permissions=[*VIEWS, "replay_webhookevent"])


@pytest.fixture
def operator(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def viewer(db: None) -> Client:
    client = Client()
    client.force_login(UserFactory(staff=True, permissions=VIEWS))
    return client


def address(name: str, event: WebhookEvent) -> str:
    return reverse(f"admin:marketplace_webhookevent_{name}", args=[event.pk])


def select(client: Client, *rows: WebhookEvent, **more: Any) -> Any:
    data = {"action": "replay_selected", "_selected_action": [row.pk for row in rows], **more}
    return client.post(reverse(LIST), data, follow=True)


def replays(event: WebhookEvent) -> int:
    event.refresh_from_db()
    return event.replay_count


def test_a_reason_is_asked_for_first(operator: Client) -> None:
    event = failed_event()
    for response in (select(operator, event), select(operator, event, apply="yes", reason="  ")):
        page = response.content.decode()
        assert "Replay webhook events" in page
        assert event.stripe_event_id in page
        assert event.type in page
        assert replays(event) == 0
    assert "This field is required" in page


def test_each_of_several_says_what_became_of_it(operator: Client) -> None:
    good, processed = failed_event(), WebhookEventFactory()
    bad = WebhookEventFactory(ignored=True, type="refund.created", data_object={"id": "re_1"})
    response = select(operator, good, processed, bad, apply="yes", reason=REASON)
    messages = [str(message) for message in response.context["messages"]]
    assert f"{good}: processed, {good.stripe_account_id} is up to date" in messages
    assert f"{processed} is processed: only one that failed or was ignored can be replayed" in messages
    assert any(message.startswith(f"{bad}: failed, refund.created of an unexpected shape") for message in messages)
    assert [replays(event) for event in (good, processed, bad)] == [1, 0, 1]


def test_too_many_at_once_are_refused(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.admin.asking.LARGEST_SELECTION", 1)
    rows = [failed_event() for _ in range(2)]
    response = select(operator, *rows, apply="yes", reason=REASON)
    assert "Select at most 1 webhook events at a time" in response.content.decode()
    assert [replays(row) for row in rows] == [0, 0]


def test_one_is_replayed_from_its_page_where_its_history_stands_afterwards(operator: Client) -> None:
    event = failed_event()
    assert address("replay_one", event) in operator.get(address("change", event)).content.decode()
    assert "Replay evt_" in operator.get(address("replay_one", event)).content.decode()
    response = operator.post(address("replay_one", event), {"reason": REASON}, follow=True)
    assert response.redirect_chain == [(address("change", event), 302)]
    page = response.content.decode()
    assert "is up to date" in page
    assert "user:ada" in page
    assert REASON in page
    assert replays(event) == 1
    assert address("replay_one", event) not in page


def test_an_act_on_a_row_that_is_not_there_leads_back(operator: Client) -> None:
    gone = reverse("admin:marketplace_webhookevent_replay_one", args=[10**6])
    assert operator.get(gone)["Location"] == reverse(LIST)
    assert operator.post(gone, {"reason": REASON})["Location"] == reverse(LIST)


def test_without_the_permission_there_is_no_button_and_nothing_is_done(viewer: Client) -> None:
    event = failed_event()
    assert address("replay_one", event) not in viewer.get(address("change", event)).content.decode()
    assert "replay_selected" not in viewer.get(reverse(LIST)).content.decode()
    select(viewer, event, apply="yes", reason=REASON)
    for response in (
        viewer.get(address("replay_one", event)),
        viewer.post(address("replay_one", event), {"reason": REASON}),
    ):
        assert response.status_code == 403
    assert replays(event) == 0


def test_who_may_replay_but_not_see_sees_nothing(db: None) -> None:
    client = Client()
    client.force_login(UserFactory(staff=True, permissions=["replay_webhookevent"]))
    event = failed_event()
    assert client.get(address("replay_one", event)).status_code == 403
    assert client.post(address("replay_one", event), {"reason": REASON}).status_code == 403
    assert replays(event) == 0
