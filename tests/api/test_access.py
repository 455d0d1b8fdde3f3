"""Who may see and do what, endpoint by endpoint."""

from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.urls import reverse
from rest_framework.exceptions import PermissionDenied

from marketplace.api import access
from marketplace.models import Order
from tests.api.conftest import Scene, problem
from tests.factories import ProductFactory, WebhookEventFactory

PEOPLE = ("anonymous", "buyer", "other buyer", "seller", "other seller", "staff", "viewer", "operator")

# 401 for strangers always, 403 for staff without the permission; the rest by the rows' owners.
# Each list: how many rows everyone sees; each detail: the answer.
LISTS = {
    "order": (1, 1, 0, 0, 2),
    "refund": (1, 0, 0, 0, 1),
    "transfer": (0, 0, 1, 1, 2),
    "reversal": (0, 0, 1, 1, 2),
    "seller": (0, 0, 1, 1, 6),
    "product": (0, 0, 1, 0, 5),
}
DETAILS = {
    "order": (200, 404, 404, 404, 200),
    "refund": (200, 404, 404, 404, 200),
    "transfer": (404, 404, 200, 404, 200),
    "reversal": (404, 404, 200, 404, 200),
    "seller": (404, 404, 200, 404, 200),
    "product": (404, 404, 200, 404, 200),
    "webhook-event": (403, 403, 403, 403, 200),
}


def by_person(table: dict[str, tuple[int, ...]]) -> list[Any]:
    return [
        pytest.param(name, person, expected, id=f"{name}-{person}")
        for name, row in table.items()
        for person, expected in zip(PEOPLE[1:5] + PEOPLE[6:7], row, strict=True)
    ]


@pytest.fixture
def targets(scene: Scene) -> dict[str, int]:
    return {
        "order": scene.order.pk,
        "refund": scene.refund.pk,
        "transfer": scene.transfer.pk,
        "reversal": scene.reversal.pk,
        "seller": scene.transfer.seller_id,
        "product": ProductFactory(seller=scene.transfer.seller).pk,
        "webhook-event": WebhookEventFactory().pk,
    }


@pytest.mark.parametrize(("name", "person", "expected"), by_person(LISTS))
def test_a_list_holds_what_one_may_see(
    name: str, person: str, expected: int, scene: Scene, targets: dict[str, int]
) -> None:
    response = scene.clients[person].get(reverse(f"api:{name}-list"))

    assert response.status_code == 200
    assert len(response.json()["results"]) == expected


@pytest.mark.parametrize(("name", "person", "expected"), by_person(DETAILS))
def test_a_foreign_row_does_not_exist(
    name: str, person: str, expected: int, scene: Scene, targets: dict[str, int]
) -> None:
    response = scene.clients[person].get(reverse(f"api:{name}-detail", args=[targets[name]]))

    assert response.status_code == expected


def test_strangers_have_no_rows_of_their_own(db: None) -> None:
    """Nobody gets as far: whoever forgets to ask for a sign-in shows nothing all the same."""
    with pytest.raises(PermissionDenied, match="Only staff may see orders"):
        access.visible(Order.objects.all(), AnonymousUser())


@pytest.mark.parametrize("name", DETAILS)
def test_strangers_and_staff_without_permission_see_nothing(name: str, scene: Scene, targets: dict[str, int]) -> None:
    for address in (reverse(f"api:{name}-list"), reverse(f"api:{name}-detail", args=[targets[name]])):
        refused = scene.clients["anonymous"].get(address)
        problem(refused, 401)
        assert refused["WWW-Authenticate"] == "Bearer"
        assert "marketplace.view_" in problem(scene.clients["staff"].get(address), 403)["detail"]


@pytest.mark.parametrize("person", PEOPLE)
def test_webhook_events_and_statistics_are_for_staff(person: str, scene: Scene) -> None:
    expected = {"anonymous": 401, "viewer": 200, "operator": 200}.get(person, 403)

    assert scene.clients[person].get("/api/webhook-events/").status_code == expected
    assert scene.clients[person].get("/api/stats/").status_code == expected


@pytest.mark.parametrize("person", PEOPLE)
def test_only_who_may_add_refunds_asks_for_one(person: str, scene: Scene) -> None:
    response = scene.clients[person].post(
        f"/api/orders/{scene.order.pk}/refunds/", {"amount": 1}, headers={"Idempotency-Key": "k"}
    )

    # Everything is refunded already, which is as far as one who may do it comes.
    expected = {"anonymous": 401, "buyer": 403, "staff": 403, "viewer": 403, "operator": 422}
    problem(response, expected.get(person, 404), "too-much" if person == "operator" else "")


@pytest.mark.parametrize("person", PEOPLE)
def test_only_who_may_add_refunds_plans_one(person: str, scene: Scene) -> None:
    response = scene.clients[person].get(f"/api/orders/{scene.order.pk}/refund-plan/")

    expected = {"anonymous": 401, "buyer": 403, "staff": 403, "viewer": 403, "operator": 422}
    problem(response, expected.get(person, 404), "too-much" if person == "operator" else "")


@pytest.mark.parametrize("person", PEOPLE)
def test_refunds_of_an_order_are_seen_by_its_buyer_and_staff(person: str, scene: Scene) -> None:
    response = scene.clients[person].get(f"/api/orders/{scene.order.pk}/refunds/")

    expected = {"anonymous": 401, "buyer": 200, "staff": 403, "viewer": 200, "operator": 200}
    assert response.status_code == expected.get(person, 404)


@pytest.mark.parametrize("person", PEOPLE)
def test_only_who_has_the_permission_retries(person: str, scene: Scene) -> None:
    response = scene.clients[person].post(f"/api/transfers/{scene.transfer.pk}/retry/", {"reason": "again"})

    expected = {"anonymous": 401, "seller": 403, "staff": 403, "viewer": 403, "operator": 200}
    assert response.status_code == expected.get(person, 404)
    scene.transfer.refresh_from_db()
    assert scene.transfer.status == ("reversal_pending" if person == "operator" else "permanently_failed")


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("order", {"commission_basis_points", "refund_commission", "stripe_payment_intent_id", "stripe_charge_id"}),
        ("refund", {"requested_by", "request_key", "stripe_refund_id", "last_error_message", "history"}),
        ("transfer", {"failed_leg", "retry_count", "last_error_message", "history"}),
        ("reversal", {"refund", "dispute", "waiting_for_funds_since"}),
    ],
)
def test_how_we_work_is_shown_to_staff_only(name: str, hidden: set[str], scene: Scene, targets: dict[str, int]) -> None:
    address = reverse(f"api:{name}-detail", args=[targets[name]])
    owner = scene.clients["buyer" if name in {"order", "refund"} else "seller"]

    assert hidden.isdisjoint(owner.get(address).json())
    assert hidden <= scene.clients["viewer"].get(address).json().keys()


def test_payloads_stand_in_the_detail_only(scene: Scene, targets: dict[str, int]) -> None:
    listed = scene.clients["viewer"].get("/api/webhook-events/").json()["results"][0]
    detail = scene.clients["viewer"].get(f"/api/webhook-events/{targets['webhook-event']}/").json()

    assert "payload" not in listed
    assert detail["payload"]["object"] == "event"


def test_a_session_serves_as_well_as_a_token(scene: Scene, client: Any) -> None:
    client.force_login(scene.order.buyer)

    assert client.get(f"/api/orders/{scene.order.pk}/").json()["id"] == scene.order.pk
    assert client.get("/api/schema/").status_code == 200


@pytest.mark.parametrize("token", ["Token nonsense", "Token", "Bearer x", "Basic eDp5"])
def test_a_wrong_token_is_refused(token: str, scene: Scene) -> None:
    client = scene.clients["anonymous"]

    problem(client.get("/api/orders/", headers={"Authorization": token}), 401)


def test_an_inactive_user_is_refused(scene: Scene) -> None:
    scene.order.buyer.is_active = False
    scene.order.buyer.save(update_fields=["is_active"])

    problem(scene.clients["buyer"].get("/api/orders/"), 401)


@pytest.mark.parametrize("address", ["/api/schema/", "/api/stats/", "/api/nothing/"])
def test_strangers_learn_nothing_of_the_api(address: str, scene: Scene) -> None:
    problem(scene.clients["anonymous"].get(address), 401)


def test_strangers_are_sent_to_sign_in_before_the_documents(client: Any) -> None:
    response = client.get("/api/docs/")

    assert response.status_code == 302
    assert response["Location"] == "/admin/login/?next=/api/docs/"
