"""The command line: flags, their checks, and a simulator in the foreground until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .core import DEFAULT_SECRET, Core, Options
from .delivery import WebhookFaults
from .server import Server, require_loopback
from .world import Settings

DEFAULT_PORT = 12111


def _number(kind: type[int | float], low: float, high: float, accepted: str) -> Callable[[str], Any]:
    def read(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not low <= value <= high:  # also refuses nan
            raise argparse.ArgumentTypeError(f"{text!r} is not {accepted}")
        return value

    return read


_rate = _number(float, 0, 1, "a chance from 0 to 1, such as 0.05")
_milliseconds = _number(float, 0, 600_000, "milliseconds from 0 to 600000")
_per_second = _number(int, 1, 1_000_000, "a whole number of requests per second, 1 or more")


def _host(text: str) -> str:
    try:
        require_loopback(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as http://127.0.0.1:8000/webhooks/stripe/")
    return text


def _secret(text: str) -> str:
    """A wrong one is refused without being shown."""
    if not text.startswith("whsec_") or len(text) < 8:
        raise argparse.ArgumentTypeError("a webhook secret starts with whsec_ and goes on")
    return text


def _outage(text: str) -> tuple[float, float]:
    start, colon, seconds = text.partition(":")
    try:
        window = (float(start), float(seconds))
    except ValueError:
        window = (-1.0, -1.0)
    if not colon or not 0 <= window[0] < float("inf") or not 0 < window[1] < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not START:SECONDS, such as 30:10 for ten seconds of outage half a minute after the start"
        )
    return window


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in an existing directory")
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("where it listens")
    where.add_argument("--host", type=_host, default="127.0.0.1", help="loopback address (default: %(default)s)")
    where.add_argument(
        "--port",
        type=_number(int, 0, 65535, "a port from 0 to 65535"),
        default=DEFAULT_PORT,
        help="port; 0 takes a free one (default: %(default)s)",
    )
    state = parser.add_argument_group("state")
    state.add_argument("--seed", help="decides ids and faults; printed at start (default: a random one)")
    state.add_argument("--state-file", type=_file, metavar="PATH", help="keep everything in this file over restarts")
    state.add_argument(
        "--charge-settles-after",
        type=_number(float, 0, 365 * 86400, "seconds from 0 to a year"),
        default=0,
        metavar="SECONDS",
        help="until a charge's money is available (default: at once)",
    )
    state.add_argument(
        "--allow-negative-balances",
        action="store_true",
        help="reversals may take sellers below zero instead of answering balance_insufficient",
    )
    state.add_argument(
        "--pending-reversals",
        action="store_true",
        help="Stripe's private preview: reversals carry a status and wait when the seller lacks funds",
    )
    _webhook_arguments(parser.add_argument_group("webhooks"))
    _fault_arguments(parser.add_argument_group("faults"))


def _webhook_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--webhook-url",
        type=_url,
        action="append",
        default=[],
        metavar="URL",
        help="send all events here; repeatable",
    )
    group.add_argument(
        "--webhook-secret",
        type=_secret,
        action="append",
        default=[],
        metavar="whsec_…",
        help=f"sign with this; several sign side by side, as while rolling (default: {DEFAULT_SECRET})",
    )
    group.add_argument("--duplicate-webhooks", type=_rate, default=0, metavar="CHANCE", help="send it twice")
    group.add_argument(
        "--reorder-webhooks",
        type=_rate,
        default=0,
        metavar="CHANCE",
        help="hold it back for up to two seconds",
    )
    group.add_argument("--drop-webhooks", type=_rate, default=0, metavar="CHANCE", help="never send it")
    group.add_argument(
        "--webhook-delay-ms",
        type=_milliseconds,
        default=0,
        metavar="MS",
        help="wait before sending (default: 0)",
    )


def _fault_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--latency-ms", type=_milliseconds, default=0, metavar="MS", help="every call takes this long")
    group.add_argument(
        "--latency-jitter-ms", type=_milliseconds, default=0, metavar="MS", help="and up to this much longer"
    )
    group.add_argument(
        "--rate-limit",
        type=_per_second,
        metavar="N",
        help="requests per second and endpoint; Stripe's own is 25",
    )
    group.add_argument("--global-rate-limit", type=_per_second, metavar="N", help="requests per second in all")
    group.add_argument(
        "--error-rate",
        type=_rate,
        default=0,
        metavar="CHANCE",
        help="500, 500 after the effect, or 503, a third each",
    )
    group.add_argument(
        "--lost-answer-rate",
        type=_rate,
        default=0,
        metavar="CHANCE",
        help="do it, then close without an answer",
    )
    group.add_argument("--lost-request-rate", type=_rate, default=0, metavar="CHANCE", help="close without doing it")
    group.add_argument(
        "--rate-429",
        type=_rate,
        default=0,
        metavar="CHANCE",
        help="429: a limiter's, or lock_timeout, half each",
    )
    group.add_argument(
        "--outage",
        type=_outage,
        action="append",
        default=[],
        metavar="START:SECONDS",
        help="503 for every call in this window of seconds since the start; repeatable",
    )


def options_from(options: argparse.Namespace) -> Options:
    more = {} if options.seed is None else {"seed": options.seed}
    return Options(
        settings=Settings(
            charge_settles_after=options.charge_settles_after,
            allow_negative_balances=options.allow_negative_balances,
            pending_reversals=options.pending_reversals,
        ),
        faults=_faults(options),
        rate_limit=options.rate_limit,
        global_rate_limit=options.global_rate_limit,
        webhook_urls=tuple(options.webhook_url),
        webhook_secrets=tuple(options.webhook_secret) or (DEFAULT_SECRET,),
        webhook_faults=WebhookFaults(
            duplicates=options.duplicate_webhooks,
            reordered=options.reorder_webhooks,
            dropped=options.drop_webhooks,
            delay_seconds=options.webhook_delay_ms / 1000,
        ),
        state_file=options.state_file,
        **more,
    )


def _faults(options: argparse.Namespace) -> list[dict[str, Any]]:
    plan: list[dict[str, Any]] = [
        {"action": "unavailable", "start": start, "end": start + seconds, "real": True}
        for start, seconds in options.outage
    ]
    if options.latency_ms or options.latency_jitter_ms:
        plan.append(
            {
                "action": "latency",
                "seconds": options.latency_ms / 1000,
                "jitter": options.latency_jitter_ms / 1000,
            }
        )
    chances = [
        *[(action, options.error_rate / 3) for action in ("error_500", "error_500_after", "unavailable")],
        ("drop_after", options.lost_answer_rate),
        ("drop_before", options.lost_request_rate),
        *[(action, options.rate_429 / 2) for action in ("rate_limited", "lock_timeout")],
    ]
    left = 1.0
    for action, chance in chances:
        if chance > 0:
            # Each rule sees only the calls that the ones before it let pass.
            share = chance / left if left > chance else 1.0
            plan.append({"action": action, "probability": min(1.0, share)})
            left -= chance
    return plan


async def _serve(options: argparse.Namespace) -> int:
    core = Core(options_from(options))
    server = Server(core, host=options.host, port=options.port)
    try:
        await server.start()
    except OSError as error:
        core.close()
        busy = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        _say(f"error: port {options.port} on {options.host} {busy}; choose another with --port", sys.stderr)
        return 1
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):  # outside the main thread
            loop.add_signal_handler(number, stopped.set)
    _say(f"Stripe simulator on {server.url} (seed {core.options.seed})")
    _say(f"  audit: {server.url}/_simulator/audit")
    for url in core.options.webhook_urls:
        shown = ", ".join(f"whsec_…{secret[-4:]}" for secret in core.options.webhook_secrets)
        _say(f"  webhooks: {url}, signed with {shown}")
    await stopped.wait()
    await server.stop()
    core.close()
    _say("Stripe simulator stopped")
    return 0


def _say(text: str, where: Any = None) -> None:
    print(text, file=where or sys.stdout, flush=True)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. The exit status: 1 when the port or the state file cannot be used."""
    try:
        return asyncio.run(_serve(options))
    except (OSError, ValueError) as error:
        _say(f"error: {error}", sys.stderr)
        return 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m marketplace.simulator",
        description="A stateful local Stripe over HTTP, for development and tests.",
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))
