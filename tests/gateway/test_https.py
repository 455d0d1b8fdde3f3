"""Over TLS, as with the real Stripe: connections of another class, which must keep the same promises."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from marketplace import deadline
from marketplace.gateway.contract import Postponed, Reversed, Unknown
from marketplace.gateway.stripe_api import StripeGateway
from tests.gateway.conftest import CERTIFICATE, SECRET_KEY, ScriptedServer, reverse

REVERSAL = {"id": "trr_1", "object": "transfer_reversal", "amount": 2000, "currency": "eur"}


class Late:
    """A gate whose first turn is over before the request can leave."""

    def __init__(self) -> None:
        self.entered = 0

    def enter(self, endpoint: str) -> float:
        self.entered += 1
        return time.monotonic() + (-0.001 if self.entered == 1 else 60)

    def limited(self, endpoint: str, reason: str) -> None: ...


@pytest.fixture
def behind_tls() -> Iterator[ScriptedServer]:
    server = ScriptedServer(certificate=CERTIFICATE)
    server.says_json(REVERSAL)
    yield server
    server.stop()


def gateway_to(server: ScriptedServer, gate: Any = None) -> StripeGateway:
    return StripeGateway(api_key=SECRET_KEY, api_base=server.url, connect_timeout=2.0, read_timeout=5.0, gate=gate)


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe, "ca_bundle_path", str(CERTIFICATE))


@pytest.mark.usefixtures("trusted")
def test_a_reversal_is_made_over_one_connection(behind_tls: ScriptedServer) -> None:
    gateway = gateway_to(behind_tls)
    for _ in range(2):
        answer = reverse(gateway)
        assert isinstance(answer, Reversed)
        assert answer.reversal.stripe_reversal_id == "trr_1"
    assert [asked.path for asked in behind_tls.asked] == ["/v1/transfers/tr_1/reversals"] * 2
    assert behind_tls.connections == 1


@pytest.mark.usefixtures("trusted")
def test_nothing_is_sent_once_the_lease_has_ended(behind_tls: ScriptedServer) -> None:
    with deadline.sending_until(deadline.clock()):
        assert isinstance(reverse(gateway_to(behind_tls)), Postponed)
    assert behind_tls.asked == []


@pytest.mark.usefixtures("trusted")
def test_nothing_is_sent_if_the_lease_ends_while_it_connects(
    behind_tls: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(deadline, "has_passed", lambda: asked.append(True) or len(asked) > 1)
    assert isinstance(reverse(gateway_to(behind_tls)), Postponed)
    # Before it connects, and when it has.
    assert (len(asked), behind_tls.asked) == (2, [])


@pytest.mark.usefixtures("trusted")
def test_a_turn_that_is_over_before_the_bytes_go_out_is_taken_anew(behind_tls: ScriptedServer) -> None:
    gate = Late()
    assert isinstance(reverse(gateway_to(behind_tls, gate)), Reversed)
    assert (gate.entered, len(behind_tls.asked)) == (2, 1)


def test_who_is_not_trusted_is_told_nothing_and_the_outcome_is_unknown(behind_tls: ScriptedServer) -> None:
    answer = reverse(gateway_to(behind_tls))
    assert isinstance(answer, Unknown)
    assert "CERTIFICATE_VERIFY_FAILED" in answer.message
    assert (behind_tls.connections, behind_tls.asked) == (0, [])


@pytest.mark.usefixtures("trusted")
def test_a_certificate_for_another_name_is_not_trusted_either(behind_tls: ScriptedServer) -> None:
    behind_tls.url = behind_tls.url.replace("127.0.0.1", "localhost")
    answer = reverse(gateway_to(behind_tls))
    assert isinstance(answer, Unknown)
    assert "CERTIFICATE_VERIFY_FAILED" in answer.message
    assert behind_tls.asked == []
