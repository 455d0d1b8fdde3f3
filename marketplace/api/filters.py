"""Filters of the lists. A parameter that is not known, or whose value cannot be, is refused by name."""

from datetime import UTC
from typing import Any

import django_filters
from django import forms
from django.db.models import Exists, OuterRef, Q, QuerySet, TextChoices
from django.db.models.functions import Now
from django_filters.fields import IsoDateTimeField
from django_filters.rest_framework import (
    DjangoFilterBackend,
    FilterSet,
)
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework.request import Request
from rest_framework.views import APIView

from marketplace import selectors
from marketplace.api.problems import Malformed
from marketplace.models import (
    ApiToken,
    BulkRetry,
    BulkRetryItem,
    Debt,
    Dispute,
    Drift,
    Order,
    OrderItem,
    Product,
    Reconciliation,
    ReconciliationFinding,
    Refund,
    Seller,
    SellerTransfer,
    TransferReversal,
    WebhookEvent,
)
from marketplace.money import LARGEST_AMOUNT
from marketplace.states import (
    BulkRetryItemStatus,
    BulkRetryStatus,
    EventStatus,
    OrderStatus,
    RefundStatus,
    ReversalStatus,
    TransferStatus,
)

# Of the pagination, which reads them itself.
OTHER_PARAMETERS = frozenset({"cursor", "page_size", "ordering", "format"})


class KnownParametersOnly(DjangoFilterBackend):
    """A misspelt ``status`` must not answer with every row there is."""

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: APIView) -> QuerySet[Any]:
        filterset_class = self.get_filterset_class(view, queryset)
        known = {*OTHER_PARAMETERS, *(filterset_class.base_filters if filterset_class else ())}
        for name in request.query_params:
            if name not in known:
                raise Malformed(name[:60], f"unknown parameter: expected one of {', '.join(sorted(known))}")
        filtered: QuerySet[Any] = super().filter_queryset(request, queryset, view)
        return filtered


class _Id(forms.IntegerField):
    default_error_messages = {"invalid": "expected a whole number"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, min_value=1, max_value=LARGEST_AMOUNT, **kwargs)


@extend_schema_field(OpenApiTypes.INT64)
class IdFilter(django_filters.NumberFilter):
    field_class = _Id

    def get_max_validator(self) -> None:
        """The field has its own limits."""


class _Truth(forms.Field):
    """Django's own would take any text for true."""

    def to_python(self, value: Any) -> bool | None:
        if value in self.empty_values:
            return None
        if value not in {"true", "false"}:
            raise forms.ValidationError("expected true or false")
        return bool(value == "true")


@extend_schema_field(OpenApiTypes.BOOL)
class TruthFilter(django_filters.Filter):
    field_class = _Truth


def one_of(choices: Any, **kwargs: Any) -> django_filters.MultipleChoiceFilter:
    """Any of several: ``?status=failed&status=pending``."""
    message = f"%(value)s is not known: expected one of {', '.join(choices.values)}"
    return django_filters.MultipleChoiceFilter(
        choices=choices.choices,
        # A column has one value, so no row is found twice.
        distinct=False,
        error_messages={"invalid_choice": message},
        **kwargs,
    )


class _Currency(django_filters.CharFilter):
    field_class = forms.RegexField


def currency() -> django_filters.CharFilter:
    message = "expected three lower-case letters, such as eur"
    return _Currency(regex=r"^[a-z]{3}$", error_messages={"invalid": message})


class _Moment(IsoDateTimeField):
    """In UTC, for PostgreSQL refuses times that are further than sixteen hours from it."""

    def to_python(self, value: Any) -> Any:
        told = super().to_python(value)
        try:
            return told and told.astimezone(UTC)
        except OverflowError as error:
            raise forms.ValidationError(self.error_messages["invalid"], code="invalid") from error


class MomentFilter(django_filters.IsoDateTimeFilter):
    field_class = _Moment


def moment(lookup: str, field_name: str = "created_at") -> MomentFilter:
    message = "expected a time such as 2026-11-01T12:00:00Z"
    return MomentFilter(field_name=field_name, lookup_expr=lookup, error_messages={"invalid": message})


class Searching(FilterSet):
    """``search`` finds whole ids, ours and Stripe's, by the indexes on them; names are found by their parts."""

    search = django_filters.CharFilter(
        method="find", max_length=255, label="An id, ours or Stripe's; or a part of a name."
    )
    search_ids: tuple[str, ...] = ()
    search_names: tuple[str, ...] = ()

    def find(self, rows: QuerySet[Any], _name: str, value: str) -> QuerySet[Any]:
        return selectors.found_by(rows, self.matching(value))

    def matching(self, value: str) -> list[Q]:
        return [
            *selectors.numbered(value),
            *(Q((name, value)) for name in self.search_ids),
            *(Q((f"{name}__icontains", value)) for name in self.search_names),
        ]


class Created(FilterSet):
    created_after = moment("gte")
    created_before = moment("lt")


class OrderFilter(Searching, Created):
    status = one_of(OrderStatus)
    currency = currency()
    buyer = IdFilter(field_name="buyer_id")
    seller = IdFilter(method="sold_by")
    search_ids = ("stripe_payment_intent_id", "stripe_charge_id")

    class Meta:
        model = Order
        fields: tuple[str, ...] = ()

    def sold_by(self, rows: QuerySet[Order], _name: str, value: int) -> QuerySet[Order]:
        return rows.filter(Exists(OrderItem.objects.filter(order=OuterRef("pk"), seller_id=int(value))))


class RefundFilter(Searching, Created):
    status = one_of(RefundStatus)
    currency = currency()
    order = IdFilter(field_name="order_id")
    search_ids = ("stripe_refund_id",)

    class Meta:
        model = Refund
        fields: tuple[str, ...] = ()


class DisputeFilter(Searching, Created):
    """``status`` is any word of Stripe's: there may be new ones."""

    status = django_filters.CharFilter(max_length=100)
    currency = currency()
    order = IdFilter(field_name="order_id")
    needs_a_person = TruthFilter(method="for_a_person", label="Whether its amount is to be entered.")
    counts = TruthFilter(method="lost", label="Whether anything of it counts as lost now.")
    search_ids = ("stripe_dispute_id",)

    class Meta:
        model = Dispute
        fields: tuple[str, ...] = ()

    def for_a_person(self, rows: QuerySet[Dispute], _name: str, value: bool) -> QuerySet[Dispute]:  # noqa: FBT001
        return rows.exclude(last_error_code="") if value else rows.filter(last_error_code="")

    def lost(self, rows: QuerySet[Dispute], _name: str, value: bool) -> QuerySet[Dispute]:  # noqa: FBT001
        return rows.filter(amount_lost__gt=0) if value else rows.filter(amount_lost=0)


class TransferFilter(Searching, Created):
    status = one_of(TransferStatus)
    currency = currency()
    order = IdFilter(field_name="order_id")
    seller = IdFilter(field_name="seller_id")
    failed_leg = one_of(SellerTransfer.Leg)
    search_ids = ("stripe_transfer_id", "reversals__stripe_reversal_id")

    class Meta:
        model = SellerTransfer
        fields: tuple[str, ...] = ()


class ReversalFilter(Searching, Created):
    status = one_of(ReversalStatus)
    currency = currency()
    cause = one_of(TransferReversal.Cause)
    transfer = IdFilter(field_name="transfer_id")
    refund = IdFilter(field_name="refund_id")
    dispute = IdFilter(field_name="dispute_id")
    order = IdFilter(field_name="transfer__order_id")
    seller = IdFilter(field_name="transfer__seller_id")
    search_ids = ("stripe_reversal_id",)

    class Meta:
        model = TransferReversal
        fields: tuple[str, ...] = ()


class DebtAge(TextChoices):
    """Days since it is owed."""

    WEEK = "0-7"
    MONTH = "8-30"
    QUARTER = "31-90"
    OLDER = "over-90"


class DebtFilter(Searching):
    seller = IdFilter(field_name="transfer__seller_id")
    currency = currency()
    age = one_of(DebtAge, method="aged")

    class Meta:
        model = Debt
        fields: tuple[str, ...] = ()

    def aged(self, rows: QuerySet[Debt], _name: str, ages: list[str]) -> QuerySet[Debt]:
        wanted = Q()
        for age in ages:
            wanted |= selectors.debts_aged(age)
        return rows.filter(wanted)


class SellerFilter(Searching, Created):
    transfers_capability = one_of(Seller.Capability)
    search_ids = ("stripe_account_id",)
    search_names = ("name",)

    class Meta:
        model = Seller
        fields: tuple[str, ...] = ()


class ProductFilter(Searching, Created):
    seller = IdFilter(field_name="seller_id")
    currency = currency()
    active = TruthFilter()
    search_names = ("name",)

    class Meta:
        model = Product
        fields: tuple[str, ...] = ()


class ApiTokenFilter(Searching):
    user = IdFilter(field_name="user_id")
    active = TruthFilter(method="good", label="Neither revoked nor expired.")
    search_ids = ("prefix",)
    search_names = ("name",)

    class Meta:
        model = ApiToken
        fields: tuple[str, ...] = ()

    def good(self, rows: QuerySet[ApiToken], _name: str, wanted: bool) -> QuerySet[ApiToken]:  # noqa: FBT001
        good = Q(revoked_at__isnull=True, expires_at__gt=Now())
        return rows.filter(good if wanted else ~good)


class WebhookEventFilter(Searching):
    status = one_of(EventStatus)
    type = django_filters.CharFilter(max_length=255)
    account = django_filters.CharFilter(field_name="stripe_account_id", max_length=255)
    received_after = moment("gte", "received_at")
    received_before = moment("lt", "received_at")
    search_ids = ("stripe_event_id",)

    class Meta:
        model = WebhookEvent
        fields: tuple[str, ...] = ()


class BulkRetryFilter(Created):
    status = one_of(BulkRetryStatus)

    class Meta:
        model = BulkRetry
        fields: tuple[str, ...] = ()


class BulkRetryItemFilter(FilterSet):
    status = one_of(BulkRetryItemStatus)

    class Meta:
        model = BulkRetryItem
        fields: tuple[str, ...] = ()


class ReconciliationFilter(FilterSet):
    finished = TruthFilter(method="over", label="Whether it is over.")

    class Meta:
        model = Reconciliation
        fields: tuple[str, ...] = ()

    def over(self, rows: QuerySet[Reconciliation], _name: str, value: bool) -> QuerySet[Reconciliation]:  # noqa: FBT001
        return rows.filter(finished_at__isnull=not value)


class DriftFilter(FilterSet):
    run = IdFilter(field_name="run_id", label="A reconciliation's id.")
    kind = one_of(Drift)
    currency = currency()
    is_healed = TruthFilter(label="Whether --fix healed it.")

    class Meta:
        model = ReconciliationFinding
        fields: tuple[str, ...] = ()
