"""The simulator's own time: the real time moved by an offset, or standing still."""

from __future__ import annotations

import time


class Clock:
    def __init__(self, frozen_at: float | None = None) -> None:
        self.offset = 0.0
        self.frozen_at = frozen_at

    @property
    def frozen(self) -> bool:
        return self.frozen_at is not None

    def now(self) -> float:
        return time.time() + self.offset if self.frozen_at is None else self.frozen_at

    def move_to(self, moment: float) -> None:
        if self.frozen_at is None:
            self.offset = moment - time.time()
        else:
            self.frozen_at = moment

    def freeze(self, at: float | None = None) -> None:
        self.frozen_at = self.now() if at is None else at

    def run(self) -> None:
        """Go on from wherever the clock stands."""
        if self.frozen_at is not None:
            moment, self.frozen_at = self.frozen_at, None
            self.move_to(moment)
