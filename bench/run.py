"""One run: what all measurements share."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.console import Console

from bench import noise
from bench.fakes import FakeStripe
from bench.ground import Server

T = TypeVar("T")


@dataclass
class Run:
    console: Console
    server: Server
    stripe: FakeStripe
    quick: bool
    began: float = field(default_factory=time.monotonic)
    noise: list[dict[str, Any]] = field(default_factory=list)
    measurement: str = ""

    @property
    def repetitions(self) -> int:
        return 1 if self.quick else 3

    def of(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def say(self, text: str) -> None:
        passed = time.monotonic() - self.began
        self.console.print(f"[dim]{passed // 60:3.0f}:{passed % 60:02.0f}[/dim]  {text}", highlight=False)

    @contextlib.contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """Notes how noisy the machine was while it lasted."""
        loop, before = noise.calibrate(), noise.Ticks.now()
        yield
        meanwhile = noise.Ticks.now().since(before)
        self.noise.append(
            {"measurement": self.measurement, "what": what, "loop_ms": loop["wall_ms"], "loop_cpu_ms": loop["cpu_ms"]}
            | meanwhile
        )

    def interleaved(
        self, candidates: Mapping[str, Callable[[], T]], show: Callable[[T], str], *, turns: int = 0
    ) -> dict[str, list[T]]:
        """Each candidate once a repetition, in turn, so that a slow minute of the machine is everybody's.

        ``turns``: so many repetitions, of what is short and set up already.
        """
        seen: dict[str, list[T]] = {name: [] for name in candidates}
        names = list(candidates)
        turns = turns or self.repetitions
        for turn in range(turns):
            for name in names:
                with self.watched(name):
                    result = candidates[name]()
                seen[name].append(result)
                self.say(f"{self.measurement}, {turn + 1} of {turns}: {name}: {show(result)}")
            names = names[1:] + names[:1]
        return seen
