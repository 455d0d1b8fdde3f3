"""The whole system on this machine: local Stripe, web server, workers, sample data, and one refund followed through."""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import Error as DatabaseError
from django.db import connections
from rich.console import Console

from marketplace.demo import probe, seed, terminal
from marketplace.demo.children import Child
from marketplace.demo.ground import CannotGoOn
from marketplace.demo.probe import ProbeFailed
from marketplace.gateway.contract import NotFound
from marketplace.gateway.stripe_api import StripeGateway
from marketplace.models import Order, Refund, Seller, SellerTransfer

HOST = "127.0.0.1"
ADMIN = "demo-admin"
POLL_SECONDS = 0.05
READY_WITHIN_SECONDS = 60.0
PROBE_SECONDS = 60.0
# A worker may wait for an answer of Stripe for STRIPE_READ_TIMEOUT; a local one is quicker.
STOPS_WITHIN_SECONDS = 25.0
# `timeout` and some terminals send one Ctrl-C twice.
SAME_PRESS_SECONDS = 1.0
STARTED_LINE = "worker_started"


@dataclass(frozen=True, kw_only=True)
class Ports:
    web: int
    simulator: int
    metrics: int


# What each port is for, and how to choose another.
USES: Mapping[str, tuple[str, str, str]] = {
    "web": ("the web server", "DEMO_WEB_PORT", "--web-port"),
    "simulator": ("the Stripe simulator", "DEMO_SIMULATOR_PORT", "--simulator-port"),
    "metrics": ("the reversal worker's metrics", "DEMO_METRICS_PORT", "--metrics-port"),
}


class Stopped(BaseException):
    """A signal asked us to stop."""


class Killed(CannotGoOn):
    """Asked twice: everything was ended at once."""


def run(ports: Ports, *, console: Console) -> None:
    """Bring everything up, show that it works, and stay until SIGINT or SIGTERM; stopped on return.

    Raises:
        CannotGoOn: something could not be had, or a child died; everything is stopped.

    """
    _refuse_live_key()
    state: Path = settings.STATE_DIR
    state.mkdir(parents=True, exist_ok=True)
    with _only_one(state):
        _require_free(ports)
        demo = Demo(ports, state=state, console=console)
        with terminal.quiet_logs(), demo.stopping_on_signals():
            try:
                demo.bring_up()
                demo.fill()
                demo.prove()
                demo.tell_addresses()
                demo.watch()
            except Stopped:
                console.print()
            except DatabaseError as error:
                raise CannotGoOn(f"the database does not answer: {str(error).strip()}") from error
            finally:
                demo.stop()


def _refuse_live_key() -> None:
    if settings.STRIPE_SECRET_KEY.startswith(("sk_live_", "rk_live_")):
        raise CannotGoOn(
            "STRIPE_SECRET_KEY is a live key. The demonstration uses a local Stripe and never starts beside a live one:"
            " unset it, or comment it out in .env."
        )


def _require_free(ports: Ports) -> None:
    """Name every port that is taken, before anything is started."""
    wanted: dict[int, str] = {}
    complaints = []
    for name, (use, variable, flag) in USES.items():
        port = getattr(ports, name)
        if port in wanted:
            complaints.append(f"port {port} is given for {wanted[port]} and for {use}; choose another with {flag}")
        elif reason := _refusal(port):
            complaints.append(
                f"port {port}, for {use}, {reason}; choose another with {variable}={port + 1} or {flag} {port + 1}"
            )
        wanted[port] = use
    if complaints:
        raise CannotGoOn("\n".join(complaints))


def _refusal(port: int) -> str:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except PermissionError:
            return "is not open to this user"
        except OSError:
            return "is in use"
    return ""


@contextlib.contextmanager
def _only_one(state: Path) -> Iterator[None]:
    """Two simulators would write one state file."""
    with (state / "demo.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise CannotGoOn(
                f"a demonstration is running from {_shown(state)} already (process {holder}). Stop that one first, or"
                " give this one another directory with VEZA_STATE_DIR, and other ports."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


class Demo:
    """The children in the order in which they are started; they are stopped in the reverse one."""

    def __init__(self, ports: Ports, *, state: Path, console: Console) -> None:
        self._ports = ports
        self._state = state
        self._console = console
        self._web = f"http://{HOST}:{ports.web}"
        self._simulator = f"http://{HOST}:{ports.simulator}"
        self._simulator_state = state / "stripe-simulator.jsonl"
        self._key = f"sk_test_demo{secrets.token_hex(12)}"
        self._webhook_secret = f"whsec_{secrets.token_hex(16)}"
        self._children: list[Child] = []
        self._is_spawning = False
        self._stopping_since: float | None = None
        self._was_killed = False
        # The calls of this process go to this machine only.
        os.environ.update(_without_proxy(os.environ))
        self._gateway = StripeGateway(
            api_key=self._key,
            api_base=self._simulator,
            connect_timeout=settings.STRIPE_CONNECT_TIMEOUT.total_seconds(),
            read_timeout=settings.STRIPE_READ_TIMEOUT.total_seconds(),
        )

    # --- Up ---

    def bring_up(self) -> None:
        self._console.print("[bold]Veza marketplace[/]: demonstration on this machine, with a local Stripe\n")
        self._say_what_is_not_used()
        with self._timed("database", _database_shown(self._state) + ", migrated"):
            call_command("migrate", verbosity=0, interactive=False)
            self._pair_up()
        logs = self._state / "logs"
        logs.mkdir(exist_ok=True)
        simulator, web, *workers = self._planned(logs)
        with self._timed("Stripe", f"simulator on {self._simulator}"):
            self._start(simulator)
            self._wait_until(simulator, lambda: _answers(f"{self._simulator}/_simulator/clock"))
            self._require_same_pair()
        with self._timed("web, workers", f"granian on {self._web}; reversal worker, transfer retry worker"):
            for child in (web, *workers):
                self._start(child)
            self._wait_until(web, lambda: _answers(f"{self._web}/readyz"))
            for worker in workers:
                self._wait_until(worker, partial(_has_line, worker, STARTED_LINE))
            self._wait_until(workers[0], lambda: _answers(f"http://{HOST}:{self._ports.metrics}/metrics"))

    def _planned(self, logs: Path) -> list[Child]:
        manage = str(settings.BASE_DIR / "manage.py")
        metrics = f"--metrics-port={self._ports.metrics}"
        web = f"--host {HOST} --port {self._ports.web} --workers 2 --blocking-threads 4 --no-ws"
        commands: dict[str, list[str]] = {
            "simulator": [
                *(manage, "run_stripe_simulator", "--port", str(self._ports.simulator)),
                *("--state-file", str(self._simulator_state)),
                *("--webhook-url", f"{self._web}/webhooks/stripe/", "--webhook-secret", self._webhook_secret),
            ],
            "web": ["-m", "granian", "--interface", "wsgi", *web.split(), "veza.wsgi:application"],
            "reversal-worker": [manage, "run_reversal_worker", metrics],
            "transfer-retry-worker": [manage, "run_transfer_retry_worker"],
        }
        environment = self._environment()
        return [
            Child(name=name, command=command, log=logs / f"{name}.log", environment=environment)
            for name, command in commands.items()
        ]

    def _environment(self) -> dict[str, str]:
        """The same database and settings, but for what the demonstration brings itself or cannot do without."""
        return {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(settings.BASE_DIR), os.environ.get("PYTHONPATH")])),
            "DJANGO_SETTINGS_MODULE": "veza.settings",
            "STRIPE_SECRET_KEY": self._key,
            "STRIPE_WEBHOOK_SECRETS": self._webhook_secret,
            "STRIPE_API_BASE": self._simulator,
            "ALLOWED_HOSTS": f"{HOST},localhost,[::1]",
            "USE_TLS": "false",
            "REVERSAL_WORKER_ENABLED": "true",
            "TRANSFER_RETRY_ENABLED": "true",
            "LOG_LEVEL": "INFO",
            "LOG_FORMAT": "console",
        }

    def _say_what_is_not_used(self) -> None:
        for name in ("STRIPE_SECRET_KEY", "STRIPE_API_BASE"):
            if getattr(settings, name):
                self._console.print(f"  {name} is configured, and not used here: all calls go to the local simulator.")

    def _pair_up(self) -> None:
        """The database and the simulator's state tell of the same objects: both are there, or neither."""
        has_rows = Seller.objects.exists() or Order.objects.exists()
        if has_rows and not self._simulator_state.exists():
            raise CannotGoOn(
                f"the database has sellers and orders, but {_shown(self._simulator_state)}, the simulator that knows"
                f" their accounts and payments, is missing. {self._start_over()}"
            )
        if self._simulator_state.exists() and not has_rows:
            kept = self._simulator_state.with_suffix(f".{datetime.now(tz=UTC):%Y%m%dT%H%M%S}.jsonl")
            self._simulator_state.rename(kept)
            self._console.print(
                f"  The database is empty: the simulator starts anew too. Its old state is kept as {_shown(kept)}."
            )

    def _require_same_pair(self) -> None:
        sent = SellerTransfer.objects.exclude(stripe_transfer_id="").order_by("-id").first()
        if sent is not None and isinstance(self._gateway.retrieve_transfer(sent.stripe_transfer_id), NotFound):
            raise CannotGoOn(
                f"the database has transfer {sent.stripe_transfer_id}, of which the simulator in"
                f" {_shown(self._simulator_state)} knows nothing: they do not belong together. {self._start_over()}"
            )

    def _start_over(self) -> str:
        if settings.DATABASE is not None:
            return "Give DATABASE_URL an empty database, or bring the file back."
        return "Bring the file back, or start over: `make clean`, then `make demo`."

    # --- Data, and the proof that it works ---

    def fill(self) -> None:
        counts = {model: model._default_manager.count() for model in (Seller, Order, SellerTransfer, Refund)}
        if counts[Order]:
            there = ", ".join(f"{count} {model._meta.verbose_name_plural}" for model, count in counts.items())
            self._line("data", f"as it was left: {there}")
            return
        with self._naming_the_dead():
            wanted = seed.Wanted(disputes=1)
            with self._timed("data", f"sample data of seed {wanted.seed}, through the services and Stripe"):
                seeded = seed.run(wanted, self._gateway, console=self._console)
        self._console.print(seed.table(seeded))

    def prove(self) -> None:
        self._console.print("\n[bold]One refund, followed until Stripe shows the reversal[/]\n")
        try:
            with self._naming_the_dead():
                outcome = probe.run(self._gateway, timeout=PROBE_SECONDS, console=self._console)
        except ProbeFailed as error:
            probe.tell_failure(error, self._console)
            raise CannotGoOn(f"{error.message}; the logs are in {_shown(self._state / 'logs')}") from error
        self._console.print(f"\n  From the refund to [bold]reversed[/]: {outcome.seconds_to_reversed:.2f} s")

    def tell_addresses(self) -> None:
        password = _admin_password(self._state / "demo-admin.json")
        self._console.print("\n[bold]Up.[/] Ctrl-C stops everything.\n")
        for name, address in {
            "start page": f"{self._web}/",
            "admin": f"{self._web}/admin/",
            "API docs": f"{self._web}/api/docs/",
            "what Stripe saw": f"{self._simulator}/_simulator/audit",
            "metrics": f"{self._web}/metrics  http://{HOST}:{self._ports.metrics}/metrics",
            "logs": f"{_shown(self._state / 'logs')}/",
        }.items():
            self._line(name, address)
        self._line("login", f"[bold]{ADMIN}[/]  [bold]{password}[/]")

    def watch(self) -> None:
        while True:
            self._require_all_running()
            time.sleep(0.25)

    # --- Down ---

    @contextlib.contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """The first SIGINT, SIGTERM or SIGHUP raises ``Stopped`` here; a later SIGINT kills what still runs."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self._stopping_since is None:
                self._stopping_since = time.monotonic()
                if not self._is_spawning:
                    raise Stopped
            elif number == signal.SIGINT and time.monotonic() - self._stopping_since > SAME_PRESS_SECONDS:
                self._was_killed = any(child.is_running for child in self._children)
                for child in self._children:
                    child.kill()

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._was_killed:
            raise Killed

    def stop(self) -> None:
        """Workers finish what is in hand; then the web server, then the simulator. Nothing is left on return."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        workers = [child for child in self._children if child.name.endswith("worker")]
        for group in (workers, *([child] for child in reversed(self._children) if child not in workers)):
            self._stop_together(group)
        for child in self._children:
            # A web server that was killed leaves its own children behind.
            child.kill()
        connections.close_all()
        for database in connections.all(initialized_only=True):
            # The pool's threads would outlive us by seconds.
            getattr(database, "close_pool", lambda: None)()

    def _stop_together(self, children: Sequence[Child]) -> None:
        running = [child for child in children if child.is_running]
        if not running:
            return
        names = " and ".join(child.name.replace("-", " ") for child in running)
        with self._timed("stopped", names):
            for child in running:
                child.ask_to_stop()
            deadline = time.monotonic() + STOPS_WITHIN_SECONDS
            for child in running:
                if not child.has_stopped_within(max(deadline - time.monotonic(), 0)):
                    self._console.print(f"  {child.name} did not stop in {STOPS_WITHIN_SECONDS:g} s: killed")
                    child.kill()

    # --- Children ---

    def _start(self, child: Child) -> None:
        # A signal between the start and the entry in the list would leave the child behind.
        self._is_spawning = True
        try:
            self._children.append(child)
            child.start()
        finally:
            self._is_spawning = False
        if self._stopping_since is not None:
            raise Stopped

    def _wait_until(self, child: Child, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while not is_ready():
            self._require_all_running()
            if time.monotonic() > deadline:
                raise CannotGoOn(f"{child.name} is not ready after {READY_WITHIN_SECONDS:g} s.{_tail(child)}")
            time.sleep(POLL_SECONDS)

    def _require_all_running(self) -> None:
        for child in self._children:
            status = child.exit_status()
            if status is not None:
                how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
                raise CannotGoOn(f"{child.name} died ({how}).{_tail(child)}")

    @contextlib.contextmanager
    def _naming_the_dead(self) -> Iterator[None]:
        """Where a child's death is the cause, say that rather than what came of it."""
        try:
            yield
        except CannotGoOn:
            self._require_all_running()
            raise

    # --- Telling ---

    def _line(self, label: str, text: str) -> None:
        self._console.print(f"  [dim]{label:<16}[/] {text}")

    @contextlib.contextmanager
    def _timed(self, label: str, text: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._line(label, f"{text} [dim]({time.monotonic() - started:.1f} s)[/]")


def _answers(url: str) -> bool:
    """Whether a GET gives a success. No proxy stands between this machine and itself."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(200 <= answer.status < 300)
    except (urllib.error.URLError, OSError):
        return False


def _has_line(child: Child, text: str) -> bool:
    return any(text in line for line in child.last_lines())


def _tail(child: Child) -> str:
    lines = "\n".join(f"    {line}" for line in child.last_lines())
    return f" The end of {_shown(child.log)}:\n{lines or '    (empty)'}"


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _database_shown(state: Path) -> str:
    if settings.DATABASE is None:
        return f"embedded PostgreSQL in {_shown(state / 'postgres')}"
    host = settings.DATABASE.get("HOST") or "this machine"
    return f"{settings.DATABASE['NAME']} of DATABASE_URL, on {host}"


def _without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    there = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    names = ",".join(filter(None, [there, HOST, "localhost"]))
    return {"NO_PROXY": names, "no_proxy": names}


def _admin_password(path: Path) -> str:
    """Made once and kept where only its owner can read it; the user in the database follows it."""
    if path.exists():
        password: str = json.loads(path.read_text())["password"]
    else:
        password = secrets.token_urlsafe(12)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"username": ADMIN, "password": password}, file)
    admin, is_new = User.objects.get_or_create(username=ADMIN, defaults={"is_staff": True, "is_superuser": True})
    if is_new or not admin.check_password(password):
        admin.set_password(password)
        admin.save(update_fields=["password"])
    return password
