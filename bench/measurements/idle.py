"""What a worker asks of the database while nothing is due."""

import time

from bench import ground, workers
from bench.processes import processor_seconds
from bench.report import Row, at_most
from bench.run import Run

STATEMENTS = at_most(12, decimals=1)
# After its start, so that nothing of that is counted.
SETTLED_SECONDS = 8


def measure(run: Run) -> list[Row]:
    # As long as the default check interval.
    seconds = run.of(60, 30)
    with run.server.database(workers.DATABASE), workers.started(run, workers.DATABASE) as (worker,):
        time.sleep(SETTLED_SECONDS)
        before = processor_seconds([worker.pid])
        with run.watched("idle"), ground.statements_logged(run.server, workers.DATABASE) as lines:
            run.say(f"idle: counting for {seconds} s")
            time.sleep(seconds)
        busy = processor_seconds([worker.pid]) - before
    asked = ground.asked(lines)
    per_minute = asked.statements * 60 / seconds
    run.say(f"idle: {asked} in {seconds} s, {busy * 1000:.0f} ms CPU")
    return [
        Row(
            "idle",
            "idle worker: statements a minute",
            STATEMENTS,
            [per_minute],
            note=f"{busy / seconds:.2%} of a processor; default settings, {seconds} s",
        )
    ]
