"""Requests made up from the OpenAPI document, good and bad ones: the API answers as documented, and never with a 500.

The same ones every time. ``HYPOTHESIS_PROFILE=explore`` makes up others, and prints how to repeat a failure.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, Phase, Verbosity, given
from hypothesis import strategies as st
from rest_framework.utils.encoders import JSONEncoder
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from marketplace.roles import Scope
from marketplace.services import api_tokens
from tests.api.conftest import Scene
from tests.api.test_reconciliations import drift_found
from tests.factories import (
    ApiTokenFactory,
    BulkRetryFactory,
    DisputeFactory,
    ProductFactory,
    UserFactory,
    WebhookEventFactory,
)
from veza.wsgi import application

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXPLORING = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
EXAMPLES = 300 if EXPLORING else 12


def document() -> Any:
    made = SchemaGenerator().get_schema(request=None, public=True)
    return json.loads(json.dumps(made, cls=JSONEncoder))


SCHEMA = schemathesis.openapi.from_dict(document())
SCHEMA.app = application
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}


@pytest.fixture
def ids(scene: Scene, simulator: Any, settings: Any) -> dict[str, int]:
    settings.API_REQUESTS_PER_MINUTE = settings.API_CHANGES_PER_MINUTE = 0
    debt = scene.transfer.reversals.get().pk
    return {
        "orders": scene.order.pk,
        "refunds": scene.refund.pk,
        "transfers": scene.transfer.pk,
        "reversals": debt,
        "debts": debt,
        "sellers": scene.transfer.seller_id,
        "products": ProductFactory().pk,
        "tokens": ApiTokenFactory().pk,
        "webhook-events": WebhookEventFactory(given_up=True).pk,
        "reconciliations": (finding := drift_found()).run_id,
        "drift": finding.pk,
        "disputes": DisputeFactory(order=scene.order).pk,
        "bulk-retries": BulkRetryFactory().pk,
    }


@pytest.fixture
def one_connection() -> Iterator[None]:
    """As Django's own test client has it: a request does not end the transaction of its test."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.mark.usefixtures("one_connection")
@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_it_answers_as_documented(label: str, mode: GenerationMode, ids: dict[str, int]) -> None:
    operation = OPERATIONS[label]
    made = api_tokens.make(
        user=UserFactory(superuser=True), name="made up", scopes=Scope, age=api_tokens.age_of(None), actor="a test"
    )
    known = ids[label.split("/")[2]] if "{" in label else None
    checks = CHECKS if mode is GenerationMode.POSITIVE else [*CHECKS, negative_data_rejection]

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=not EXPLORING,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(case=operation.as_strategy(generation_mode=mode), is_real=st.booleans())
    def ask(case: Any, is_real: bool) -> None:
        if is_real and mode is GenerationMode.POSITIVE:
            case.path_parameters = dict.fromkeys(case.path_parameters, known)
        response = case.call(headers={"Authorization": f"Bearer {made.secret}"})
        # A filter without a value is none, as a form sends it.
        is_empty = any(value in ("", [""]) for value in (case.query or {}).values())
        case.validate_response(response, checks=CHECKS if is_empty else checks)

    ask()
