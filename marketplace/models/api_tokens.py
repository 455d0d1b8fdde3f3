"""Tokens by which programs sign in to the API. Only a digest is stored: nobody can read a token here."""

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from marketplace.roles import Scope


class ApiToken(models.Model):
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name=_("user")
    )
    name = models.CharField(_("name"), max_length=100, help_text=_("What it is for, such as the program that uses it."))
    scopes = ArrayField(models.CharField(max_length=20, choices=Scope.choices), verbose_name=_("scopes"))
    prefix = models.CharField(_("begins with"), max_length=12, help_text=_("To tell it from others."))
    digest = models.CharField(_("digest"), max_length=64, unique=True, editable=False, help_text=_("SHA-256, in hex."))
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)
    expires_at = models.DateTimeField(_("expires at"))
    revoked_at = models.DateTimeField(_("revoked at"), null=True, blank=True)
    last_used_at = models.DateTimeField(
        _("last used at"), null=True, blank=True, help_text=_("To the minute, or a little before.")
    )

    class Meta:
        verbose_name = _("API token")
        verbose_name_plural = _("API tokens")
        ordering = ("-id",)
        default_permissions = ("add", "view")
        permissions = [("revoke_apitoken", "Can revoke anybody's API token")]
        constraints = [
            models.CheckConstraint(name="api_token_has_name", condition=~Q(name="") & ~Q(prefix="")),
            models.CheckConstraint(
                name="api_token_scopes_known",
                condition=Q(scopes__contained_by=Scope.values) & Q(scopes__len__gt=0),
            ),
            models.CheckConstraint(name="api_token_expires_later", condition=Q(expires_at__gt=F("created_at"))),
        ]

    def __str__(self) -> str:
        return f"API token {self.pk}"
