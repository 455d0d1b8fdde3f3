"""Every page of the admin, opened by everyone in a group: the whole of roles.py's table for the admin."""

from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse

from marketplace.roles import ACTS, Act, Role
from tests.admin.test_pages import populate  # noqa: F401 - a fixture
from tests.factories import UserFactory
from tests.people import person

PAGES = [pytest.param(act, name, id=name) for act in ACTS for name in act.pages]
# Those of every model: old entries of Django's log, and refusals for everyone.
OF_EVERY_MODEL = {"history", "delete", "password_change"}


def names() -> set[str]:
    """The pages of the admin that belong to a model that we show, by URL name."""
    found = set()
    for model, model_admin in admin.site._registry.items():
        if model._meta.app_label in {"marketplace", "auth"}:
            for pattern in model_admin.urls:
                found |= {pattern.name} if getattr(pattern, "name", None) else set()
    return {name for name in found if name.split("_", 2)[-1] not in OF_EVERY_MODEL}


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def address(name: str) -> str:
    app, model, page = name.split("_", 2)
    if page in {"changelist", "add"}:
        return reverse(f"admin:{name}")
    row = apps.get_model(app, model)._default_manager.order_by("pk").first()
    assert row is not None
    return reverse(f"admin:{name}", args=[row.pk])


def test_every_page_has_its_line() -> None:
    listed = {name for act in ACTS for name in act.pages}
    addable = {"seller", "product"}
    refused = {
        name for name in names() if name.endswith("_add") and name.split("_")[1] not in addable | {"user", "group"}
    }
    assert names() - refused - listed == set()
    assert listed <= names()


@pytest.mark.parametrize(("act", "name"), PAGES)
def test_a_page_opens_for_those_roles_only(act: Act, name: str, populate: Any) -> None:  # noqa: F811
    populate()
    answers = {role: signed_in(person(role)).get(address(name)).status_code for role in Role}
    assert answers == {role: 200 if role in act.roles else 403 for role in Role}


@pytest.mark.parametrize("role", Role)
def test_the_menu_shows_what_the_role_may_open(role: Role, db: None) -> None:
    client = signed_in(person(role))
    shown = client.get("/admin/").content.decode()
    assert reverse("admin:marketplace_order_changelist") in shown
    assert (reverse("admin:auth_user_changelist") in shown) == (role == Role.ADMIN)


def test_an_admin_makes_nobody_a_superuser(db: None) -> None:
    client = signed_in(person(Role.ADMIN))
    user = UserFactory()
    page = reverse("admin:auth_user_change", args=[user.pk])
    joined = {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    fields = {"username": user.username, "is_active": "on", "is_staff": "on", "is_superuser": "on", **joined}
    answer = client.post(page, {**fields, "groups": [Group.objects.get(name="operator").pk]})
    user.refresh_from_db()
    assert answer.status_code == 302
    assert (user.is_staff, user.is_superuser, user.groups.get().name) == (True, False, "operator")


def test_an_admin_does_not_change_a_superuser(db: None) -> None:
    root = UserFactory(superuser=True, with_password=True)
    client = signed_in(person(Role.ADMIN))
    page = reverse("admin:auth_user_change", args=[root.pk])
    assert client.post(page, {"username": "mine"}).status_code == 403
    secret = {"password1": "Long-enough-77", "password2": "Long-enough-77"}
    assert client.post(reverse("admin:auth_user_password_change", args=[root.pk]), secret).status_code == 403
    before = root.password
    root.refresh_from_db()
    assert root.password == before
    assert signed_in(root).get(page).status_code == 200
