"""A claim of 100 from 10,000 rows and from 10,000,000, by the program's own statement on its own tables."""

import contextlib
import shutil
import statistics
from collections.abc import Callable, Iterator

from bench import ground
from bench.arithmetic import Spread
from bench.ground import Connection
from bench.processes import PYTHON, Child, ChildFailed
from bench.report import Row, at_most
from bench.run import Run

RATIO = at_most(1.5, "×")
BATCH = 100
SMALL, LARGE = "bench_claim_small", "bench_claim_large"
# Of each ten transfers in the large table one is due.
DUE_IN = 10
BYTES_PER_ROW = 900
CHUNK = 500_000


def measure(run: Run, *, once_filled: Callable[[], object] = lambda: None) -> list[Row]:
    """``once_filled`` is called before anything is timed: until then something else may use the machine."""
    few, many = 10_000, run.of(10_000_000, 300_000)
    free = shutil.disk_usage(ground.STATE).free
    if free < 2 * many * BYTES_PER_ROW:
        raise ChildFailed(f"{many:,} rows need about {many * BYTES_PER_ROW / 1e9:.0f} GB and as much again to be safe")
    with contextlib.ExitStack() as stack:
        small = stack.enter_context(run.server.database(SMALL))
        large = stack.enter_context(run.server.database(LARGE))
        fill(run, small, few, due_in=1)
        fill(run, large, many, due_in=DUE_IN)
        once_filled()
        seen = _claims(run)
    figure = f"claim of {BATCH}, p50, {many:,} rows with {many // DUE_IN:,} due, against {few:,} rows"
    ratios = [statistics.median(of_many) / statistics.median(of_few) for of_few, of_many in seen]
    p50 = [statistics.median(statistics.median(each[n]) for each in seen) for n in (0, 1)]
    note = f"{p50[1]:.2f} ms against {p50[0]:.2f} ms; settled after each claim"
    details = {"few_ms": [few_ms for few_ms, _ in seen], "many_ms": [many_ms for _, many_ms in seen]}
    return [Row("claim", figure, RATIO, ratios, note=note, details=details)]


def _claims(run: Run) -> list[tuple[list[float], list[float]]]:
    """In turn, one claim here and one there."""
    claims = run.of(25, 15)
    with contextlib.ExitStack() as stack:
        claimers = [stack.enter_context(_claimer(run, name)) for name in (SMALL, LARGE)]
        seen = []
        for repetition in range(run.repetitions):
            with run.watched("claims"):
                pairs = [[_claim(child) for child in claimers] for _ in range(claims)]
            few, many = ([pair[n] for pair in pairs] for n in (0, 1))
            seen.append((few, many))
            run.say(f"claim, {repetition + 1} of {run.repetitions}: {_show(few)} of few rows, {_show(many)} of many")
        return seen


def _show(took: list[float]) -> str:
    spread = Spread.of(took)
    return f"p50 {spread.median:.2f} ms ({spread.low:.2f} … {spread.high:.2f})"


@contextlib.contextmanager
def _claimer(run: Run, name: str) -> Iterator[Child]:
    env = run.server.settings(name, DJANGO_SETTINGS_MODULE="veza.settings", LOG_LEVEL="ERROR")
    with Child(f"claimer-{name}", [PYTHON, "-m", "bench.claimer"], env=env, logs=ground.LOGS, talks=True) as child:
        if child.hear() != "ready":
            raise ChildFailed(child.describe("did not start"))
        # Connections and plans are there already in a worker that runs.
        for _ in range(8):
            _claim(child)
        yield child


def _claim(child: Child) -> float:
    child.say(str(BATCH))
    took, count = child.hear().split()
    if int(count) != BATCH:
        raise ChildFailed(child.describe(f"claimed {count} rows, not {BATCH}"))
    return float(took)


def fill(run: Run, connection: Connection, count: int, *, due_in: int) -> None:
    """``count`` transfers, of which each ``due_in``-th is due; the indexes come after.

    Those that are due are whole, with order, refund and reversal. The orders of the others are left out: nothing that
    is measured here reads them.
    """
    run.say(f"claim: writing {count:,} rows")
    with ground.by_hand(connection), ground.without_indexes(connection):
        for first in range(1, count + 1, CHUNK):
            last = min(first + CHUNK - 1, count)
            ground.fill_orders(connection, first, last, due_in=due_in, only_due=True)
            ground.fill_transfers(connection, first, last, due_in=due_in)
            ground.fill_refunds(connection, first, last, due_in=due_in)
        run.say("claim: building their indexes")
    # As autovacuum leaves tables.
    connection.execute("VACUUM ANALYZE")
    connection.execute("CHECKPOINT")
