"""Answers kept under idempotency keys: replayed, refused when they do not fit, forgotten after a day."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from . import errors

if TYPE_CHECKING:
    from .world import World


@dataclass(slots=True)
class Saved:
    path: str
    form: str
    status: int
    body: str
    request_id: str
    created: float


@dataclass(slots=True)
class Running:
    path: str
    form: str
    created: float


class Keys:
    """Scoped by account, as the documentation has it ("unique within your account").

    The whole form is compared, `expand` and metadata included, whatever the order of its fields.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._held: dict[tuple[str, str], Saved | Running] = {}

    def __len__(self) -> int:
        return len(self._held)

    def lookup(self, account: str, key: str, *, path: str, form: str) -> Saved | None:
        """The kept answer, or None for a new key. Raises for a misused key and for one in flight."""
        self._prune()
        held = self._held.get((account, key))
        if held is None:
            return None
        if held.path != path or not _same(held.form, form):
            raise errors.key_reused(key, first_path=held.path, path=path)
        if isinstance(held, Running):
            raise errors.key_in_use(key)
        return held

    def begin(self, account: str, key: str, *, path: str, form: str) -> None:
        """From here until `keep` or `drop`, the key is in use."""
        self.hold(account, key, Running(path, form, self._world.now()))

    def hold(self, account: str, key: str, running: Running) -> None:
        self._held[account, key] = running

    def keep(self, account: str, key: str, saved: Saved) -> None:
        self._held.pop((account, key), None)  # so that it goes to the end, where the youngest are
        self._held[account, key] = saved
        if self._world.store.recording:
            self._world.store.dirty[account, "_key", key] = asdict(saved)

    def drop(self, account: str, key: str) -> None:
        held = self._held.get((account, key))
        if isinstance(held, Running):
            del self._held[account, key]

    def restore(self, account: str, key: str, row: dict[str, Any]) -> None:
        self._held[account, key] = Saved(**row)

    def saved(self) -> list[tuple[str, str, dict[str, Any]]]:
        self._prune()
        return [(who, key, asdict(held)) for (who, key), held in self._held.items() if isinstance(held, Saved)]

    def _prune(self) -> None:
        oldest = self._world.now() - self._world.settings.keys_kept_seconds
        while self._held:
            first = next(iter(self._held))
            held = self._held[first]
            if held.created >= oldest or isinstance(held, Running):
                return
            del self._held[first]


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    return sorted(parse_qsl(one, keep_blank_values=True)) == sorted(parse_qsl(other, keep_blank_values=True))
