"""The groups are what roles.py says, in the database too; every endpoint and page of theirs is in its table."""

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, Permission

from marketplace import roles
from marketplace.roles import ACTS, Grant, Role
from tests.people import _Now, grant_all

NEEDED = {name for act in ACTS for name in act.needs}
MODELS = list(apps.get_app_config("marketplace").get_models())


def granted(role: Role) -> set[str]:
    names = Group.objects.get(name=role.value).permissions.values_list("content_type__app_label", "codename")
    return {f"{app}.{codename}" for app, codename in names}


@pytest.mark.django_db
def test_the_migrations_grant_what_the_table_says() -> None:
    assert {role: granted(role) for role in Role} == {role: roles.permissions_of(role) for role in Role}


@pytest.mark.django_db
def test_granting_again_changes_nothing_and_keeps_what_was_given_by_hand() -> None:
    extra = Permission.objects.get(codename="delete_order")
    Group.objects.get(name="viewer").permissions.add(extra)
    grant_all()
    assert granted(Role.VIEWER) == roles.permissions_of(Role.VIEWER) | {"marketplace.delete_order"}
    assert Group.objects.count() == len(Role)


@pytest.mark.django_db
def test_permissions_are_made_where_they_are_not_there_yet() -> None:
    Permission.objects.filter(codename="retry_sellertransfer").delete()
    grant_all()
    assert "marketplace.retry_sellertransfer" in granted(Role.OPERATOR)


@pytest.mark.django_db
def test_a_permission_that_no_model_has_cannot_be_granted() -> None:
    with pytest.raises(Permission.DoesNotExist):
        Grant({"viewer": ["marketplace.print_money"]}).code(apps, _Now())


def test_a_grant_can_be_written_into_a_migration() -> None:
    assert Grant({"viewer": ["a.b"]}).deconstruct() == ("Grant", [{"viewer": ["a.b"]}], {})


@pytest.mark.parametrize(
    "permission", [f"marketplace.{codename}" for model in MODELS for codename, _ in model._meta.permissions]
)
def test_every_permission_of_our_own_belongs_to_some_role(permission: str) -> None:
    assert permission in NEEDED


def test_nobody_is_given_the_right_to_delete() -> None:
    assert not {name for name in NEEDED if ".delete_" in name}


def test_a_role_that_acts_sees_all_that_a_viewer_sees() -> None:
    assert all(roles.permissions_of(Role.VIEWER) <= roles.permissions_of(role) for role in Role)
    assert roles.permissions_of(Role.ADMIN) == NEEDED


def test_a_viewer_only_looks() -> None:
    """And has tokens, by which programs only look."""
    own = {"marketplace.add_apitoken"}
    assert all(".view_" in name for name in roles.permissions_of(Role.VIEWER) - own)
