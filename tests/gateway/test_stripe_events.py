"""A webhook's raw bytes and its signature: what is let in, and what is not."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from marketplace.errors import MalformedEvent, SignatureRefused
from marketplace.gateway import stripe_events

PLATFORM, CONNECT = "whsec_testPlatform", "whsec_testConnect"
EVENT = {
    "id": "evt_1",
    "object": "event",
    "type": "refund.updated",
    "api_version": "2026-10-28.endive",
    "created": 1_795_000_200,
    "livemode": False,
    "data": {"object": {"id": "re_1", "object": "refund"}},
}


def signed(simulator: Any, event: Any = EVENT, secret: Any = PLATFORM, **options: Any) -> tuple[bytes, str]:
    body, header = simulator.sign(event, secret, **options)
    return body, header


# --- Signatures -------------------------------------------------------------------------------------------------------


def test_a_signed_event_is_read(simulator: Any) -> None:
    event = stripe_events.verify(*signed(simulator))
    assert event.stripe_event_id == "evt_1"
    assert event.type == "refund.updated"
    assert event.api_version == "2026-10-28.endive"
    assert event.created_at == datetime.fromtimestamp(1_795_000_200, tz=UTC)
    assert (event.livemode, event.stripe_account_id) == (False, "")
    assert event.payload == EVENT


@pytest.mark.parametrize("secret", [PLATFORM, CONNECT])
def test_every_configured_secret_fits(simulator: Any, secret: str) -> None:
    assert stripe_events.verify(*signed(simulator, secret=secret)).stripe_event_id == "evt_1"


@pytest.mark.parametrize("secrets", [["whsec_old", PLATFORM], [PLATFORM, "whsec_new"]])
def test_while_a_secret_is_rolled_one_of_several_signatures_is_enough(simulator: Any, secrets: list[str]) -> None:
    assert stripe_events.verify(*signed(simulator, secret=secrets)).stripe_event_id == "evt_1"


def test_another_secret_is_refused(simulator: Any) -> None:
    with pytest.raises(SignatureRefused):
        stripe_events.verify(*signed(simulator, secret="whsec_somebody"))


def test_without_a_configured_secret_nothing_is_let_in(simulator: Any, settings: Any) -> None:
    settings.STRIPE_WEBHOOK_SECRETS = []
    with pytest.raises(SignatureRefused, match="no webhook secret"):
        stripe_events.verify(*signed(simulator))


def test_a_body_changed_by_one_byte_is_refused(simulator: Any) -> None:
    body, header = signed(simulator)
    with pytest.raises(SignatureRefused):
        stripe_events.verify(body.replace(b"re_1", b"re_2"), header)


def test_the_same_json_written_otherwise_is_refused(simulator: Any) -> None:
    body, header = signed(simulator)
    with pytest.raises(SignatureRefused):
        stripe_events.verify(json.dumps(json.loads(body), indent=1).encode(), header)


@pytest.mark.parametrize("secret", [PLATFORM, CONNECT])
def test_a_signature_older_than_the_tolerance_is_refused_for_that_reason(
    simulator: Any, settings: Any, secret: str
) -> None:
    settings.STRIPE_WEBHOOK_TOLERANCE = timedelta(minutes=5)
    with pytest.raises(SignatureRefused, match="tolerance"):
        stripe_events.verify(*signed(simulator, secret=secret, at=time.time() - 302))
    assert stripe_events.verify(*signed(simulator, secret=secret, at=time.time() - 290))


def test_a_stamp_of_the_future_is_let_in_for_clocks_differ_and_nobody_else_can_sign(simulator: Any) -> None:
    assert stripe_events.verify(*signed(simulator, at=time.time() + 3600))


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "garbage",
        "t=,v1=",
        "t=abc,v1=abc",
        "v1=abc",
        "t=1795000200",
        "t,v1",
        ",,,",
        "t=" + "9" * 5000 + ",v1=abc",
        "t=1795000200,v1=é",
        "t=1795000200,v1=\x00",
        "t=٣,v1=abc",
    ],
)
def test_a_header_that_is_no_signature_is_refused(simulator: Any, header: str | None) -> None:
    body, _ = signed(simulator)
    with pytest.raises(SignatureRefused):
        stripe_events.verify(body, header)


def test_only_the_scheme_v1_counts(simulator: Any) -> None:
    body, header = signed(simulator)
    with pytest.raises(SignatureRefused):
        stripe_events.verify(body, header.replace("v1=", "v0="))


def test_a_body_that_is_not_utf8_is_refused_before_its_signature_matters(simulator: Any) -> None:
    _, header = signed(simulator)
    with pytest.raises(SignatureRefused, match="UTF-8"):
        stripe_events.verify(b"\xff\xfe", header)


# --- Signed, but no event ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"{",
        json.dumps(EVENT).encode() + b"}",
        b"\xef\xbb\xbf{}",
        json.dumps(EVENT | {"x": float("nan")}).encode(),
        json.dumps(EVENT | {"x": float("-inf")}).encode(),
        json.dumps(EVENT | {"x": 0}).encode().replace(b'"x": 0', b'"x": 1e400'),
        json.dumps(EVENT | {"x": 0}).encode().replace(b'"x": 0', b'"x": ' + b"9" * 5000),
        b'{"x":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=[
        "empty",
        "text",
        "half",
        "too much",
        "byte order mark",
        "NaN",
        "-Infinity",
        "beyond floats",
        "5000 digits",
        "deep",
    ],
)
def test_a_signed_body_that_is_no_json_is_malformed(simulator: Any, body: bytes) -> None:
    with pytest.raises(MalformedEvent, match="not JSON"):
        stripe_events.verify(*signed(simulator, body))


LEFT_OUT = Ellipsis


@pytest.mark.parametrize(
    "change",
    [
        {"object": LEFT_OUT},
        {"object": "v2.core.event"},
        {"object": 7},
        {"id": LEFT_OUT},
        {"id": None},
        {"id": 7},
        {"id": ""},
        {"id": "re_1"},
        {"id": "evt_" + "x" * 252},
        {"id": "evt_\x00"},
        {"id": "evt_\ud800"},
        {"id": "evt_\n"},
        {"type": LEFT_OUT},
        {"type": None},
        {"type": ["refund.updated"]},
        {"type": ""},
        {"type": "x" * 256},
        {"type": "refund.\x00"},
        {"livemode": LEFT_OUT},
        {"livemode": None},
        {"livemode": 0},
        {"livemode": "false"},
        {"created": LEFT_OUT},
        {"created": None},
        {"created": True},
        {"created": "1795000200"},
        {"created": 1795000200.0},
        {"created": -1},
        {"created": 10**14},
        {"created": 10**18},
        {"created": 10**40},
        {"account": ""},
        {"account": 7},
        {"account": {"id": "acct_1"}},
        {"account": "acct_\x00"},
        {"account": "a" * 256},
        {"api_version": 7},
        {"api_version": "v" * 101},
        {"api_version": "\x00"},
        {"data": LEFT_OUT},
        {"data": None},
        {"data": []},
        {"data": {}},
        {"data": {"object": None}},
        {"data": {"object": [EVENT]}},
        {"data": {"object": "re_1"}},
    ],
    ids=repr,
)
def test_an_event_of_a_wrong_shape_is_malformed(simulator: Any, change: dict[str, Any]) -> None:
    wrong = {name: value for name, value in {**EVENT, **change}.items() if value is not LEFT_OUT}
    with pytest.raises(MalformedEvent):
        stripe_events.verify(*signed(simulator, wrong))


@pytest.mark.parametrize("wrong", [[], [EVENT], "event", 7, None, True])
def test_json_that_is_no_object_is_malformed(simulator: Any, wrong: Any) -> None:
    with pytest.raises(MalformedEvent, match="snapshot event"):
        stripe_events.verify(*signed(simulator, json.dumps(wrong).encode()))


def test_an_event_of_a_connected_account_names_it(simulator: Any) -> None:
    assert stripe_events.verify(*signed(simulator, {**EVENT, "account": "acct_1"})).stripe_account_id == "acct_1"


@pytest.mark.parametrize("change", [{"account": None}, {"api_version": None}])
def test_null_is_as_good_as_left_out(simulator: Any, change: dict[str, Any]) -> None:
    event = stripe_events.verify(*signed(simulator, {**EVENT, **change}))
    assert (event.stripe_account_id, bool(event.api_version)) == ("", "api_version" not in change)


@pytest.mark.parametrize("length", [255])
def test_the_longest_id_and_type_fit(simulator: Any, length: int) -> None:
    longest = {"id": "evt_" + "x" * (length - 4), "type": "t" * length}
    assert stripe_events.verify(*signed(simulator, EVENT | longest)).type == "t" * length


def test_nul_characters_and_floats_deeper_in_the_body_are_let_in(simulator: Any) -> None:
    inside = {"object": {"id": "re_\x00", "half": "\ud800", "number": 1.5}}
    assert stripe_events.verify(*signed(simulator, EVENT | {"data": inside})).payload["data"] == inside
