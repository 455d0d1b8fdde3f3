"""How much of the machine others took meanwhile: what a ratio has to be read with."""

import time
from dataclasses import dataclass
from pathlib import Path

# About 20 ms on the machine this was written on.
ROUNDS = 300_000


@dataclass(frozen=True)
class Ticks:
    """/proc/stat's first line: what all processors did since the machine started, in ticks."""

    total: int
    busy: int
    steal: int

    @classmethod
    def now(cls) -> "Ticks":
        user, nice, system, idle, iowait, irq, softirq, steal, *_ = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        )
        busy = user + nice + system + irq + softirq
        return cls(total=busy + idle + iowait + steal, busy=busy, steal=steal)

    def since(self, before: "Ticks") -> dict[str, float]:
        """Shares of all processors' time between two readings."""
        total = max(self.total - before.total, 1)
        return {"busy": (self.busy - before.busy) / total, "steal": (self.steal - before.steal) / total}


def calibrate() -> dict[str, float]:
    """A fixed loop: its milliseconds on the wall and of the processor. Alone on a machine they agree and never vary."""
    wall, processor = time.perf_counter(), time.process_time()
    value = 0
    for number in range(ROUNDS):
        value = (value * 31 + number) & 0xFFFFFFFF
    return {"wall_ms": (time.perf_counter() - wall) * 1000, "cpu_ms": (time.process_time() - processor) * 1000}
