"""What is owed back of a transfer, or came back of it."""

import uuid

import pgtrigger
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from marketplace.models.columns import correlated, is_currency, statement_line, traced
from marketplace.models.debt_agreements import agrees_with_debt_entries, reversal_agrees
from marketplace.models.disputes import Dispute
from marketplace.models.history import tracked
from marketplace.models.lifecycle import Lifecycle
from marketplace.models.notices import Notice, tells_the_seller
from marketplace.models.refunds import Refund
from marketplace.models.transfers import SellerTransfer
from marketplace.models.triggers import listed_steps_only, never_changes, never_changes_once_set, update_of
from marketplace.money import Money
from marketplace.states import REVERSAL_GIVEN_UP, REVERSAL_TRANSITIONS, ReversalStatus

# What sellers owe for.
Source = Refund | Dispute


def never_owes_more_than_it_was(name: str) -> pgtrigger.Trigger:
    """What is owed on a transfer, and what came back of it, is never more than was sent, whoever writes the debt.

    Of what is owed anew only: facts of Stripe's are written down whatever they say.
    """
    return pgtrigger.Trigger(
        name=name,
        level=pgtrigger.Row,
        when=pgtrigger.Before,
        operation=pgtrigger.Insert,
        condition=pgtrigger.Condition("NEW.status IN ('pending')"),
        declare=[("most", "BIGINT"), ("owed", "BIGINT")],
        func="""
            SELECT amount - amount_reversed INTO most
            FROM marketplace_sellertransfer WHERE id = NEW.transfer_id FOR NO KEY UPDATE;
            SELECT COALESCE(sum(amount - unwanted_amount - amount_recovered - amount_written_off), 0) INTO owed
            FROM marketplace_transferreversal
            WHERE transfer_id = NEW.transfer_id
              AND CASE status WHEN 'pending' THEN TRUE
                  -- One that Stripe gave up has another in its place.
                  WHEN 'failed' THEN stripe_status NOT IN ('failed', 'canceled') ELSE FALSE END;
            IF owed + NEW.amount > most THEN
                RAISE EXCEPTION 'transfer % would owe more than it was: % and %, of %',
                    NEW.transfer_id, owed, NEW.amount, most USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
            """,
    )


@tracked("TransferReversalHistory", "status", "stripe_reversal_id", "stripe_status", "key_generation")
class TransferReversal(Lifecycle):
    """One reversal, owed or done, on one transfer. The transfer's row is the work; this row is what it is about."""

    TRANSITIONS = REVERSAL_TRANSITIONS

    class Cause(models.TextChoices):
        REFUND = "refund", _("refund")
        DISPUTE = "dispute", _("dispute")
        OPERATOR = "operator", _("operator")
        # Made elsewhere: in Stripe's dashboard, by Stripe itself, by another program.
        SEEN_AT_STRIPE = "seen_at_stripe", _("seen at Stripe")

    status = models.CharField(_("status"), max_length=30, choices=ReversalStatus, default=ReversalStatus.PENDING)
    transfer = models.ForeignKey(
        SellerTransfer, verbose_name=_("transfer"), on_delete=models.PROTECT, related_name="reversals"
    )
    cause = models.CharField(_("cause"), max_length=20, choices=Cause)
    refund = models.ForeignKey(
        Refund,
        verbose_name=_("refund"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="reversals",
    )
    dispute = models.ForeignKey(
        Dispute,
        verbose_name=_("dispute"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        db_index=False,
        related_name="reversals",
    )
    amount = models.BigIntegerField(_("amount"), help_text=_("To take back, in the currency's minor unit."))
    currency = models.CharField(_("currency"), max_length=3)
    # Sent as metadata, so that a reversal at Stripe can be recognised as this one.
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
    waiting_for_funds_since = models.DateTimeField(_("waiting for funds since"), null=True, blank=True)
    unwanted_amount = models.BigIntegerField(
        _("no longer owed"),
        default=0,
        db_default=0,
        help_text=_("Of the amount, since it may have been sent. Where Stripe does not show it, it is canceled."),
    )
    unwanted_at = models.DateTimeField(
        _("no longer owed at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("When it last came to be no longer owed: from then on it is looked for, and not sent."),
    )
    # Whatever was sent before, it is surely not at Stripe. Only such a debt can be settled in another way.
    refused = models.BooleanField(
        _("refused"), default=False, db_default=False, help_text=_("Stripe said a plain no to it: it is not there.")
    )
    in_place_of = models.ForeignKey(
        "self",
        verbose_name=_("in place of"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        db_index=False,
        related_name="replaced_by",
        help_text=_("The first reversal of which this is what is still owed."),
    )
    amount_recovered = models.BigIntegerField(
        _("amount recovered"),
        default=0,
        db_default=0,
        help_text=_("Of the amount, what came back another way: netted from later transfers, or paid by hand."),
    )
    amount_written_off = models.BigIntegerField(
        _("amount written off"), default=0, db_default=0, help_text=_("Of the amount, what nobody asks for any more.")
    )
    description = statement_line()
    correlation_id = correlated()
    traceparent = traced()
    stripe_reversal_id = models.CharField(
        _("Stripe reversal"), max_length=255, blank=True, default="", help_text=_("trr_…: the proof.")
    )
    stripe_status = models.CharField(
        _("status at Stripe"),
        max_length=20,
        blank=True,
        default="",
        help_text=_("Only where Stripe gives reversals a status. Empty counts as done once there is a trr_…."),
    )
    succeeded_at = models.DateTimeField(
        _("succeeded at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("When it was written down that Stripe confirmed it, by the database's clock."),
    )

    class Meta:
        verbose_name = _("transfer reversal")
        verbose_name_plural = _("transfer reversals")
        ordering = ("-id",)
        triggers = [
            listed_steps_only(REVERSAL_TRANSITIONS),
            never_changes_once_set("stripe_reversal_id", "reversal_id_stays"),
            never_changes("description", "description_stays"),
            never_owes_more_than_it_was("never_owes_more_than_it_was"),
            tells_the_seller(
                Notice.Kind.REVERSED,
                column="reversal_id",
                transfer="NEW.transfer_id",
                when="NEW.status IN ('succeeded')",
                already="OLD.status IN ('succeeded')",
                of=["status"],
            ),
            # Whoever writes it: no way of succeeding can forget the time.
            pgtrigger.Trigger(
                name="succeeded_now",
                level=pgtrigger.Row,
                when=pgtrigger.Before,
                operation=pgtrigger.Insert | update_of("status", "succeeded_at"),
                condition=pgtrigger.Condition("NEW.status IN ('succeeded') AND NEW.succeeded_at IS NULL"),
                func="NEW.succeeded_at := statement_timestamp(); RETURN NEW;",
            ),
            pgtrigger.Protect(
                name="sent_amount_stays",
                operation=update_of("amount"),
                condition=pgtrigger.Condition("OLD.amount <> NEW.amount AND OLD.first_attempted_at IS NOT NULL"),
            ),
            *agrees_with_debt_entries(
                "settled_agrees", reversal_agrees("NEW.id"), "amount_recovered", "amount_written_off"
            ),
        ]
        constraints = [
            models.CheckConstraint(name="reversal_amount_positive", condition=Q(amount__gt=0)),
            models.CheckConstraint(
                name="reversal_unwanted_within_amount",
                condition=Q(unwanted_amount__gte=0, unwanted_amount__lte=F("amount")),
            ),
            models.CheckConstraint(
                name="reversal_unwanted_while_open",
                condition=Q(unwanted_amount=0) | Q(status__in=["pending", "failed"]),
            ),
            models.CheckConstraint(
                name="reversal_settled_within_amount",
                condition=Q(
                    amount_recovered__gte=0,
                    amount_written_off__gte=0,
                    amount__gte=F("amount_recovered") + F("amount_written_off"),
                ),
            ),
            # A debt of which nothing is left is canceled; what is to be sent is owed in full.
            models.CheckConstraint(
                name="reversal_settled_is_not_owed",
                condition=(~Q(status="pending") | Q(amount_recovered=0, amount_written_off=0))
                & (~Q(status="failed") | Q(amount__gt=F("amount_recovered") + F("amount_written_off"))),
            ),
            models.CheckConstraint(name="reversal_refused_is_over", condition=Q(refused=False) | ~Q(status="pending")),
            models.CheckConstraint(name="reversal_status_listed", condition=Q(status__in=ReversalStatus.values)),
            models.CheckConstraint(
                name="reversal_done_with_proof", condition=~Q(status="succeeded") | ~Q(stripe_reversal_id="")
            ),
            models.CheckConstraint(
                name="reversal_succeeded_has_time",
                condition=Q(status="succeeded", succeeded_at__isnull=False)
                | (~Q(status="succeeded") & Q(succeeded_at__isnull=True)),
            ),
            models.CheckConstraint(
                name="reversal_cause_has_source",
                condition=Q(cause="refund", refund__isnull=False, dispute=None)
                | Q(cause="dispute", dispute__isnull=False, refund=None)
                | (~Q(cause__in=["refund", "dispute"]) & Q(refund=None, dispute=None)),
            ),
            models.UniqueConstraint(
                name="reversal_stripe_id_once",
                fields=["stripe_reversal_id"],
                condition=~Q(stripe_reversal_id=""),
            ),
            # A reversal that was given up or replaced does not stand in the way of the next one.
            models.UniqueConstraint(
                name="reversal_once_per_refund",
                fields=["refund", "transfer"],
                # Nor one of which a part was settled in another way, so that the rest is a row of its own.
                condition=Q(status__in=["pending", "succeeded"], in_place_of=None),
            ),
            # Nor one that a win made good: what is lost after all is a row in place of it.
            models.UniqueConstraint(
                name="reversal_once_per_dispute",
                fields=["dispute", "transfer"],
                condition=Q(dispute__isnull=False, status__in=["pending", "succeeded"], in_place_of=None),
            ),
            is_currency("reversal_currency"),
        ]
        indexes = [
            models.Index(name="reversals_owed", fields=["transfer", "id"], condition=Q(status="pending")),
            models.Index(name="reversals_of_disputes", fields=["dispute"], condition=~Q(dispute=None)),
            models.Index(name="reversals_failed", fields=["transfer", "id"], condition=Q(status="failed")),
            # Counted for the overview, without reading the rows: what is owed, and what came back lately.
            models.Index(
                name="reversals_open",
                fields=["in_place_of"],
                include=[
                    "status",
                    "stripe_status",
                    "currency",
                    "cause",
                    "created_at",
                    "amount",
                    "unwanted_amount",
                    "amount_recovered",
                    "amount_written_off",
                ],
                condition=Q(status__in=["pending", "failed"]),
            ),
            models.Index(
                name="reversals_succeeded",
                fields=["succeeded_at"],
                include=["currency", "cause", "amount", "created_at", "in_place_of"],
                condition=Q(status="succeeded"),
            ),
            # A list of what is rare: without it every row would be looked at.
            models.Index(name="reversals_canceled", fields=["-id"], condition=Q(status="canceled")),
        ]

    def __str__(self) -> str:
        return f"reversal {self.pk}"

    @property
    def money(self) -> Money:
        return Money(self.amount, self.currency)

    @property
    def source(self) -> Source | None:
        """What it is owed for; None where a person or Stripe took it for reasons of their own."""
        return self.refund or self.dispute

    def is_owed_for(self, source: Source) -> bool:
        return source.pk == (self.refund_id if isinstance(source, Refund) else self.dispute_id)

    @property
    def amount_settled(self) -> int:
        """What of it came back another way than by Stripe's reversal, or is not asked for any more."""
        return self.amount_recovered + self.amount_written_off

    @property
    def is_replaced(self) -> bool:
        """Whether Stripe gave it up after all: another row is owed in its place."""
        return self.status == ReversalStatus.FAILED and self.stripe_status in REVERSAL_GIVEN_UP

    @property
    def amount_open(self) -> int:
        """Of one that has not succeeded, what is owed still."""
        return self.amount - self.unwanted_amount - self.amount_settled

    @property
    def idempotency_key(self) -> str:
        return f"{self.operation_id}:{self.key_generation}"
