"""Form bodies and query strings: decoded as Stripe nests them, checked against Stripe's own description."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl

from . import errors

Rule = dict[str, Any]
_SEGMENTS = re.compile(r"\[([^\]]*)\]")
_INTEGER = re.compile(r"[+-]?\d{1,18}\Z")
METADATA_KEY_MAX = 40
METADATA_VALUE_MAX = 500
NOT_POSITIVE = {"amount": 1}
_CURRENCIES = (
    "usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp byn "
    "bzd cad cdf chf clp cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf "
    "gtq gyd hkd hnl hrk htg huf idr ils inr isk jmd jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp "
    "lkr lrd lsl mad mdl mga mkd mmk mnt mop mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd omr pab "
    "pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sek sgd shp sle sos srd std szl thb tjs "
    "tnd top try ttd twd tzs uah ugx uyu uzs vnd vuv wst xaf xcd xcg xof xpf yer zar zmw"
)
CURRENCIES = frozenset(_CURRENCIES.split())


@cache
def rules() -> dict[str, Rule]:
    text = (resources.files(__package__ or "marketplace.simulator") / "data" / "parameters.json").read_text()
    found: dict[str, Rule] = json.loads(text)["parameters"]
    return found


def decode(form: str) -> dict[str, Any]:
    """`a[b][c]=1&d[]=2&d[]=3` becomes {"a": {"b": {"c": "1"}}, "d": {"0": "2", "1": "3"}}."""
    tree: dict[str, Any] = {}
    for name, value in parse_qsl(form, keep_blank_values=True):
        base, bracket, _ = name.partition("[")
        if not bracket:
            tree[base] = value
            continue
        node = tree
        path = [base, *_SEGMENTS.findall(name[len(base) :])]
        for step in path[:-1]:
            inner = node.get(step)
            if not isinstance(inner, dict):
                inner = node[step] = {}
            node = inner
        last = path[-1]
        node[str(len(node)) if last == "" else last] = value
    return tree


def check(rule: Rule, given: dict[str, Any]) -> dict[str, Any]:
    """The values in their own types. Raises what Stripe answers for the first thing that does not fit."""
    known = rule["of"]
    unknown = [name for name in given if name not in known]
    if unknown:
        listed = ", ".join(unknown)
        raise errors.invalid(
            f"Received unknown parameter{'s' if len(unknown) > 1 else ''}: {listed}",
            code="parameter_unknown",
            param=unknown[0],
        )
    for name in rule.get("required", ()):
        if name not in given:
            raise errors.invalid(f"Missing required param: {name}.", code="parameter_missing", param=name)
    return {name: _value(known[name], value, name) for name, value in given.items()}


def _value(rule: Rule, value: Any, param: str) -> Any:
    if "any" in rule:
        return _any(rule["any"], value, param)
    kind = rule["type"]
    if kind == "object":
        return _object(rule, value, param)
    if kind == "map":
        return _map(rule, value, param)
    if kind == "array":
        return _array(rule, value, param)
    if isinstance(value, dict):
        raise errors.invalid(f"Invalid {kind}: {json.dumps(value)}", param=param, code=_code(kind))
    return _scalar(rule, value, param)


def _code(kind: str) -> str | None:
    return {"integer": "parameter_invalid_integer", "string": "parameter_invalid_string"}.get(kind)


def _scalar(rule: Rule, value: str, param: str) -> Any:
    kind = rule["type"]
    if value == "" and not (kind == "string" and ("" in rule.get("enum", ()) or param in _UNSETTABLE)):
        raise errors.invalid(
            f"You passed an empty string for '{param}'. We assume empty values are an attempt to unset a "
            "parameter; "
            f"however '{param}' cannot be unset. You should remove '{param}' from your request or supply "
            "a non-empty "
            "value.",
            code="parameter_invalid_empty",
            param=param,
        )
    if kind == "integer":
        return _integer(value, param)
    if kind == "boolean":
        if value not in {"true", "false", "1", "0"}:
            raise errors.invalid(f"Invalid boolean: {value}", param=param)
        return value in {"true", "1"}
    if kind == "number":
        try:
            return float(value)
        except ValueError:
            raise errors.invalid(f"Invalid decimal: {value}", param=param) from None
    return _string(rule, value, param)


_UNSETTABLE = frozenset({"description", "email", "business_type", "receipt_email", "customer"})


def _integer(value: str, param: str) -> int:
    if not _INTEGER.match(value):
        raise errors.invalid(f"Invalid integer: {value}", code="parameter_invalid_integer", param=param)
    number = int(value)
    if number < NOT_POSITIVE.get(param, number):
        raise errors.invalid(
            "This value must be greater than or equal to 1.", code="parameter_invalid_integer", param=param
        )
    return number


def _string(rule: Rule, value: str, param: str) -> str:
    if "enum" in rule and value not in rule["enum"]:
        choices = [each for each in rule["enum"] if each]
        if not choices:
            raise errors.invalid("Invalid object", param=param)
        listed = choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])}, or {choices[-1]}"
        raise errors.invalid(f"Invalid {param}: must be one of {listed}", param=param)
    if len(value) > rule.get("max", len(value)):
        raise errors.invalid(
            f"Invalid string: {value[:10]}...{value[-4:]}; must be at most {rule['max']} characters",
            param=param,
            code="parameter_invalid_string",
        )
    if param == "currency" and value.lower() not in CURRENCIES:
        raise errors.invalid(
            f"Invalid currency: {value}. Stripe currently supports these currencies: {', '.join(sorted(CURRENCIES))}",
            param=param,
        )
    return value


def _any(choices: list[Rule], value: Any, param: str) -> Any:
    """The first choice that fits; the error of the first that could have."""
    nested = isinstance(value, dict)
    first: errors.StripeError | None = None
    for choice in choices:
        if nested != (choice.get("type") in {"object", "map", "array"}):
            continue
        try:
            return _value(choice, value, param)
        except errors.StripeError as error:
            first = first or error
    if first is None:
        return _value(choices[0], value, param)
    raise first


def _object(rule: Rule, value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise errors.invalid("Invalid object", param=param)
    unknown = [name for name in value if name not in rule["of"]]
    if unknown:
        name = f"{param}[{unknown[0]}]"
        raise errors.invalid(f"Received unknown parameter: {name}", code="parameter_unknown", param=name)
    for name in rule.get("required", ()):
        if name not in value:
            full = f"{param}[{name}]"
            raise errors.invalid(f"Missing required param: {full}.", code="parameter_missing", param=full)
    return {name: _value(rule["of"][name], each, f"{param}[{name}]") for name, each in value.items()}


def _map(rule: Rule, value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise errors.invalid("Invalid object", param=param)
    if param != "metadata":
        return {name: _value(rule["of"], each, f"{param}[{name}]") for name, each in value.items()}
    for name, each in value.items():
        full = f"metadata[{name}]"
        if isinstance(each, dict):
            raise errors.invalid(
                "Metadata values must be strings, but for this key you passed in an object.", param=full
            )
        if len(name) > METADATA_KEY_MAX:
            raise errors.invalid(
                f"Metadata keys can have up to {METADATA_KEY_MAX} characters; you passed a key of "
                f"{len(name)} characters.",
                param=full,
            )
        if len(each) > METADATA_VALUE_MAX:
            raise errors.invalid(
                f"Metadata values can have up to {METADATA_VALUE_MAX} characters, but you passed in a "
                "value that is "
                f"{len(each)} characters. Invalid value: {each}",
                param=full,
            )
    return value


def _array(rule: Rule, value: Any, param: str) -> list[Any]:
    if not isinstance(value, dict) or not all(name.isdigit() for name in value):
        raise errors.invalid("Invalid array", param=param)
    names = sorted(value, key=int)
    return [_value(rule["of"], value[name], f"{param}[{index}]") for index, name in enumerate(names)]
