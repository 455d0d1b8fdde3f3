"""Every endpoint, asked by everyone in a group: the whole of roles.py's table for the API."""

from typing import Any

import pytest
from drf_spectacular.generators import SchemaGenerator

from marketplace.models import ApiToken
from marketplace.roles import ACTS, Act, Role
from tests.api.conftest import Scene, client_of, problem, session_of
from tests.api.test_reconciliations import drift_found
from tests.factories import BulkRetryFactory, DisputeFactory, ProductFactory, WebhookEventFactory
from tests.inbox.test_any_order import rolled_back
from tests.people import person

OPERATIONS = [pytest.param(act, operation, id=operation) for act in ACTS for operation in act.api]


def documented() -> set[str]:
    paths = SchemaGenerator().get_schema(request=None, public=True)["paths"]
    methods = ("get", "post", "put", "patch", "delete")
    return {f"{method.upper()} {path}" for path, each in paths.items() for method in each if method in methods}


def test_every_operation_of_the_api_has_its_line() -> None:
    assert {operation for act in ACTS for operation in act.api} == documented()


@pytest.fixture
def ids(scene: Scene) -> dict[str, int]:
    debt = scene.transfer.reversals.get().pk
    return {
        "orders": scene.order.pk,
        "refunds": scene.refund.pk,
        "reconciliations": (finding := drift_found()).run_id,
        "drift": finding.pk,
        "disputes": DisputeFactory(order=scene.order, needs_a_person=True).pk,
        "transfers": scene.transfer.pk,
        "reversals": debt,
        "debts": debt,
        "sellers": scene.transfer.seller_id,
        "products": ProductFactory().pk,
        "bulk-retries": BulkRetryFactory().pk,
        "webhook-events": WebhookEventFactory(given_up=True).pk,
    }


@pytest.mark.parametrize(("act", "operation"), OPERATIONS)
def test_an_operation_is_for_those_roles_only(act: Act, operation: str, ids: dict[str, int]) -> None:
    for role in Role:
        with rolled_back():
            check(act, operation, role, ids)


def check(act: Act, operation: str, role: Role, ids: dict[str, int]) -> None:
    method, path = operation.split()
    user = person(role)
    by_token = client_of(user)
    send: Any = getattr(by_token if act.scope else session_of(user), method.lower())
    target = {**ids, "tokens": ApiToken.objects.get(user=user).pk}.get(path.split("/")[2])
    answer = send(path.format(id=target, order_id=target), headers={"Idempotency-Key": "k"})
    if role in act.roles:
        # A body is missing where one is wanted, all is refunded, or it is another's; but nobody says that one may not.
        assert answer.status_code in {200, 204, 400, 409, 422}, (role, answer.content)
        if act.scope is None:
            refused = problem(by_token.post(path.format(id=target)), 403)
            assert refused["detail"] == "This token may not do this: sign in."
    else:
        assert act.permission in problem(answer, 403)["detail"], role
