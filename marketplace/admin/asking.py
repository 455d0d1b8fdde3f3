"""What an operator does to rows is asked for once more, with the rows in sight and a reason to give."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from django import forms
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.widgets import UnfoldAdminTextareaWidget

M = TypeVar("M", bound=Model)

# So many refusals stand one below the other on the next page.
LARGEST_SELECTION = 200


class ReasonForm(forms.Form):
    reason = forms.CharField(
        label=_("Reason"),
        max_length=500,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text=_("What has changed, so that it can work now. It stays in the history."),
    )


class Asking:
    """For admins whose operators act on rows. Each has ``asked_about``: what is shown of a row beside the question."""

    # By heading.
    asked_about: Callable[..., Mapping[str, Any]]

    def chosen(self: Any, request: HttpRequest, rows: QuerySet[M]) -> list[M]:
        """The selected rows; none, and a message, where they are too many."""
        chosen = list(rows.order_by("id")[: LARGEST_SELECTION + 1])
        if len(chosen) <= LARGEST_SELECTION:
            return chosen
        message = gettext("Select at most %(count)s %(rows)s at a time.")
        named = {"count": LARGEST_SELECTION, "rows": self.model._meta.verbose_name_plural}
        self.message_user(request, message % named, messages.ERROR)
        return []

    def ask(
        self: Any, request: HttpRequest, form: forms.Form, rows: list[Any], *, title: str, submit: str
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": title,
            "form": form,
            "rows": [(row.pk, self.asked_about(row)) for row in rows],
            "submit_text": submit,
            "action": request.POST.get("action", ""),
            "checkbox_name": ACTION_CHECKBOX_NAME,
            "back": self._address("changelist"),
        }
        return TemplateResponse(request, "admin/marketplace/ask.html", context)

    def back(self, row: Model | None) -> HttpResponse:
        address = self._address("changelist") if row is None else self._address("change", row.pk)
        return HttpResponseRedirect(address)

    def _address(self: Any, name: str, *ids: Any) -> str:
        return reverse(f"admin:{self.model._meta.app_label}_{self.model._meta.model_name}_{name}", args=ids)
