"""Users in the groups that the migrations make."""

from functools import cache

from django.apps import apps
from django.contrib.auth.models import Group, User
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from marketplace.roles import Grant, Role
from tests.factories import UserFactory


class _Now:
    """What ``Grant`` needs of a schema editor."""

    connection = connection


def grant_all() -> None:
    """As the migrations do, all over again."""
    for grant in _grants():
        grant.code(apps, _Now())


@cache
def _grants() -> list[Grant]:
    migrations = sorted(MigrationLoader(None).disk_migrations.items())
    operations = [each for (app, _), migration in migrations if app == "marketplace" for each in migration.operations]
    return [each for each in operations if isinstance(each, Grant)]


def person(role: Role) -> User:
    """A member of staff in one of the groups."""
    user = UserFactory(staff=True, username=f"a {role.value}")
    user.groups.add(Group.objects.get(name=role.value))
    return user
