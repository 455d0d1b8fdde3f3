"""Opens each page some times, in this process and with no network between, and tells what each took of the server."""

import base64
import json
import sys
import time

import django

django.setup()

from django.conf import settings  # noqa: E402 - Django first
from django.contrib.auth.models import User  # noqa: E402
from django.test import Client  # noqa: E402

from marketplace.services import figures  # noqa: E402
from marketplace.states import OrderStatus, RefundStatus, ReversalStatus, TransferStatus  # noqa: E402

TIMES = 5
ADMIN = "/admin/marketplace"
# Where the page before ended, as ``marketplace.api.pagination`` writes it.
MIDDLE = base64.urlsafe_b64encode(json.dumps(["-id", "25000", 25000]).encode()).decode()
OWED = "status__exact=pending&status__exact=failed&currency__exact=eur"
# Groups of pages; what filters find and searches look for is in the rows of ``bench.measurements.pages``.
PAGES: dict[str, dict[str, str]] = {
    "the start page": {"start page": "/admin/"},
    "the metrics": {"metrics": "/metrics"},
    "the statistics": {"statistics": "/api/stats/"},
    "an admin list": {
        name: f"{ADMIN}/{name}/"
        for name in (
            "order", "refund", "dispute", "sellertransfer", "transferreversal", "debt", "seller", "product",
            "bulkretry", "webhookevent",
        )
    },
    "an admin list by status": {
        f"{name}: {status}": f"{ADMIN}/{name}/?status__exact={status}"
        for name, statuses in (
            ("order", OrderStatus),
            ("refund", RefundStatus),
            ("sellertransfer", TransferStatus),
            ("transferreversal", ReversalStatus),
        )
        for status in statuses
    },
    "an admin list filtered otherwise": {
        "transfers by error": f"{ADMIN}/sellertransfer/?last_error_code__exact=insufficient_funds",
        "owed by error": f"{ADMIN}/sellertransfer/?status__exact=reversal_pending&last_error_code__exact=server_error",
        "transfers by an error that none has": f"{ADMIN}/sellertransfer/?last_error_code__exact=card_declined",
        "transfers of a seller": f"{ADMIN}/sellertransfer/?seller__id__exact=5",
        "transfers in a currency": f"{ADMIN}/sellertransfer/?currency__exact=eur",
        "transfers in a currency that none has": f"{ADMIN}/sellertransfer/?currency__exact=jpy",
        "transfers before any": f"{ADMIN}/sellertransfer/?created_at_to_0=2020-01-01&created_at_to_1=00:00:00",
        "owed for refunds": f"{ADMIN}/transferreversal/?{OWED}&cause__exact=refund",
        "owed before any": f"{ADMIN}/transferreversal/?{OWED}&created_at_to_0=2020-01-01&created_at_to_1=00:00:00",
        "events by type": f"{ADMIN}/webhookevent/?type__exact=refund.created",
        "failed events": f"{ADMIN}/webhookevent/?status__exact=failed",
        "settled debts": f"{ADMIN}/debt/?state=settled",
        "all debts": f"{ADMIN}/debt/?state=all",
        "debts by age": f"{ADMIN}/debt/?age=over-90",
        "the last page": f"{ADMIN}/sellertransfer/?p=200",
    },
    "an admin list of open rows, sorted": {
        "owed, by amount": f"{ADMIN}/sellertransfer/?status__exact=reversal_pending&o=-3",
        "owed, by the next attempt": f"{ADMIN}/sellertransfer/?status__exact=reversal_pending&o=8",
        "reversals, by amount": f"{ADMIN}/transferreversal/?status__exact=pending&status__exact=failed&o=-3",
        "refunds, by amount": f"{ADMIN}/refund/?status__exact=requested&o=-3",
    },
    "a search in the admin": {
        f"{name}: {term}": f"{ADMIN}/{name}/?q={term}"
        for name, terms in (
            ("order", ("10", "pi_3Bench00000000000010", "ch_3Bench00000000000010", "buyer7", "nobody")),
            ("refund", ("9", "re_3Bench00000000000009", "nothing")),
            ("sellertransfer", ("10", "tr_1Bench00000000000010", "trr_1Bench00000000000003", "nothing")),
            ("transferreversal", ("9", "tr_1Bench00000000000009", "trr_1Bench00000000000003", "nothing")),
            ("debt", ("900", "tr_1Bench00000000000900", "nothing")),
            ("webhookevent", ("evt_1Bench00000000000010", "refund.created", "nothing")),
        )
        for term in terms
    },
    "a row's page in the admin": {
        f"{name} {number}": f"{ADMIN}/{name}/{number}/change/"
        for name, number in (
            ("order", 9), ("refund", 9), ("sellertransfer", 9), ("transferreversal", 9), ("debt", 900),
            ("sellertransfer", 3), ("sellertransfer", 900), ("seller", 5), ("webhookevent", 9),
        )
    },
    "a list of the API": {
        name: f"/api/{name}/"
        for name in (
            "orders", "refunds", "disputes", "transfers", "reversals", "debts", "sellers", "products",
            "bulk-retries", "webhook-events", "tokens",
        )
    },
    "a list of the API, filtered": {
        **{f"transfers: {status}": f"/api/transfers/?status={status}" for status in TransferStatus},
        **{f"reversals: {status}": f"/api/reversals/?status={status}" for status in ReversalStatus},
        **{f"refunds: {status}": f"/api/refunds/?status={status}" for status in RefundStatus},
        **{f"orders: {status}": f"/api/orders/?status={status}" for status in OrderStatus},
        "transfers of a seller": "/api/transfers/?seller=5",
        "transfers in a currency that none has": "/api/transfers/?currency=jpy",
        "transfers before any": "/api/transfers/?created_before=2020-01-01T00:00:00Z",
        "reversals of a seller": "/api/reversals/?seller=5",
        "a page in the middle": f"/api/transfers/?cursor={MIDDLE}",
        "orders of a seller": "/api/orders/?seller=5",
        "orders of a buyer": "/api/orders/?buyer=7",
        "owed, by amount": "/api/transfers/?status=reversal_pending&ordering=-amount",
        "owed, by the last change": "/api/transfers/?status=reversal_pending&ordering=updated_at",
        "search for a transfer": "/api/transfers/?search=tr_1Bench00000000000010",
        "search for a reversal's transfer": "/api/transfers/?search=trr_1Bench00000000000003",
        "search for nothing": "/api/transfers/?search=nothing",
        "search for an order": "/api/orders/?search=pi_3Bench00000000000010",
    },
    "a row of the API": {
        "order": "/api/orders/9/", "refund": "/api/refunds/9/", "transfer": "/api/transfers/9/",
        "reversal": "/api/reversals/9/", "debt": "/api/debts/900/", "event": "/api/webhook-events/9/",
    },
}  # fmt: skip


def main() -> None:
    settings.ALLOWED_HOSTS = ["testserver"]
    # As a worker has done each hour.
    figures.count()
    user = User.objects.create_superuser("bench-pager", id=1_000_000)
    client = Client()
    client.force_login(user)
    # What is loaded and planned once is so in a server that runs.
    for pages in PAGES.values():
        for address in pages.values():
            _open(client, address)
    print("ready", flush=True)
    for _line in sys.stdin:
        found = {
            group: {name: [_open(client, address) for _ in range(TIMES)] for name, address in pages.items()}
            for group, pages in PAGES.items()
        }
        print(json.dumps(found), flush=True)


def _open(client: Client, address: str) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    response = client.get(address)
    took = (time.perf_counter() - began) * 1000
    if response.status_code != 200:
        sys.exit(f"{address}: {response.status_code}")
    return took


if __name__ == "__main__":
    main()
