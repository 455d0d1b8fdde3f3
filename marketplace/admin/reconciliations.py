"""Reconciliations with Stripe, as ``manage.py reconcile`` ran them, and the drift that each found: only looked at."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import ChoicesCheckboxFilter, RelatedDropdownFilter

from marketplace.admin.base import (
    MomentsFilter,
    ReadOnlyAdmin,
    StatusAndMoney,
    WholeTextFilter,
    code,
    link,
    moment,
    money,
    tag,
)
from marketplace.models import Drift, Reconciliation, ReconciliationFinding
from marketplace.reconciliation import report

# The first word of a subject, where it is a row of ours that has a page.
MODELS = {"transfer": "sellertransfer", "refund": "refund", "dispute": "dispute", "order": "order"}


class HealedFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, _request: HttpRequest, _model_admin: Any) -> list[tuple[str, Any]]:
        return [("left", _("left")), ("healed", _("healed"))]

    def queryset(self, _request: HttpRequest, rows: Any) -> Any:
        value = self.value()
        return rows.filter(is_healed=value == "healed") if value else rows


@admin.register(Reconciliation)
class ReconciliationAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "state", "since_shown", "transfers", "requests", "started", "finished")
    list_filter = (("started_at", MomentsFilter),)
    search_fields = ("id__exact",)
    search_help_text = _("A reconciliation's number")
    ordering = ("-id",)
    change_form_outer_after_template = "admin/marketplace/reconciliation.html"
    fields = (("state", "asked_shown"), ("since_shown", "until_shown"), ("started", "finished"))
    readonly_fields = ("state", "asked_shown", "since_shown", "until_shown", "started", "finished")

    def get_queryset(self, request: HttpRequest) -> Any:
        left = Count("findings", filter=Q(findings__is_healed=False))
        return super().get_queryset(request).annotate(found=Count("findings"), left=left)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        run: Any = self.get_object(request, object_id)
        context = {} if run is None else {"totals": _totals(run), "leaks": _leaks(run), "compared": _compared(run)}
        page: HttpResponse = super().change_view(request, object_id, form_url, {**(extra_context or {}), **context})
        return page

    @admin.display(description=_("state"))
    def state(self, run: Any) -> SafeString:
        if run.finished_at is None:
            return tag(_("running, or broken off"), "info")
        if run.left:
            return tag(_("%(left)d of %(found)d drift left") % {"left": run.left, "found": run.found}, "danger")
        return tag(_("%d drift, healed") % run.found, "success") if run.found else tag(_("no drift"), "success")

    @admin.display(description=_("flags"))
    def asked_shown(self, run: Reconciliation) -> SafeString | str:
        return code(run.asked)

    @admin.display(description=_("since"), ordering="since")
    def since_shown(self, run: Reconciliation) -> Any:
        return moment(run.since) if run.since else _("the beginning")

    @admin.display(description=_("until"))
    def until_shown(self, run: Reconciliation) -> SafeString | str:
        return moment(run.until)

    @admin.display(description=_("started at"), ordering="started_at")
    def started(self, run: Reconciliation) -> SafeString | str:
        return moment(run.started_at)

    @admin.display(description=_("finished at"), ordering="finished_at")
    def finished(self, run: Reconciliation) -> SafeString | str:
        return moment(run.finished_at)

    @admin.display(description=_("transfers"))
    def transfers(self, run: Reconciliation) -> int:
        return report.counts(run)["transfers"]

    @admin.display(description=_("requests"))
    def requests(self, run: Reconciliation) -> int:
        return report.counts(run)["requests"]


def _compared(run: Reconciliation) -> list[tuple[str, int]]:
    return [(report.MEANINGS[name], count) for name, count in report.counts(run).items()]


def _totals(run: Reconciliation) -> list[dict[str, Any]]:
    return [
        {
            "kind": Drift(each.kind).label,
            "count": each.count,
            "healed": each.healed,
            "amount": money(each.amount, each.currency) if each.currency else "-",
            "address": _findings(
                run, kind__exact=each.kind, **({"currency__exact": each.currency} if each.currency else {})
            ),
        }
        for each in report.totals(run)
    ]


def _leaks(run: Reconciliation) -> list[dict[str, Any]]:
    return [
        {
            "seller": each.seller or _("not a seller of ours"),
            "account": code(each.stripe_account_id),
            "count": each.count,
            "amount": money(each.amount, each.currency),
            "address": _findings(run, kind__exact=Drift.NOT_CLAWED_BACK, q=each.stripe_account_id),
        }
        for each in report.leaks(run)[: ReconciliationAdmin.list_per_page]
    ]


def _findings(run: Reconciliation, **filters: str) -> str:
    address = reverse("admin:marketplace_reconciliationfinding_changelist")
    return f"{address}?{urlencode({'run__id__exact': run.pk, **filters})}"


@admin.register(ReconciliationFinding)
class ReconciliationFindingAdmin(StatusAndMoney, ReadOnlyAdmin):
    # What tells most comes first: the rest is out of sight on a narrow screen.
    list_display = ("kind_shown", "subject_link", "amount_shown", "state", "detail", "at_stripe", "run_link")
    list_filter = (
        ("kind", ChoicesCheckboxFilter),
        HealedFilter,
        ("run", RelatedDropdownFilter),
        ("currency", WholeTextFilter),
    )
    list_select_related = ("run",)
    search_fields = ("stripe_id__exact", "stripe_account_id__exact", "subject__exact")
    search_help_text = _("tr_…, ch_…, re_…, dp_…, acct_…, or a row such as transfer 7, whole")
    ordering = ("-id",)
    fields = (
        ("kind_shown", "state"),
        ("subject_link", "amount_shown"),
        "detail",
        "remedy_shown",
        ("at_stripe", "account"),
        ("run_link", "found"),
    )
    readonly_fields = (
        "kind_shown",
        "state",
        "subject_link",
        "amount_shown",
        "remedy_shown",
        "at_stripe",
        "account",
        "run_link",
        "found",
    )

    @admin.display(description=_("kind"), ordering="kind")
    def kind_shown(self, found: ReconciliationFinding) -> SafeString:
        return format_html('<span class="whitespace-nowrap">{}</span>', Drift(found.kind).label)

    @admin.display(description=_("what"), ordering="subject")
    def subject_link(self, found: ReconciliationFinding) -> SafeString | str:
        word, _space, number = found.subject.partition(" ")
        if word not in MODELS:
            return found.subject
        address = reverse(f"admin:marketplace_{MODELS[word]}_change", args=[number])
        style = "text-primary-600 dark:text-primary-400 whitespace-nowrap"
        return format_html('<a class="{}" href="{}">{}</a>', style, address, found.subject)

    @admin.display(description=_("amount"), ordering="amount")
    def amount_shown(self, found: ReconciliationFinding) -> SafeString | str:
        return money(found.amount, found.currency) if found.currency else "-"

    @admin.display(description=_("state"), ordering="is_healed")
    def state(self, found: ReconciliationFinding) -> SafeString:
        return tag(_("healed"), "success") if found.is_healed else tag(_("left"), "danger")

    @admin.display(description=_("at Stripe"))
    def at_stripe(self, found: ReconciliationFinding) -> SafeString | str:
        return code(found.stripe_id)

    @admin.display(description=_("seller's account"))
    def account(self, found: ReconciliationFinding) -> SafeString | str:
        return code(found.stripe_account_id)

    @admin.display(description=_("reconciliation"))
    def run_link(self, found: ReconciliationFinding) -> SafeString | str:
        return link(found.run)

    @admin.display(description=_("found at"), ordering="found_at")
    def found(self, drift: ReconciliationFinding) -> SafeString | str:
        return moment(drift.found_at)

    @admin.display(description=_("what --fix does"))
    def remedy_shown(self, found: ReconciliationFinding) -> Any:
        return found.remedy or _("nothing: by hand, as the runbook says")
