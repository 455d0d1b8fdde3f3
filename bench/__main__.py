"""``python -m bench``: measure everything, or what is named, and show it against the bars."""

import argparse
import contextlib
import dataclasses
import fcntl
import importlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import psutil
from rich.console import Console

from bench import ground, processes, report
from bench.comparators import ensure, version
from bench.fakes import FakeStripe
from bench.measurements import claim, memory
from bench.processes import ROOT, ChildFailed
from bench.report import Row
from bench.run import Run

# In this order: what the terminal shows first is what most people ask first.
MEASUREMENTS = (
    "throughput", "mixed", "allowance", "scale", "statements", "pickup", "webhook", "idle", "pages", "claim", "memory",
)  # fmt: skip
COMPARATORS = {"throughput": ["procrastinate"], "pickup": ["procrastinate"], "webhook": ["djstripe"]}
RESULTS = ground.STATE / "results.json"
DOCS = ROOT / "docs"
# What stands between these in docs/benchmarks.md is written by --docs.
MARKED = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)


def main() -> int:
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 200)
    if sys.platform != "linux":
        console.print("error: make bench reads /proc, so it runs on Linux only")
        return 2
    # As Ctrl-C: so that whatever is running is stopped in order.
    signal.signal(signal.SIGTERM, _interrupted)
    began = time.monotonic()
    try:
        with _alone():
            run, rows = _measure(options, console)
    except ChildFailed as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; nothing is left running")
        return 130
    report.show(console, rows, run.noise)
    machine = _machine(run, seconds=time.monotonic() - began)
    found = report.results(machine=machine, rows=rows, noise=run.noise)
    report.write(RESULTS, found)
    console.print(f"\nWritten to {RESULTS.relative_to(ROOT)}; {machine['minutes']} minutes.")
    if options.docs:
        _write_docs(found)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default="", help=f"some of {', '.join(MEASUREMENTS)}; separated by commas")
    parser.add_argument("--quick", action="store_true", help="one short repetition of each: to see that it works")
    parser.add_argument("--docs", action="store_true", help="write what was measured into docs/benchmarks.*")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name] or list(MEASUREMENTS)
    if unknown := sorted(set(options.only) - set(MEASUREMENTS)):
        parser.error(f"no such measurement: {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}")
    if options.docs and options.quick:
        parser.error("--docs needs whole repetitions: leave --quick out")
    return options


def _measure(options: argparse.Namespace, console: Console) -> tuple[Run, list[Row]]:
    for comparator in sorted({each for name in options.only for each in COMPARATORS.get(name, [])}):
        with console.status(f"installing {comparator} in an environment of its own, once"):
            ensure(comparator)
    with console.status("starting a PostgreSQL of the benchmark's own"):
        server = ground.Server()
    try:
        with FakeStripe(ground.LOGS) as stripe:
            run = Run(console=console, server=server, stripe=stripe, quick=options.quick)
            rows: list[Row] = []
            for name in MEASUREMENTS:
                if name not in options.only or (name == "memory" and "claim" in options.only):
                    continue
                run.measurement = name
                if name == "claim" and "memory" in options.only:
                    rows += _claim_and_memory(run)
                else:
                    module = importlib.import_module(f"bench.measurements.{name}")
                    rows += module.measure(run)
            return run, rows
    except BaseException:
        processes.stop_all()
        raise
    finally:
        server.remove()


def _claim_and_memory(run: Run) -> list[Row]:
    """Memory is no matter of time: it is looked at while the tables for the claims are filled."""
    with FakeStripe(ground.LOGS, "stripe-memory") as stripe, ThreadPoolExecutor(1) as beside:
        other = dataclasses.replace(run, stripe=stripe, measurement="memory")
        looking = beside.submit(memory.measure, other)
        try:
            return [*claim.measure(run, once_filled=looking.result), *looking.result()]
        except BaseException:
            processes.stop_all()
            raise


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two runs at once would measure each other, and share a PostgreSQL that each of them removes."""
    ground.STATE.mkdir(parents=True, exist_ok=True)
    with (ground.STATE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ChildFailed("another run of the benchmark is under way in this checkout") from None
        yield


def _interrupted(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _machine(run: Run, *, seconds: float) -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 - whichever git there is
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    packages = {name: metadata.version(name) for name in ("Django", "psycopg", "stripe", "granian")}
    peers = {"dj-stripe": version("djstripe", "dj-stripe"), "Procrastinate": version("procrastinate", "procrastinate")}
    return {
        "when": datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "minutes": round(seconds / 60, 1),
        "quick": run.quick,
        "commit": commit.stdout.strip(),
        "processor": model[1].strip() if model else platform.processor(),
        "processors": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "postgresql": run.server.version,
        "packages": packages,
        "compared_with": peers,
    }


def _write_docs(found: dict[str, Any]) -> None:
    """Results of measurements that did not run this time stay, with the date of their own run."""
    page, figures = DOCS / "benchmarks.md", DOCS / "benchmarks.json"
    merged = report.merged(json.loads(figures.read_text(encoding="utf-8")), found, MEASUREMENTS)
    text, marks = MARKED.subn(
        lambda marks: f"{marks[1]}\n{report.page(merged)}\n\n{marks[2]}", page.read_text(encoding="utf-8")
    )
    if marks != 1:
        raise SystemExit(f"error: {page} has no place for the results")
    page.write_text(text, encoding="utf-8")
    report.write(figures, merged)


if __name__ == "__main__":
    sys.exit(main())
