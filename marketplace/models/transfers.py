"""What each seller is paid for an order."""

import uuid

import pgtrigger
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from marketplace.models.columns import correlated, is_currency, lease_is_whole, statement_line, traced
from marketplace.models.debt_agreements import agrees_with_debt_entries, transfer_agrees
from marketplace.models.figures import FAILED_ATTEMPT
from marketplace.models.history import tracked
from marketplace.models.lifecycle import Lifecycle, Work
from marketplace.models.notices import Notice, announces, tells_the_seller
from marketplace.models.sales import Order, Seller
from marketplace.models.triggers import (
    listed_steps_only,
    never_changes,
    never_changes_once_set,
    update_of,
    wakes_workers,
)
from marketplace.money import Money
from marketplace.states import ALLOWED_TRANSITIONS, TransferStatus

SENDING_CHANNEL = "veza_transfers"
REVERSING_CHANNEL = "veza_reversals"
# The code of a payment back to a seller of which an operator decides (GIVE_BACK=ask).
GIVE_BACK_UNDECIDED = "give_back_undecided"


def given_back_once(name: str) -> pgtrigger.Trigger:
    """What is given back of a reversal, or of what was kept back, is never more than that, whoever writes the row. The
    row that it is about is locked, so that no two transactions look at once.
    """
    return pgtrigger.Trigger(
        name=name,
        level=pgtrigger.Row,
        when=pgtrigger.Before,
        operation=pgtrigger.Insert,
        condition=pgtrigger.Condition("NEW.gives_back_of_id IS NOT NULL"),
        declare=[("most", "BIGINT"), ("given", "BIGINT")],
        func="""
            IF NEW.undoes_id IS NULL THEN
                SELECT amount_kept_back + CASE WHEN status = 'canceled' AND NOT declined THEN amount ELSE 0 END
                INTO most FROM marketplace_sellertransfer WHERE id = NEW.gives_back_of_id FOR NO KEY UPDATE;
            ELSE
                SELECT CASE WHEN transfer_id <> NEW.gives_back_of_id THEN 0
                    WHEN status = 'succeeded' THEN amount + amount_recovered ELSE amount_recovered END
                INTO most FROM marketplace_transferreversal WHERE id = NEW.undoes_id FOR NO KEY UPDATE;
            END IF;
            SELECT COALESCE(sum(amount + amount_kept_back), 0) INTO given FROM marketplace_sellertransfer
            WHERE gives_back_of_id = NEW.gives_back_of_id AND undoes_id IS NOT DISTINCT FROM NEW.undoes_id;
            IF given + NEW.amount + NEW.amount_kept_back > most THEN
                RAISE EXCEPTION 'more would be given back than was taken: % and %, of %',
                    given, NEW.amount + NEW.amount_kept_back, most USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
            """,
    )


@tracked(
    "SellerTransferHistory",
    "status",
    "amount_reversed",
    "stripe_transfer_id",
    "stripe_reversal_id",
    "retry_count",
    "next_retry_at",
    "last_error_code",
    "last_error_message",
    "last_error_request_id",
    "last_error_at",
    indexes=[models.Index(name="attempts_failed", fields=["pgh_created_at"], condition=FAILED_ATTEMPT)],
)
class SellerTransfer(Lifecycle, Work):
    """One seller's share of one order: sent to the seller by a Stripe transfer, brought back by reversals of it.

    The row is written before Stripe is called. ``reversed`` means that Stripe confirmed it.
    """

    TRANSITIONS = ALLOWED_TRANSITIONS

    class Leg(models.TextChoices):
        SENDING = "sending", _("sending")
        REVERSING = "reversing", _("reversing")

    status = models.CharField(_("status"), max_length=30, choices=TransferStatus, default=TransferStatus.PENDING)
    order = models.ForeignKey(Order, verbose_name=_("order"), on_delete=models.PROTECT, related_name="transfers")
    seller = models.ForeignKey(Seller, verbose_name=_("seller"), on_delete=models.PROTECT, related_name="transfers")
    amount = models.BigIntegerField(_("amount"), help_text=_("What the seller gets, in the currency's minor unit."))
    amount_reversed = models.BigIntegerField(
        _("amount reversed"), default=0, help_text=_("What Stripe confirmed to have taken back.")
    )
    amount_kept_back = models.BigIntegerField(
        _("amount kept back"),
        default=0,
        help_text=_("Of the seller's share, what was refunded before it was sent."),
    )
    amount_netted = models.BigIntegerField(
        _("amount netted"),
        default=0,
        db_default=0,
        help_text=_("Of the seller's share, what paid the seller's debts of earlier orders, and so is not sent."),
    )
    currency = models.CharField(_("currency"), max_length=3)
    stripe_transfer_id = models.CharField(
        _("Stripe transfer"), max_length=255, blank=True, default="", help_text=_("tr_… once Stripe made it.")
    )
    stripe_reversal_id = models.CharField(
        _("latest reversal"),
        max_length=255,
        blank=True,
        default="",
        help_text=_("trr_… of the newest reversal."),
    )
    # The key of the sending; it stays while the outcome is unknown, and is raised only after looking at Stripe.
    operation_id = models.UUIDField(_("operation id"), default=uuid.uuid4, unique=True, editable=False)
    key_generation = models.PositiveIntegerField(_("key generation"), default=1)
    first_attempted_at = models.DateTimeField(
        _("first attempt"), null=True, blank=True, help_text=_("When the present key was first sent.")
    )
    in_doubt = models.BooleanField(
        _("outcome unknown"),
        default=False,
        help_text=_("It may be at Stripe: it was sent, or was about to be."),
    )
    in_doubt_before = models.BooleanField(
        _("unknown before"), default=False, help_text=_("The same, as it was when a worker last took the row up.")
    )
    look_first = models.BooleanField(
        _("look first"),
        default=False,
        help_text=_("Before the next send, see whether Stripe has it already."),
    )
    failed_leg = models.CharField(
        _("failed leg"),
        max_length=20,
        choices=Leg,
        blank=True,
        default="",
        help_text=_("What a retry resumes."),
    )
    gives_back_of = models.ForeignKey(
        "self",
        verbose_name=_("gives back of"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        db_index=False,
        related_name="given_back",
        help_text=_("The transfer whose seller is paid again, after a refund failed or a dispute was won."),
    )
    undoes = models.ForeignKey(
        "TransferReversal",
        verbose_name=_("undoes"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        db_index=False,
        related_name="undone_by",
        help_text=_("The reversal that is given back. Empty where the money had been kept back before it was sent."),
    )
    description = statement_line()
    correlation_id = correlated()
    traceparent = traced()
    declined = models.BooleanField(
        _("declined"),
        default=False,
        db_default=False,
        help_text=_("An operator decided that the seller is not paid again."),
    )

    class Meta:
        verbose_name = _("seller transfer")
        verbose_name_plural = _("seller transfers")
        ordering = ("-id",)
        permissions = [
            ("retry_sellertransfer", "Can retry a seller transfer"),
            ("decline_sellertransfer", "Can decline to pay a seller again"),
        ]
        triggers = [
            listed_steps_only(ALLOWED_TRANSITIONS),
            never_changes_once_set("stripe_transfer_id", "transfer_id_stays"),
            # A transfer that may be at Stripe was sent with this amount; smaller is possible only before.
            pgtrigger.Protect(
                name="sent_amount_stays",
                operation=update_of("amount"),
                condition=pgtrigger.Condition(
                    "OLD.amount <> NEW.amount AND (OLD.stripe_transfer_id <> '' OR OLD.in_doubt)"
                ),
            ),
            never_changes("description", "description_stays"),
            given_back_once("given_back_once"),
            *agrees_with_debt_entries("netted_agrees", transfer_agrees("NEW.id"), "amount_netted"),
            wakes_workers("wakes_sending", SENDING_CHANNEL, ["pending", "failed"]),
            wakes_workers("wakes_reversing", REVERSING_CHANNEL, ["reversal_pending"]),
            announces(
                Notice.Kind.TRANSFER,
                when="NEW.status IN ('permanently_failed')",
                already="OLD.status IN ('permanently_failed')",
                of=["status"],
            ),
            # The id is set once, whatever becomes of the row.
            tells_the_seller(
                Notice.Kind.PAID_AGAIN,
                column="transfer_id",
                transfer="NEW.id",
                when="NEW.gives_back_of_id IS NOT NULL AND NEW.stripe_transfer_id <> ''",
                already="OLD.stripe_transfer_id <> ''",
                of=["gives_back_of_id", "stripe_transfer_id"],
            ),
        ]
        constraints = [
            # Nothing is left to send where all of it was netted.
            models.CheckConstraint(
                name="transfer_amount_positive",
                condition=Q(amount__gt=0)
                | (Q(amount=0, status="canceled") & (Q(amount_netted__gt=0) | Q(amount_kept_back__gt=0))),
            ),
            models.CheckConstraint(name="transfer_netted_not_negative", condition=Q(amount_netted__gte=0)),
            models.CheckConstraint(name="transfer_kept_back_not_negative", condition=Q(amount_kept_back__gte=0)),
            models.CheckConstraint(
                name="transfer_reversed_within_amount",
                condition=Q(amount_reversed__gte=0, amount_reversed__lte=F("amount")),
            ),
            models.CheckConstraint(name="transfer_status_listed", condition=Q(status__in=TransferStatus.values)),
            models.CheckConstraint(
                name="transfer_reversed_means_all",
                condition=(Q(status="reversed") & Q(amount_reversed=F("amount")))
                | (~Q(status="reversed") & (Q(amount_reversed__lt=F("amount")) | Q(amount=0))),
            ),
            models.CheckConstraint(
                name="transfer_part_means_part",
                condition=~Q(status="partially_reversed") | Q(amount_reversed__gt=0),
            ),
            models.CheckConstraint(
                name="transfer_whole_means_none",
                condition=~Q(status__in=["pending", "failed", "completed", "canceled"]) | Q(amount_reversed=0),
            ),
            models.CheckConstraint(
                name="transfer_reversed_with_proof",
                condition=Q(amount_reversed=0) | (~Q(stripe_transfer_id="") & ~Q(stripe_reversal_id="")),
            ),
            models.CheckConstraint(
                name="transfer_not_sent_has_no_id",
                condition=~Q(status__in=["pending", "failed", "canceled"]) | Q(stripe_transfer_id=""),
            ),
            models.CheckConstraint(
                name="transfer_waiting_has_due_time",
                condition=~Q(status__in=["pending", "failed", "reversal_pending"]) | Q(next_retry_at__isnull=False),
            ),
            models.CheckConstraint(
                name="transfer_undoes_of_a_transfer", condition=Q(undoes=None) | Q(gives_back_of__isnull=False)
            ),
            models.CheckConstraint(
                name="transfer_declined_is_canceled",
                condition=Q(declined=False) | Q(status="canceled", gives_back_of__isnull=False),
            ),
            models.UniqueConstraint(
                name="transfer_stripe_id_once",
                fields=["stripe_transfer_id"],
                condition=~Q(stripe_transfer_id=""),
            ),
            lease_is_whole("transfer_lease_whole"),
            is_currency("transfer_currency"),
        ]
        indexes = [
            # Only waiting rows are in these, so a claim costs the same whatever has gone through.
            models.Index(
                name="transfer_reversals_due",
                fields=["next_retry_at", "id"],
                condition=Q(status="reversal_pending"),
            ),
            models.Index(
                name="transfer_sendings_due",
                fields=["next_retry_at", "id"],
                condition=Q(status__in=["pending", "failed"]),
            ),
            # Asked when a seller's balance grew: who waited for it the longest?
            models.Index(
                name="transfers_waiting_for_funds",
                fields=["seller", "id"],
                condition=Q(status="reversal_pending", last_error_code="insufficient_funds"),
            ),
            models.Index(name="transfers_given_back", fields=["gives_back_of"], condition=~Q(gives_back_of=None)),
            # What people look for first.
            models.Index(name="transfers_for_a_person", fields=["-id"], condition=Q(status="permanently_failed")),
            # Counted for the overview, without reading the rows.
            models.Index(
                name="transfers_open",
                fields=["status", "last_error_code", "-id"],
                include=["failed_leg", "currency", "amount", "amount_reversed"],
                condition=Q(status__in=["pending", "failed", "reversal_pending", "permanently_failed"]),
            ),
            # Lists of what is rare among all: without them every row would be looked at.
            models.Index(
                name="transfers_with_error", fields=["last_error_code", "-id"], condition=~Q(last_error_code="")
            ),
            models.Index(
                name="transfers_of_rare_status",
                fields=["status", "-id"],
                condition=Q(status__in=["partially_reversed", "canceled"]),
            ),
        ]

    def __str__(self) -> str:
        return f"transfer {self.pk}"

    @property
    def money(self) -> Money:
        return Money(self.amount, self.currency)

    @property
    def share(self) -> int:
        """The seller's part of the order as it was at the sale."""
        return self.amount + self.amount_kept_back + self.amount_netted

    @property
    def amount_unreversed(self) -> int:
        return self.amount - self.amount_reversed

    @property
    def is_unsent(self) -> bool:
        """It surely never left, and may be changed: not sent yet, or an operator decides first."""
        is_waiting = self.status in {TransferStatus.PENDING, TransferStatus.FAILED} and not self.in_doubt
        return is_waiting or self.is_undecided

    @property
    def is_undecided(self) -> bool:
        """A payment back to the seller that waits for an operator's decision."""
        return self.status == TransferStatus.PERMANENTLY_FAILED and self.last_error_code == GIVE_BACK_UNDECIDED

    @property
    def idempotency_key(self) -> str:
        return f"{self.operation_id}:{self.key_generation}"
