"""What has to be told to people, written by triggers where it becomes true, and the messages that tell it."""

import uuid

import pgtrigger
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from marketplace.models.lifecycle import Work, lease_is_whole

NOTICES_CHANNEL = "veza_notices"


class Notice(models.Model):
    """One visit of a row to a state that needs a person: written once, in the transaction that brings the row there.

    It waits while ``due_at`` is set; then it is part of a message, or was mended before anybody was told.
    """

    class Kind(models.TextChoices):
        TRANSFER = "transfer", _("transfer")
        EVENT = "event", _("webhook event")

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
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)
    due_at = models.DateTimeField(_("due at"), null=True, blank=True, db_default=Now())

    class Meta:
        verbose_name = _("notice")
        verbose_name_plural = _("notices")
        ordering = ("-id",)
        constraints = [
            models.CheckConstraint(
                name="notice_is_about_one_row",
                condition=Q(kind="transfer", transfer__isnull=False, event=None)
                | Q(kind="event", event__isnull=False, transfer=None),
            ),
        ]
        indexes = [
            models.Index(name="notices_due", fields=["due_at", "id"], condition=Q(due_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"notice {self.pk}"


class NoticeMessage(Work):
    """One message by one channel, of one notice or of many. Due while ``next_retry_at`` is set."""

    class Channel(models.TextChoices):
        EMAIL = "email", _("e-mail")
        WEBHOOK = "webhook", _("webhook")

    class Outcome(models.TextChoices):
        SENT = "sent", _("sent")
        # Nothing that it would have told was true any more.
        MENDED = "mended", _("mended before")
        GIVEN_UP = "given_up", _("given up")

    message_id = models.UUIDField(_("message"), default=uuid.uuid4, unique=True, editable=False)
    channel = models.CharField(_("channel"), max_length=20, choices=Channel)
    notices = ArrayField(models.BigIntegerField(), verbose_name=_("notices"))
    outcome = models.CharField(_("outcome"), max_length=20, choices=Outcome, blank=True, default="")
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)
    ended_at = models.DateTimeField(_("ended at"), null=True, blank=True)

    class Meta:
        verbose_name = _("notice message")
        verbose_name_plural = _("notice messages")
        ordering = ("-id",)
        constraints = [
            models.CheckConstraint(name="message_tells_something", condition=Q(notices__len__gt=0)),
            models.CheckConstraint(
                name="message_is_due_or_ended",
                condition=Q(outcome="", next_retry_at__isnull=False, ended_at=None)
                | (~Q(outcome="") & Q(next_retry_at=None, ended_at__isnull=False)),
            ),
            lease_is_whole("message_lease_whole"),
        ]
        indexes = [
            models.Index(name="messages_due", fields=["next_retry_at", "id"], condition=Q(next_retry_at__isnull=False)),
            # How many were made lately?
            models.Index(name="messages_by_time", fields=["channel", "created_at"]),
        ]

    def __str__(self) -> str:
        return f"message {self.pk}"


def announces(kind: Notice.Kind, *, when: str, already: str) -> pgtrigger.Trigger:
    """Writes a notice where ``when`` is true of the new row and ``already`` was not of the old one, whoever writes; and
    wakes the worker that sends it, both at the writer's commit.
    """
    return pgtrigger.Trigger(
        name=f"announces_{kind.value}",
        level=pgtrigger.Row,
        when=pgtrigger.After,
        operation=pgtrigger.Insert | pgtrigger.Update,
        condition=pgtrigger.Condition(when),
        declare=[("is_news", "BOOLEAN")],
        func=f"""
            IF TG_OP = 'INSERT' THEN
                is_news := TRUE;
            ELSE
                is_news := NOT ({already});
            END IF;
            IF is_news THEN
                INSERT INTO marketplace_notice (notice_id, kind, {kind.value}_id)
                VALUES (gen_random_uuid(), '{kind.value}', NEW.id);
                PERFORM pg_notify('{NOTICES_CHANNEL}', '0');
            END IF;
            RETURN NULL;
            """,  # noqa: S608 - names of our own
    )
