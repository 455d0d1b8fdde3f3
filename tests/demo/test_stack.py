"""``manage.py demo`` as a program of its own: up, seen to work, stopped; and what it refuses."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from django.conf import settings as configured
from django.core.management import CommandError, call_command
from rich.console import Console

from marketplace.demo import stack
from marketplace.demo.children import Child
from marketplace.demo.ground import CannotGoOn
from marketplace.models import Seller
from tests.factories import SellerFactory, SellerTransferFactory

PATIENCE = 60


def free_ports(count: int) -> list[int]:
    """Free at the same moment, so that no two are the same."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Running:
    """The command in a process, and all that it printed so far."""

    def __init__(self, state: Path, ports: list[int]) -> None:
        self.web, self.simulator, self.metrics = ports
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST_", "DJANGO_", "DATABASE_"))
        }
        self._environment = {
            **environment,
            "DJANGO_SETTINGS_MODULE": "veza.settings",
            "VEZA_STATE_DIR": str(state),
            "SECRET_KEY": "for-tests-only-and-never-for-anything-else",
            "STRIPE_SECRET_KEY": "sk_test_ForTestsOnly",
            "PYTHONUNBUFFERED": "1",
        }
        self.text = ""

    def __enter__(self) -> Self:
        ports = f"--web-port={self.web} --simulator-port={self.simulator} --metrics-port={self.metrics}"
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "manage.py", "demo", *ports.split()],
            cwd=configured.BASE_DIR,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Interrupting it must not interrupt the tests.
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever a failed test left."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=PATIENCE)

    def read_up_to(self, expected: str) -> str:
        assert self.process.stdout is not None
        alarm = threading.Timer(PATIENCE, self.process.kill)
        alarm.start()
        try:
            for line in self.process.stdout:
                self.text += line
                if expected in line:
                    return self.text
        finally:
            alarm.cancel()
        raise AssertionError(f"it never said {expected!r}:\n{self.text}")

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ended(self) -> int:
        rest, _ = self.process.communicate(timeout=PATIENCE)
        self.text += rest
        return self.process.returncode


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder of its own: pytest's is below one that each new pytest process closes to PostgreSQL's user."""
    with tempfile.TemporaryDirectory(prefix="veza-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path / "state", free_ports(3)) as running:
        yield running


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - of this machine
        body: bytes = answer.read()
    return body.decode()


def test_it_comes_up_shows_a_refund_and_stops_without_a_trace(demo: Running, tmp_path: Path) -> None:
    said = demo.read_up_to("login")
    kept = json.loads((tmp_path / "state/demo-admin.json").read_text())
    assert (tmp_path / "state/demo-admin.json").stat().st_mode & 0o777 == 0o600
    assert f"demo-admin  {kept['password']}" in said
    assert "STRIPE_SECRET_KEY is configured, and not used here" in said
    assert re.search(r"orders paid +\d+", said)
    assert "exactly one reversal, 9.00 EUR, with our operation id" in said
    assert f"http://127.0.0.1:{demo.web}/api/docs/" in said

    assert json.loads(get(f"http://127.0.0.1:{demo.web}/readyz"))["status"] == "ok"
    assert "Log in" in get(f"http://127.0.0.1:{demo.web}/admin/login/")
    assert "veza_" in get(f"http://127.0.0.1:{demo.metrics}/metrics")
    audit = json.loads(get(f"http://127.0.0.1:{demo.simulator}/_simulator/audit"))
    assert (audit["problems"], audit["suspicious"]) == ([], [])

    processes = [*demo.descendants(), *postgres_of(tmp_path)]
    # The simulator, granian and its two processes, two workers; and PostgreSQL.
    assert len(processes) >= 7
    demo.process.send_signal(signal.SIGINT)
    assert demo.ended() == 0, demo.text
    assert "stopped          reversal worker and transfer retry worker" in demo.text
    assert "Traceback" not in demo.text
    assert [each for each in processes if is_alive(each)] == []


def is_alive(process: psutil.Process) -> bool:
    """In a container without an init, what has ended stays as a zombie."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for_end(process: psutil.Process) -> None:
    """Also of a process that is no child of ours, and of one that stays as a zombie."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        select.select([handle], [], [], PATIENCE)
    finally:
        os.close(handle)


def postgres_of(state: Path) -> list[psutil.Process]:
    """The embedded server is nobody's child: it is known by its directory."""
    (pid_file,) = state.rglob("postmaster.pid")
    return [psutil.Process(int(pid_file.read_text().split()[0]))]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can do that")
def test_children_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """Which cannot tell them."""
    program = (
        "import os, sys, time; from pathlib import Path; from marketplace.demo.children import Child\n"
        "child = Child(name='x', command=['-c', 'import time; print(1, flush=True); time.sleep(600)'],"
        f" log=Path({str(tmp_path / 'x.log')!r}), environment=os.environ)\n"
        "child.start()\n"
        "while not child.last_lines(): time.sleep(0.01)\n"
        "print(child._process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(  # noqa: S603 - written above
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate(timeout=PATIENCE)
    wait_for_end(child)
    assert not is_alive(child)


# --- What it refuses, before anything is started ----------------------------------------------------------------------


@pytest.fixture
def state(settings: Any, tmp_path: Path) -> Path:
    settings.STATE_DIR = tmp_path
    return tmp_path


def refused(*flags: str) -> str:
    with pytest.raises(CommandError) as refusal:
        call_command("demo", *flags, stdout=StringIO())
    assert refusal.value.returncode == 1
    return str(refusal.value)


@pytest.mark.parametrize(
    ("flag", "use", "variable"),
    [
        ("--web-port", "the web server", "DEMO_WEB_PORT"),
        ("--simulator-port", "the Stripe simulator", "DEMO_SIMULATOR_PORT"),
        ("--metrics-port", "the reversal worker's metrics", "DEMO_METRICS_PORT"),
    ],
)
def test_a_busy_port_is_named_with_its_use_and_the_way_out(state: Path, flag: str, use: str, variable: str) -> None:
    flags = dict(zip(("--web-port", "--simulator-port", "--metrics-port"), free_ports(3), strict=True))
    with socket.create_server(("127.0.0.1", flags[flag])):
        said = refused(*(f"{name}={port}" for name, port in flags.items()))
    assert said.startswith(f"port {flags[flag]}, for {use}, is in use; choose another with {variable}=")
    assert list(state.iterdir()) == [state / "demo.lock"]


def test_one_port_for_two_uses_is_refused(state: Path) -> None:
    web, other = free_ports(2)
    said = refused(f"--web-port={web}", f"--simulator-port={other}", f"--metrics-port={web}")
    assert f"port {web} is given for the web server and for the reversal worker's metrics" in said


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    assert f"--web-port: '{port}' is not valid: expected a whole number from 1 to 65535" in refused("--web-port", port)


def test_it_never_starts_beside_a_live_key(settings: Any, state: Path) -> None:
    settings.STRIPE_SECRET_KEY = "sk_live_1234567890"
    said = refused()
    assert "STRIPE_SECRET_KEY is a live key" in said
    assert "1234567890" not in said


def test_a_second_one_in_the_same_directory_is_refused(state: Path) -> None:
    with stack._only_one(state):
        assert f"a demonstration is running from {state} already (process {os.getpid()})" in refused()


# --- The database and the simulator's state belong together -----------------------------------------------------------


@pytest.fixture
def prepared(state: Path) -> stack.Demo:
    web, simulator, metrics = free_ports(3)
    ports = stack.Ports(web=web, simulator=simulator, metrics=metrics)
    return stack.Demo(ports, state=state, console=Console(file=StringIO(), soft_wrap=True))


@pytest.mark.django_db
def test_a_database_whose_simulator_is_gone_is_refused(prepared: stack.Demo) -> None:
    SellerFactory()
    with pytest.raises(CannotGoOn, match=r"stripe-simulator\.jsonl, the simulator that knows their accounts"):
        prepared._pair_up()


@pytest.mark.django_db
def test_an_empty_database_gets_a_new_simulator_and_the_old_state_is_kept(prepared: stack.Demo, state: Path) -> None:
    (state / "stripe-simulator.jsonl").write_text("old")
    prepared._pair_up()
    (kept,) = state.glob("stripe-simulator.*.jsonl")
    assert kept.read_text() == "old"
    assert not (state / "stripe-simulator.jsonl").exists()


@pytest.mark.django_db
def test_a_pair_stays(prepared: stack.Demo, state: Path) -> None:
    SellerFactory()
    (state / "stripe-simulator.jsonl").write_text("old")
    prepared._pair_up()
    assert (state / "stripe-simulator.jsonl").read_text() == "old"
    assert Seller.objects.count() == 1


@pytest.mark.django_db
def test_transfers_that_the_simulator_does_not_know_are_refused(prepared: stack.Demo, gateway: Any) -> None:
    SellerTransferFactory(completed=True)
    prepared._gateway = gateway
    with pytest.raises(CannotGoOn, match="knows nothing: they do not belong together"):
        prepared._require_same_pair()


# --- Children ---------------------------------------------------------------------------------------------------------


def child(prepared: stack.Demo, state: Path, program: str, name: str = "simulator") -> Child:
    made = Child(name=name, command=["-c", program], log=state / f"{name}.log", environment=dict(os.environ))
    prepared._start(made)
    return made


def test_a_child_that_dies_is_named_with_its_last_lines(prepared: stack.Demo, state: Path) -> None:
    dies = child(prepared, state, "print('first'); raise SystemExit('no space left')")
    assert dies.has_stopped_within(PATIENCE)
    with pytest.raises(CannotGoOn, match=r"simulator died \(exit status 1\)") as died:
        prepared.watch()
    assert "first" in died.value.message
    assert "no space left" in died.value.message
    prepared.stop()


def test_a_childs_death_is_told_rather_than_what_came_of_it(prepared: stack.Demo, state: Path) -> None:
    dies = child(prepared, state, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert dies.has_stopped_within(PATIENCE)
    with pytest.raises(CannotGoOn, match=r"simulator died \(killed by SIGKILL\)"), prepared._naming_the_dead():
        raise CannotGoOn("Stripe does not answer")


def test_a_child_that_is_never_ready_is_named(
    prepared: stack.Demo, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "READY_WITHIN_SECONDS", 0.1)
    waits = child(prepared, state, "import time; time.sleep(600)")
    with pytest.raises(CannotGoOn, match=r"simulator is not ready after 0\.1 s"):
        prepared._wait_until(waits, lambda: False)
    prepared.stop()
    assert not waits.is_running


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)


def test_a_child_that_does_not_stop_is_killed(
    prepared: stack.Demo, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "STOPS_WITHIN_SECONDS", 0.1)
    stubborn = child(prepared, state, STUBBORN)
    prepared._wait_until(stubborn, lambda: stack._has_line(stubborn, "ready"))
    prepared.stop()
    assert stubborn.exit_status() == -signal.SIGKILL


def test_what_a_killed_child_had_started_is_ended_too(prepared: stack.Demo, state: Path) -> None:
    sleeps = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    program = f"import subprocess, sys; print(subprocess.Popen({sleeps}).pid, flush=True)"
    starts = child(prepared, state, program)
    assert starts.has_stopped_within(PATIENCE)
    grandchild = psutil.Process(int(starts.last_lines()[0]))
    assert is_alive(grandchild)
    prepared.stop()
    wait_for_end(grandchild)
    assert not is_alive(grandchild)


def test_a_second_interrupt_kills_what_still_runs(
    prepared: stack.Demo, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "SAME_PRESS_SECONDS", -1)
    # Whoever started the tests may have SIGINT ignored, as a shell does for what runs in its background.
    before = signal.getsignal(signal.SIGINT)
    stubborn = child(prepared, state, STUBBORN)
    prepared._wait_until(stubborn, lambda: stack._has_line(stubborn, "ready"))

    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert stubborn.has_stopped_within(PATIENCE)

    def press_twice() -> None:
        with pytest.raises(stack.Stopped):
            press()
        press()

    with pytest.raises(stack.Killed, match="Asked twice"), prepared.stopping_on_signals():
        press_twice()
    assert stubborn.exit_status() == -signal.SIGKILL
    assert signal.getsignal(signal.SIGINT) is before


def test_the_admins_password_is_made_once_and_the_user_follows_it(db: None, tmp_path: Path) -> None:
    from django.contrib.auth.models import User

    path = tmp_path / "demo-admin.json"
    password = stack._admin_password(path)
    admin = User.objects.get(username="demo-admin")
    admin.set_password("something else")
    admin.save(update_fields=["password"])
    assert stack._admin_password(path) == password
    admin.refresh_from_db()
    assert admin.check_password(password)
    assert admin.is_superuser
