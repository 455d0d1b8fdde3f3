"""What the API remembers of requests: answers given under an Idempotency-Key, and how fast each caller asks."""

from django.conf import settings
from django.db import connection, models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _


class IdempotentRequest(models.Model):
    """One key of one user: which request is to answer, and then the answer. Kept for a time; see ``idempotency``."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    key = models.CharField(_("key"), max_length=255)
    fingerprint = models.CharField(_("fingerprint"), max_length=64, help_text=_("SHA-256 of what was asked."))
    claimed_at = models.DateTimeField(
        _("claimed at"),
        db_default=Now(),
        help_text=_("When the request that answers began; it names that request too."),
    )
    status_code = models.PositiveSmallIntegerField(
        _("status code"), null=True, help_text=_("Of the answer; empty before it.")
    )
    headers = models.JSONField(_("headers"), default=dict)
    body = models.TextField(_("body"), blank=True, default="")

    class Meta:
        verbose_name = _("idempotent request")
        verbose_name_plural = _("idempotent requests")
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(name="idempotent_request_once_per_key", fields=["user", "key"]),
            models.CheckConstraint(
                name="idempotent_request_keeps_successes",
                condition=Q(status_code__isnull=True) | Q(status_code__range=(200, 299)),
            ),
        ]
        indexes = [models.Index(name="idempotent_request_by_age", fields=["claimed_at"])]


class ApiPace(models.Model):
    """Until when one caller has used up the pace that it is allowed. May be lost at any time."""

    subject = models.CharField(_("subject"), max_length=60, primary_key=True)
    used_until = models.DateTimeField(_("used until"))

    class Meta:
        verbose_name = _("API pace")
        verbose_name_plural = _("API paces")
        default_permissions = ()


# A request takes its time from the caller's account, which fills up again as time goes by and holds a minute. Lost in a
# crash of the database it would do no harm, so nobody waits for the disk.
_TAKE = """
    WITH fast AS (SELECT set_config('synchronous_commit', 'off', true))
    INSERT INTO marketplace_apipace AS pace (subject, used_until)
    SELECT %(subject)s, statement_timestamp() + %(each)s * interval '1 second' FROM fast
    ON CONFLICT (subject) DO UPDATE
    SET used_until = GREATEST(pace.used_until, statement_timestamp()) + %(each)s * interval '1 second'
    WHERE pace.used_until + %(each)s * interval '1 second' <= statement_timestamp() + interval '1 minute'
"""
_WAIT = """
    SELECT EXTRACT(EPOCH FROM used_until - statement_timestamp())::float8 + %(each)s - 60
    FROM marketplace_apipace WHERE subject = %(subject)s
"""


def take_turn(subject: str, *, per_minute: int) -> float:
    """0 where ``subject`` may go on; otherwise the seconds until it may ask again. All processes count together."""
    params: dict[str, str | float] = {"subject": subject, "each": 60 / per_minute}
    with connection.cursor() as cursor:
        cursor.execute(_TAKE, params)
        if cursor.rowcount:
            return 0.0
        cursor.execute(_WAIT, params)
        seconds: float = cursor.fetchone()[0]
    return max(0.001, seconds)
