"""What has to be told to people, written by triggers where it becomes true, and the messages that tell it: operators of
rows that need one, sellers of their money.
"""

import uuid
from collections.abc import Sequence

import pgtrigger
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from marketplace.models.columns import lease_is_whole
from marketplace.models.history import tracked_each
from marketplace.models.lifecycle import Work
from marketplace.models.sales import Seller
from marketplace.models.triggers import update_of

NOTICES_CHANNEL = "veza_notices"


def _about(kind: str, *named: str) -> Q:
    """A notice of ``kind`` names these, and no others."""
    others = ("transfer", "event", "bulk_retry", "dispute", "reversal", "seller")
    return Q(kind=kind, **{f"{each}__isnull": each not in named for each in others})


class Notice(models.Model):
    """One visit of a row to a state of which somebody is told: written once, in the transaction that brings it there.

    It waits while ``due_at`` is set; then it is part of a message, or there was nothing to tell any more.
    """

    class Kind(models.TextChoices):
        # For operators.
        TRANSFER = "transfer", _("transfer")
        EVENT = "event", _("webhook event")
        # It waits for a second person, or stopped by itself.
        BULK_RETRY = "bulk_retry", _("bulk retry")
        DISPUTE = "dispute", _("dispute")
        # For the seller.
        REVERSED = "reversed", _("reversed")
        PAID_AGAIN = "paid_again", _("paid again")

    # By which receivers know it: the same in every message, and every time that one is sent.
    notice_id = models.UUIDField(_("notice"), default=uuid.uuid4, unique=True, editable=False)
    kind = models.CharField(_("kind"), max_length=20, choices=Kind)
    transfer = models.ForeignKey(
        "SellerTransfer",
        verbose_name=_("transfer"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="notices",
    )
    event = models.ForeignKey(
        "WebhookEvent",
        verbose_name=_("webhook event"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="notices",
    )
    bulk_retry = models.ForeignKey(
        "BulkRetry",
        verbose_name=_("bulk retry"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="notices",
    )
    dispute = models.ForeignKey(
        "Dispute",
        verbose_name=_("dispute"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="notices",
    )
    reversal = models.ForeignKey(
        "TransferReversal",
        verbose_name=_("reversal"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="notices",
    )
    seller = models.ForeignKey(
        Seller,
        verbose_name=_("seller"),
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        db_index=False,
        related_name="notices",
        help_text=_("Who is told, of a seller's notice."),
    )
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)
    due_at = models.DateTimeField(_("due at"), null=True, blank=True, db_default=Now())

    class Meta:
        verbose_name = _("notice")
        verbose_name_plural = _("notices")
        ordering = ("-id",)
        default_permissions = ("view",)
        constraints = [
            models.CheckConstraint(
                name="notice_is_about_one_row",
                condition=_about("transfer", "transfer")
                | _about("event", "event")
                | _about("bulk_retry", "bulk_retry")
                | _about("dispute", "dispute")
                | _about("reversed", "reversal", "seller")
                | _about("paid_again", "transfer", "seller"),
            ),
        ]
        indexes = [
            models.Index(name="notices_due", fields=["due_at", "id"], condition=Q(due_at__isnull=False, seller=None)),
            models.Index(
                name="notices_due_of_sellers",
                fields=["due_at", "id"],
                condition=Q(due_at__isnull=False, seller__isnull=False),
            ),
            # Few among those of sellers.
            models.Index(
                name="notices_of_operators",
                fields=["kind", "-id"],
                condition=Q(kind__in=["transfer", "event", "bulk_retry", "dispute"]),
            ),
        ]

    def __str__(self) -> str:
        return f"notice {self.pk}"


@tracked_each("resent_at", "NoticeMessageHistory", "outcome", "last_error_code", "last_error_message", "last_error_at")
class NoticeMessage(Work):
    """One message by one channel, of one notice or of many. Due while ``next_retry_at`` is set."""

    class Channel(models.TextChoices):
        EMAIL = "email", _("e-mail")
        WEBHOOK = "webhook", _("webhook")
        # E-mail too, to a seller.
        SELLER = "seller", _("seller")

    class Outcome(models.TextChoices):
        SENT = "sent", _("sent")
        # Nothing that it would have told was true any more.
        MENDED = "mended", _("mended before")
        GIVEN_UP = "given_up", _("given up")

    message_id = models.UUIDField(_("message"), default=uuid.uuid4, unique=True, editable=False)
    channel = models.CharField(_("channel"), max_length=20, choices=Channel)
    seller = models.ForeignKey(
        Seller, verbose_name=_("seller"), on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    notices = ArrayField(models.BigIntegerField(), verbose_name=_("notices"))
    outcome = models.CharField(_("outcome"), max_length=20, choices=Outcome, blank=True, default="")
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)
    ended_at = models.DateTimeField(_("ended at"), null=True, blank=True)
    resent_at = models.DateTimeField(
        _("sent again at"), null=True, blank=True, help_text=_("When a person last asked for it.")
    )

    class Meta:
        verbose_name = _("message")
        verbose_name_plural = _("messages")
        ordering = ("-id",)
        default_permissions = ("view",)
        permissions = [("resend_noticemessage", "Can send a message again")]
        constraints = [
            models.CheckConstraint(name="message_tells_something", condition=Q(notices__len__gt=0)),
            models.CheckConstraint(
                name="message_is_due_or_ended",
                condition=Q(outcome="", next_retry_at__isnull=False, ended_at=None)
                | (~Q(outcome="") & Q(next_retry_at=None, ended_at__isnull=False)),
            ),
            models.CheckConstraint(
                name="message_to_a_seller_names_it",
                condition=Q(channel="seller", seller__isnull=False) | (~Q(channel="seller") & Q(seller=None)),
            ),
            lease_is_whole("message_lease_whole"),
        ]
        indexes = [
            models.Index(name="messages_due", fields=["next_retry_at", "id"], condition=Q(next_retry_at__isnull=False)),
            # How many were made lately?
            models.Index(name="messages_by_time", fields=["channel", "created_at"]),
            # Nearly all are sent.
            models.Index(name="messages_not_sent", fields=["outcome", "-id"], condition=~Q(outcome="sent")),
            # Which messages tell of this notice?
            GinIndex(name="messages_by_notice", fields=["notices"]),
        ]

    def __str__(self) -> str:
        return f"message {self.pk}"


def announces(kind: Notice.Kind, *, when: str, already: str, of: Sequence[str]) -> pgtrigger.Trigger:
    """Writes a notice for operators where ``when`` is true of the new row and ``already`` was not of the old one,
    whoever writes; and wakes the worker that sends it, both at the writer's commit. ``of`` are the columns by which
    ``when`` becomes true: an update of others is not looked at.
    """
    return _tells(
        kind, f"SELECT gen_random_uuid(), '{kind.value}', NEW.id", f"{kind.value}_id", when=when, already=already, of=of
    )


def tells_the_seller(
    kind: Notice.Kind, *, column: str, transfer: str, when: str, already: str, of: Sequence[str]
) -> pgtrigger.Trigger:
    """The same for the seller of ``transfer`` (an expression of its number), where there is an address."""
    chosen = f"""SELECT gen_random_uuid(), '{kind.value}', NEW.id, seller.id
                FROM marketplace_sellertransfer AS transfer
                JOIN marketplace_seller AS seller ON seller.id = transfer.seller_id
                WHERE transfer.id = {transfer} AND seller.email <> ''"""  # noqa: S608 - names of our own
    return _tells(kind, chosen, f"{column}, seller_id", when=when, already=already, of=of)


def _tells(
    kind: Notice.Kind, chosen: str, columns: str, *, when: str, already: str, of: Sequence[str]
) -> pgtrigger.Trigger:
    return pgtrigger.Trigger(
        name=f"announces_{kind.value}",
        level=pgtrigger.Row,
        when=pgtrigger.After,
        operation=pgtrigger.Insert | update_of(*of),
        condition=pgtrigger.Condition(when),
        declare=[("is_news", "BOOLEAN")],
        func=f"""
            IF TG_OP = 'INSERT' THEN
                is_news := TRUE;
            ELSE
                is_news := NOT ({already});
            END IF;
            IF is_news THEN
                INSERT INTO marketplace_notice (notice_id, kind, {columns})
                {chosen};
                IF FOUND THEN
                    PERFORM pg_notify('{NOTICES_CHANNEL}', '0');
                END IF;
            END IF;
            RETURN NULL;
            """,
    )
