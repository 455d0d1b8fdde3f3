"""Stripe's events on their way to us: late, in any order, more than once, until each is answered with 200."""

from dataclasses import dataclass
from typing import Any

from marketplace.api import webhooks
from marketplace.inbox import HANDLERS
from marketplace.simulator.events import render
from tests.simulation.profiles import DAY, HOUR
from tests.simulation.scene import Scene
from tests.simulation.scheduler import Host, Task

SECRET = "whsec_testPlatform"


@dataclass(eq=False)
class Letter:
    event: dict[str, Any]
    arrives_at: float
    attempts: int = 0


class Mail:
    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.letters: list[Letter] = []
        scene.simulator.core.world.announce = self._announced

    def _announced(self, owner: str, event: dict[str, Any]) -> int:
        """Stripe made an event."""
        scene = self.scene
        if not self._is_worth_sending(owner, event["type"]):
            return 0
        copies = 1 + (scene.chance.random() < scene.profile.duplicates)
        for _ in range(copies):
            delay = scene.chance.random()
            if scene.chance.random() < scene.profile.delayed and not scene.is_quiet:
                delay = scene.chance.choice([60.0, HOUR, 30 * HOUR]) * scene.chance.random()
            self.letters.append(Letter(event, scene.clock.now + delay))
        scene.counts["events sent twice"] += copies - 1
        return 0

    def _is_worth_sending(self, owner: str, kind: str) -> bool:
        """Most of what Stripe tells is of no use to us: some of that is enough."""
        if kind == "balance.available":
            return self.scene.chance.random() < (0.5 if owner != "acct_platform" else 0.02)
        if kind in HANDLERS and self._is_subscribed(kind):
            return True
        return self.scene.chance.random() < 0.02 and kind not in HANDLERS

    def _is_subscribed(self, kind: str) -> bool:
        return kind in HANDLERS and (kind != "transfer.reversed" or self.scene.profile.hears_of_reversals)

    @property
    def arrived(self) -> list[Letter]:
        return [letter for letter in self.letters if letter.arrives_at <= self.scene.clock.now]

    def take(self, letter: Letter) -> None:
        """Stripe posts one event to us."""
        scene = self.scene
        self.letters.remove(letter)
        letter.attempts += 1
        skew = 0.0 if scene.is_quiet else scene.profile.skew
        scene.scheduler.begin(
            Task(
                f"{letter.event['type']} {letter.event['id'][-4:]}",
                Host("web", skew=scene.chance.uniform(-1, 1) * skew),
                lambda: self._post(letter),
                ended=lambda task: self._posted(task, letter),
            )
        )

    def _post(self, letter: Letter) -> int:
        world = self.scene.simulator.core.world
        with world.lock:
            body = render(world, letter.event).encode()
        answer = webhooks._receive(*self.scene.simulator.sign(body, SECRET, at=self.scene.clock.now))
        status: int = answer.status_code
        self.scene.note(f"answered {status}")
        return status

    def _posted(self, task: Task, letter: Letter) -> None:
        scene = self.scene
        scene.must_not_err(task)
        if task.result == 200:
            scene.counts["events taken"] += 1
        else:
            scene.counts["events sent again"] += 1
            letter.arrives_at = scene.clock.now + min(10.0 * 6**letter.attempts, DAY)
            self.letters.append(letter)

    def resend_one(self) -> None:
        """Somebody presses "resend" in the dashboard."""
        tables = self.scene.simulator.core.world.store.tables.items()
        events = [
            event
            for (_, kind), table in tables
            if kind == "event"
            for event in table.rows.values()
            if self._is_subscribed(event["type"])
        ]
        if events:
            self.letters.append(Letter(self.scene.chance.choice(events), self.scene.clock.now))
            self.scene.counts["events resent by hand"] += 1
