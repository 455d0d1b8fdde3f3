"""Who may see which rows. Staff are judged by Django's permissions alone; everyone else sees what is theirs.

Who signed in with a token may do of that what its scopes say.

A row that one may not see does not exist for one: 404. A thing that one may not do: 403.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Model, Q, QuerySet
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from marketplace import roles
from marketplace.api.authentication import scopes_of
from marketplace.models import ApiToken, Debt, Order, Product, Refund, Seller, SellerTransfer, TransferReversal

M = TypeVar("M", bound=Model)

OWN: Mapping[type[Model], Callable[[User], Q]] = {
    Order: lambda user: Q(buyer=user),
    Refund: lambda user: Q(order__buyer=user),
    Seller: lambda user: Q(user=user),
    Product: lambda user: Q(seller__user=user),
    SellerTransfer: lambda user: Q(seller__user=user),
    TransferReversal: lambda user: Q(transfer__seller__user=user),
    Debt: lambda user: Q(transfer__seller__user=user),
}


def permission(action: str, model: type[Model]) -> str:
    return f"{model._meta.app_label}.{action}_{model._meta.model_name}"


def visible(rows: QuerySet[M, M], user: User | AnonymousUser) -> QuerySet[M, M]:
    """Those of ``rows`` that ``user`` may see.

    Raises:
        PermissionDenied: staff without the permission to view these, or a model of which nobody has rows of their own.

    """
    model = rows.model
    if user.is_staff:
        demand(user, permission("view", model))
        return rows
    if not user.is_authenticated or model not in OWN:
        raise PermissionDenied(f"Only staff may see {model._meta.verbose_name_plural}.")
    _demand_scope(user, roles.Scope.READ)
    return rows.filter(OWN[model](user))


def demand(user: User | AnonymousUser, *names: str) -> None:
    """Raises ``PermissionDenied`` naming the permissions that ``user`` lacks, or the scopes that the token lacks."""
    missing = [name for name in names if not user.has_perm(name)]
    if missing:
        raise PermissionDenied(f"This needs the permission {', '.join(missing)}.")
    for name in names:
        _demand_scope(user, roles.scope_of(name))


def demand_own_tokens(user: User | AnonymousUser) -> None:
    """Everyone may have tokens; of staff it is a permission."""
    if user.is_staff:
        demand(user, permission("add", ApiToken))
    _demand_scope(user, roles.Scope.TOKENS)


def _demand_scope(user: User | AnonymousUser, scope: roles.Scope | None) -> None:
    """None is what no token may do."""
    scopes = scopes_of(user)
    if scopes is not None and scope not in scopes:
        needed = f"has not the scope {scope.value}" if scope else "may not do this: sign in"
        raise PermissionDenied(f"This token {needed}.")


def tokens_of(user: User | AnonymousUser) -> QuerySet[ApiToken]:
    """One's own; everybody's with the permission."""
    rows = ApiToken.objects.select_related("user")
    return rows if user.has_perm(permission("view", ApiToken)) else rows.filter(user_id=user.pk or 0)


class IsStaff(BasePermission):
    message = "Only staff may see this."

    def has_permission(self, request: Request, _view: APIView) -> bool:
        user: Any = request.user
        return bool(user and user.is_authenticated and user.is_staff)
