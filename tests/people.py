"""Users in the groups that the migrations make."""

from django.apps import apps
from django.contrib.auth.models import Group, User
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from marketplace.roles import Grant, Role
from tests.factories import UserFactory


class _Now:
    """What ``Grant`` needs of a schema editor."""

    connection = connection


def make_groups() -> None:
    """As the migrations do, all over again: a test that empties the database took them away."""
    loader = MigrationLoader(None)
    for (app, _name), migration in sorted(loader.disk_migrations.items()):
        for operation in migration.operations if app == "marketplace" else ():
            if isinstance(operation, Grant):
                operation.code(apps, _Now())


def person(role: Role) -> User:
    """A member of staff in one of the groups."""
    user = UserFactory(staff=True, username=f"a {role.value}")
    user.groups.add(Group.objects.get(name=role.value))
    return user
