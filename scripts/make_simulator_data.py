"""Make the simulator's data files from Stripe's published OpenAPI description.

    python scripts/make_simulator_data.py SPECIFICATION.json

SPECIFICATION.json is `openapi.spec3.json` of github.com/stripe/openapi with `fixtures3.json` of the same
repository under the key `x-fixtures` (MIT, Copyright (c) 2011- Stripe, Inc.). Descriptions are left out, and
so is every operation that the simulator does not answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "marketplace" / "simulator" / "data"
NOTE = (
    "Derived from github.com/stripe/openapi (openapi.spec3.json, API version {version}, and fixtures3.json); "
    "MIT licence, Copyright (c) 2011- Stripe, Inc. Made by scripts/make_simulator_data.py; do not edit."
)
KINDS = (
    "account", "balance", "balance_transaction", "charge", "dispute", "event", "payment_intent", "refund",
    "transfer", "transfer_reversal", "webhook_endpoint",
)  # fmt: skip
LEFT_OUT = (
    "/bank_accounts", "/external_accounts", "/people", "/persons", "/login_links", "/capabilities",
    "/balance/history", "/search", "/dispute/close", "/charges/{charge}/dispute", "/amount_details",
    "/apply_customer", "/capture", "/increment_auth", "/verify_micro", "/reject", "/charges/{charge}/refund",
)  # fmt: skip
# stripe-python 16.1 speaks a later version than the description. These parameters are known there only.
LATER = {
    "POST /v1/payment_intents": ("allowed_payment_method_types", "payment_method_types"),
    "POST /v1/payment_intents/{intent}/confirm": ("allowed_payment_method_types", "payment_method_types"),
}


def parameter(schema: dict[str, Any]) -> dict[str, Any]:
    """One parameter's rule: its type, and what narrows it."""
    if "anyOf" in schema:
        return {"any": [parameter(choice) for choice in schema["anyOf"]]}
    kind = schema.get("type", "string")
    if kind == "array":
        return {"type": "array", "of": parameter(schema["items"])}
    if kind == "object":
        if isinstance(schema.get("additionalProperties"), dict):
            return {"type": "map", "of": parameter(schema["additionalProperties"])}
        rule: dict[str, Any] = {
            "type": "object",
            "of": {name: parameter(inner) for name, inner in schema.get("properties", {}).items()},
        }
        if schema.get("required"):
            rule["required"] = schema["required"]
        return rule
    rule = {"type": kind}
    if "enum" in schema:
        rule["enum"] = schema["enum"]
    elif kind == "string" and "maxLength" in schema:
        rule["max"] = schema["maxLength"]
    return rule


def operations(specification: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, methods in specification["paths"].items():
        if any(part in path for part in LEFT_OUT):
            continue
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            of: dict[str, Any] = {}
            required: list[str] = []
            for each in operation.get("parameters", []):
                if each["in"] == "query":
                    of[each["name"]] = parameter(each["schema"])
                    if each.get("required"):
                        required.append(each["name"])
            content = operation.get("requestBody", {}).get("content", {})
            body = content.get("application/x-www-form-urlencoded", {}).get("schema", {})
            of |= {each: parameter(schema) for each, schema in body.get("properties", {}).items()}
            required += body.get("required", [])
            if name in LATER:
                new, like = LATER[name]
                of[new] = of[like]
            found[name] = {"of": of, "required": required} if required else {"of": of}
    return found


def objects(specification: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for kind in KINDS:
        schema = specification["components"]["schemas"][kind]
        fields = schema["properties"]
        found[kind] = {
            "sample": specification["x-fixtures"][kind],
            "required": schema.get("required", []),
            "fields": {
                name: {
                    "nullable": bool(field.get("nullable")),
                    "type": field.get("type") or ("any" if "anyOf" in field else "object"),
                }
                for name, field in fields.items()
            },
            "expandable": sorted(name for name, field in fields.items() if "x-expansionResources" in field),
        }
    disputed = specification["components"]["schemas"]["dispute"]["properties"]
    found["dispute"]["reasons"] = disputed["reason"].get("enum", [])
    return found


def main() -> None:
    specification = json.loads(Path(sys.argv[1]).read_text())
    note = NOTE.format(version=specification["info"]["version"])
    DATA.mkdir(exist_ok=True)
    for name, content in (("parameters", operations(specification)), ("objects", objects(specification))):
        text = json.dumps({"_note": note, name: content}, separators=(",", ":"), sort_keys=True)
        (DATA / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
