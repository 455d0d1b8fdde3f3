"""How fast one caller may ask."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db.models.functions import Now
from rest_framework.test import APIClient

from marketplace.api import pace
from marketplace.models import ApiPace
from marketplace.models.api_requests import take_turn
from tests.api.conftest import VIEWS, client_of, problem, session_of
from tests.factories import SellerTransferFactory, UserFactory

pytestmark = pytest.mark.django_db


def statuses(client: APIClient, times: int) -> list[int]:
    return [client.get("/api/orders/").status_code for _ in range(times)]


def test_beyond_the_limit_a_caller_is_told_when_to_come_again(staff: APIClient, settings: Any) -> None:
    settings.API_REQUESTS_PER_MINUTE = 3
    assert statuses(staff, 3) == [200] * 3
    refused = staff.get("/api/orders/")
    assert "Expected available in" in problem(refused, 429)["detail"]
    assert 18 <= int(refused["Retry-After"]) <= 20


def test_time_gives_turns_back(staff: APIClient, settings: Any) -> None:
    settings.API_REQUESTS_PER_MINUTE = 3
    assert statuses(staff, 4) == [200, 200, 200, 429]
    ApiPace.objects.update(used_until=Now())
    assert statuses(staff, 4) == [200, 200, 200, 429]


def test_each_caller_has_a_limit_of_its_own(staff: APIClient, settings: Any) -> None:
    settings.API_REQUESTS_PER_MINUTE = 1
    assert statuses(staff, 2) == [200, 429]
    assert statuses(client_of(UserFactory(staff=True, permissions=VIEWS)), 2) == [200, 429]
    session = APIClient()
    session.force_login(UserFactory(staff=True, permissions=VIEWS))
    assert statuses(session, 2) == [200, 429]


def test_each_token_of_a_user_has_a_limit_of_its_own(settings: Any) -> None:
    settings.API_REQUESTS_PER_MINUTE = 1
    user = UserFactory(staff=True, permissions=VIEWS)
    for client in (client_of(user), client_of(user), session_of(user)):
        assert statuses(client, 2) == [200, 429]


def test_a_token_is_not_taken_for_the_user_of_its_number() -> None:
    user = SimpleNamespace(pk=7)
    subjects = {pace._subject(SimpleNamespace(auth=auth, user=user)) for auth in (None, SimpleNamespace(pk=7))}  # type: ignore[arg-type]
    assert subjects == {"user:7", "token:7"}


def test_changes_have_a_limit_of_their_own(operator: APIClient, settings: Any) -> None:
    settings.API_CHANGES_PER_MINUTE = 1

    def retry() -> Any:
        transfer = SellerTransferFactory(permanently_failed=True)
        return operator.post(f"/api/transfers/{transfer.pk}/retry/", {"reason": "again"})

    assert retry().status_code == 200
    problem(retry(), 429)
    assert statuses(operator, 2) == [200, 200]


def test_zero_is_no_limit(operator: APIClient, settings: Any) -> None:
    settings.API_REQUESTS_PER_MINUTE = settings.API_CHANGES_PER_MINUTE = 0
    assert statuses(operator, 3) == [200] * 3
    assert not ApiPace.objects.exists()


def test_strangers_are_refused_before_they_are_counted(settings: Any) -> None:
    settings.API_REQUESTS_PER_MINUTE = 1
    for _ in range(2):
        problem(APIClient().get("/api/orders/"), 401)
    assert not ApiPace.objects.exists()


def test_a_refused_request_takes_no_turn() -> None:
    assert [take_turn("a", per_minute=2) == 0 for _ in range(4)] == [True, True, False, False]
    assert take_turn("a", per_minute=2) <= 30
    assert take_turn("a", per_minute=600) > 0


def test_a_minutes_worth_is_all_that_is_saved_up() -> None:
    assert take_turn("a", per_minute=2) == 0
    ApiPace.objects.update(used_until=Now() - timedelta(hours=1))
    assert [take_turn("a", per_minute=2) == 0 for _ in range(3)] == [True, True, False]
