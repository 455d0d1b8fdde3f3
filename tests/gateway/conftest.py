"""A server that answers what a test tells it, for what the simulator would never say, and the calls to make."""

import json
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from marketplace.gateway.stripe_api import StripeGateway

REVERSE = "POST /v1/transfers/{id}/reversals"
RETRIEVE = "GET /v1/transfers/{id}"
LIST_REVERSALS = "GET /v1/transfers/{id}/reversals"
OPERATION = uuid.UUID("11111111-2222-4333-8444-555555555555")
KEY = f"{OPERATION}:1"
SECRET_KEY = "sk_test_ForTestsOnly"
# For 127.0.0.1, signed by itself, with its key.
CERTIFICATE = Path(__file__).with_name("loopback.pem")


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: str


@dataclass
class Said:
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


class ScriptedServer:
    """Answers every request with ``says``; remembers what was asked, and over how many connections."""

    def __init__(self, *, certificate: Path | None = None) -> None:
        self.says: Said | Callable[[Asked], Said] = Said()
        self.asked: list[Asked] = []
        self.connections = 0
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                script.connections += 1

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                lowered = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, lowered, body)
                script.asked.append(asked)
                said = script.says if isinstance(script.says, Said) else script.says(asked)
                self.send_response(said.status)
                for name, value in {"Request-Id": "req_scripted", **said.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(said.body)))
                self.end_headers()
                self.wfile.write(said.body)

            do_GET = do_POST = answer  # noqa: N815 - the base class calls them so

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def says_json(self, body: Any, status: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.says = Said(status, json.dumps(body).encode(), named)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="session")
def _scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.fixture
def scripted(_scripted: ScriptedServer) -> ScriptedServer:
    _scripted.says, _scripted.asked, _scripted.connections = Said(), [], 0
    return _scripted


def gateway_to(url: str, *, read_timeout: float = 5.0) -> StripeGateway:
    return StripeGateway(api_key=SECRET_KEY, api_base=url, connect_timeout=2.0, read_timeout=read_timeout)


@pytest.fixture
def to_scripted(scripted: ScriptedServer) -> StripeGateway:
    return gateway_to(scripted.url)


@pytest.fixture
def account(simulator: Any) -> str:
    made: str = simulator.create_account()["id"]
    return made


@pytest.fixture
def transfer(simulator: Any, account: str) -> str:
    """7000 eur cents sent to a seller."""
    made: str = simulator.create_transfer(7000, account, metadata={"operation_id": "op-transfer"})["id"]
    return made


def reverse(gateway: Any, transfer: str = "tr_1", **changes: Any) -> Any:
    asked = {"amount": 2000, "reason": "refund 1", "operation_id": OPERATION, "idempotency_key": KEY}
    return gateway.reverse_transfer(transfer, **{**asked, **changes})


def create_transfer(gateway: Any, **changes: Any) -> Any:
    asked = {
        "amount": 5000,
        "currency": "eur",
        "destination": "acct_1",
        "source_transaction": "",
        "transfer_group": "order-1",
        "operation_id": OPERATION,
        "idempotency_key": KEY,
    }
    return gateway.create_transfer(**{**asked, **changes})


def create_refund(gateway: Any, **changes: Any) -> Any:
    asked = {"payment_intent": "pi_1", "amount": 500, "operation_id": OPERATION, "idempotency_key": KEY}
    return gateway.create_refund(**{**asked, **changes})


def create_payment(gateway: Any, **changes: Any) -> Any:
    asked = {
        "amount": 10_000,
        "currency": "eur",
        "transfer_group": "order-1",
        "operation_id": OPERATION,
        "payment_method": "pm_card_visa",
        "idempotency_key": KEY,
    }
    return gateway.create_payment(**{**asked, **changes})


def create_account(gateway: Any, **changes: Any) -> Any:
    return gateway.create_account(**{"name": "Alder & Sons", "country": "DE", "idempotency_key": KEY, **changes})


# Every call of the gateway, with arguments that make sense.
CALLS: dict[str, Callable[[Any], Any]] = {
    "create_transfer": create_transfer,
    "retrieve_transfer": lambda gateway: gateway.retrieve_transfer("tr_1"),
    "list_transfers": lambda gateway: gateway.list_transfers(transfer_group="order-1"),
    "reverse_transfer": reverse,
    "reverse_all_that_remains": lambda gateway: reverse(gateway, amount=None),
    "list_reversals": lambda gateway: gateway.list_reversals("tr_1"),
    "create_refund": create_refund,
    "list_refunds": lambda gateway: gateway.list_refunds(payment_intent="pi_1"),
    "create_payment": create_payment,
    "create_account": create_account,
    "retrieve_balance": lambda gateway: gateway.retrieve_balance(),
    "retrieve_balance_of_a_seller": lambda gateway: gateway.retrieve_balance(stripe_account="acct_1"),
}
