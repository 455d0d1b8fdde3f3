"""What workers tell each other: who lives, whether Stripe fails for everyone, how fast it may be asked."""

from typing import Any

from django.contrib import admin
from django.db.models import BooleanField, ExpressionWrapper, Q
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from marketplace.admin.base import ReadOnlyAdmin, code, moment, tag
from marketplace.models import CircuitBreaker, RequestAllowance, WorkerHeartbeat
from marketplace.selectors import DEAD_AFTER


@admin.register(WorkerHeartbeat)
class WorkerHeartbeatAdmin(ReadOnlyAdmin):
    list_display = ("identity", "life", "queues_shown", "concurrency", "in_hand", "started", "seen")
    search_fields = ("identity", "host")
    search_help_text = _("A part of a host's or worker's name")
    ordering = ("-seen_at",)
    fields = (
        ("life", "host", "pid"),
        "queues_shown",
        ("concurrency", "in_hand"),
        ("started_at", "seen_at"),
    )
    readonly_fields = ("life", "queues_shown")

    def get_queryset(self, request: HttpRequest) -> Any:
        # By the database's clock, as everything that counts workers.
        is_alive = ExpressionWrapper(Q(seen_at__gt=Now() - DEAD_AFTER), output_field=BooleanField())
        return super().get_queryset(request).annotate(is_alive=is_alive)

    @admin.display(description=_("state"))
    def life(self, worker: Any) -> SafeString:
        return tag(_("alive"), "success") if worker.is_alive else tag(_("no sign of life"), "danger")

    @admin.display(description=_("queues"))
    def queues_shown(self, worker: WorkerHeartbeat) -> str:
        return ", ".join(worker.queues)

    @admin.display(description=_("started at"), ordering="started_at")
    def started(self, worker: WorkerHeartbeat) -> SafeString | str:
        return moment(worker.started_at)

    @admin.display(description=_("last sign of life"), ordering="seen_at")
    def seen(self, worker: WorkerHeartbeat) -> SafeString | str:
        return moment(worker.seen_at)


@admin.register(CircuitBreaker)
class CircuitBreakerAdmin(ReadOnlyAdmin):
    """Only looked at: one that is closed by hand while Stripe is down opens again, and rows have spent a retry."""

    list_display = ("work", "state", "opened", "probes", "next_probe", "failing_count")
    search_fields = ("work",)
    search_help_text = _("A kind of work: reversal, transfer, refund")
    fields = (
        ("work", "state"),
        ("opened_at", "next_probe_at", "probes"),
        "failing_shown",
        "last_error",
    )
    readonly_fields = ("state", "failing_shown")

    @admin.display(description=_("state"), ordering="opened_at")
    def state(self, breaker: CircuitBreaker) -> SafeString:
        if breaker.opened_at is None:
            return tag(_("closed: work goes on"), "success")
        return tag(_("open: rows wait for Stripe"), "danger")

    @admin.display(description=_("opened at"), ordering="opened_at")
    def opened(self, breaker: CircuitBreaker) -> SafeString | str:
        return moment(breaker.opened_at)

    @admin.display(description=_("next probe"), ordering="next_probe_at")
    def next_probe(self, breaker: CircuitBreaker) -> SafeString | str:
        return moment(breaker.next_probe_at)

    @admin.display(description=_("failing"))
    def failing_count(self, breaker: CircuitBreaker) -> int:
        return len(breaker.failing)

    @admin.display(description=_("failing"))
    def failing_shown(self, breaker: CircuitBreaker) -> str:
        return "; ".join(breaker.failing) or "-"


@admin.register(RequestAllowance)
class RequestAllowanceAdmin(ReadOnlyAdmin):
    list_display = ("endpoint_shown", "rate", "slowed", "next_free")
    search_fields = ("endpoint",)
    search_help_text = _("A part of an endpoint's method and path")
    fields = (("endpoint", "rate"), ("next_free_at", "spacing"), ("slowness", "slowed_at"))
    readonly_fields = ("rate",)

    @admin.display(description=_("endpoint"), ordering="endpoint")
    def endpoint_shown(self, allowance: RequestAllowance) -> SafeString | str:
        return code(allowance.endpoint)

    @admin.display(description=_("requests a second, as last used"), ordering="-spacing")
    def rate(self, allowance: RequestAllowance) -> str:
        seconds = allowance.spacing.total_seconds()
        return f"{1 / seconds:.1f}" if seconds else "-"

    @admin.display(description=_("last 429 at"), ordering="slowed_at")
    def slowed(self, allowance: RequestAllowance) -> SafeString | str:
        return moment(allowance.slowed_at)

    @admin.display(description=_("next free departure"), ordering="next_free_at")
    def next_free(self, allowance: RequestAllowance) -> SafeString | str:
        return moment(allowance.next_free_at)
