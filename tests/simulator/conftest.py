from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import stripe

from marketplace.simulator import StripeSimulator

KEY = "sk_test_simulator1234"


@pytest.fixture(scope="session")
def _server() -> Iterator[StripeSimulator]:
    stripe.enable_telemetry = False
    with StripeSimulator(seed=7) as simulator:
        yield simulator


@pytest.fixture
def sim(_server: StripeSimulator) -> StripeSimulator:
    _server.reset()
    return _server


MakeClient = Callable[..., stripe.StripeClient]


@pytest.fixture(scope="session")
def _http() -> Iterator[stripe.RequestsClient]:
    client = stripe.RequestsClient(timeout=10)
    yield client
    client.close()


@pytest.fixture
def make_client(sim: StripeSimulator, _http: stripe.RequestsClient) -> MakeClient:
    def make(key: str = KEY, *, url: str = sim.url, **options: Any) -> stripe.StripeClient:
        return stripe.StripeClient(
            key, base_addresses={"api": url}, max_network_retries=0, http_client=_http, **options
        )

    return make


@pytest.fixture
def client(make_client: MakeClient) -> stripe.StripeClient:
    return make_client()


@pytest.fixture
def seller(sim: StripeSimulator) -> str:
    account: str = sim.create_account()["id"]
    return account


@pytest.fixture
def transfer(sim: StripeSimulator, seller: str) -> dict[str, Any]:
    return sim.create_transfer(7000, seller, metadata={"order": "42"})


def body(error: stripe.StripeError) -> dict[str, Any]:
    """The error object as it was sent."""
    assert isinstance(error.json_body, dict)
    sent: dict[str, Any] = error.json_body["error"]
    return sent
