"""The buyer's money back."""

import uuid

import pgtrigger
from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from marketplace.models.columns import correlated, is_currency, lease_is_whole, traced
from marketplace.models.history import tracked
from marketplace.models.lifecycle import Lifecycle, Work
from marketplace.models.sales import Order, OrderItem
from marketplace.models.triggers import listed_steps_only, never_changes_once_set, update_of, wakes_workers
from marketplace.money import Money
from marketplace.states import REFUND_TRANSITIONS, RefundStatus

REFUNDING_CHANNEL = "veza_refunds"


class SumOfValues(models.Func):
    """Of a JSON object's whole numbers; the function is made by a migration, since a constraint has no subqueries."""

    function = "marketplace_sum_of_values"
    output_field = models.BigIntegerField()


@tracked(
    "RefundHistory",
    "status",
    "stripe_refund_id",
    "retry_count",
    "next_retry_at",
    "last_error_code",
    "last_error_message",
    "last_error_request_id",
    "last_error_at",
)
class Refund(Lifecycle, Work):
    """One refund of one order: asked for by us, or first seen at Stripe (made in its dashboard)."""

    TRANSITIONS = REFUND_TRANSITIONS

    status = models.CharField(_("status"), max_length=30, choices=RefundStatus, default=RefundStatus.REQUESTED)
    order = models.ForeignKey(Order, verbose_name=_("order"), on_delete=models.PROTECT, related_name="refunds")
    amount = models.BigIntegerField(_("amount"), help_text=_("What the buyer gets, in the currency's minor unit."))
    currency = models.CharField(_("currency"), max_length=3)
    reason = models.CharField(_("reason"), max_length=500, blank=True, default="")
    by_items = models.BooleanField(
        _("by items"),
        db_default=False,
        default=False,
        editable=False,
        help_text=_("Of the goods listed, which their sellers bear; else of the order as a whole."),
    )
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("requested by"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
        help_text=_("Empty for refunds first seen at Stripe."),
    )
    request_key = models.CharField(
        _("Idempotency-Key"),
        max_length=255,
        blank=True,
        default="",
        help_text=_("As the API's caller sent it."),
    )
    # Sent as metadata, so that a refund at Stripe can be recognised as this one.
    operation_id = models.UUIDField(_("operation id"), default=uuid.uuid4, unique=True, editable=False)
    key_generation = models.PositiveIntegerField(_("key generation"), default=1)
    first_attempted_at = models.DateTimeField(
        _("first attempt"), null=True, blank=True, help_text=_("When the present key was first sent.")
    )
    look_first = models.BooleanField(
        _("look first"),
        default=False,
        help_text=_("Before the next send, see whether Stripe has it already."),
    )
    stripe_refund_id = models.CharField(
        _("Stripe refund"), max_length=255, blank=True, default="", help_text=_("re_… once Stripe has it.")
    )
    stripe_seen_at = models.DateTimeField(
        _("as Stripe said at"), null=True, blank=True, help_text=_("Time of the newest fact applied.")
    )
    succeeded_at = models.DateTimeField(
        _("first succeeded at"),
        null=True,
        blank=True,
        help_text=_("From then on the sellers owe their part, unless the refund fails or is canceled."),
    )

    # As they were laid when it first succeeded: by seller, and the rest. Together they are the amount.
    seller_parts = models.JSONField(
        _("sellers' parts"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("By seller, in the currency's minor unit, as laid when it first succeeded."),
    )
    platform_part = models.BigIntegerField(
        _("platform's part"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("What no seller bears, in the currency's minor unit."),
    )

    correlation_id = correlated()
    traceparent = traced()

    class Meta:
        verbose_name = _("refund")
        verbose_name_plural = _("refunds")
        ordering = ("-id",)
        triggers = [
            listed_steps_only(REFUND_TRANSITIONS),
            never_changes_once_set("stripe_refund_id", "refund_id_stays"),
            pgtrigger.Protect(
                name="amount_stays",
                operation=update_of("amount"),
                condition=pgtrigger.Condition("OLD.amount <> NEW.amount"),
            ),
            wakes_workers("wakes_refunding", REFUNDING_CHANNEL, ["requested"]),
        ]
        constraints = [
            models.CheckConstraint(name="refund_amount_positive", condition=Q(amount__gt=0)),
            # Rows of an older program have neither.
            models.CheckConstraint(
                name="refund_parts_are_the_amount",
                condition=Q(seller_parts=None, platform_part=None)
                | Q(amount=F("platform_part") + SumOfValues("seller_parts")),
            ),
            models.CheckConstraint(name="refund_status_listed", condition=Q(status__in=RefundStatus.values)),
            models.CheckConstraint(
                name="refund_at_stripe_has_id",
                condition=Q(status__in=["requested", "failed", "canceled"]) | ~Q(stripe_refund_id=""),
            ),
            models.CheckConstraint(
                name="refund_succeeded_has_time",
                condition=~Q(status="succeeded") | Q(succeeded_at__isnull=False),
            ),
            models.CheckConstraint(
                name="refund_waiting_has_due_time",
                condition=~Q(status="requested") | Q(next_retry_at__isnull=False),
            ),
            models.UniqueConstraint(
                name="refund_stripe_id_once", fields=["stripe_refund_id"], condition=~Q(stripe_refund_id="")
            ),
            models.UniqueConstraint(
                name="refund_once_per_request_key",
                fields=["requested_by", "request_key"],
                condition=~Q(request_key=""),
            ),
            lease_is_whole("refund_lease_whole"),
            is_currency("refund_currency"),
        ]
        indexes = [
            models.Index(name="refunds_due", fields=["next_retry_at", "id"], condition=Q(status="requested")),
            # Counted for the overview, without reading the rows.
            models.Index(
                name="refunds_open",
                fields=["status", "-id"],
                include=["currency", "amount"],
                condition=Q(status__in=["requested", "pending", "requires_action"]),
            ),
            # A list of what is rare: without it every row would be looked at.
            models.Index(
                name="refunds_of_no_avail", fields=["status", "-id"], condition=Q(status__in=["failed", "canceled"])
            ),
        ]

    def __str__(self) -> str:
        return f"refund {self.pk}"

    @property
    def money(self) -> Money:
        return Money(self.amount, self.currency)

    @property
    def idempotency_key(self) -> str:
        return f"{self.operation_id}:{self.key_generation}"


class RefundItem(models.Model):
    """What of an order's goods a refund is for. Written with the refund, and never changed."""

    refund = models.ForeignKey(Refund, verbose_name=_("refund"), on_delete=models.PROTECT, related_name="items")
    item = models.ForeignKey(OrderItem, verbose_name=_("order item"), on_delete=models.PROTECT, related_name="refunded")
    quantity = models.PositiveIntegerField(_("quantity"))
    amount = models.BigIntegerField(_("amount"), help_text=_("In the order's currency's minor unit."))

    class Meta:
        verbose_name = _("refunded item")
        verbose_name_plural = _("refunded items")
        ordering = ("id",)
        triggers = [pgtrigger.Protect(name="stays_as_written", operation=pgtrigger.Update | pgtrigger.Delete)]
        constraints = [
            models.CheckConstraint(name="refund_item_positive", condition=Q(quantity__gt=0, amount__gt=0)),
            models.UniqueConstraint(name="refund_item_once", fields=["refund", "item"]),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} x {self.item.product}"
