"""How many calls a worker has at Stripe at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """The worker stops: what has not been sent is not sent any more."""


class CallSlots:
    """More threads than slots: some write answers down while others call. Shared by the queues of a worker."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._free = number
        self._is_stopped = False
        self._changed = threading.Condition()

    @property
    def are_all_free(self) -> bool:
        return self._free == self._number

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a free slot. Raises ``Stopped`` when the worker stops before there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0 or self._is_stopped)
            if self._is_stopped:
                raise Stopped
            self._free -= 1
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify()

    def stop(self) -> None:
        """Nobody gets a slot from now on; who waits for one is told at once."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
