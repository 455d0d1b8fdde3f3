"""The OpenAPI document is whole, and says what the API does."""

from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from jsonschema import Draft202012Validator
from rest_framework.test import APIClient

REFUNDS = "/api/orders/{order_id}/refunds/"


def test_the_document_is_made_without_warnings() -> None:
    call_command("spectacular", fail_on_warn=True, validate=True, stdout=StringIO())


@pytest.fixture
def document(staff: APIClient) -> Any:
    response = staff.get("/api/schema/", headers={"Accept": "application/json"})
    assert response.status_code == 200
    return response.json()


def test_every_endpoint_is_in_it(document: Any) -> None:
    assert {
        "/api/orders/",
        REFUNDS,
        "/api/orders/{order_id}/refund-plan/",
        "/api/transfers/{id}/retry/",
        "/api/stats/",
        "/api/webhook-events/{id}/replay/",
    } <= document["paths"].keys()
    assert not any(path.startswith("/webhooks") for path in document["paths"])


def test_every_operation_names_its_problems(document: Any) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method == "parameters":
                continue
            responses = operation["responses"]
            assert {"401", "403"} <= responses.keys(), path
            for status, response in responses.items():
                if status >= "400":
                    assert list(response["content"]) == ["application/problem+json"], (path, status)


def test_refunds_are_documented_with_examples(document: Any) -> None:
    operation = document["paths"][REFUNDS]["post"]

    assert {"200", "201", "202", "400", "401", "403", "404", "409", "422"} <= operation["responses"].keys()
    key = next(p for p in operation["parameters"] if p["name"] == "Idempotency-Key")
    assert (key["in"], key["required"]) == ("header", True)
    assert operation["requestBody"]["content"]["application/json"]["examples"]
    assert operation["responses"]["409"]["content"]["application/problem+json"]["examples"]
    amount = document["components"]["schemas"]["RefundRequest"]["properties"]["amount"]
    assert (amount["type"], amount["minimum"], amount["maximum"]) == ("integer", 1, 2**63 - 1)


def test_fields_for_staff_are_not_promised_to_others(document: Any) -> None:
    transfer = document["components"]["schemas"]["TransferDetail"]

    assert "history" in transfer["properties"]
    assert not {"history", "failed_leg", "last_error_code"} & set(transfer["required"])


def test_the_documents_for_people_load_nothing_from_elsewhere(client: Any, admin_user: Any) -> None:
    client.force_login(admin_user)

    page = client.get("/api/docs/").content.decode()

    assert "swagger-ui" in page
    assert "https://" not in page
    assert '"validatorUrl": null' in page


# --- Examples -----------------------------------------------------------------------------------------------


def as_json_schema(schema: Any) -> Any:
    """OpenAPI 3.0 says that null may be beside the type; JSON Schema among the types."""
    if isinstance(schema, list):
        return [as_json_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: as_json_schema(each) for name, each in schema.items() if name != "nullable"}
    return {"anyOf": [inner, {"type": "null"}]} if schema.get("nullable") is True else inner


def contents(document: Any) -> Iterator[tuple[str, Any]]:
    """What is sent and answered, of every operation."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            named = f"{method.upper()} {path}"
            sent = operation.get("requestBody", {}).get("content", {})
            yield from ((f"{named} sends", content) for content in sent.values())
            for status, response in operation["responses"].items():
                if status.startswith("2"):
                    yield from ((f"{named} answers {status}", content) for content in response["content"].values())


def test_every_operation_has_examples_that_its_schema_accepts(document: Any) -> None:
    components = as_json_schema({"schemas": document["components"]["schemas"]})
    found = list(contents(document))
    assert len(found) > len(document["paths"])
    for name, content in found:
        examples = [each["value"] for each in content.get("examples", {}).values()]
        examples += [content["example"]] if "example" in content else []
        assert examples, f"{name} has no example"
        validator = Draft202012Validator({**as_json_schema(content["schema"]), "components": components})
        for value in examples:
            problems = [error.message for error in validator.iter_errors(value)]
            assert problems == [], name


def test_an_example_that_its_schema_refuses_is_seen(document: Any) -> None:
    components = as_json_schema({"schemas": document["components"]["schemas"]})
    schema = {"$ref": "#/components/schemas/Order", "components": components}
    assert list(Draft202012Validator(schema).iter_errors({"id": "seven"}))
