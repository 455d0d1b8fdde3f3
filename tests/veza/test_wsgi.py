"""The web server's own process."""

import json
import os
import socket
import subprocess
import sys

from tests.structure.sources import ROOT

PROGRAM = """
import json, logging, time
from veza.wsgi import application
import stripe
from django.test import Client
logging.disable()
body = json.dumps({"id": "evt_1", "object": "event", "type": "refund.created", "livemode": False, "created": 1,
                   "data": {"object": {"id": "re_1", "status": "succeeded"}}})
signature = stripe.WebhookSignature.generate_signature_header(body, "whsec_1")
began = time.monotonic()
answer = Client(headers={"host": "localhost"}).post(
    "/webhooks/stripe/", body, content_type="application/json", headers={"Stripe-Signature": signature}
)
print(json.dumps([answer.status_code, answer.headers["Retry-After"], time.monotonic() - began]))
"""


def run(program: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, without any database: connections are refused."""
    with socket.socket() as taken:
        # Bound, and nobody listens.
        taken.bind(("127.0.0.1", 0))
        surroundings = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "DJANGO_"))},
            "ENV_FILE": os.devnull,
            "SECRET_KEY": "for-tests-only-and-never-for-anything-else",
            "STRIPE_SECRET_KEY": "sk_test_ForTestsOnly",
            "STRIPE_WEBHOOK_SECRETS": "whsec_1",
            "DATABASE_URL": f"postgres://nobody@127.0.0.1:{taken.getsockname()[1]}/none",
            **environment,
        }
        return subprocess.run(  # noqa: S603
            [sys.executable, "-c", program], cwd=ROOT, env=surroundings, capture_output=True, text=True, check=True
        )


def test_without_a_database_a_webhook_is_answered_in_about_a_second() -> None:
    status, retry_after, seconds = json.loads(run(PROGRAM).stdout.splitlines()[-1])
    assert (status, retry_after) == (503, "60")
    assert 0.9 < seconds < 3


NO_SUCH_PAGE = """
from veza.wsgi import application
from django.test import Client
Client(headers={"host": "localhost"}).get("/no/such/page?q=buyer@example.com")
"""


def test_a_request_is_logged_once_and_without_its_query() -> None:
    lines = run(NO_SUCH_PAGE, LOG_FORMAT="json", LOG_LEVEL="INFO").stderr
    assert "buyer" not in lines
    (line,) = [line for line in map(json.loads, lines.splitlines()) if "/no/such/page" in str(line)]
    assert (line["event"], line["path"], line["status"]) == ("request", "/no/such/page", 404)
