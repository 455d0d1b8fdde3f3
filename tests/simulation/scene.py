"""What everybody in one life shares."""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.clocks import Clock
from tests.simulation.profiles import Profile
from tests.simulation.scheduler import Scheduler, Task
from tests.simulation.wire import Wire
from tests.simulation.world import World


@dataclass
class Scene:
    simulator: Any
    scheduler: Scheduler
    wire: Wire
    gateway: Any
    profile: Profile
    chance: random.Random
    world: World = field(default_factory=World)
    # Nothing goes wrong any more.
    is_quiet: bool = False

    @property
    def clock(self) -> Clock:
        return self.scheduler.clock

    @property
    def counts(self) -> Counter[str]:
        return self.scheduler.counts

    def note(self, text: str) -> None:
        self.scheduler.note(text)

    def at_stripe(self, kind: str) -> list[dict[str, Any]]:
        """The platform's objects of a kind: the very ones, not copies."""
        return list(self.simulator.core.world.store.table("acct_platform", kind).rows.values())

    def must_not_err(self, task: Task) -> None:
        if task.error is not None:
            error = f"{type(task.error).__name__}: {task.error}"
            self.scheduler.breaches.append(f"an error escaped from {task.name}: {error}")
