"""Starting, stopping, the command line, and what the simulator may not import."""

from __future__ import annotations

import argparse
import ast
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import marketplace.simulator
from marketplace.simulator import StripeSimulator, cli

from .conftest import MakeClient

PACKAGE = Path(marketplace.simulator.__file__).parent
ROOT = PACKAGE.parent.parent


def test_it_imports_nothing_of_ours_and_no_stripe() -> None:
    allowed = {"aiohttp", *sys.stdlib_module_names}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {each.name.split(".")[0] for each in node.names} <= allowed, path
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] in allowed, path
            assert not (isinstance(node, ast.ImportFrom) and node.level > 1), path


def test_starting_and_stopping_is_quick_and_leaves_nothing(make_client: MakeClient) -> None:
    threads = threading.active_count()
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    spent = 0.0
    for _ in range(5):
        started = time.perf_counter()
        sim = StripeSimulator(webhook_urls=["http://127.0.0.1:1/"]).start()
        spent += time.perf_counter() - started
        connection = http.client.HTTPConnection("127.0.0.1", sim.port)
        connection.request("GET", "/v1/balance", headers={"Authorization": "Bearer sk_test_x"})
        assert connection.getresponse().status == 200  # and the connection stays open
        sim.create_charge(1000)
        started = time.perf_counter()
        sim.stop()
        spent += time.perf_counter() - started
        connection.close()
    assert spent / 5 < 0.2
    assert threading.active_count() == threads
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_only_loopback_addresses_are_served() -> None:
    for host in ("0.0.0.0", "192.168.1.1", "example.com", "::"):  # noqa: S104
        with pytest.raises(ValueError, match="loopback"):
            StripeSimulator(host=host)


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("flag", "value", "accepted"),
    [
        ("--host", "0.0.0.0", "loopback"),  # noqa: S104
        ("--port", "70000", "0 to 65535"),
        ("--port", "http", "0 to 65535"),
        ("--latency-ms", "-1", "milliseconds"),
        ("--error-rate", "5", "0 to 1"),
        ("--drop-webhooks", "nan", "0 to 1"),
        ("--rate-limit", "0", "1 or more"),
        ("--rate-limit", "2.5", "1 or more"),
        ("--outage", "10", "START:SECONDS"),
        ("--outage", "10:-5", "START:SECONDS"),
        ("--webhook-url", "localhost", "http://"),
        ("--state-file", "/nowhere/at/all", "existing directory"),
        ("--charge-settles-after", "-3", "seconds"),
    ],
)
def test_nonsense_is_refused_naming_the_flag_and_what_is_accepted(
    capsys: pytest.CaptureFixture[str], flag: str, value: str, accepted: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(f"{flag}={value}")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert flag in said
    assert accepted in said


def test_a_wrong_secret_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--webhook-secret=sk_live_precious")
    assert "precious" not in capsys.readouterr().err


def test_the_flags_become_faults() -> None:
    options = cli.options_from(
        parse(
            "--latency-ms=40", "--latency-jitter-ms=20", "--error-rate=0.3", "--lost-answer-rate=0.1",
            "--lost-request-rate=0.1", "--rate-429=0.2", "--outage=30:10", "--outage=90:5", "--rate-limit=25",
            "--global-rate-limit=100", "--seed=abc", "--allow-negative-balances", "--pending-reversals",
            "--duplicate-webhooks=0.5", "--webhook-delay-ms=50", "--webhook-secret=whsec_one",
            "--webhook-secret=whsec_two",
        )
    )  # fmt: skip
    assert (options.seed, options.rate_limit, options.global_rate_limit) == ("abc", 25, 100)
    assert options.webhook_secrets == ("whsec_one", "whsec_two")
    assert options.webhook_faults.delay_seconds == 0.05
    sim = StripeSimulator(seed="abc", faults=options.faults)
    from marketplace.simulator.faults import Call

    sim.faults.remove("fault_1")
    sim.faults.remove("fault_2")
    seen: dict[str, int] = {}
    for _ in range(4000):
        rule = sim.faults.judge(Call(method="GET", endpoint="GET /v1/balance", ids=(), accounts=())).rule
        seen[rule.action if rule else ""] = seen.get(rule.action if rule else "", 0) + 1
    for action, share in {
        "error_500": 0.1,
        "drop_after": 0.1,
        "drop_before": 0.1,
        "lock_timeout": 0.1,
        "": 0.3,
    }.items():
        assert seen[action] / 4000 == pytest.approx(share, abs=0.03), action


@contextmanager
def running(*argv: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-W", "error", "-m", "marketplace.simulator", *argv],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_stop(number: int, make_client: MakeClient) -> None:
    flags = ["--port=0", "--seed=5", "--webhook-url=http://127.0.0.1:1/", "--webhook-secret=whsec_verysecret9876"]
    with running(*flags) as (process, first):
        assert "(seed 5)" in first
        url = first.split()[3]
        assert make_client(url=url).v1.balance.retrieve().object == "balance"
        process.send_signal(number)
        assert process.wait(timeout=10) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout.read(), process.stderr.read()
    assert err == ""
    assert "verysecret" not in out
    assert "whsec_…9876" in out
    assert "stopped" in out


def test_a_busy_port_is_named_and_the_exit_is_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "marketplace.simulator", f"--port={port}"],
            cwd=ROOT, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_spoiled_state_file_is_an_error_in_words(tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    state.write_text("not json\n{}\n")
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "marketplace.simulator", "--port=0", f"--state-file={state}"],
        cwd=ROOT, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "line 1 is not JSON" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reset_is_quick_and_keeps_the_port(sim: StripeSimulator, client: Any) -> None:
    sim.create_charge(1000)
    sim.faults.add("drop_before")
    url = sim.url
    started = time.perf_counter()
    for _ in range(100):
        sim.reset()
    assert time.perf_counter() - started < 1
    assert sim.url == url
    assert client.v1.charges.list().data == []
    assert len(sim.requests) == 1
