"""Web servers under load: ours as the README runs it, and dj-stripe's endpoint by the same server program."""

import contextlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench import arithmetic, comparators, ground
from bench.ground import Connection
from bench.processes import (
    PYTHON,
    Child,
    ChildFailed,
    environment,
    family,
    free_port,
    processor_seconds,
    processor_seconds_of_each,
    processor_seconds_since,
    wait_until_listening,
)
from bench.run import Run

# As docs/operations.md says.
FLAGS = (
    "--interface",
    "wsgi",
    "--host",
    "127.0.0.1",
    "--workers",
    "2",
    "--blocking-threads",
    "4",
    "--no-ws",
)
OURS, THEIRS = "bench_web", "bench_djstripe"


@dataclass(frozen=True)
class Site:
    name: str
    port: int
    path: str
    child: Child
    connection: Connection


@dataclass(frozen=True)
class Loaded:
    """What one load showed."""

    requests: int
    seconds: float
    latencies: list[float]
    # Of the web server's processes, and of PostgreSQL's, for all requests.
    server_seconds: float
    postgres_seconds: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def server_ms(self) -> float:
        return self.server_seconds * 1000 / self.requests

    @property
    def postgres_ms(self) -> float:
        return self.postgres_seconds * 1000 / self.requests

    @property
    def rate_per_core(self) -> float:
        """Requests a second for each processor that the web server kept busy."""
        return self.requests / self.server_seconds

    def latency_ms(self, share: float) -> float:
        return arithmetic.percentile(self.latencies, share) * 1000

    def __str__(self) -> str:
        return (
            f"{self.rate:.0f}/s, {self.server_ms:.2f} ms CPU, PostgreSQL {self.postgres_ms:.2f} ms, "
            f"p50 {self.latency_ms(0.5):.1f} ms, p99 {self.latency_ms(0.99):.1f} ms"
        )


@contextlib.contextmanager
def ours(run: Run, *, orders: int, sellers: int = 1, name: str = OURS) -> Iterator[Site]:
    """Our server, with paid orders 1 … ``orders`` that can be refunded; each seller has the money."""
    port = free_port()
    with run.server.database(name) as connection:
        with connection.transaction(), ground.by_hand(connection):
            ground.fill_orders(connection, 1, orders, due_in=0)
            ground.fill_transfers(connection, 1, orders, sellers=sellers, due_in=0)
        ground.analyze(connection)
        env = run.server.settings(name, STRIPE_API_BASE=run.stripe.url)
        command: list[str | Path] = [
            Path(PYTHON).parent / "granian",
            *FLAGS,
            "--port",
            str(port),
            "veza.wsgi:application",
        ]
        with Child("web", command, env=env, logs=ground.LOGS) as child:
            wait_until_listening(port, child)
            yield Site("ours", port, "/webhooks/stripe/", child, connection)


@contextlib.contextmanager
def djstripe(run: Run) -> Iterator[Site]:
    bin_folder = comparators.ensure("djstripe")
    port, identity = free_port(), str(uuid.uuid4())
    env = environment(BENCH_SOCKET=run.server.socket, BENCH_DATABASE=THEIRS, PYTHONPATH=str(comparators.SITES))
    with run.server.database(THEIRS, migrated=False) as connection:
        set_up: list[str | Path] = [
            bin_folder / "python",
            comparators.SITES / "djstripe_site.py",
            identity,
            ground.WEBHOOK_SECRET,
        ]
        with Child("djstripe-set-up", set_up, env=env, logs=ground.LOGS) as child:
            child.wait(180)
        serve: list[str | Path] = [bin_folder / "granian", *FLAGS, "--port", str(port), "djstripe_site:application"]
        with Child("djstripe", serve, env=env, logs=ground.LOGS) as child:
            wait_until_listening(port, child)
            yield Site("dj-stripe", port, f"/stripe/webhook/{identity}/", child, connection)


class Load:
    """The process that posts, and which events it has posted to each site."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._child = Child("load", [PYTHON, "-m", "bench.load"], env=environment(), logs=ground.LOGS, talks=True)
        self._next: dict[str, int] = {}
        if self._child.hear() != "ready":
            raise ChildFailed(self._child.describe("did not start"))

    def post(self, site: Site, *, count: int, **how: float) -> Loaded:
        """Up to ``count`` events, none of them posted before."""
        servers, postgres = family(site.child.pid), self._run.server.pid
        server_before = processor_seconds(servers)
        postgres_before = processor_seconds_of_each([postgres, *_children(postgres)])
        posted = self.just_post(site, count=count, **how)
        server_after = processor_seconds(servers)
        postgres_after = processor_seconds_of_each([postgres, *_children(postgres)])
        return Loaded(
            requests=len(posted["asked"]),
            seconds=max(posted["answered"]) - min(posted["asked"]),
            latencies=[end - begin for begin, end in zip(posted["asked"], posted["answered"], strict=True)],
            server_seconds=server_after - server_before,
            postgres_seconds=processor_seconds_since(postgres_before, postgres_after),
        )

    def just_post(self, site: Site, *, count: int, **how: float) -> dict[str, Any]:
        """The same without a look at what it costs: looking for processes costs ten milliseconds itself."""
        first = self._next.get(site.name, 1)
        self._next[site.name] = first + count
        job: dict[str, Any] = {
            "port": site.port,
            "path": site.path,
            "secret": ground.WEBHOOK_SECRET,
            "first": first,
            "count": count,
            **how,
        }
        self._child.say(json.dumps(job))
        posted: dict[str, Any] = json.loads(self._child.hear())
        if posted["statuses"] != [200]:
            raise ChildFailed(site.child.describe(f"answered {posted['statuses']}"))
        return posted

    def stop(self) -> None:
        self._child.stop()


def _children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]
