"""Chargebacks: the buyer's bank takes the payment back, or only asks about it."""

import pgtrigger
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from marketplace.models.columns import is_currency
from marketplace.models.history import tracked
from marketplace.models.lifecycle import Lifecycle
from marketplace.models.notices import Notice, announces
from marketplace.models.refunds import SumOfValues
from marketplace.models.sales import Order
from marketplace.models.triggers import never_changes_once_set, update_of


@tracked(
    "DisputeHistory",
    "status",
    "amount",
    "currency",
    "entered_amount",
    "amount_lost",
    "last_error_code",
    "last_error_message",
    also=("entered_amount", "amount_lost"),
)
class Dispute(Lifecycle):
    """One dispute of one order's payment, as Stripe tells of it.

    The status is Stripe's own text: new words are accepted, and Stripe documents no steps between them.
    """

    status = models.CharField(_("status"), max_length=100, help_text=_("As Stripe has it."))
    order = models.ForeignKey(Order, verbose_name=_("order"), on_delete=models.PROTECT, related_name="disputes")
    stripe_dispute_id = models.CharField(_("Stripe dispute"), max_length=255, help_text=_("dp_… or du_…"))
    stripe_reason = models.CharField(
        _("reason"), max_length=255, blank=True, default="", help_text=_("Stripe's word for it.")
    )
    amount = models.BigIntegerField(
        _("amount"), help_text=_("Disputed, in the minor unit of the dispute's own currency.")
    )
    currency = models.CharField(_("currency"), max_length=3)
    is_charge_refundable = models.BooleanField(
        _("refundable"), help_text=_("Whether Stripe would still refund the charge.")
    )
    evidence_due_by = models.DateTimeField(
        _("evidence due by"), null=True, blank=True, help_text=_("Until when Stripe takes evidence.")
    )
    entered_amount = models.BigIntegerField(
        _("entered amount"),
        null=True,
        blank=True,
        help_text=_("What of the order is disputed, as a person entered it, in the order's currency's minor unit."),
    )
    order_amount = models.BigIntegerField(
        _("disputed of the order"),
        null=True,
        blank=True,
        help_text=_("In the order's currency's minor unit. Empty: another currency, and nobody entered it."),
    )
    amount_withdrawn = models.BigIntegerField(
        _("withdrawn"), default=0, help_text=_("What Stripe took from the platform's balance, without the fee.")
    )
    amount_reinstated = models.BigIntegerField(
        _("reinstated"), default=0, help_text=_("What Stripe gave back to the platform's balance.")
    )
    fee = models.BigIntegerField(_("fee"), default=0, help_text=_("Stripe's fee for the dispute: the platform's."))
    balance_currency = models.CharField(
        _("balance currency"), max_length=3, blank=True, default="", help_text=_("Of the three amounts before.")
    )
    times_withdrawn = models.PositiveIntegerField(
        _("times withdrawn"),
        default=0,
        db_default=0,
        editable=False,
        help_text=_("Given back and taken again is twice."),
    )
    opened_at = models.DateTimeField(_("opened at"))
    withdrawn_at = models.DateTimeField(
        _("withdrawn at"), null=True, blank=True, help_text=_("The first time that Stripe told of it.")
    )
    reinstated_at = models.DateTimeField(
        _("reinstated at"), null=True, blank=True, help_text=_("The first time that Stripe told of it.")
    )
    closed_at = models.DateTimeField(
        _("closed at"), null=True, blank=True, help_text=_("The first time that Stripe told of it.")
    )
    stripe_seen_at = models.DateTimeField(_("as Stripe said at"), help_text=_("Time of the newest fact applied."))

    # What counts now, and who bears it. Together the parts are the amount.
    amount_lost = models.BigIntegerField(
        _("amount lost"),
        default=0,
        help_text=_("What counts as lost now (DISPUTE_CLAWBACK_ON), in the order's currency's minor unit."),
    )
    seller_parts = models.JSONField(
        _("sellers' parts"), default=dict, editable=False, help_text=_("Of the amount lost, by seller.")
    )
    platform_part = models.BigIntegerField(
        _("platform's part"), default=0, editable=False, help_text=_("Of the amount lost, what no seller bears.")
    )
    last_error_code = models.CharField(
        _("needs a person"), max_length=100, blank=True, default="", help_text=_("Why, as in the runbook.")
    )
    last_error_message = models.TextField(_("why"), blank=True, default="")

    class Meta:
        verbose_name = _("dispute")
        verbose_name_plural = _("disputes")
        ordering = ("-id",)
        permissions = [("enter_dispute_amount", "Can enter how much of an order a dispute is")]
        triggers = [
            never_changes_once_set("stripe_dispute_id", "dispute_id_stays"),
            pgtrigger.Protect(
                name="entered_amount_stays",
                operation=update_of("entered_amount"),
                condition=pgtrigger.Condition(
                    "OLD.entered_amount IS NOT NULL AND OLD.entered_amount IS DISTINCT FROM NEW.entered_amount"
                ),
            ),
            announces(
                Notice.Kind.DISPUTE,
                when="NEW.last_error_code <> ''",
                already="OLD.last_error_code <> ''",
                of=["last_error_code"],
            ),
        ]
        constraints = [
            models.CheckConstraint(name="dispute_has_status", condition=~Q(status="")),
            models.CheckConstraint(
                name="dispute_amounts_not_negative",
                condition=Q(amount__gte=0, amount_withdrawn__gte=0, amount_reinstated__gte=0, fee__gte=0),
            ),
            models.CheckConstraint(
                name="dispute_entered_positive", condition=Q(entered_amount=None) | Q(entered_amount__gt=0)
            ),
            models.CheckConstraint(
                name="dispute_lost_within_part",
                condition=Q(amount_lost=0)
                | Q(order_amount__isnull=False, amount_lost__gt=0, amount_lost__lte=F("order_amount")),
            ),
            models.CheckConstraint(
                name="dispute_parts_are_the_amount_lost",
                condition=Q(platform_part__gte=0, amount_lost=F("platform_part") + SumOfValues("seller_parts")),
            ),
            models.UniqueConstraint(name="dispute_stripe_id_once", fields=["stripe_dispute_id"]),
            is_currency("dispute_currency"),
        ]
        indexes = [
            # What people look for first.
            models.Index(name="disputes_for_a_person", fields=["-id"], condition=~Q(last_error_code="")),
        ]

    def __str__(self) -> str:
        return f"dispute {self.pk}"

    def allows(self, to: str) -> bool:
        return bool(to)
