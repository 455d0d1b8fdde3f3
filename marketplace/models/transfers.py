"""What each seller is paid for an order, and what comes back of it."""

import uuid

import pgtrigger
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from marketplace.models.disputes import Dispute
from marketplace.models.figures import FAILED_ATTEMPT
from marketplace.models.lifecycle import (
    Lifecycle,
    Work,
    correlated,
    is_currency,
    lease_is_whole,
    listed_steps_only,
    never_changes_once_set,
    traced,
    tracked,
    update_of,
    wakes_workers,
)
from marketplace.models.notices import Notice, announces, tells_the_seller
from marketplace.models.refunds import Refund
from marketplace.models.sales import Order, Seller
from marketplace.money import Money
from marketplace.states import (
    ALLOWED_TRANSITIONS,
    REVERSAL_GIVEN_UP,
    REVERSAL_TRANSITIONS,
    ReversalStatus,
    TransferStatus,
)

# What sellers owe for.
Source = Refund | Dispute

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


def never_changes(field: str, name: str) -> pgtrigger.Trigger:
    """What may have been sent under a key that is used again is sent as it was, or not at all."""
    return pgtrigger.Protect(
        name=name,
        operation=update_of(field),
        condition=pgtrigger.Condition(f"OLD.{field} IS DISTINCT FROM NEW.{field}"),
    )


def statement_line() -> "models.CharField[str, str]":
    """Empty in rows of older versions, which are sent as those versions sent them."""
    return models.CharField(
        _("statement line"),
        max_length=200,
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text=_("What the seller reads beside it; sent to Stripe as its description."),
    )


def agrees_with_debt_entries(name: str, checked: str, *columns: str) -> list[pgtrigger.Trigger]:
    """When a transaction ends, what the row says of settled debts is what their entries say; ``checked`` looks."""
    changed = " OR ".join(f"OLD.{column} <> NEW.{column}" for column in columns)
    there = " OR ".join(f"NEW.{column} <> 0" for column in columns)
    return [
        pgtrigger.Trigger(
            name=f"{name}_{when}",
            level=pgtrigger.Row,
            when=pgtrigger.After,
            operation=operation,
            timing=pgtrigger.Deferred,
            condition=pgtrigger.Condition(condition),
            func=f"{checked} RETURN NULL;",
        )
        for when, operation, condition in (
            ("written", pgtrigger.Insert, there),
            ("changed", update_of(*columns), changed),
        )
    ]


def reversal_agrees(reversal: str) -> str:
    """As PL/pgSQL: raises unless the columns of the reversal, named by an expression, are the sums of its entries."""
    return f"""
            IF EXISTS (
                SELECT FROM marketplace_transferreversal AS debt
                WHERE debt.id = {reversal} AND (debt.amount_recovered, debt.amount_written_off) <> (
                    SELECT COALESCE(sum(amount) FILTER (WHERE kind <> 'written_off'), 0),
                        COALESCE(sum(amount) FILTER (WHERE kind = 'written_off'), 0)
                    FROM marketplace_debtentry WHERE reversal_id = debt.id)
            ) THEN
                RAISE EXCEPTION 'reversal % does not agree with its debt entries', {reversal}
                    USING ERRCODE = 'check_violation';
            END IF;"""  # noqa: S608 - an expression of our own


def transfer_agrees(transfer: str) -> str:
    """The same of what was netted from a transfer."""
    return f"""
            IF EXISTS (
                SELECT FROM marketplace_sellertransfer AS paying
                WHERE paying.id = {transfer} AND paying.amount_netted <> (
                    SELECT COALESCE(sum(amount), 0) FROM marketplace_debtentry WHERE transfer_id = paying.id)
            ) THEN
                RAISE EXCEPTION 'transfer % does not agree with its debt entries', {transfer}
                    USING ERRCODE = 'check_violation';
            END IF;"""  # noqa: S608 - as above


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
