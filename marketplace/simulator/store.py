"""All objects, by account and kind, in order of creation; lists and cursors over them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

from . import errors
from .shapes import Obj

# Fields that never change after creation and that lists are filtered by.
INDEXED: dict[str, tuple[str, ...]] = {
    "balance_transaction": ("source", "type"),
    "charge": ("payment_intent",),
    "dispute": ("charge",),
    "event": ("type",),
    "refund": ("charge", "payment_intent"),
    "transfer": ("destination", "transfer_group", "source_transaction"),
    "transfer_reversal": ("transfer",),
}


class Table:
    """The objects of one kind in one account."""

    def __init__(self, kind: str) -> None:
        self.rows: dict[str, Obj] = {}
        self.order: list[str] = []
        self.position: dict[str, int] = {}
        self.indexes: dict[str, dict[str, list[int]]] = {field: {} for field in INDEXED.get(kind, ())}

    def put(self, obj: Obj) -> None:
        id_ = obj["id"]
        if id_ not in self.position:
            place = self.position[id_] = len(self.order)
            self.order.append(id_)
            for field, index in self.indexes.items():
                value = obj.get(field)
                if value is not None:
                    index.setdefault(value, []).append(place)
        self.rows[id_] = obj

    def places(self, wanted: dict[str, str]) -> tuple[Sequence[int], dict[str, str]]:
        """The shortest index for these field values, and what is left to compare row by row."""
        best: Sequence[int] = range(len(self.order))
        used = None
        for field, value in wanted.items():
            if field in self.indexes:
                index = self.indexes[field].get(value, [])
                if used is None or len(index) < len(best):
                    best, used = index, field
        return best, {field: value for field, value in wanted.items() if field != used}

    def select(self, **wanted: str) -> Iterator[Obj]:
        places, rest = self.places(wanted)
        for place in places:
            row = self.rows.get(self.order[place])
            if row is not None and all(row.get(field) == value for field, value in rest.items()):
                yield row

    def page(
        self,
        *,
        limit: int,
        wanted: dict[str, str],
        keep: Callable[[Obj], bool],
        starting_after: str | None = None,
        ending_before: str | None = None,
        noun: str = "object",
    ) -> tuple[list[Obj], bool]:
        """Up to `limit` rows, newest first, and whether there are more in the direction of travel."""
        places, rest = self.places(wanted)
        steps: Iterable[int]
        if ending_before is not None:
            start = bisect_left(places, self._place(ending_before, "ending_before", noun) + 1)
            steps = range(start, len(places))
        else:
            stop = len(places)
            if starting_after is not None:
                stop = bisect_left(places, self._place(starting_after, "starting_after", noun))
            steps = range(stop - 1, -1, -1)
        found: list[Obj] = []
        for step in steps:
            row = self.rows.get(self.order[places[step]])
            if row is None or any(row.get(field) != value for field, value in rest.items()) or not keep(row):
                continue
            if len(found) == limit:
                return (found[::-1] if ending_before is not None else found), True
            found.append(row)
        return (found[::-1] if ending_before is not None else found), False

    def _place(self, id_: str, param: str, noun: str) -> int:
        place = self.position.get(id_)
        if place is None:
            raise errors.missing_reference(noun, id_, param=param)
        return place


class Store:
    """`dirty` collects what a transaction changed, for the journal; without one it stays empty."""

    def __init__(self, *, recording: bool) -> None:
        self.tables: dict[tuple[str, str], Table] = {}
        self.homes: dict[str, tuple[str, str]] = {}
        self.recording = recording
        self.dirty: dict[tuple[str, str, str], Obj | None] = {}

    def table(self, owner: str, kind: str) -> Table:
        table = self.tables.get((owner, kind))
        if table is None:
            table = self.tables[owner, kind] = Table(kind)
        return table

    def put(self, owner: str, kind: str, obj: Obj) -> Obj:
        """Add an object, or say that it was changed in place."""
        id_ = obj["id"]
        self.table(owner, kind).put(obj)
        self.homes[id_] = (owner, kind)
        if self.recording:
            self.dirty[owner, kind, id_] = obj
        return obj

    def changed(self, owner: str, kind: str, obj: Obj) -> None:
        if self.recording:
            self.dirty[owner, kind, obj["id"]] = obj

    def remove(self, owner: str, kind: str, id_: str) -> None:
        self.table(owner, kind).rows.pop(id_, None)
        self.homes.pop(id_, None)
        if self.recording:
            self.dirty[owner, kind, id_] = None

    def get(self, owner: str, kind: str, id_: str) -> Obj | None:
        table = self.tables.get((owner, kind))
        return None if table is None else table.rows.get(id_)

    def find(self, id_: str) -> Obj | None:
        """An object by its id alone, whichever account it lives in."""
        home = self.homes.get(id_)
        return None if home is None else self.get(*home, id_)
