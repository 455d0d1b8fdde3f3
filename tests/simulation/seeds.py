"""Many seeds: in this process, or shared out over several, each with a database of its own."""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from django.db import connection

from tests import copies
from tests.simulation.planted import PLANTED
from tests.simulation.run import Rig, rig

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Told:
    """What is told of one seed."""

    seed: int
    breaches: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def own_database() -> Iterator[None]:
    """A new database on the server of the settings, gone afterwards."""
    copies.use()
    connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        yield
    finally:
        connection.creation.destroy_test_db("", verbosity=0)


@contextlib.contextmanager
def ready(plant: str | None = None) -> Iterator[Rig]:
    with own_database(), rig() as made, PLANTED[plant].put() if plant else contextlib.nullcontext():
        yield made


def run_here(seeds: Sequence[int], *, plant: str | None = None) -> Iterator[Told]:
    with ready(plant) as made:
        for seed in seeds:
            report = made.live(seed)
            yield Told(seed, report.breaches, dict(report.counts))


def run_apart(seeds: Sequence[int], *, processes: int, plant: str | None = None) -> Iterator[Told]:
    """In the order in which they come."""
    if processes == 1:
        yield from run_here(seeds, plant=plant)
        return
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(_child(seeds[number::processes], number, plant)) for number in range(processes)]
        waiting = {child.stdout.fileno(): child for child in children if child.stdout}
        yield from _lines(waiting)
        for child in children:
            if child.wait() != 0:
                raise RuntimeError(f"a process of the simulation ended with {child.returncode}")


def _lines(waiting: dict[int, Any]) -> Iterator[Told]:
    import selectors

    with selectors.DefaultSelector() as selector:
        for child in waiting.values():
            selector.register(child.stdout, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                line = key.fileobj.readline()  # type: ignore[union-attr]
                if line:
                    yield Told(**json.loads(line))
                else:
                    selector.unregister(key.fileobj)


@contextlib.contextmanager
def _child(seeds: Sequence[int], number: int, plant: str | None) -> Iterator[Any]:
    environment = {**os.environ, "TEST_DATABASE_NAME": f"test_simulation_{os.getpid()}_{number}"}
    asked = json.dumps({"seeds": list(seeds), "plant": plant})
    with subprocess.Popen(
        [sys.executable, "-m", "tests.simulation", "--for-parent"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as child:
        assert child.stdin is not None
        child.stdin.write(asked.encode())
        child.stdin.close()
        try:
            yield child
        finally:
            if child.poll() is None:
                child.terminate()


def serve_parent() -> None:
    asked = json.load(sys.stdin)
    for told in run_here(asked["seeds"], plant=asked["plant"]):
        sys.stdout.write(json.dumps(asdict(told)) + "\n")
        sys.stdout.flush()


def summed(told: Sequence[Told]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in told:
        total.update(each.counts)
    return total
