"""Workers as processes, and how to wait for what becomes of them: never by sleeping, always up to a deadline."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

# Long enough for a loaded machine; nothing waits that long when it works.
PATIENCE = 30
ROOT = Path(__file__).resolve().parent.parent.parent

REVERSALS = "run_reversal_worker"
TRANSFERS = "run_transfer_retry_worker"


def wait_until(condition: Callable[[], T], what: str | Callable[[], str], *, patience: float = PATIENCE) -> T:
    """The condition's first true value; an AssertionError that says what was waited for."""
    deadline = time.monotonic() + patience
    pause = threading.Event()
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience} s: {what if isinstance(what, str) else what()}")
        pause.wait(0.005)
    return found


class Worker:
    """A process that runs one of our commands."""

    def __init__(self, nursery: "Nursery", pid: int, log: Path) -> None:
        self._nursery = nursery
        self.pid = pid
        self._log = log

    @property
    def status(self) -> int | None:
        """Its exit status, negative for the signal that ended it; None while it runs."""
        return self._nursery.ask(self.pid)

    @property
    def is_running(self) -> bool:
        return self.status is None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def stop(self) -> None:
        self.send(signal.SIGTERM)
        assert self.wait() == 0, self.text

    def wait_for_its_death(self) -> None:
        """It kills itself, at the step that it was told."""
        assert self.wait() == -signal.SIGKILL, f"it did not come to that step\n{self.text}"

    def wait(self, patience: float = PATIENCE) -> int:
        wait_until(
            lambda: self.status is not None, lambda: f"process {self.pid} to end\n{self.text}", patience=patience
        )
        status = self.status
        assert status is not None
        return status

    @property
    def text(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What it logged: one JSON object per line; what is none is an entry named by its text."""
        return [read_line(line) for line in self.text.splitlines()]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("event") == event]

    def wait_for_log(self, event: str, count: int = 1) -> None:
        wait_until(lambda: len(self.logged(event)) >= count, lambda: f"{count} of {event} in the log:\n{self.text}")


def read_line(line: str) -> dict[str, Any]:
    try:
        read = json.loads(line)
    except ValueError:
        return {"event": line}
    return read if isinstance(read, dict) else {"event": line}


class Nursery:
    """Starts workers on one database; ends whatever is left of them."""

    def __init__(self, environment: dict[str, str], logs: Path) -> None:
        self._environment = environment
        self._logs = logs
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        # What every worker gets beside its own; see ``start``.
        self.settings: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with (self._logs / "nursery.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.death.nursery"],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Interrupting the tests must not interrupt it.
                start_new_session=True,
            )
        self._ready = False
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait(PATIENCE)

    def start(
        self,
        *command: str,
        die: dict[str, str] | None = None,
        clock_offset: float = 0,
        settings: dict[str, Any] | None = None,
    ) -> Worker:
        """Run a command of ``manage.py`` in a new process; ``settings`` hold durations in seconds."""
        log = self._logs / f"{len(self._workers)}-{command[0]}.log"
        log.touch()
        order = {
            "command": command,
            "log": str(log),
            "die": die,
            "clock_offset": clock_offset,
            "settings": {**self.settings, **(settings or {})},
        }
        worker = Worker(self, int(self._request({"start": order})["pid"]), log)
        self._workers.append(worker)
        return worker

    def ask(self, pid: int) -> int | None:
        status = self._request({"ask": pid})["status"]
        return None if status is None else int(status)

    @contextmanager
    def ending_what_is_left(self) -> Iterator[None]:
        """After each test: a frozen or forgotten worker would take part in the next one."""
        before = len(self._workers)
        try:
            yield
        finally:
            for worker in self._workers[before:]:
                if worker.is_running:
                    worker.send(signal.SIGKILL)
                    worker.wait()

    def _request(self, asked: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if not self._ready:
                self._read()
                self._ready = True
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, (self._logs / "nursery.log").read_text()
        read: dict[str, Any] = json.loads(line)
        return read
