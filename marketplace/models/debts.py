"""What sellers owe that cannot be had from Stripe, and how it came back all the same, or was given up."""

from typing import ClassVar

import pgtrigger
from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Now
from django.utils.translation import gettext_lazy as _

from marketplace.models.columns import is_currency
from marketplace.models.debt_agreements import reversal_agrees, transfer_agrees
from marketplace.models.reversals import TransferReversal
from marketplace.models.transfers import SellerTransfer
from marketplace.money import Money
from marketplace.states import REVERSAL_GIVEN_UP

# One that Stripe gave up while it was pending there has a row in its place.
OPEN = Q(status="failed") & ~Q(stripe_status__in=sorted(REVERSAL_GIVEN_UP))
# What waits for so long is still owed, from then on.
OWED_SINCE = Coalesce("in_place_of__created_at", "created_at")


class Debts(models.Manager["Debt"]):
    """Those that are open, and those of which something was settled; ``owed_since`` and ``amount_left`` with each."""

    def get_queryset(self) -> "models.QuerySet[Debt, Debt]":
        # Each has an index; for an OR of the two all reversals would be read.
        opened = TransferReversal.objects.order_by().filter(OPEN).values("pk")
        entered = DebtEntry.objects.order_by().values("reversal")
        return self._annotated().filter(pk__in=opened.union(entered))

    def open(self) -> "models.QuerySet[Debt, Debt]":
        return self._annotated().filter(OPEN)

    def _annotated(self) -> "models.QuerySet[Debt, Debt]":
        return (
            super()
            .get_queryset()
            .annotate(
                owed_since=OWED_SINCE,
                # What is settled, or came back after all, leaves nothing.
                amount_left=models.Case(models.When(OPEN, then=_LEFT), default=0),
            )
        )


_LEFT = F("amount") - F("unwanted_amount") - F("amount_recovered") - F("amount_written_off")


class Debt(TransferReversal):
    """A reversal that failed is a debt of its seller: the same row, looked at from there. So the sum of debts cannot be
    another than that of reversals that were not had.
    """

    objects: ClassVar[Debts] = Debts()

    class Meta:
        proxy = True
        verbose_name = _("debt")
        verbose_name_plural = _("debts of sellers")
        ordering = ("-id",)
        default_permissions = ("view",)
        permissions = [
            ("record_debt_payment", "Can record that a seller paid a debt"),
            ("write_off_debt", "Can write off a seller's debt"),
        ]

    def __str__(self) -> str:
        return f"debt {self.pk}"


class DebtEntry(models.Model):
    """One line in the account of a debt, never changed."""

    class Kind(models.TextChoices):
        # Kept from a later transfer to the seller. Negative where that one was refunded, and the debt stands again.
        NETTED = "netted", _("netted")
        # Outside of Stripe, to the platform.
        PAID = "paid", _("paid by hand")
        WRITTEN_OFF = "written_off", _("written off")

    reversal = models.ForeignKey(
        TransferReversal, verbose_name=_("debt"), on_delete=models.PROTECT, related_name="debt_entries"
    )
    kind = models.CharField(_("kind"), max_length=20, choices=Kind)
    amount = models.BigIntegerField(_("amount"), help_text=_("In the currency's minor unit."))
    currency = models.CharField(_("currency"), max_length=3)
    transfer = models.ForeignKey(
        SellerTransfer,
        verbose_name=_("netted from"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="debt_entries",
        help_text=_("The transfer that is so much smaller."),
    )
    actor = models.CharField(_("by"), max_length=255)
    reason = models.CharField(_("reason"), max_length=500)
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("requested by"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="+",
    )
    request_key = models.CharField(
        _("Idempotency-Key"), max_length=255, blank=True, default="", help_text=_("As the API's caller sent it.")
    )
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)

    class Meta:
        verbose_name = _("debt entry")
        verbose_name_plural = _("debt entries")
        ordering = ("id",)
        triggers = [
            pgtrigger.Protect(name="stays_as_written", operation=pgtrigger.Update | pgtrigger.Delete),
            pgtrigger.Trigger(
                name="agrees",
                level=pgtrigger.Row,
                when=pgtrigger.After,
                operation=pgtrigger.Insert,
                timing=pgtrigger.Deferred,
                func=f"""{reversal_agrees("NEW.reversal_id")}{transfer_agrees("NEW.transfer_id")}
            IF NOT EXISTS (
                SELECT FROM marketplace_transferreversal AS debt
                JOIN marketplace_sellertransfer AS owing ON owing.id = debt.transfer_id
                LEFT JOIN marketplace_sellertransfer AS paying ON paying.id = NEW.transfer_id
                WHERE debt.id = NEW.reversal_id AND debt.currency = NEW.currency AND (paying.id IS NULL OR
                    (paying.seller_id = owing.seller_id AND paying.currency = NEW.currency AND paying.id <> owing.id))
            ) THEN
                RAISE EXCEPTION 'debt entry % is of another seller or currency than its debt', NEW.id
                    USING ERRCODE = 'check_violation';
            END IF;
            IF (SELECT sum(amount) FROM marketplace_debtentry
                WHERE reversal_id = NEW.reversal_id AND transfer_id = NEW.transfer_id) < 0
            THEN
                RAISE EXCEPTION 'more would be undone than was netted of reversal %', NEW.reversal_id
                    USING ERRCODE = 'check_violation';
            END IF;
            RETURN NULL;
            """,  # noqa: S608 - names of our own
            ),
        ]
        constraints = [
            models.CheckConstraint(
                name="debt_entry_amount",
                condition=Q(amount__gt=0) | (Q(kind="netted") & Q(amount__lt=0)),
            ),
            models.CheckConstraint(
                name="debt_entry_netted_from",
                condition=(Q(kind="netted") & Q(transfer__isnull=False))
                | (Q(kind__in=["paid", "written_off"]) & Q(transfer__isnull=True)),
            ),
            models.CheckConstraint(name="debt_entry_has_reason", condition=~Q(reason="") & ~Q(actor="")),
            models.UniqueConstraint(
                name="debt_entry_once_per_request_key",
                fields=["requested_by", "request_key"],
                condition=~Q(request_key=""),
            ),
            is_currency("debt_entry_currency"),
        ]
        indexes = [models.Index(name="debt_entries_by_time", fields=["created_at"])]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {Money(self.amount, self.currency)}"
