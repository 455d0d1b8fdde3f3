"""API tokens: everybody makes, sees and revokes the own ones; with permissions also those of others."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _
from unfold.decorators import action
from unfold.enums import ActionVariant
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminTextInputWidget,
)

from marketplace.admin.asking import Asking
from marketplace.admin.base import ReadOnlyAdmin, code, moment, tag
from marketplace.errors import MarketplaceError
from marketplace.models import ApiToken
from marketplace.roles import Scope
from marketplace.services import api_tokens

SCOPES = [
    (Scope.READ.value, _("read: see what you may see")),
    (Scope.REFUND.value, _("refund: plan refunds and ask for them")),
    (Scope.OPERATE.value, _("operate: retry transfers, replay events")),
    (Scope.FINANCE.value, _("finance: settle debts, decline to pay again")),
    (Scope.TOKENS.value, _("tokens: make and revoke tokens")),
]


class NewTokenForm(forms.Form):
    name = forms.CharField(
        label=_("Name"),
        max_length=100,
        widget=UnfoldAdminTextInputWidget(),
        help_text=_("What it is for, such as the program that will use it."),
    )
    scopes = forms.MultipleChoiceField(
        label=_("Scopes"),
        choices=SCOPES,
        initial=[Scope.READ.value],
        widget=UnfoldAdminCheckboxSelectMultipleWidget(),
        help_text=_("What it may do of that which you may. As little as it needs."),
    )
    days = forms.IntegerField(
        label=_("Days"),
        min_value=1,
        max_value=3650,
        initial=90,
        widget=UnfoldAdminIntegerFieldWidget(),
        help_text=_("It expires after so many days."),
    )


@admin.register(ApiToken)
class ApiTokenAdmin(Asking, ReadOnlyAdmin):
    list_display = ("name", "begins", "user", "scopes_shown", "state", "expires", "used")
    list_select_related = ("user",)
    search_fields = ("name__icontains", "prefix__exact", "user__username__exact")
    search_help_text = _("A part of the name; or how it begins, or a user name, whole")
    ordering = ("-id",)
    actions = ("revoke_selected",)
    actions_detail = ("revoke_one",)
    fields = readonly_fields = (
        "name",
        "begins",
        "user",
        "scopes_shown",
        "state",
        "created_at",
        "expires_at",
        "revoked_at",
        "last_used_at",
    )

    # --- Whose ----------------------------------------------------------------------------------------------

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("marketplace.add_apitoken")

    def has_view_permission(self, request: HttpRequest, obj: ApiToken | None = None) -> bool:
        if request.user.has_perm("marketplace.view_apitoken"):
            return True
        is_own = obj is None or obj.user_id == request.user.pk
        return is_own and request.user.has_perm("marketplace.add_apitoken")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiToken]:
        rows: QuerySet[ApiToken] = super().get_queryset(request)
        return rows if request.user.has_perm("marketplace.view_apitoken") else rows.filter(user_id=request.user.pk or 0)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> ApiToken | None:  # noqa: ARG002
        """Also one of others: to see it is refused, and not denied that it is there."""
        return ApiToken.objects.select_related("user").filter(pk=object_id).first() if object_id.isdecimal() else None

    def has_revoke_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        if request.user.has_perm("marketplace.revoke_apitoken") or object_id is None:
            return self.has_view_permission(request)
        token = self.get_object(request, str(object_id))
        return token is None or (token.user_id == request.user.pk and self.has_add_permission(request))

    # --- Columns --------------------------------------------------------------------------------------------

    @admin.display(description=_("begins with"))
    def begins(self, token: ApiToken) -> SafeString | str:
        return code(f"{token.prefix}…")

    @admin.display(description=_("scopes"))
    def scopes_shown(self, token: ApiToken) -> str:
        return ", ".join(token.scopes)

    @admin.display(description=_("state"))
    def state(self, token: ApiToken) -> SafeString:
        if token.revoked_at is not None:
            return tag(gettext("revoked"), "default")
        return tag(gettext("expired"), "warning") if api_tokens.is_expired(token) else tag(gettext("active"), "success")

    @admin.display(description=_("expires at"), ordering="expires_at")
    def expires(self, token: ApiToken) -> SafeString | str:
        return moment(token.expires_at)

    @admin.display(description=_("last used at"), ordering="last_used_at")
    def used(self, token: ApiToken) -> SafeString | str:
        return moment(token.last_used_at)

    # --- What one may do ------------------------------------------------------------------------------------

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:  # noqa: ARG002
        """The token is shown in the answer to the form, once, and never stored."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        assert isinstance(request.user, User)
        form = NewTokenForm(request.POST or None)
        made = None
        if form.is_valid():
            try:
                made = api_tokens.make(
                    user=request.user,
                    name=form.cleaned_data["name"],
                    scopes=[Scope(scope) for scope in form.cleaned_data["scopes"]],
                    age=api_tokens.age_of(form.cleaned_data["days"]),
                    actor=f"user:{request.user.get_username()}",
                )
            except MarketplaceError as error:
                form.add_error("days", error.message)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": gettext("New API token"),
            "form": form,
            "made": made,
        }
        return TemplateResponse(request, "admin/marketplace/new_api_token.html", context)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> Any:
        """Only where there is something to revoke."""
        token = self.get_object(request, str(object_id))
        return super().get_actions_detail(request, object_id) if token and token.revoked_at is None else []

    @action(description=_("Revoke selected tokens"), permissions=["revoke"], icon="block")
    def revoke_selected(self, request: HttpRequest, rows: QuerySet[ApiToken]) -> None:
        may_all = request.user.has_perm("marketplace.revoke_apitoken")
        self._revoke(request, list(rows if may_all else rows.filter(user_id=request.user.pk or 0)))

    @action(
        description=_("Revoke"),
        permissions=["revoke"],
        url_path="revoke_one",
        icon="block",
        variant=ActionVariant.DANGER,
    )
    def revoke_one(self, request: HttpRequest, object_id: int) -> HttpResponse:
        """Asked for once more; what it stops working is not back by a click."""
        token = self.get_object(request, str(object_id))
        if token is None:
            return self.back(None)
        if request.method == "POST":
            self._revoke(request, [token])
            return self.back(token)
        title = gettext("Revoke %(token)s") % {"token": token.name}
        return self.ask(request, forms.Form(), [token], title=title, submit=gettext("Revoke"))

    def asked_about(self, row: ApiToken) -> dict[str, Any]:
        return {
            gettext("Token"): row.name,
            gettext("Begins with"): self.begins(row),
            gettext("User"): row.user,
            gettext("Scopes"): self.scopes_shown(row),
            gettext("Last used"): self.used(row),
        }

    def _revoke(self, request: HttpRequest, tokens: list[ApiToken]) -> None:
        done = []
        for token in tokens:
            try:
                api_tokens.revoke(token_id=token.pk, actor=f"user:{request.user.get_username()}")
            except MarketplaceError as refusal:
                self.message_user(request, refusal.message, messages.WARNING)
            else:
                done.append(token.name)
        if done:
            text = ngettext("Revoked %(names)s.", "Revoked: %(names)s.", len(done)) % {"names": ", ".join(done)}
            self.message_user(request, text, messages.SUCCESS)
