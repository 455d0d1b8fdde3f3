"""What the API shows of each row, and the bodies it takes. Amounts are whole minor units next to their currency."""

from typing import Any, ClassVar

from django.conf import settings
from django.db.models import Model
from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from marketplace import inbox, overview
from marketplace.api.fields import AmountField, StrictSerializer, TextField, WholeField
from marketplace.api.why import WhySerializer
from marketplace.explain import transfers as explanations
from marketplace.models import (
    ApiToken,
    Debt,
    DebtEntry,
    Dispute,
    Order,
    OrderItem,
    Product,
    Refund,
    RefundItem,
    Seller,
    SellerTransfer,
    TransferReversal,
    WebhookEvent,
)
from marketplace.money import LARGEST_AMOUNT
from marketplace.roles import Scope
from marketplace.services import api_tokens, refund_plans
from marketplace.states import EventStatus

WORK = [
    "retry_count",
    "next_retry_at",
    "last_error_code",
    "last_error_message",
    "last_error_request_id",
    "last_error_at",
]


class Shown(serializers.ModelSerializer[Any]):
    """Read-only. The fields of ``staff_only`` are left out for buyers and sellers: how we work is not theirs to see."""

    staff_only: ClassVar[tuple[str, ...]] = ()

    def get_fields(self) -> dict[str, Any]:
        fields = super().get_fields()
        for field in fields.values():
            field.read_only = True
        request = self.context.get("request")
        if request is not None and not request.user.is_staff and not getattr(request, "is_schema", False):
            for name in self.staff_only:
                fields.pop(name, None)
        return fields


class HistorySerializer(serializers.Serializer[Any]):
    """One entry of a row's history, as the database's triggers wrote it."""

    at = serializers.DateTimeField(source="pgh_created_at")
    event = serializers.ChoiceField(
        source="pgh_label",
        choices=["created", "status", "attempt", "woken"],
        help_text="`attempt` failed and left the status as it was; `woken`: an operator had the next one made now.",
    )
    status = serializers.CharField()
    actor = serializers.SerializerMethodField()
    reason = serializers.SerializerMethodField()
    attempt = serializers.SerializerMethodField()
    error_code = serializers.CharField(source="last_error_code", default="")
    error_message = serializers.CharField(source="last_error_message", default="")

    def get_actor(self, entry: Any) -> str:
        return str((entry.pgh_context or {}).get("actor") or "")

    def get_reason(self, entry: Any) -> str:
        return str((entry.pgh_context or {}).get("reason") or "")

    def get_attempt(self, entry: Any) -> int | None:
        attempt: int | None = (entry.pgh_context or {}).get("attempt")
        return attempt


# --- Sellers, products, orders ------------------------------------------------------------------------------


class SellerSerializer(Shown):
    class Meta:
        model = Seller
        fields = (
            "id",
            "name",
            "stripe_account_id",
            "transfers_capability",
            "payouts_enabled",
            "deauthorized_at",
            "created_at",
        )


class ProductSerializer(Shown):
    class Meta:
        model = Product
        fields = ("id", "seller", "name", "unit_amount", "currency", "active", "created_at")


class OrderItemSerializer(Shown):
    product_name = serializers.CharField(source="product.name")
    seller_name = serializers.CharField(source="seller.name")

    class Meta:
        model = OrderItem
        fields = ("id", "product", "product_name", "seller", "seller_name", "quantity", "unit_amount", "amount")


class OrderSerializer(Shown):
    staff_only = ("commission_basis_points", "refund_commission", "stripe_payment_intent_id", "stripe_charge_id")

    class Meta:
        model = Order
        fields: tuple[str, ...] = (
            "id",
            "status",
            "buyer",
            "amount",
            "amount_refunded",
            "currency",
            "paid_at",
            "created_at",
            "updated_at",
            "commission_basis_points",
            "refund_commission",
            "stripe_payment_intent_id",
            "stripe_charge_id",
        )


class OrderDetailSerializer(OrderSerializer):
    items = OrderItemSerializer(many=True)

    class Meta(OrderSerializer.Meta):
        fields = (*OrderSerializer.Meta.fields, "items")


# --- Refunds, transfers, reversals --------------------------------------------------------------------------


class RefundSerializer(Shown):
    staff_only = ("requested_by", "request_key", "stripe_refund_id", "correlation_id", *WORK)

    class Meta:
        model = Refund
        fields: tuple[str, ...] = (
            "id",
            "status",
            "order",
            "amount",
            "currency",
            "reason",
            "succeeded_at",
            "created_at",
            "updated_at",
            "requested_by",
            "request_key",
            "stripe_refund_id",
            "correlation_id",
            *WORK,
        )


class DisputeSerializer(Shown):
    """Staff only, as the whole endpoint is."""

    order_currency = serializers.CharField(source="order.currency")
    seller_parts = serializers.DictField(
        child=serializers.IntegerField(), help_text="Of the amount lost, by seller, in the order's currency."
    )

    class Meta:
        model = Dispute
        fields: tuple[str, ...] = (
            "id",
            "status",
            "order",
            "stripe_dispute_id",
            "stripe_reason",
            "amount",
            "currency",
            "order_amount",
            "entered_amount",
            "amount_lost",
            "seller_parts",
            "platform_part",
            "order_currency",
            "is_charge_refundable",
            "evidence_due_by",
            "amount_withdrawn",
            "amount_reinstated",
            "fee",
            "balance_currency",
            "opened_at",
            "withdrawn_at",
            "reinstated_at",
            "closed_at",
            "last_error_code",
            "last_error_message",
            "created_at",
            "updated_at",
        )


class ReversalSerializer(Shown):
    staff_only = (
        "refund",
        "dispute",
        "stripe_status",
        "waiting_for_funds_since",
        "unwanted_amount",
        "refused",
        "correlation_id",
    )

    class Meta:
        model = TransferReversal
        fields = (
            "id",
            "status",
            "transfer",
            "cause",
            "description",
            "amount",
            "currency",
            "amount_recovered",
            "amount_written_off",
            "in_place_of",
            "stripe_reversal_id",
            "created_at",
            "updated_at",
            "refund",
            "dispute",
            "stripe_status",
            "waiting_for_funds_since",
            "unwanted_amount",
            "refused",
            "correlation_id",
        )


class DebtEntrySerializer(Shown):
    staff_only = ("actor", "requested_by", "request_key")

    class Meta:
        model = DebtEntry
        fields = (
            "id",
            "kind",
            "amount",
            "currency",
            "transfer",
            "reason",
            "created_at",
            "actor",
            "requested_by",
            "request_key",
        )


class DebtSerializer(Shown):
    staff_only = ("last_error_code", "last_error_message", "refused")
    seller = serializers.IntegerField(source="transfer.seller_id")
    seller_name = serializers.CharField(source="transfer.seller.name")
    order = serializers.IntegerField(source="transfer.order_id")
    amount_left = serializers.IntegerField(help_text="What is owed still.")
    owed_since = serializers.DateTimeField(help_text="Since when it is owed, not since it failed.")
    last_error_code = serializers.CharField(source="transfer.last_error_code", help_text="Why Stripe did not take it.")
    last_error_message = serializers.CharField(source="transfer.last_error_message")

    class Meta:
        model = Debt
        fields: tuple[str, ...] = (
            "id",
            "status",
            "seller",
            "seller_name",
            "transfer",
            "order",
            "cause",
            "amount",
            "amount_recovered",
            "amount_written_off",
            "amount_left",
            "currency",
            "owed_since",
            "refused",
            "last_error_code",
            "last_error_message",
        )


class DebtDetailSerializer(DebtSerializer):
    entries = DebtEntrySerializer(
        source="debt_entries", many=True, help_text="What was settled of it; less than zero where a netting was undone."
    )

    class Meta(DebtSerializer.Meta):
        fields = (*DebtSerializer.Meta.fields, "entries")


class DebtTotalSerializer(serializers.Serializer[Any]):
    seller = serializers.IntegerField(source="seller_id")
    seller_name = serializers.CharField()
    currency = serializers.CharField()
    count = serializers.IntegerField()
    amount = serializers.IntegerField(help_text="What is owed still.")
    by_age = serializers.DictField(
        child=serializers.IntegerField(),
        help_text="The same by days since it is owed: `0-7`, `8-30`, `31-90`, `over-90`.",
    )


class TransferSerializer(Shown):
    staff_only = ("failed_leg", "correlation_id", *WORK)

    class Meta:
        model = SellerTransfer
        fields: tuple[str, ...] = (
            "id",
            "status",
            "order",
            "seller",
            "description",
            "amount",
            "amount_reversed",
            "amount_kept_back",
            "amount_netted",
            "currency",
            "gives_back_of",
            "undoes",
            "declined",
            "stripe_transfer_id",
            "stripe_reversal_id",
            "created_at",
            "updated_at",
            "failed_leg",
            "correlation_id",
            *WORK,
        )


class TransferDetailSerializer(TransferSerializer):
    staff_only = (*TransferSerializer.staff_only, "why", "history")
    why = serializers.SerializerMethodField(help_text="Why it is where it is, what unblocks it, and when.")
    reversals = ReversalSerializer(many=True)
    history = serializers.SerializerMethodField(help_text="The newest entries first, at most a hundred.")

    class Meta(TransferSerializer.Meta):
        fields = (*TransferSerializer.Meta.fields, "why", "reversals", "history")

    @extend_schema_field(WhySerializer)
    def get_why(self, transfer: SellerTransfer) -> Any:
        request = self.context.get("request")
        user = request.user if request is not None else None
        return WhySerializer(explanations.explain(transfer, user=user)).data

    @extend_schema_field(HistorySerializer(many=True))
    def get_history(self, transfer: SellerTransfer) -> Any:
        return history(transfer)


class RefundItemSerializer(Shown):
    class Meta:
        model = RefundItem
        fields = ("item", "quantity", "amount")


class RefundDetailSerializer(RefundSerializer):
    items = RefundItemSerializer(many=True, help_text="What it is for; empty where it is by amount.")
    staff_only = (*RefundSerializer.staff_only, "history")
    history = serializers.SerializerMethodField(help_text="The newest entries first, at most a hundred.")

    class Meta(RefundSerializer.Meta):
        fields = (*RefundSerializer.Meta.fields, "items", "history")

    @extend_schema_field(HistorySerializer(many=True))
    def get_history(self, refund: Refund) -> Any:
        return history(refund)


def history(row: Model) -> Any:
    entries: Any = row.history  # type: ignore[attr-defined]  # pghistory adds it
    return HistorySerializer(entries.order_by("-pgh_id")[:100], many=True).data


# --- Webhook events -----------------------------------------------------------------------------------------


class WebhookEventSerializer(Shown):
    class Meta:
        model = WebhookEvent
        fields: tuple[str, ...] = (
            "id",
            "status",
            "stripe_event_id",
            "type",
            "stripe_account_id",
            "livemode",
            "api_version",
            "stripe_created_at",
            "received_at",
            "outcome",
            "replay_count",
            *WORK,
        )


class WebhookEventDetailSerializer(WebhookEventSerializer):
    payload = serializers.DictField(help_text="The event as Stripe signed it. It may hold personal data.")
    history = serializers.SerializerMethodField(help_text="From the first replay on; the newest entries first.")

    class Meta(WebhookEventSerializer.Meta):
        fields = (*WebhookEventSerializer.Meta.fields, "payload", "history")

    @extend_schema_field(HistorySerializer(many=True))
    def get_history(self, event: WebhookEvent) -> Any:
        return history(event)


# --- Tokens -------------------------------------------------------------------------------------------------


class ApiTokenSerializer(Shown):
    username = serializers.CharField(source="user.username")
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices))
    is_active = serializers.SerializerMethodField(help_text="Neither revoked nor expired.")

    class Meta:
        model = ApiToken
        fields: tuple[str, ...] = (
            "id",
            "name",
            "user",
            "username",
            "scopes",
            "prefix",
            "is_active",
            "created_at",
            "expires_at",
            "revoked_at",
            "last_used_at",
        )

    def get_is_active(self, token: ApiToken) -> bool:
        return token.revoked_at is None and not api_tokens.is_expired(token)


class MadeApiTokenSerializer(ApiTokenSerializer):
    token = serializers.CharField(
        allow_null=True, source="secret", help_text="Told this once; null where the request is a repeated one."
    )

    class Meta(ApiTokenSerializer.Meta):
        fields = (*ApiTokenSerializer.Meta.fields, "token")

    def to_representation(self, made: api_tokens.Made) -> dict[str, Any]:
        return {**ApiTokenSerializer(made.token, context=self.context).data, "token": made.secret}


class NewApiTokenSerializer(StrictSerializer):
    name = TextField(max_length=100, help_text="What it is for.")
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=Scope.choices),
        allow_empty=False,
        max_length=len(Scope),
        help_text="What it may do of that which you may.",
    )
    expires_in_days = WholeField(required=False, largest=3650, help_text="90 where it is left out.")

    def validate_scopes(self, scopes: list[str]) -> list[Scope]:
        maker: ApiToken | None = self.context["maker"]
        beyond = [scope for scope in scopes if maker is not None and scope not in maker.scopes]
        if beyond:
            raise serializers.ValidationError([f"{', '.join(beyond)}: expected none that this token has not"])
        return [Scope(scope) for scope in scopes]

    def validate(self, body: dict[str, Any]) -> dict[str, Any]:
        days: int | None = body.get("expires_in_days")
        age = api_tokens.age_of(days)
        maker: ApiToken | None = self.context["maker"]
        if age > settings.API_TOKEN_MAX_AGE:
            message = f"{days}: expected at most {settings.API_TOKEN_MAX_AGE.days}"
            raise serializers.ValidationError({"expires_in_days": [message]})
        if maker is not None and timezone.now() + age > maker.expires_at:
            message = f"expected no later than this token does, {maker.expires_at:%Y-%m-%dT%H:%M:%SZ}"
            raise serializers.ValidationError({"expires_in_days": [message]})
        return {**body, "age": age}


# --- Statistics ---------------------------------------------------------------------------------------------


class OpenSerializer(serializers.Serializer[Any]):
    status = serializers.CharField()
    currency = serializers.CharField()
    count = serializers.IntegerField()
    amount = serializers.IntegerField(help_text="Of transfers less what came back, of reversals what is owed still.")


class OpenTransfersSerializer(OpenSerializer):
    failed_leg = serializers.CharField(help_text="`sending` or `reversing`; empty unless permanently failed.")
    code = serializers.CharField(help_text="The last error; empty where there is none.")


class OwedSerializer(OpenSerializer):
    """`pending`: a worker goes on. `failed`: a debt of its seller."""

    cause = serializers.CharField()
    age = serializers.ChoiceField(choices=list(overview.AGES), help_text="Owed for so long at most.")


class RecoveredSerializer(serializers.Serializer[Any]):
    cause = serializers.CharField()
    currency = serializers.CharField()
    count = serializers.IntegerField()
    amount = serializers.IntegerField()


class FailedEventsSerializer(serializers.Serializer[Any]):
    retrying = serializers.IntegerField(help_text="A worker tries again.")
    person = serializers.IntegerField(help_text="A person decides.")


class OldestDueSerializer(serializers.Serializer[Any]):
    """When the row that waits longest for a worker became, or becomes, due; null where none waits."""

    sending = serializers.DateTimeField(allow_null=True)
    reversing = serializers.DateTimeField(allow_null=True)
    refunding = serializers.DateTimeField(allow_null=True)
    events = serializers.DateTimeField(allow_null=True)


class StatsSerializer(serializers.Serializer[Any]):
    transfers = OpenTransfersSerializer(many=True, help_text="That are not at their end.")
    refunds = OpenSerializer(many=True, help_text="Of which the outcome is not known.")
    reversals = OwedSerializer(many=True, help_text="That Stripe has not confirmed.")
    recovered = RecoveredSerializer(many=True, help_text="Reversals that Stripe ever confirmed.")
    webhook_events_failed = FailedEventsSerializer()
    oldest_due = OldestDueSerializer()


# --- A refund before it is made -----------------------------------------------------------------------------


class PlannedPartSerializer(serializers.Serializer[Any]):
    seller = serializers.IntegerField(source="part.transfer.seller_id")
    transfer = serializers.IntegerField(source="part.transfer.pk")
    share = serializers.IntegerField(source="part.transfer.share", help_text="What the seller gets of the order.")
    amount = serializers.IntegerField(source="part.amount", help_text="What this refund would take of it.")
    amount_taken = serializers.IntegerField(
        source="part.taken", help_text="Taken before: never sent, owed, or come back."
    )
    amount_reversed = serializers.IntegerField(
        source="part.transfer.amount_reversed", help_text="Of that, what Stripe confirmed."
    )
    balance_covers = serializers.ChoiceField(
        choices=refund_plans.Covers.choices,
        help_text="Whether the seller's balance at Stripe covers it at this moment.",
    )


class RefundPlanSerializer(serializers.Serializer[Any]):
    order = serializers.IntegerField()
    amount = serializers.IntegerField()
    currency = serializers.CharField()
    version = serializers.CharField(help_text="For `plan_version` of the refund.")
    platform_amount = serializers.IntegerField(help_text="What the platform would bear.")
    parts = PlannedPartSerializer(many=True)


class RefundPlanQuerySerializer(StrictSerializer):
    amount = serializers.IntegerField(
        required=False,
        min_value=1,
        max_value=LARGEST_AMOUNT,
        help_text="In the currency's minor unit. Left out: all that is left.",
    )
    items = serializers.RegexField(
        r"^[0-9]{1,18}:[1-9][0-9]{0,8}(,[0-9]{1,18}:[1-9][0-9]{0,8})*$",
        required=False,
        max_length=4000,
        help_text="In place of an amount: the order's items with their quantities, such as `7:2,9:1`.",
    )

    def validate_items(self, items: str) -> list[tuple[int, int]]:
        return [(int(number), int(quantity)) for number, quantity in (each.split(":") for each in items.split(","))]

    def validate(self, query: dict[str, Any]) -> dict[str, Any]:
        if "items" in query and "amount" in query:
            raise serializers.ValidationError({"amount": ["expected either items or an amount, which items have"]})
        return query


# --- Bodies -------------------------------------------------------------------------------------------------


class ChosenItemSerializer(StrictSerializer):
    item = AmountField(help_text="The number of an item of the order.")
    quantity = AmountField(help_text="How many of it.")


class RefundRequestSerializer(StrictSerializer):
    amount = AmountField(required=False, help_text="In the currency's minor unit. Left out: all that is left.")
    currency = TextField(required=False, min_length=3, max_length=3, help_text="The order's own currency, as a check.")
    reason = TextField(required=False, allow_blank=True, max_length=500, default="")
    items = ChosenItemSerializer(
        many=True,
        required=False,
        default=[],
        help_text="What is refunded: its sellers alone bear it. In place of an amount.",
    )
    plan_version = TextField(
        required=False,
        max_length=64,
        default="",
        help_text="The `version` of a refund plan for this amount: 409 where the order has changed since.",
    )

    def validate(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["items"] and "amount" in body:
            raise serializers.ValidationError({"amount": ["expected either items or an amount, which items have"]})
        return body

    def validate_currency(self, currency: str) -> str:
        expected = self.context["order"].currency
        if currency != expected:
            raise serializers.ValidationError(f"{currency!r}: expected {expected!r}, the order's currency")
        return currency


class DebtSettlementSerializer(StrictSerializer):
    amount = AmountField(help_text="In the debt's currency's minor unit; at most what is left.")
    currency = TextField(required=False, min_length=3, max_length=3, help_text="The debt's own currency, as a check.")
    reason = TextField(max_length=500, help_text="How it was paid, or why it is given up; it stays with the entry.")

    def validate_currency(self, currency: str) -> str:
        expected = self.context["debt"].currency
        if currency != expected:
            raise serializers.ValidationError(f"{currency!r}: expected {expected!r}, the debt's currency")
        return currency


class DisputedAmountSerializer(StrictSerializer):
    amount = AmountField(help_text="How much of the order is disputed, in its currency's minor unit.")
    currency = TextField(required=False, min_length=3, max_length=3, help_text="The order's currency, as a check.")
    reason = TextField(max_length=500, help_text="How you know; it stays in the dispute's history.")

    def validate_currency(self, currency: str) -> str:
        expected = self.context["dispute"].order.currency
        if currency != expected:
            raise serializers.ValidationError(f"{currency!r}: expected {expected!r}, the order's currency")
        return currency


class ReasonSerializer(StrictSerializer):
    reason = TextField(max_length=500, help_text="Why; it stays in the row's history.")


class StripeTransferIdSerializer(ReasonSerializer):
    stripe_transfer_id = serializers.RegexField(
        r"^tr_[A-Za-z0-9_]{1,200}$", help_text="`tr_…`, as Stripe has it.", max_length=203
    )


class ReplayByTypeSerializer(ReasonSerializer):
    type = serializers.ChoiceField(sorted(inbox.HANDLERS), help_text="Events of this type.")
    status = serializers.ChoiceField(
        [EventStatus.FAILED.value, EventStatus.IGNORED.value],
        default=EventStatus.FAILED.value,
        help_text="Those that failed, or those that were ignored.",
    )
    after = serializers.IntegerField(
        min_value=0,
        max_value=LARGEST_AMOUNT,
        default=0,
        help_text="Those with a larger id: `last` of the answer before.",
    )
    limit = serializers.IntegerField(min_value=1, max_value=200, default=50, help_text="So many at most, oldest first.")


class ReplayedSerializer(serializers.Serializer[Any]):
    found = serializers.IntegerField(help_text="Those that were taken up; each is one of the four that follow.")
    processed = serializers.IntegerField(help_text="Applied now.")
    ignored = serializers.IntegerField(help_text="Of no use to us, now as well.")
    failed = serializers.IntegerField(help_text="Failed again, with a fresh budget of tries.")
    skipped = serializers.IntegerField(help_text="In a worker's hands, or replayed by somebody else meanwhile.")
    last = serializers.IntegerField(help_text="The largest id that was taken up: send it as `after` to go on.")
