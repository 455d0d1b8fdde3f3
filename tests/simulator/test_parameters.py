from __future__ import annotations

from typing import Any

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from marketplace.simulator import StripeSimulator, errors, parameters, routes

from .conftest import body

TRANSFERS = "POST /v1/transfers"


def refusal(name: str, form: str) -> dict[str, Any]:
    with pytest.raises(errors.StripeError) as caught:
        parameters.check(parameters.rules()[name], parameters.decode(form))
    assert caught.value.status == 400
    assert not caught.value.ran
    error: dict[str, Any] = caught.value.body["error"]
    return error


OK = "amount=1&currency=eur&destination=acct_1"


@pytest.mark.parametrize(
    ("form", "code", "param"),
    [
        ("currency=eur", "parameter_missing", "destination"),
        ("destination=acct_1", "parameter_missing", "currency"),
        (f"{OK}&colour=red", "parameter_unknown", "colour"),
        (f"{OK}&amount=1.5", "parameter_invalid_integer", "amount"),
        (f"{OK}&amount=0", "parameter_invalid_integer", "amount"),
        (f"{OK}&amount[x]=1", "parameter_invalid_integer", "amount"),
        (f"{OK}&amount=", "parameter_invalid_empty", "amount"),
        (f"{OK}&currency=euro", None, "currency"),
        (f"{OK}&source_type=gold", None, "source_type"),
        (f"{OK}&transfer_group[a]=1", "parameter_invalid_string", "transfer_group"),
        (f"{OK}&description={'x' * 5001}", "parameter_invalid_string", "description"),
        (f"{OK}&expand=destination", None, "expand"),
        (f"{OK}&metadata=x", None, "metadata"),
        (f"{OK}&metadata[a][b]=1", None, "metadata[a]"),
        (f"{OK}&metadata[{'k' * 41}]=1", None, f"metadata[{'k' * 41}]"),
        (f"{OK}&metadata[a]={'v' * 501}", None, "metadata[a]"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_by_name(form: str, code: str | None, param: str) -> None:
    error = refusal(TRANSFERS, form)
    assert (error.get("code"), error["param"]) == (code, param)


def test_nested_objects_are_checked_to_the_bottom() -> None:
    name = "POST /v1/accounts"
    assert refusal(name, "controller[losses][payer]=x")["param"] == "controller[losses][payer]"
    assert refusal(name, "controller[losses][payments]=x")["param"] == "controller[losses][payments]"
    error = refusal(name, "capabilities[transfers][requested]=maybe")
    assert error["message"] == "Invalid boolean: maybe"
    assert refusal("GET /v1/transfers", "created[since]=1")["code"] == "parameter_unknown"


def test_fifty_keys_of_metadata_are_the_most(client: stripe.StripeClient, transfer: dict[str, Any]) -> None:
    many = {f"k{n}": "v" for n in range(50)}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.transfers.reversals.create(transfer["id"], {"amount": 1, "metadata": many | {"one": "more"}})
    assert body(caught.value)["param"] == "metadata"
    made = client.v1.transfers.reversals.create(transfer["id"], {"amount": 1, "metadata": many})
    assert len(made.metadata.to_dict() if made.metadata else {}) == 50


def test_metadata_is_merged_unset_and_cleared(
    client: stripe.StripeClient, sim: StripeSimulator, transfer: dict[str, Any]
) -> None:
    def update(metadata: Any) -> Any:
        return client.v1.transfers.update(transfer["id"], {"metadata": metadata}).metadata.to_dict()

    assert update({"a": "1"}) == {"order": "42", "a": "1"}
    assert update({"order": ""}) == {"a": "1"}
    assert update("") == {}
    events = sim.events(type="transfer.updated")
    assert events[0]["data"]["previous_attributes"] == {"metadata": {"a": None}}
    assert events[1]["data"]["previous_attributes"] == {"metadata": {"order": "42"}}


def test_every_endpoint_is_described_and_answered() -> None:
    assert set(parameters.rules()) == set(routes.NAMES)


def test_what_is_not_modelled_says_so(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="does not model"):
        client.v1.payment_intents.create(
            {"amount": 1000, "currency": "eur", "transfer_data": {"destination": "acct_1"}}
        )
    assert list(sim.events()) == []


text = st.text(st.characters(codec="utf-8", exclude_characters="[]"), min_size=1, max_size=40)


@given(st.dictionaries(text, text, max_size=5), st.lists(text, max_size=4))
def test_what_the_sdk_encodes_is_decoded_to_the_same(metadata: dict[str, str], expand: list[str]) -> None:
    from urllib.parse import urlencode

    from stripe._encode import _api_encode

    form = urlencode(list(_api_encode({"amount": 5, "metadata": metadata, "expand": expand})))
    tree = parameters.decode(form)
    assert tree["amount"] == "5"
    assert tree.get("metadata", {}) == metadata
    rule = {"of": {"amount": {"type": "integer"}, "metadata": {"type": "map", "of": {"type": "string"}},
                   "expand": {"type": "array", "of": {"type": "string"}}}}  # fmt: skip
    assert parameters.check(rule, tree).get("expand", []) == expand


@given(st.text(max_size=200))
def test_no_body_breaks_the_decoder(form: str) -> None:
    with pytest.raises(errors.StripeError):
        parameters.check(parameters.rules()[TRANSFERS], parameters.decode(form))
