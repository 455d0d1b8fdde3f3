"""Programs as child processes that end with us, and what they cost: processor time and memory, seen from outside."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from bench import arithmetic
from marketplace.demo import tether

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
# Of our own environment, what a program on this machine needs; no setting of somebody's .env may change a figure.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "XDG_RUNTIME_DIR", "SSL_CERT_FILE")


class ChildFailed(Exception):
    """A program ended, or said something else than expected; its last lines are in the message."""


def environment(**settings: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {**kept, "PYTHONUNBUFFERED": "1", "ENV_FILE": os.devnull, **settings}


_living: set["Child"] = set()


def stop_all() -> None:
    """Whoever waits for one of them, in any thread, sees that it ended."""
    for child in list(_living):
        child.stop(5)


class Child:
    """``command`` begins with the program's path. Use it in a ``with``: it is stopped at the end, however that comes.

    ``talks``: its standard input and output are pipes, one line each way at a time. Otherwise both streams go to the
    log, as under a supervisor.
    """

    def __init__(
        self, name: str, command: Sequence[str | Path], *, env: Mapping[str, str], logs: Path, talks: bool = False
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        with self.log.open("wb") as log:
            self.process: subprocess.Popen[str] = subprocess.Popen(
                [PYTHON, tether.__file__, str(os.getpid()), *map(str, command)],
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else log,
                stderr=log,
                env=dict(env),
                cwd=ROOT,
                text=True,
                # A session of its own: Ctrl-C reaches us alone, and we end it in order.
                start_new_session=True,
            )
        _living.add(self)

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next line that it writes; waits for it."""
        heard = _stdout(self.process).readline()
        if not heard:
            raise ChildFailed(self.describe("ended without an answer"))
        return heard.rstrip("\n")

    def wait(self, seconds: float) -> None:
        """Until it ends by itself, with status 0."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ChildFailed(self.describe(f"did not end within {seconds:.0f} s")) from None
        if status != 0:
            raise ChildFailed(self.describe(f"ended with status {status}"))

    def require_running(self) -> None:
        if self.process.poll() is not None:
            raise ChildFailed(self.describe(f"ended with status {self.process.returncode}"))

    def describe(self, what: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return f"{self.name} {what}; {self.log} ends with:\n" + "\n".join(line[:300] for line in lines)

    def stop(self, seconds: float = 20.0) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        # It and what it started, if anything is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        _living.discard(self)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _stdout(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def family(pid: int) -> list[int]:
    """The process and all that it started."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def processor_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes so far, to the nanosecond; of one that is gone, none."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            # The clock of another process's time: see clock_getcpuclockid(3).
            total += time.clock_gettime((~pid << 3) | 2)
    return total


def processor_seconds_of_each(pids: Iterable[int]) -> dict[int, float]:
    return {pid: processor_seconds([pid]) for pid in pids}


def processor_seconds_since(before: dict[int, float], after: dict[int, float]) -> float:
    """Between the two looks; of a process that began meanwhile all, of one that ended nothing, for nobody knows."""
    return sum(max(seconds - before.get(pid, 0.0), 0.0) for pid, seconds in after.items())


class Sampler:
    """Follows the processor time and the memory of some processes while a ``with`` lasts."""

    def __init__(self, pids: Sequence[int], *, interval: float = 0.05) -> None:
        self._pids = list(pids)
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="sampler", daemon=True)
        self.processor: list[tuple[float, float]] = []

    def _follow(self) -> None:
        while True:
            self.processor.append((time.monotonic(), processor_seconds(self._pids)))
            if self._done.wait(self._interval):
                self.processor.append((time.monotonic(), processor_seconds(self._pids)))
                return

    def seconds_between(self, begin: float, end: float) -> float:
        return arithmetic.at(self.processor, end) - arithmetic.at(self.processor, begin)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()


def resident_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_listening(port: int, child: Child, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        child.require_running()
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise ChildFailed(child.describe(f"does not listen on port {port}"))
        time.sleep(0.05)
