"""/healthz, /readyz and /metrics: for load balancers, alerts and Prometheus."""

from collections.abc import Iterator
from datetime import datetime

import structlog
from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from rest_framework.authentication import TokenAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from marketplace import selectors
from marketplace.models import SellerTransfer

logger = structlog.get_logger(__name__)

LOOPBACK = frozenset({"127.0.0.1", "::1"})
# Set by every proxy: a request that came through one is not from this machine, whatever its peer address.
PROXY_HEADERS = ("X-Forwarded-For", "X-Real-IP", "Forwarded")


@require_safe
def healthz(_request: HttpRequest) -> JsonResponse:
    """The process answers. Asks nothing of the database: a restart of this process would not mend that one."""
    return JsonResponse({"status": "ok"})


@require_safe
def readyz(_request: HttpRequest) -> JsonResponse:
    """The installation can do its work; otherwise 503 and which check fails. Not for load balancers: see the manual."""
    checks = {"database": "ok", "migrations": "ok", "workers": "ok"}
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        executor = MigrationExecutor(connection)
        waiting = executor.migration_plan(executor.loader.graph.leaf_nodes())
        deserted = [] if waiting else selectors.queues_without_worker()
    except (DatabaseError, InterfaceError) as error:
        logger.error("not_ready", check="database", error=type(error).__name__)  # noqa: TRY400 - the name says all
        checks = {
            "database": f"does not answer ({type(error).__name__})",
            "migrations": "unknown",
            "workers": "unknown",
        }
    else:
        if waiting:
            checks["migrations"] = f"{len(waiting)} not applied, first {waiting[0][0]}"
            logger.error("not_ready", check="migrations", waiting=len(waiting))
        if deserted:
            checks["workers"] = f"rows have long been due and no worker lives for {', '.join(deserted)}"
            logger.error("not_ready", check="workers", queues=deserted)
    is_ready = set(checks.values()) == {"ok"}
    return JsonResponse(
        {"status": "ok" if is_ready else "unavailable", "checks": checks}, status=200 if is_ready else 503
    )


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus' text: this process's own counters, and gauges read from the database at each scrape."""
    if not (_is_from_this_machine(request) or _is_staff(request)):
        return HttpResponse("only from this machine, or with a staff token\n", status=403, content_type="text/plain")
    # One per request: collectors hold nothing between scrapes, so nothing can be stale.
    registry = CollectorRegistry()
    registry.register(DatabaseCollector())
    try:
        gauges = generate_latest(registry)
    except (DatabaseError, InterfaceError) as error:
        logger.error("metrics_without_database", error=type(error).__name__)  # noqa: TRY400 - the name says all
        return HttpResponse("the database does not answer\n", status=503, content_type="text/plain")
    return HttpResponse(generate_latest(REGISTRY) + gauges, content_type=CONTENT_TYPE_LATEST)


def _is_from_this_machine(request: HttpRequest) -> bool:
    is_direct = not any(name in request.headers for name in PROXY_HEADERS)
    return is_direct and request.META.get("REMOTE_ADDR") in LOOPBACK


def _is_staff(request: HttpRequest) -> bool:
    if request.user.is_active and request.user.is_staff:
        return True
    try:
        found = TokenAuthentication().authenticate(Request(request))
    except AuthenticationFailed:
        return False
    return found is not None and bool(found[0].is_staff)


class DatabaseCollector(Collector):
    """What stands in the database now. Labels are statuses, currencies and queue names: few, whatever the load."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        by = ["status", "currency"]
        counts = GaugeMetricFamily("veza_transfers", "Seller transfers.", labels=by)
        money = GaugeMetricFamily(
            "veza_transfers_outstanding_minor_units",
            "Sent or to be sent, less what came back, in the currency's minor unit.",
            labels=by,
        )
        for tally in selectors.tallies(SellerTransfer):
            counts.add_metric([tally.status, tally.currency], tally.count)
            money.add_metric([tally.status, tally.currency], tally.amount_outstanding)
        yield counts
        yield money
        debt = GaugeMetricFamily(
            "veza_seller_debt_minor_units",
            "What sellers owe and Stripe could not take back, in the currency's minor unit.",
            labels=["currency"],
        )
        for currency, amount in selectors.debt_by_currency().items():
            debt.add_metric([currency], amount)
        yield debt
        events = GaugeMetricFamily("veza_webhook_inbox_events", "Webhook events by status.", labels=["status"])
        for status, count in selectors.events_by_status().items():
            events.add_metric([status], count)
        yield events
        yield self._oldest_due(timezone.now())
        yield from self._workers()

    def _workers(self) -> Iterator[GaugeMetricFamily]:
        living = GaugeMetricFamily("veza_workers", "Workers that showed a sign of life lately.", labels=["work"])
        for work, count in selectors.living_workers().items():
            living.add_metric([work], count)
        yield living
        breakers = GaugeMetricFamily(
            "veza_breaker_open",
            "1 while Stripe is taken to fail for everyone, and rows are held back.",
            labels=["work"],
        )
        for work, is_open in selectors.breakers().items():
            breakers.add_metric([work], float(is_open))
        yield breakers
        held = selectors.oldest_snapshot_seconds()
        if held is not None:
            yield GaugeMetricFamily(
                "veza_oldest_snapshot_seconds",
                "Age of the oldest transaction that keeps vacuum from cleaning up: claims become slow behind it.",
                value=held,
            )

    def _oldest_due(self, now: datetime) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "veza_oldest_due_seconds",
            "How long the longest waiting row has been due; 0 where nothing is due.",
            labels=["queue"],
        )
        for queue in selectors.QUEUES:
            due = selectors.longest_due(queue)
            family.add_metric([queue], max((now - due).total_seconds(), 0.0) if due else 0.0)
        return family
