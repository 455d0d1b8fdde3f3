"""What a test has committed goes again, before the next one."""

from django.db import connection, transaction

# What the migrations make of the models and of the roles, and no test commits.
KEPT = {"auth_group", "auth_group_permissions", "auth_permission", "django_content_type"}


def empty() -> None:
    """As Django's flush does, which makes each table and index anew, and all permissions: of a test's few rows that
    takes thirty times as long.
    """
    tables = sorted(set(connection.introspection.django_table_names(include_views=False)) - KEPT)
    are_full = " UNION ALL ".join(f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {table})" for table in tables)  # noqa: S608 - Django's own
    with transaction.atomic(), connection.cursor() as cursor:
        # Whoever still writes is waited for, as by TRUNCATE: a killed program's last statement, say.
        cursor.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
        cursor.execute(are_full)
        full = [table for (table,) in cursor.fetchall()]
        # A replica asks no trigger, and these forbid it.
        cursor.execute("SET LOCAL session_replication_role = replica")
        for table in full:
            cursor.execute(f"DELETE FROM {table}")  # noqa: S608 - Django's own
