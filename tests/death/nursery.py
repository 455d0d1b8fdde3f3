"""A program that has everything imported and forks a process per order: real processes, without a second's start each.

One JSON object per line on stdin, one answer per line on stdout. ``{"start": {...}}`` runs a command of ``manage.py``
in a new process, ``{"ask": pid}`` tells its exit status once it has one. When stdin ends, what still runs is killed.
"""

import gc
import json
import os
import signal
import sys
from datetime import timedelta
from typing import Any

# Process id to exit status, as subprocess.Popen.returncode has it; None while it runs.
children: dict[int, int | None] = {}


def serve() -> None:
    import django

    django.setup()
    # What the commands would import at their first use.
    from django.core.management import get_commands, load_command_class

    for name in ("run_reversal_worker", "run_transfer_retry_worker", "runserver"):
        load_command_class(get_commands()[name], name)
    import veza.urls  # noqa: F401

    # The children share what is there now: their collector, at exit too, would make a copy of every page of it.
    gc.collect()
    gc.freeze()
    answer({"ready": os.getpid()})
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer({"pid": start(request["start"])})
        else:
            answer({"status": status_of(request["ask"])})
    for pid in [pid for pid, status in children.items() if status is None]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def answer(said: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def start(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        live(order)
    children[pid] = None
    return pid


def status_of(pid: int) -> int | None:
    if children[pid] is None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children[pid] = os.waitstatus_to_exitcode(status)
    return children[pid]


def live(order: dict[str, Any]) -> None:
    """The new process, from its first breath; it ends here."""
    children.clear()
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    change_settings(order["settings"])
    from tests.death import clocks, steps

    if order["clock_offset"]:
        clocks.shift(order["clock_offset"])
    if order["die"]:
        steps.die_at(order["die"])
    from django.core.management import execute_from_command_line

    execute_from_command_line(["manage.py", *order["command"]])
    sys.exit(0)


def change_settings(changes: dict[str, Any]) -> None:
    """As the environment would have them; durations are given in seconds."""
    from django.conf import settings

    for name, value in changes.items():
        present = getattr(settings, name, None)
        setattr(settings, name, timedelta(seconds=value) if isinstance(present, timedelta) else value)


if __name__ == "__main__":
    serve()
