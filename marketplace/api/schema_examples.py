"""An example for every answer of the OpenAPI document, made of its schema: so that none is missing, or out of date."""

from collections.abc import Iterator, Mapping
from typing import Any

# By the property's name, where it is text; all others by their type.
BY_NAME: Mapping[str, Any] = {
    "currency": "eur",
    "name": "Cups & Co",
    "seller_name": "Cups & Co",
    "product_name": "Cup",
    "username": "ada",
    "prefix": "vzt_Jx3kQ9",
    "token": "vzt_Jx3kQ9-shown-this-once",
    "stripe_account_id": "acct_1OxExample",
    "stripe_charge_id": "ch_3OxExample",
    "stripe_event_id": "evt_1OxExample",
    "stripe_payment_intent_id": "pi_3OxExample",
    "stripe_refund_id": "re_3OxExample",
    "stripe_reversal_id": "trr_1OxExample",
    "stripe_transfer_id": "tr_1OxExample",
    "last_error_request_id": "req_OxExample",
    "next": None,
    "version": "0f3b6f2c8ad94f1e7d5a0b9c6e8f1a2b",
}
AMOUNT = 1250
BY_FORMAT: Mapping[str, Any] = {
    "date-time": "2026-11-01T12:00:00Z",
    "date": "2026-11-01",
    "uri": "https://pay.example.com/api/orders/",
    "uuid": "6f1d3a52-0b7e-4a53-9f0c-2d1f6a3b8c4e",
    "email": "ada@example.com",
}
BY_TYPE: Mapping[str, Any] = {"integer": 7, "number": 0.5, "boolean": True, "string": "text"}


def add_examples(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """A hook of drf-spectacular: to answers of success that have no example of their own."""
    schemas = result.get("components", {}).get("schemas", {})
    for content in _successes(result):
        if "example" not in content and "examples" not in content:
            content["example"] = example(content["schema"], schemas)
    return result


def _successes(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for operations in result["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status.startswith("2"):
                    yield from response.get("content", {}).values()


def example(schema: Mapping[str, Any], schemas: Mapping[str, Any], name: str = "") -> Any:
    """A value that ``schema`` accepts, the same every time."""
    if "$ref" in schema:
        return example(schemas[schema["$ref"].rpartition("/")[2]], schemas, name)
    for several in ("allOf", "oneOf", "anyOf"):
        if several in schema:
            return example(schema[several][0], schemas, name)
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object" if "properties" in schema:
            return {key: example(inner, schemas, key) for key, inner in schema["properties"].items()}
        case "object":
            inner = schema.get("additionalProperties")
            return {"key": example(inner, schemas)} if isinstance(inner, Mapping) and inner else {}
        case "array":
            return [example(schema["items"], schemas)]
        case kind:
            return _plain(schema, kind, name)


def _plain(schema: Mapping[str, Any], kind: Any, name: str) -> Any:
    if kind == "integer" and "amount" in name:
        return AMOUNT
    name = "currency" if name.endswith("_currency") else name
    if name in BY_NAME and kind == "string":
        return BY_NAME[name]
    return BY_FORMAT.get(schema.get("format", ""), BY_TYPE.get(kind))
