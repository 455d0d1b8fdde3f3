"""Every error under /api/ has one shape."""

from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from rest_framework.test import APIClient

from marketplace.api import problems
from marketplace.models import Order
from tests.api.conftest import problem
from tests.factories import order_with_items

HEADERS = {"Idempotency-Key": "k"}


@pytest.mark.parametrize("method", ["get", "post", "put", "delete"])
def test_an_address_that_is_not_there(method: str, staff: APIClient) -> None:
    refused = problem(getattr(staff, method)("/api/nothing/at/all/"), 404)

    assert refused["detail"] == "There is nothing at /api/nothing/at/all/."


def test_an_address_without_its_slash_gets_a_hint(staff: APIClient) -> None:
    assert "end with a slash" in problem(staff.post("/api/orders/1/refunds"), 404)["detail"]


@pytest.mark.parametrize("address", ["/api/orders/0/", "/api/orders/99999999999999999999999/", "/api/orders/x/"])
def test_a_row_that_is_not_there(address: str, staff: APIClient) -> None:
    problem(staff.get(address), 404)


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("post", "/api/orders/"),
        ("put", "/api/orders/1/"),
        ("patch", "/api/transfers/1/"),
        ("delete", "/api/transfers/1/"),
        ("get", "/api/transfers/1/retry/"),
        ("post", "/api/webhook-events/"),
        ("delete", "/api/orders/1/refunds/"),
        ("post", "/api/stats/"),
    ],
)
def test_a_method_that_is_not_there(method: str, address: str, staff: APIClient) -> None:
    problem(getattr(staff, method)(address), 405)


def send(client: APIClient, body: Any, content_type: str = "application/json") -> Any:
    address = f"/api/orders/{order_with_items(paid=True).pk}/refunds/"
    return client.generic("POST", address, body, content_type=content_type, headers=HEADERS)


@pytest.mark.parametrize(
    "body", ["{", "nonsense", '{"amount": NaN}', '{"amount": Infinity}', "[" * 100_000, b"\xff\xfe", "1" * 5000]
)
def test_a_body_that_is_not_json(body: Any, operator: APIClient) -> None:
    problem(send(operator, body), 400)


@pytest.mark.parametrize("body", ["[]", "5", '"text"', "null", "true", '[{"amount": 1}]'])
def test_json_of_the_wrong_shape(body: str, operator: APIClient) -> None:
    refused = problem(send(operator, body), 400, "invalid-request")

    assert list(refused["errors"]) == ["body"]


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data"])
def test_another_media_type(content_type: str, operator: APIClient) -> None:
    problem(send(operator, "amount=5", content_type), 415)


def test_a_body_that_is_too_large(operator: APIClient, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100

    assert "100 bytes" in problem(send(operator, '{"reason": "' + "x" * 100 + '"}'), 413)["detail"]


def test_an_accept_header_that_nobody_can_satisfy(staff: APIClient) -> None:
    problem(staff.get("/api/orders/", headers={"Accept": "text/csv"}), 406)


def test_a_database_that_is_away(staff: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise OperationalError("could not connect to postgres://veza:secret@db/veza")

    monkeypatch.setattr("marketplace.api.access.visible", away)

    response = staff.get("/api/orders/")

    assert "secret" not in str(problem(response, 503, "database-away"))
    assert response["Retry-After"] == "5"


def test_a_fault_of_ours_says_no_more_than_that(staff: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("sk_test_secret")

    monkeypatch.setattr("marketplace.api.access.visible", broken)
    staff.raise_request_exception = False

    response = staff.get("/api/orders/")

    assert problem(response, 500)["detail"] == "Our fault. It is in our logs."


def test_a_session_without_its_csrf_token_is_refused(db: None) -> None:
    order: Order = order_with_items(paid=True)
    client = Client(enforce_csrf_checks=True)
    client.force_login(order.buyer)

    response = client.post(f"/api/orders/{order.pk}/refunds/", {}, "application/json", headers=HEADERS)

    assert "CSRF" in problem(response, 403)["detail"]


def test_outside_of_the_api_pages_stay_pages(client: Client) -> None:
    response = client.get("/nothing-here")

    assert response.status_code == 404
    assert response["Content-Type"].startswith("text/html")


def test_what_django_answers_itself_is_a_problem_too(rf: Any) -> None:
    assert problem(problems_response(problems.not_found(rf.get("/api/x"), Exception())), 404)
    assert problem(problems_response(problems.server_error(rf.get("/api/x"))), 500)
    assert problem(problems_response(problems.bad_request(rf.get("/api/x"), Exception())), 400)
    assert problem(problems_response(problems.permission_denied(rf.get("/api/x"), Exception())), 403)
    for page in (problems.bad_request, problems.permission_denied):
        assert page(rf.get("/x"), Exception())["Content-Type"].startswith("text/html")
    assert problems.server_error(rf.get("/x"))["Content-Type"].startswith("text/html")


def test_another_host_is_refused_in_the_same_shape(staff: APIClient) -> None:
    problem(staff.get("/api/orders/", headers={"Host": "elsewhere.example"}), 400)


def problems_response(response: Any) -> Any:
    import json

    response.json = lambda: json.loads(response.content)
    return response
