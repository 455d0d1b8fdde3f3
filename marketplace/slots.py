"""How many requests a worker has at Stripe at once: each has a slot from its turn to its answer."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar


class Stopped(Exception):
    """The worker stops: what has not been sent is not sent any more."""


class CallSlots:
    """More threads than slots: some make up requests and write answers down while others wait for Stripe. Shared by the
    queues of a worker.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._free = number
        self._is_stopped = False
        self._changed = threading.Condition()

    @property
    def are_all_free(self) -> bool:
        return self._free == self._number

    @contextmanager
    def used(self) -> Iterator[None]:
        """The requests that the present thread makes in this block, one after the other, have slots of these."""
        token = _in_use.set(_Use(self))
        try:
            yield
        finally:
            _in_use.reset(token)

    @contextmanager
    def taken(self, *, until_done: bool = False) -> Iterator[None]:
        """Wait for a free slot. Raises ``Stopped`` when the worker stops before there is one, unless ``until_done``."""
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0 or (self._is_stopped and not until_done))
            if self._is_stopped and not until_done:
                raise Stopped
            self._free -= 1
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify()

    def stop(self) -> None:
        """Nobody begins from now on; who waits to is told at once."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()


class _Use:
    def __init__(self, slots: CallSlots) -> None:
        self._slots = slots
        self._has_begun = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """What the first request began is ended: a refusal is looked into, say, also by a worker that stops."""
        with self._slots.taken(until_done=self._has_begun):
            self._has_begun = True
            yield


_in_use: ContextVar[_Use | None] = ContextVar("in_use", default=None)


def taken() -> AbstractContextManager[None]:
    """A slot for one request, of those that the present thread uses; a web request uses none. Raises ``Stopped``."""
    use = _in_use.get()
    return nullcontext() if use is None else use.taken()
