"""What all pages share: nothing is deleted, statuses have colours, money is written for people."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Model, Q, TextChoices
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from unfold.admin import ModelAdmin, TabularInline
from unfold.contrib.filters.admin import FieldTextFilter, RangeDateTimeFilter
from unfold.utils import parse_datetime_str
from unfold.views import ChangeList

from marketplace import selectors
from marketplace.money import Money
from marketplace.states import (
    BulkRetryItemStatus,
    BulkRetryStatus,
    EventStatus,
    OrderStatus,
    RefundStatus,
    ReversalStatus,
    TransferStatus,
)

# Green: the money is where it should be. Blue: on its way. Orange: waits for something. Red: a person is needed.
# By class: members of two classes with the same text are equal, but need not mean the same.
COLOURS: Mapping[type[TextChoices], Mapping[str, str]] = {
    TransferStatus: {
        TransferStatus.PENDING: "info",
        TransferStatus.FAILED: "warning",
        TransferStatus.COMPLETED: "success",
        TransferStatus.REVERSAL_PENDING: "info",
        TransferStatus.PARTIALLY_REVERSED: "primary",
        TransferStatus.REVERSED: "success",
        TransferStatus.PERMANENTLY_FAILED: "danger",
        TransferStatus.CANCELED: "default",
    },
    ReversalStatus: {
        ReversalStatus.PENDING: "info",
        ReversalStatus.SUCCEEDED: "success",
        ReversalStatus.FAILED: "danger",
        ReversalStatus.CANCELED: "default",
    },
    RefundStatus: {
        RefundStatus.REQUESTED: "info",
        RefundStatus.PENDING: "info",
        RefundStatus.REQUIRES_ACTION: "warning",
        RefundStatus.SUCCEEDED: "success",
        RefundStatus.FAILED: "danger",
        RefundStatus.CANCELED: "default",
    },
    OrderStatus: {
        OrderStatus.PENDING: "info",
        OrderStatus.PAID: "success",
        OrderStatus.PARTIALLY_REFUNDED: "primary",
        OrderStatus.REFUNDED: "default",
    },
    EventStatus: {
        EventStatus.PROCESSED: "success",
        EventStatus.IGNORED: "default",
        EventStatus.FAILED: "danger",
    },
    BulkRetryStatus: {
        BulkRetryStatus.PLANNED: "default",
        BulkRetryStatus.AWAITING_APPROVAL: "warning",
        BulkRetryStatus.CANARY: "info",
        BulkRetryStatus.RUNNING: "info",
        BulkRetryStatus.STOPPED: "danger",
        BulkRetryStatus.FINISHED: "success",
        BulkRetryStatus.CANCELED: "default",
    },
    BulkRetryItemStatus: {
        BulkRetryItemStatus.PLANNED: "default",
        BulkRetryItemStatus.REFUSED: "warning",
        BulkRetryItemStatus.SKIPPED: "default",
        BulkRetryItemStatus.RETRIED: "info",
        BulkRetryItemStatus.SUCCEEDED: "success",
        BulkRetryItemStatus.WAITING: "warning",
        BulkRetryItemStatus.FAILED: "danger",
    },
}


# Of disputes, whose statuses are Stripe's own text.
DISPUTE_COLOURS: Mapping[str, str] = {
    "warning_needs_response": "info",
    "warning_under_review": "info",
    "warning_closed": "success",
    "prevented": "success",
    "won": "success",
    "lost": "danger",
}


def colour(status: TextChoices) -> str:
    return COLOURS[type(status)][status]


def label(status: TextChoices) -> SafeString:
    return tag(status.label, colour(status))


def tag(text: Any, kind: str) -> SafeString:
    """``kind`` is one of the colours above."""
    return render_to_string("unfold/helpers/label.html", {"text": text, "type": kind})


def money(amount: int | None, currency: str) -> SafeString | str:
    if amount is None:
        return "-"
    return format_html('<span class="tabular-nums whitespace-nowrap">{}</span>', str(Money(amount, currency)))


def code(text: str) -> SafeString | str:
    """An id of Stripe's, in one piece and easy to select."""
    return format_html('<span class="font-mono text-xs whitespace-nowrap select-all">{}</span>', text) if text else "-"


def link(row: Model | None, text: str = "") -> SafeString | str:
    if row is None:
        return "-"
    address = reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])
    # A number belongs to its word; names may be long.
    style = "whitespace-nowrap" if str(row).endswith(str(row.pk)) else ""
    return format_html(
        '<a class="text-primary-600 dark:text-primary-400 {}" href="{}">{}</a>', style, address, text or str(row)
    )


def moment(time: datetime | None) -> SafeString | str:
    if time is None:
        return "-"
    return format_html('<span class="tabular-nums whitespace-nowrap">{}</span>', f"{time:%Y-%m-%d %H:%M}")


def yes_no(value: bool) -> Any:  # noqa: FBT001 - it is what is shown
    """In words: a red cross beside "outcome unknown" would look like bad news."""
    return _("yes") if value else _("no")


# Rows of a list that are counted, and reached page by page; filters reach all others.
MOST_COUNTED = 10_000


class MomentsFilter(RangeDateTimeFilter):
    """Unfold's, whose moments have no time zone: they are of the zone that the pages show."""

    def queryset(self, _request: HttpRequest, rows: Any) -> Any:
        wanted = {}
        for end, lookup in (("from", "gte"), ("to", "lte")):
            date, clock = (self.used_parameters.get(f"{self.parameter_name}_{end}_{part}") for part in (0, 1))
            moment = parse_datetime_str(f"{date} {clock}") if date and clock else None
            if moment is not None:
                wanted[f"{self.parameter_name}__{lookup}"] = timezone.make_aware(moment)
        return rows.filter(**wanted)


class WholeTextFilter(FieldTextFilter):
    """Unfold's finds parts of a text, for which all rows are read; this one the whole text, which an index may answer.

    For codes and words of lower-case letters, however they are typed.
    """

    def __init__(
        self, field: Any, request: HttpRequest, params: Any, model: type[Model], model_admin: Any, *, field_path: str
    ) -> None:
        self.lookup_kwarg = f"{field_path}__exact"
        typed = [value.strip().lower() for value in params.pop(self.lookup_kwarg, [])]
        self.lookup_val = typed
        if any(typed):
            params = {**params, self.lookup_kwarg: typed}
        # Not the one between, which would make the other lookup of it.
        admin.FieldListFilter.__init__(self, field, request, params, model, model_admin, field_path)


class StatusAndMoney:
    """Columns and fields by which rows show their status and amount; for admins and inlines of these rows."""

    statuses: type[TextChoices]

    @admin.display(description=_("status"), ordering="status")
    def status_label(self, row: Any) -> SafeString:
        return label(self.statuses(row.status))

    @admin.display(description=_("amount"), ordering="amount")
    def amount_shown(self, row: Any) -> SafeString | str:
        return money(row.amount, row.currency)


class StatusText(StatusAndMoney):
    """For statuses that are Stripe's own text: green once it is over well, red once it is lost."""

    @admin.display(description=_("status"), ordering="status")
    def status_label(self, row: Any) -> SafeString:
        return word(row.status)


def word(status: str) -> SafeString:
    """A dispute's status. A word that we do not know looks like that of an open one."""
    return tag(status.replace("_", " "), DISPUTE_COLOURS.get(status, "warning"))


class Times:
    """Times in lists, short enough for one line."""

    @admin.display(description=_("next attempt"), ordering="next_retry_at")
    def due(self, row: Any) -> SafeString | str:
        return moment(row.next_retry_at)

    @admin.display(description=_("created at"), ordering="created_at")
    def created(self, row: Any) -> SafeString | str:
        return moment(row.created_at)


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # it takes none when the program runs
    """Counts no further than anybody reads on: with a million rows that alone would take as long as the page."""

    template_name = "admin/marketplace/pagination.html"

    @cached_property
    def keys(self) -> list[Any]:
        """Of the rows that are counted, in no order."""
        rows: Any = self.object_list
        return list(rows.order_by().values_list("pk", flat=True)[: MOST_COUNTED + 1])

    @cached_property
    def count(self) -> int:
        return min(len(self.keys), MOST_COUNTED)

    @property
    def has_more(self) -> bool:
        return len(self.keys) > MOST_COUNTED

    def page(self, number: int | str) -> Any:
        """Its keys are found first: an index may hold all that they are found and sorted by, and no row is read but the
        page's own.
        """
        page: Any = super().page(number)
        rows: Any = self.object_list
        page.object_list = rows.filter(pk__in=list(page.object_list.values_list("pk", flat=True)))
        return page


class BoundedChangeList(ChangeList):
    """Sorted by what the page offers and by nothing else, whatever its address says."""

    result_list: Any

    def get_ordering_field(self, field_name: Any) -> Any:
        return super().get_ordering_field(field_name) if field_name in self.sortable_by else None

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        # A few among a million are looked for once, by the count, and not again.
        if not self.multi_page:
            self.result_list = self.result_list.filter(pk__in=self.paginator.keys)


class SafeAdmin(Times, ModelAdmin):
    """Rows are facts: none is deleted."""

    paginator = BoundedPaginator
    show_full_result_count = False
    list_per_page = 50
    list_filter_submit = True
    compressed_fields = True

    def get_changelist(self, _request: HttpRequest, **_kwargs: Any) -> type[ChangeList]:
        return BoundedChangeList

    def has_delete_permission(self, _request: HttpRequest, _obj: Any = None) -> bool:
        return False


class ReadOnlyAdmin(SafeAdmin):
    """Only services write these."""

    def has_add_permission(self, _request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, _request: HttpRequest, _obj: Any = None) -> bool:
        return False


class GrowingAdmin(ReadOnlyAdmin):
    """Lists of what each sale adds to: what they offer costs the same however many rows there are.

    ``search_fields`` are whole ids, each with an index. All rows come newest first; those of ``open_statuses``, which
    partial indexes find, can be sorted by the columns of ``sorted_when_open`` too.
    """

    show_facets = admin.ShowFacets.NEVER
    open_statuses: Collection[str] = ()
    sorted_when_open: Sequence[str] = ()

    def get_sortable_by(self, request: HttpRequest) -> Sequence[str]:
        asked = set(request.GET.getlist("status__exact"))
        return self.sorted_when_open if asked and asked <= set(self.open_statuses) else ()

    def get_search_results(self, _request: HttpRequest, rows: Any, text: str) -> Any:
        text = text.strip()
        if not text:
            return rows, False
        names = [name for name in self.search_fields if name != "id__exact"]
        numbered = selectors.numbered(text) if len(names) < len(self.search_fields) else []
        return selectors.found_by(rows, [*numbered, *(Q((name, text)) for name in names)]), False


class ReadOnlyInline(Times, TabularInline):
    extra = 0
    max_num = 0
    can_delete = False
    show_change_link = False
    hide_title = True

    def has_add_permission(self, _request: HttpRequest, _obj: Any) -> bool:
        return False

    def has_change_permission(self, _request: HttpRequest, _obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, _request: HttpRequest, _obj: Any = None) -> bool:
        return False


class OwnedInline(ReadOnlyInline):
    """Rows that belong to the page's row: who may see the one may see the other."""

    def has_view_permission(self, _request: HttpRequest, _obj: Any = None) -> bool:
        return True
