"""The SDK's HTTP client: each request waits for its turn, and leaves on time or not at all."""

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import stripe
import urllib3
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection

from marketplace import deadline, slots, tracing
from marketplace.errors import NotNow
from marketplace.gateway.contract import Gate
from marketplace.metrics import STRIPE_REQUEST_SECONDS
from marketplace.redaction import redact

# Connections that are kept; more than the threads of any worker.
LARGEST_POOL = 64
RATE_LIMITED_REASON = "Stripe-Rate-Limited-Reason"


@dataclass(kw_only=True)
class Turn:
    """The right of one request to leave now."""

    gate: Gate | None
    endpoint: str
    has_effect: bool
    # Monotonic.
    _until: float | None = None

    def wait(self) -> None:
        """Raises ``NotNow`` where the request may not leave."""
        if self.gate is not None:
            self._until = self.gate.enter(self.endpoint)
        self._require_lease()

    def require(self) -> None:
        """The bytes go out now. Waits again if the turn is over; raises as ``wait``."""
        while self._until is not None and time.monotonic() > self._until:
            self.wait()
        self._require_lease()

    def _require_lease(self) -> None:
        if self.has_effect and deadline.has_passed():
            raise NotNow("the lease on what is sent has ended", seconds=0)


_turn: ContextVar[Turn] = ContextVar("turn")


class _OnTime:
    """A connection that sends nothing after the turn is over, which connecting to Stripe may well outlast."""

    def request(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.is_closed:
            self.connect()
        _turn.get().require()
        super().request(*args, **kwargs)  # type: ignore[misc]


class _HTTPConnection(_OnTime, HTTPConnection): ...


class _HTTPSConnection(_OnTime, HTTPSConnection): ...


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class GatedClient(stripe.HTTPClient):
    """The SDK's HTTP, over urllib3's pool, which the SDK's default client uses too, below requests: that layer is half
    of a call's cost. Asks the gate before each request: a call may make several, as for a list.
    """

    name = "urllib3"

    def __init__(self, *, api_base: str, timeout: tuple[float, float], gate: Gate | None) -> None:
        super().__init__()
        self._gate = gate
        connect_timeout, read_timeout = timeout
        options: dict[str, Any] = {
            "timeout": urllib3.Timeout(connect=connect_timeout, read=read_timeout),
            # Trying again is the worker's.
            "retries": False,
            # One connection for each thread that calls.
            "maxsize": LARGEST_POOL,
            "ca_certs": stripe.ca_bundle_path,
        }
        address = api_base or stripe.DEFAULT_API_BASE
        proxy = get_environ_proxies(address, no_proxy=None).get(urlsplit(address).scheme)
        if proxy:
            login = unquote(urlsplit(proxy).netloc.rpartition("@")[0])
            headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
            self._pool: urllib3.PoolManager = urllib3.ProxyManager(proxy, proxy_headers=headers, **options)
        else:
            self._pool = urllib3.PoolManager(**options)
        self._pool.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        # All requests go to one host: without a proxy its connections need not be looked up each time.
        self._address = "" if proxy else address
        self._host: urllib3.HTTPConnectionPool | None = None

    def request(  # type: ignore[override]  # the base class declares less than the SDK's own clients take
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None
    ) -> Any:
        endpoint = endpoint_of(method, url)
        turn = Turn(gate=self._gate, endpoint=endpoint, has_effect=method.upper() == "POST")
        with slots.taken():
            answer = self._in_turn(turn, method.upper(), url, headers=headers, body=post_data)
        if answer.status == 429 and self._gate is not None:
            # Without a reason it is no limiter, most likely lock_timeout (docs.stripe.com/rate-limits).
            reason = answer.headers.get(RATE_LIMITED_REASON, "") or (
                "endpoint-rate" if b'"rate_limit"' in answer.data else ""
            )
            if reason:
                self._gate.limited(endpoint, reason)
        return answer.data, answer.status, answer.headers

    def _in_turn(self, turn: Turn, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        turn.wait()
        token = _turn.set(turn)
        try:
            with tracing.span(f"Stripe {turn.endpoint}"), STRIPE_REQUEST_SECONDS.labels(endpoint=turn.endpoint).time():
                answer = self._send(method, url, redirect=False, **options)
                tracing.note(status=answer.status, request_id=answer.headers.get("Request-Id", ""))
        except urllib3.exceptions.HTTPError as error:
            said = redact(f"{type(error).__name__}: {error}")
            raise stripe.APIConnectionError(said) from error  # type: ignore[no-untyped-call]
        finally:
            _turn.reset(token)
        return answer

    def _send(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        if not self._address:
            return self._pool.urlopen(method, url, **options)
        if self._host is None:
            self._host = self._pool.connection_from_url(self._address)
        return self._host.urlopen(method, url[url.index("/", len("https://")) :], **options)

    def close(self) -> None:
        self._host = None
        self._pool.clear()


def endpoint_of(method: str, url: str) -> str:
    """``POST /v1/transfers/{id}/reversals`` for the address of any transfer's reversals."""
    parts = urlsplit(url).path.strip("/").split("/")
    return f"{method.upper()} /" + "/".join("{id}" if number in {2, 4} else part for number, part in enumerate(parts))
