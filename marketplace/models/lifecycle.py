"""Rows that live: a status that only ``transition()`` changes, and a place in a queue of due work."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain
from typing import Any, ClassVar, Self
from uuid import UUID

import pghistory
from django.db import DEFAULT_DB_ALIAS, connection, connections, models
from django.db.models.base import ModelState
from django.db.models.expressions import DatabaseDefault
from django.db.models.functions import Now
from django.db.models.sql.subqueries import UpdateQuery
from django.utils.translation import gettext_lazy as _

from marketplace.errors import AlreadyThere, ChangedMeanwhile, IllegalTransition, StaleTransition
from marketplace.models import together
from marketplace.models.together import Rows
from marketplace.states import Transitions

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Lifecycle(models.Model):
    """A row whose status follows a table of allowed steps."""

    TRANSITIONS: ClassVar[Transitions[Any]]
    # Whether the history begins with the row.
    TELLS_OF_CREATION: ClassVar[bool] = True

    # Each model gives it the choices and the first status of its own.
    status: "models.CharField[str, str]"
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)
    updated_at = models.DateTimeField(_("updated at"), db_default=Now(), editable=False)

    class Meta:
        abstract = True

    @classmethod
    def read(cls, values: Iterable[Any]) -> Self:
        """A row from its values as PostgreSQL has them, in the order of ``concrete_fields``: as ``from_db``, at a
        third of the cost.
        """
        row = cls.__new__(cls)
        held = row.__dict__
        state = held["_state"] = ModelState()
        state.adding, state.db = False, DEFAULT_DB_ALIAS
        names, conversions = _reading(cls)
        held.update(zip(names, values, strict=True))
        for name, from_db_value in conversions:
            held[name] = from_db_value(held[name], None, connection)
        return row

    @classmethod
    def new(cls, **columns: Any) -> Self:
        """A row to be added, as by calling the class, at a fifth of the cost: a refund's event makes three.

        ``columns`` by the names of columns (``order_id``). Raises ``TypeError`` for any other.
        """
        names, constants, made = _defaults(cls)
        if not columns.keys() <= names:
            raise TypeError(f"{cls.__name__} has no column {', '.join(sorted(columns.keys() - names))}")
        row = cls.__new__(cls)
        values = row.__dict__
        values["_state"] = ModelState()
        values.update(constants)
        for name, make in made:
            if name not in columns:
                values[name] = make()
        values.update(columns)
        return row

    def transition(
        self,
        to: str,
        *,
        reason: str,
        actor: str,
        attempt: int | None = None,
        held_by: UUID | None = None,
        **fields: Any,
    ) -> None:
        """Move the row from the status read earlier to ``to``, writing ``fields`` with it; the only way to do so.

        One conditional UPDATE names the row, the status read earlier and, where given, the lease's token in
        ``held_by``: the row count is the lock. The database's trigger writes the history with ``actor``, ``reason`` and
        ``attempt``. On success this instance carries the new values.

        Raises:
            IllegalTransition: the pair is not listed; no SQL was sent.
            StaleTransition: someone moved the row first, or the lease is no longer ours; nothing was changed.

        """
        if not self.allows(to):
            raise IllegalTransition(f"{self._meta.verbose_name} {self.pk} cannot go from {self.status} to {to}")
        self._write({**fields, "status": str(to)}, reason=reason, actor=actor, attempt=attempt, held_by=held_by)

    def allows(self, to: str) -> bool:
        return to in self.TRANSITIONS.get(self.status, ())

    def change(
        self,
        *,
        reason: str,
        actor: str,
        attempt: int | None = None,
        held_by: UUID | None = None,
        **fields: Any,
    ) -> None:
        """Write ``fields`` under the same lock as ``transition()``, the status staying as it is.

        Raises:
            StaleTransition: as in ``transition()``.

        """
        if "status" in fields:
            raise TypeError("a status is changed by transition() only")
        self._write(fields, reason=reason, actor=actor, attempt=attempt, held_by=held_by)

    def _write(
        self, fields: dict[str, Any], *, reason: str, actor: str, attempt: int | None, held_by: UUID | None
    ) -> None:
        """The one UPDATE behind both."""
        if self.pk is None:
            # It is new, and waits with others to be written: now it gets its number.
            together.ask()
        condition, params = "id = %s AND status = %s", [self.pk, str(self.status)]
        if held_by is not None:
            condition, params = f"{condition} AND lease_token = %s", [*params, held_by]
        assigned = [_assignment(type(self), name, value) for name, value in fields.items()]
        assignments = ", ".join([*(sql for sql, _ in assigned), "updated_at = statement_timestamp()"])
        before = self.status

        def written(changed: int, _: Rows) -> None:
            if changed != 1:
                raise StaleTransition(f"{self._meta.verbose_name} {self.pk} is no longer {before}, or no longer ours")

        sql = f"UPDATE {self._meta.db_table} SET {assignments} WHERE {condition}"  # noqa: S608 - names of our own
        together.write(
            together.Statement(
                sql=sql,
                params=[*chain.from_iterable(values for _, values in assigned), *params],
                written=written,
                with_commit=f"WITH changed AS ({sql} RETURNING 1) SELECT 1 / count(*) FROM changed",  # noqa: S608
            ),
            context={"actor": actor, "reason": reason, "attempt": attempt},
        )
        for name, value in {**fields, "updated_at": Now()}.items():
            if hasattr(value, "resolve_expression"):
                # Computed by the database: Django reads a deferred field back when somebody asks for it.
                self.__dict__.pop(name, None)
            else:
                setattr(self, name, value)

    def add(self, *, actor: str, reason: str, once_by: str = "", as_text: Mapping[str, str] | None = None) -> None:
        """Write a new row. In a block of ``written_together`` it has no ``pk`` before something is asked.

        ``as_text``: columns of JSON whose text is there already.

        Raises:
            AlreadyThere: ``once_by`` is a unique column, and there is a row with the same value; nothing was written.

        """
        columns: list[str] = []
        placeholders: list[str] = []
        params: list[Any] = []
        values = self.__dict__
        for name, column, field, has_default in _columns(type(self)):
            value = values[name]
            # Left to the database: its defaults; and NULL, where that is what a column has of which nothing is said.
            if (value is None and not has_default) or type(value) is DatabaseDefault:
                continue
            text = as_text.get(name) if as_text else None
            sql, written_as = _value(field, value) if text is None else ("%s", (text,))
            columns.append(column)
            placeholders.append(sql)
            params += written_as

        def written(_: int, rows: Rows) -> None:
            if not rows:
                raise AlreadyThere(f"{self._meta.verbose_name} {getattr(self, once_by)}")
            self.pk, self._state.adding, self._state.db = rows[0][0], False, DEFAULT_DB_ALIAS

        once = f"ON CONFLICT ({once_by}) DO NOTHING" if once_by else ""
        sql = (
            f"INSERT INTO {self._meta.db_table} ({', '.join(columns)})"  # noqa: S608 - names of our own
            f" VALUES ({', '.join(placeholders)}) {once} RETURNING id"
        )
        together.write(
            together.Statement(sql=sql, params=params, written=written, with_commit=None if once_by else sql),
            context={"actor": actor, "reason": reason, "attempt": None} if self.TELLS_OF_CREATION else None,
        )

    def tell(self, label: str, *, actor: str, reason: str) -> None:
        """An entry in the history of a change that no trigger tells of: the row as it is now, who, and why."""
        history: Any = self._meta.get_field("history").related_model
        copied = [field.column for field in history._meta.concrete_fields if not field.name.startswith("pgh_")]
        columns = ", ".join(copied)
        with connection.cursor() as cursor:
            cursor.execute(
                f"""
                INSERT INTO {history._meta.db_table} (pgh_created_at, pgh_label, pgh_obj_id, pgh_context, {columns})
                SELECT clock_timestamp(), %s, id, %s::jsonb, {columns} FROM {self._meta.db_table} WHERE id = %s
                """,  # noqa: S608 - names of our own
                [label, json.dumps({"actor": actor, "reason": reason, "attempt": None}), self.pk],
            )

    @staticmethod
    def recording(*, actor: str, reason: str) -> AbstractContextManager[Any]:
        """Around the creation of rows: the history says by whom and why."""
        recorded: AbstractContextManager[Any] = pghistory.context(actor=actor, reason=reason, attempt=None)
        return recorded

    @property
    def version(self) -> str:
        """Another with each change of the row."""
        return f"{self.pk}-{(self.updated_at - EPOCH) // timedelta(microseconds=1)}"

    @classmethod
    def locked(cls, pk: Any) -> Self:
        """The row as it is now, locked until the transaction ends."""
        return cls._default_manager.select_for_update(no_key=True).get(pk=pk)

    def require_version(self, versions: frozenset[str] | None) -> None:
        """Of a locked row: ``versions`` are those that the caller would act on, None is any.

        Raises:
            ChangedMeanwhile: it has another.

        """
        if versions is not None and self.version not in versions:
            raise ChangedMeanwhile(
                f"{self._meta.verbose_name} {self.pk} has changed since you saw it: it is {self.status} now, version"
                f" {self.version}"
            )


@cache
def _reading(model: type[models.Model]) -> tuple[list[str], list[tuple[str, Any]]]:
    """The names of all columns, and how what stands in some is converted: Django has psycopg leave JSON as text."""
    fields = model._meta.concrete_fields
    converted = [(field.attname, field.from_db_value) for field in fields if hasattr(field, "from_db_value")]
    return [field.attname for field in fields], converted


@cache
def _defaults(
    model: type[models.Model],
) -> tuple[frozenset[str], dict[str, Any], list[tuple[str, Callable[[], Any]]]]:
    """The names of all columns, and what a new row has in those of which nothing is said: always the same, or made for
    each row.
    """
    constants: dict[str, Any] = {}
    made = []
    for field in model._meta.concrete_fields:
        if callable(field.default) and field.has_default():
            made.append((field.attname, field.default))
        else:
            constants[field.attname] = field.get_default()
    return frozenset(field.attname for field in model._meta.concrete_fields), constants, made


@cache
def _columns(model: type[models.Model]) -> list[tuple[str, str, Any, bool]]:
    """Of each: its attribute, its name, its field, and whether the database has a default for it."""
    return [(field.attname, str(field.column), field, field.has_db_default()) for field in model._meta.concrete_fields]


def _assignment(model: type[models.Model], name: str, value: Any) -> tuple[str, Sequence[Any]]:
    field: Any = model._meta.get_field(name)
    sql, params = _value(field, value)
    return f"{field.column} = {sql}", params


# What PostgreSQL takes as it is, of whatever field: none has to be asked. Not what inherits from them, as choices do.
_PLAIN = frozenset({str, int, UUID, datetime})
# What most columns hold. A parameter costs more.
_LITERALS = {"": "''", 0: "0", 1: "1"}


def _value(field: Any, value: Any) -> tuple[str, Sequence[Any]]:
    """As SQL with its parameters, for writing."""
    if value is None:
        return "NULL", ()
    if type(value) in _PLAIN:
        literal = _LITERALS.get(value)
        return (literal, ()) if literal else ("%s", (value,))
    match value:
        case bool():
            return str(value), ()
        case str():
            # A choice. psycopg would ask what it is.
            return "%s", (str(value),)
        case Now():
            return "statement_timestamp()", ()
        case _ if hasattr(value, "resolve_expression"):
            query = UpdateQuery(field.model)
            resolved = value.resolve_expression(query, allow_joins=False, for_save=True)
            sql, params = query.get_compiler(connection=connection).compile(resolved)
            return sql, params
    return "%s", (field.get_db_prep_save(value, connections[DEFAULT_DB_ALIAS]),)


class Work(models.Model):
    """A row that a worker has to do something about: when, how often tried, who holds it, what went wrong last."""

    # What a claim tells besides the columns: when it was, by the database's clock; and whether the breaker is open and
    # this row is the one that asks whether Stripe is back.
    claimed_at: datetime
    is_probe: bool = False

    retry_count = models.PositiveIntegerField(
        _("retries spent"), default=0, help_text=_("Failed attempts that count. Waiting for funds does not.")
    )
    next_retry_at = models.DateTimeField(
        _("next attempt"),
        null=True,
        blank=True,
        help_text=_("When a worker takes the row up, by the database's clock."),
    )
    last_error_code = models.CharField(_("last error"), max_length=100, blank=True, default="")
    last_error_message = models.TextField(_("last error message"), blank=True, default="")
    last_error_request_id = models.CharField(
        _("Stripe request"),
        max_length=255,
        blank=True,
        default="",
        help_text=_("Stripe's req_… of the last error."),
    )
    last_error_at = models.DateTimeField(_("last error at"), null=True, blank=True)
    lease_token = models.UUIDField(
        _("lease"),
        null=True,
        blank=True,
        help_text=_("The worker that holds the row names this with all it writes."),
    )
    lease_expires_at = models.DateTimeField(_("lease expires at"), null=True, blank=True)

    class Meta:
        abstract = True
