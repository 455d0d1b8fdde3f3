"""Runs the real command, ``manage.py run_reversal_worker``, on rows that are due, against the fake Stripe."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench import arithmetic, ground
from bench.arithmetic import Call
from bench.ground import Connection
from bench.processes import PYTHON, Child, ChildFailed, Sampler
from bench.run import Run

DATABASE = "bench_worker"


@dataclass(frozen=True)
class Seen:
    """What one repetition showed, without start and warm-up."""

    calls: list[Call]
    # Calls that may be under way at once.
    in_flight: int
    # Of the measured processes, between the first and the last arrival.
    processor_seconds: float

    @property
    def rate(self) -> float:
        return arithmetic.rate(self.calls, self.in_flight)

    @property
    def share(self) -> float:
        return arithmetic.share_of_bound(self.calls, self.in_flight)

    @property
    def processor_ms(self) -> float:
        """For each call."""
        return self.processor_seconds * 1000 / (len(self.calls) - self.in_flight)

    def __str__(self) -> str:
        return f"{self.rate:.1f}/s, {self.share:.1%} of the bound, {self.processor_ms:.2f} ms CPU each"


@contextlib.contextmanager
def started(
    run: Run,
    name: str,
    *,
    concurrency: int | None = None,
    number: int = 1,
    **settings: str,
) -> Iterator[list[Child]]:
    """Workers on database ``name``, up and listening; asked to stop at the end, politely."""
    env = run.server.settings(name, STRIPE_API_BASE=run.stripe.url, **settings)
    flags = ["--concurrency", str(concurrency)] if concurrency else []
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                Child(f"worker-{n}", [PYTHON, "manage.py", "run_reversal_worker", *flags], env=env, logs=ground.LOGS)
            )
            for n in range(1, number + 1)
        ]
        wait_for_listeners(run, name, children)
        yield children
        for child in children:
            child.require_running()


def wait_for_listeners(run: Run, name: str, children: list[Child], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    with run.server.connect("postgres") as connection:
        while True:
            (count,) = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND query ~* '^(un)?listen '", [name]
            ).fetchone() or (0,)
            if count >= len(children):
                return
            for child in children:
                child.require_running()
            if time.monotonic() > deadline:
                raise ChildFailed(children[0].describe("does not listen"))
            time.sleep(0.05)


def reverse(
    run: Run,
    *,
    count: int,
    concurrency: int,
    number: int = 1,
    warm_up: int | None = None,
    limit: float = 180.0,
    behaviour: dict[str, float],
    **settings: str,
) -> Seen:
    """``count`` reversals that come due at once, by ``number`` workers of ``concurrency`` calls each."""
    warm = 2 * concurrency * number if warm_up is None else warm_up
    with run.server.database(DATABASE) as connection:
        run.stripe.configure(latency=behaviour.get("latency", 0.0))
        with started(run, DATABASE, concurrency=concurrency, number=number, **settings) as children:
            if warm:
                ground.owe_reversals(connection, 1, warm)
                run.stripe.wait_for(warm, seconds=60, while_runs=children[0])
                wait_until_reversed(connection, seconds=30)
            run.stripe.configure(**behaviour)
            with Sampler([child.pid for child in children]) as sampler:
                ground.owe_reversals(connection, warm + 1, count)
                run.stripe.wait_for(count, seconds=limit, while_runs=children[0])
                wait_until_reversed(connection, seconds=limit, while_runs=children[0])
            calls = run.stripe.calls()
    return seen(calls, count=count, in_flight=concurrency * number, sampler=sampler)


def seen(calls: list[Call], *, count: int, in_flight: int, sampler: Sampler) -> Seen:
    """Refuses what would make the figures worthless: a call too few, a reversal made twice."""
    answered = [call for call in calls if call.status == 200]
    if len(answered) != count or len({call.subject for call in answered}) != count:
        raise ChildFailed(f"{len(answered)} calls were answered for {count} reversals")
    arrivals = [call.arrived for call in calls]
    return Seen(
        calls=calls,
        in_flight=in_flight,
        processor_seconds=sampler.seconds_between(min(arrivals), max(arrivals)),
    )


def wait_until_reversed(connection: Connection, *, seconds: float, while_runs: Child | None = None) -> None:
    deadline = time.monotonic() + seconds
    while left := ground.reversals_left(connection):
        if while_runs is not None:
            while_runs.require_running()
        if time.monotonic() > deadline:
            raise ChildFailed(f"{left} rows were not reversed within {seconds:.0f} s")
        time.sleep(0.2)
