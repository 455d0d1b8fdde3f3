"""/healthz, /readyz and /metrics: for load balancers, alerts and Prometheus."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest, multiprocess
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from marketplace import hourly, overview, selectors
from marketplace.errors import TokenRefused
from marketplace.models import SellerTransfer
from marketplace.models.figures import TIME_GROUPS, What, longest_of
from marketplace.roles import Scope
from marketplace.services import api_tokens
from marketplace.states import BULK_RETRY_TRANSITIONS, BulkRetryStatus, ReversalStatus, TransferStatus

logger = structlog.get_logger(__name__)

UNSENT = frozenset({TransferStatus.PENDING, TransferStatus.FAILED})
# Prometheus gets fewer bounds than we count.
BOUND_EACH = 4
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
    """Prometheus' text: the counters of the web processes, and what is read from the database at each scrape."""
    if not (_is_from_this_machine(request) or _is_staff(request)):
        return HttpResponse("only from this machine, or with a staff token\n", status=403, content_type="text/plain")
    # One per request: collectors hold nothing between scrapes, so nothing can be stale.
    registry = CollectorRegistry()
    registry.register(DatabaseCollector())
    registry.register(PoolCollector())
    try:
        gauges = generate_latest(registry)
    except (DatabaseError, InterfaceError) as error:
        logger.error("metrics_without_database", error=type(error).__name__)  # noqa: TRY400 - the name says all
        return HttpResponse("the database does not answer\n", status=503, content_type="text/plain")
    return HttpResponse(generate_latest(registry_of_processes()) + gauges, content_type=CONTENT_TYPE_LATEST)


def _is_from_this_machine(request: HttpRequest) -> bool:
    is_direct = not any(name in request.headers for name in PROXY_HEADERS)
    return is_direct and request.META.get("REMOTE_ADDR") in LOOPBACK


def _is_staff(request: HttpRequest) -> bool:
    if request.user.is_active and request.user.is_staff:
        return True
    try:
        token = api_tokens.signed_in(request.headers.get("Authorization", ""))
    except TokenRefused:
        return False
    return token is not None and token.user.is_staff and Scope.READ in token.scopes


class DatabaseCollector(Collector):
    """What stands in the database now. Labels are statuses, currencies and the like: few, whatever the load."""

    def collect(self) -> Iterator[Metric]:
        yield from self._transfers(overview.waiting())
        yield from self._outstanding(overview.owed())
        yield from self._happened(hourly.totals())
        events = GaugeMetricFamily(
            "veza_webhook_events_failed",
            "Webhook events without their effect: a worker tries again, or a person decides.",
            labels=["state"],
        )
        for state, count in overview.failed_events().items():
            events.add_metric([state], count)
        yield events
        yield GaugeMetricFamily(
            "veza_disputes_needing_a_person",
            "Disputes in another currency than their order, of which nobody has entered the amount.",
            value=selectors.disputes_for_a_person(),
        )
        yield from self._bulk_retries()
        yield self._oldest_due(selectors.now())
        yield from self._workers()

    def _transfers(self, waiting: Iterable[overview.Waiting]) -> Iterator[Metric]:
        counts: dict[tuple[str, ...], int] = {}
        unsent: dict[tuple[str, ...], int] = {}
        for each in waiting:
            key = (each.status, each.currency)
            counts[key] = counts.get(key, 0) + each.count
            if each.status in UNSENT or each.failed_leg == SellerTransfer.Leg.SENDING:
                unsent[key] = unsent.get(key, 0) + each.amount
        by = ["status", "currency"]
        yield _family(GaugeMetricFamily("veza_transfers", "Transfers that are not at their end.", labels=by), counts)
        text = "What sellers are to be paid and are not yet, in the currency's minor unit."
        yield _family(GaugeMetricFamily("veza_unsent_minor_units", text, labels=by), unsent)

    def _outstanding(self, owed: Iterable[overview.Owed]) -> Iterator[Metric]:
        counts: dict[tuple[str, ...], int] = {}
        amounts: dict[tuple[str, ...], int] = {}
        debts: dict[tuple[str, ...], int] = {}
        for each in owed:
            is_debt = each.status == ReversalStatus.FAILED
            key = (each.currency, each.cause, each.age, "debt" if is_debt else "waiting")
            counts[key] = counts.get(key, 0) + each.count
            amounts[key] = amounts.get(key, 0) + each.amount
            if is_debt:
                debts[each.currency,] = debts.get((each.currency,), 0) + each.amount
        by = ["currency", "cause", "age", "state"]
        text = "Reversals that Stripe has not confirmed: a worker goes on, or it is a debt and a person decides."
        yield _family(GaugeMetricFamily("veza_outstanding_reversals", text, labels=by), counts)
        text = "What sellers have to give back of them, in the currency's minor unit."
        yield _family(GaugeMetricFamily("veza_outstanding_minor_units", text, labels=by), amounts)
        text = "What sellers owe and Stripe could not take back, in the currency's minor unit."
        yield _family(GaugeMetricFamily("veza_seller_debt_minor_units", text, labels=["currency"]), debts)

    def _happened(self, happened: Sequence[hourly.Happened]) -> Iterator[Metric]:
        """Counted from the rows: the same from each process, and not lost when one ends."""
        recovered = [each for each in happened if each.what == What.RECOVERED]
        amounts: dict[tuple[str, ...], int] = {}
        for each in recovered:
            key = (each.currency, each.cause)
            amounts[key] = amounts.get(key, 0) + each.amount
        text = "What Stripe confirmed to have taken back, in the currency's minor unit."
        by = ["currency", "cause"]
        yield _family(CounterMetricFamily("veza_recovered_minor_units_total", text, labels=by), amounts)
        for name, text, what in (
            ("veza_debts_settled_minor_units", "Debts netted or paid by hand, less what was undone.", What.SETTLED),
            ("veza_written_off_minor_units_total", "Debts that nobody asks for any more.", What.WRITTEN_OFF),
        ):
            sums: dict[tuple[str, ...], int] = {}
            for each in happened:
                if each.what == what:
                    sums[each.currency,] = sums.get((each.currency,), 0) + each.amount
            kind = GaugeMetricFamily if what == What.SETTLED else CounterMetricFamily
            yield _family(kind(name, text, labels=["currency"]), sums)
        failed = sum(each.count for each in happened if each.what == What.ATTEMPT_FAILED)
        text = "Attempts to take money back that did not succeed."
        yield CounterMetricFamily("veza_reversal_attempts_failed_total", text, value=failed)
        yield _recovery_times(hourly.by_time_group(recovered))

    def _bulk_retries(self) -> Iterator[Metric]:
        now = GaugeMetricFamily("veza_bulk_retries", "Bulk retries that are not over.", labels=["status"])
        text = "Bulk retries that are over, by how they ended."
        ended = CounterMetricFamily("veza_bulk_retries_ended_total", text, labels=["result"])
        for status, count in selectors.bulk_retries().items():
            is_over = status == selectors.STOPPED_BY_ITSELF or not BULK_RETRY_TRANSITIONS[BulkRetryStatus(status)]
            (ended if is_over else now).add_metric([status], count)
        yield from (now, ended)
        text = "Transfers of bulk retries that are under way."
        transfers = GaugeMetricFamily("veza_bulk_retry_transfers", text, labels=["result"])
        for result, count in selectors.bulk_retry_results().items():
            transfers.add_metric([result], count)
        yield transfers

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
            found = overview.longest_waiting(queue)
            family.add_metric([queue], max((now - found[1]).total_seconds(), 0.0) if found else 0.0)
        return family


def _family(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[tuple[str, ...], int]
) -> GaugeMetricFamily | CounterMetricFamily:
    for labels, value in values.items():
        family.add_metric(list(labels), value)
    return family


def _recovery_times(counts: Mapping[int, int]) -> HistogramMetricFamily:
    """Each fourth group's end is a bound, four times the one before. The sum is that of the groups' ends: too large."""
    groups = range(1, TIME_GROUPS + 1)
    buckets = [
        (str(longest_of(bound)), float(sum(counts.get(group, 0) for group in range(1, bound + 1))))
        for bound in groups
        if bound % BOUND_EACH == 3 and bound < TIME_GROUPS
    ]
    number = float(sum(counts.get(group, 0) for group in groups))
    return HistogramMetricFamily(
        "veza_recovery_seconds",
        "Time from owed to confirmed by Stripe.",
        buckets=[*buckets, ("+Inf", number)],
        sum_value=sum(longest_of(group) * counts.get(group, 0) for group in groups),
    )


class PoolCollector(Collector):
    """The pool of database connections of this process."""

    def collect(self) -> Iterator[Metric]:
        stats = connection.pool.get_stats()  # type: ignore[attr-defined]  # of Django's PostgreSQL, where a pool is set
        free = stats.get("pool_available", 0)
        text = "Connections of this process's pool."
        states: dict[tuple[str, ...], int] = {("in_use",): stats.get("pool_size", 0) - free, ("idle",): free}
        yield _family(GaugeMetricFamily("veza_database_pool_connections", text, labels=["state"]), states)
        text = "Threads that wait for a connection."
        yield GaugeMetricFamily("veza_database_pool_requests_waiting", text, value=stats.get("requests_waiting", 0))
        text = "Connections that were asked for."
        yield CounterMetricFamily("veza_database_pool_requests_total", text, value=stats.get("requests_num", 0))
        text = "Time that threads waited for a connection."
        seconds = stats.get("requests_wait_ms", 0) / 1000
        yield CounterMetricFamily("veza_database_pool_wait_seconds_total", text, value=seconds)
        text = "Connections that were not had in time."
        yield CounterMetricFamily("veza_database_pool_errors_total", text, value=stats.get("requests_errors", 0))


def registry_of_processes() -> CollectorRegistry:
    """The counters of all web processes of this host, where they share a folder for them; else of this one."""
    if not settings.PROMETHEUS_MULTIPROC_DIR:
        return REGISTRY
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
