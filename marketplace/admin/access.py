"""Users, groups and API tokens, in the admin's style."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.admin import GroupAdmin as BaseGroupAdmin
from django.contrib.auth.admin import UserAdmin as BaseUserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext
from rest_framework.authtoken.models import TokenProxy
from unfold.admin import ModelAdmin
from unfold.decorators import action
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

admin.site.unregister([User, Group, TokenProxy])


@admin.register(User)
class UserAdmin(BaseUserAdmin, ModelAdmin):  # type: ignore[type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    show_full_result_count = False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Nobody makes more of an account than the own one is."""
        fields = super().get_readonly_fields(request, obj)
        return fields if request.user.is_superuser else (*fields, "is_superuser")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever sets a superuser's password is one a minute later."""
        is_above = obj is not None and obj.is_superuser and not request.user.is_superuser
        return super().has_change_permission(request, obj) and not is_above


@admin.register(Group)
class GroupAdmin(BaseGroupAdmin, ModelAdmin):
    show_full_result_count = False


@admin.register(TokenProxy)
class TokenAdmin(ModelAdmin):
    """Who has a token, and taking it away. A token is a password: it is never shown, so there is no page of one.

    ``manage.py drf_create_token <user name>`` makes one.
    """

    list_display = ("user", "created")
    list_display_links = None
    list_select_related = ("user",)
    search_fields = ("user__username",)
    search_help_text = _("A user name. A token is made by: manage.py drf_create_token <user name>")
    ordering = ("-created",)
    actions = ("revoke",)
    list_disable_select_all = True
    show_full_result_count = False

    def has_add_permission(self, _request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, _request: HttpRequest, _obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, _request: HttpRequest, _obj: Any = None) -> bool:
        """Django's own way shows the rows by their text, which is the token."""
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("authtoken.delete_tokenproxy")

    def changeform_view(self, *_args: Any, **_kwargs: Any) -> HttpResponseRedirect:
        return HttpResponseRedirect(reverse("admin:authtoken_tokenproxy_changelist"))

    def history_view(self, *_args: Any, **_kwargs: Any) -> HttpResponseRedirect:
        return self.changeform_view()

    @action(description=_("Revoke selected tokens"), permissions=["revoke"])
    def revoke(self, request: HttpRequest, _rows: QuerySet[TokenProxy]) -> None:
        # A row of the list goes by its user's id, so that no token stands in the page; Django takes that for the key.
        users = [int(chosen) for chosen in request.POST.getlist(ACTION_CHECKBOX_NAME) if chosen.isdecimal()]
        tokens = list(TokenProxy.objects.filter(user_id__in=users).select_related("user"))
        for token in tokens:
            token.delete()
        names = sorted(token.user.get_username() for token in tokens)
        done = ngettext("Revoked the token of %(names)s.", "Revoked the tokens of %(names)s.", len(names))
        self.message_user(request, done % {"names": ", ".join(names)}, messages.SUCCESS)
