"""Append-only history, written by triggers."""

from collections.abc import Sequence
from typing import Any

import pghistory
import pgtrigger
from django.db import models

from marketplace.models.triggers import never_deleted, update_of


def tracked(model_name: str, *fields: str, also: Sequence[str] = (), indexes: Sequence[models.Index] = ()) -> Any:
    """Append-only history by trigger: each change of the status, and each failed attempt, or change of the columns in
    ``also``, that left it as it was. What has a history is never deleted, by whatever statement. ``indexes`` are of the
    history.

    Who, why and which attempt stand in the row itself (``pgh_context``), so that history needs no second table.
    """
    trackers = [
        pghistory.InsertEvent("created"),
        _updated("status", pghistory.AnyChange("status"), "status"),
    ]
    if "last_error_at" in fields:
        failed_again = "OLD.status = NEW.status AND OLD.last_error_at IS DISTINCT FROM NEW.last_error_at"
        trackers.append(_updated("attempt", pgtrigger.Condition(failed_again), "last_error_at"))
    if also:
        changed = " OR ".join(f"OLD.{column} IS DISTINCT FROM NEW.{column}" for column in also)
        otherwise = pgtrigger.Condition(f"OLD.status = NEW.status AND ({changed})")
        trackers.append(_updated("change", otherwise, *also))
    track = _history(model_name, fields, trackers, indexes)
    keep = pgtrigger.register(never_deleted())
    return lambda model: keep(track(model))


def tracked_from(beginning: str, model_name: str, *fields: str) -> Any:
    """As ``tracked``, for rows that few people ever ask after: nothing is written before ``beginning``, a column that
    counts, is above zero; from then on each change of it, of the status and of the last error.
    """
    changed = f"(OLD.{beginning}, OLD.status, OLD.last_error_at) IS DISTINCT FROM "
    changed += f"(NEW.{beginning}, NEW.status, NEW.last_error_at)"
    condition = pgtrigger.Condition(f"NEW.{beginning} > 0 AND {changed}")
    return _history(model_name, fields, [_updated("status", condition, beginning, "status", "last_error_at")])


def _updated(label: str, condition: Any, *columns: str) -> pghistory.UpdateEvent:
    """An entry of the history, of updates that set one of the columns."""
    return pghistory.UpdateEvent(
        label, condition=condition, operation=update_of(*columns), trigger_name=f"{label}_update"
    )


def tracked_each(column: str, model_name: str, *fields: str) -> Any:
    """A history of each change of ``column``, and of nothing else."""
    condition = pgtrigger.Condition(f"OLD.{column} IS DISTINCT FROM NEW.{column}")
    return _history(model_name, fields, [_updated("change", condition, column)])


def _history(
    model_name: str, fields: Sequence[str], trackers: Sequence[Any], indexes: Sequence[models.Index] = ()
) -> Any:
    return pghistory.track(
        *trackers,
        fields=list(fields),
        model_name=model_name,
        append_only=True,
        meta={"indexes": list(indexes)},
        context_field=pghistory.ContextJSONField(),
        context_id_field=None,  # type: ignore[arg-type]  # its code takes None, its annotation does not
        obj_field=pghistory.ObjForeignKey(related_name="history", on_delete=models.PROTECT),
    )
