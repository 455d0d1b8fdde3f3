"""Keeps the state in a file: one JSON line per transaction, read again at start, then compacted."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from .idempotency import Running
from .world import Job, World

logger = logging.getLogger(__name__)
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Journal:
    """A line holds all that one transaction changed, so a crash leaves whole transactions and at most one
    torn line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def open(self, world: World) -> None:
        if self.path.exists():
            self._read(world)
        self._compact(world)

    def write(self, world: World) -> None:
        store = world.store
        if not store.dirty or self._file is None:
            return
        changes = [[*where, row] for where, row in store.dirty.items()]
        keys = {
            row["id"]: world.made_by[row["id"]]
            for row in store.dirty.values()
            if row and row.get("id") in world.made_by
        }
        line: dict[str, Any] = {"made": world.made, "put": changes}
        if keys:
            line["made_by"] = keys
        store.dirty.clear()
        self._file.write(_encode(line) + "\n")
        self._file.flush()

    def _read(self, world: World) -> None:
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                entry = json.loads(line)
            except ValueError:
                if any(lines[number:]):
                    raise ValueError(f"{self.path}: line {number} is not JSON, and it is not the last one") from None
                logger.warning("%s: the last line is torn and is left out", self.path)
                break
            self._apply(world, entry)
        self._relink(world)
        world.store.dirty.clear()

    def _apply(self, world: World, entry: dict[str, Any]) -> None:
        world.made = entry["made"]
        world.made_by |= entry.get("made_by", {})
        if "offset" in entry and not world.clock.frozen:
            world.clock.offset = entry["offset"]
        for owner, kind, id_, row in entry["put"]:
            if kind == "_key":
                world.keys.restore(owner, id_, row)
            elif kind == "_balance":
                who, _, currency = row["id"].rpartition("/")
                world.balances[who, currency] = row
            elif kind == "_job":
                if row is None:
                    world.jobs.pop(id_, None)
                else:
                    world.jobs[id_] = Job(**row)
            elif row is None:
                world.store.remove(owner, kind, id_)
            else:
                world.store.put(owner, kind, row)

    def _relink(self, world: World) -> None:
        """A transfer embeds its latest reversals: the very objects, not copies of them."""
        for (owner, kind), table in list(world.store.tables.items()):
            if kind == "transfer":
                for transfer in table.rows.values():
                    listed = transfer["reversals"]
                    listed["data"] = [
                        world.store.get(owner, "transfer_reversal", each["id"]) for each in listed["data"]
                    ]
            if kind == "refund":
                for refund in table.rows.values():
                    if refund["status"] == "pending" and refund["balance_transaction"] is None:
                        world.waiting.setdefault((owner, refund["currency"]), []).append(refund["id"])
        for job in sorted(world.jobs.values(), key=lambda each: each.at):
            world.schedule(job)
            if job.kind == "late_effect" and job.args["key"] is not None:
                held = Running(job.args["path"], job.args["form"], world.now())
                world.keys.hold(job.args["owner"], job.args["key"], held)

    def _compact(self, world: World) -> None:
        """Write the state anew beside the old file, then put it in its place."""
        fresh = self.path.with_name(self.path.name + ".new")
        with fresh.open("w", encoding="utf-8") as file:
            for entry in self._entries(world):
                file.write(_encode(entry) + "\n")
        fresh.replace(self.path)
        if self._file is not None:
            self._file.close()
        self._file = self.path.open("a", encoding="utf-8")

    def _entries(self, world: World) -> list[dict[str, Any]]:
        head: dict[str, Any] = {"made": world.made, "put": []}
        if not world.clock.frozen:
            head["offset"] = world.clock.offset
        entries = [head]
        for (owner, kind), table in world.store.tables.items():
            for id_ in table.order:
                row = table.rows.get(id_)
                if row is not None:
                    entry: dict[str, Any] = {"made": world.made, "put": [[owner, kind, id_, row]]}
                    if id_ in world.made_by:
                        entry["made_by"] = {id_: world.made_by[id_]}
                    entries.append(entry)
        entries += [{"made": world.made, "put": [["", "_balance", row["id"], row]]} for row in world.balances.values()]
        entries += [{"made": world.made, "put": [["", "_job", job.id, asdict(job)]]} for job in world.jobs.values()]
        entries += [{"made": world.made, "put": [[who, "_key", key, row]]} for who, key, row in world.keys.saved()]
        return entries

    def moved(self, world: World) -> None:
        """The clock was moved: a restart goes on from there."""
        if self._file is not None and not world.clock.frozen:
            self._file.write(_encode({"made": world.made, "put": [], "offset": world.clock.offset}) + "\n")
            self._file.flush()

    def erase(self, world: World) -> None:
        world.store.dirty.clear()
        self._compact(world)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
