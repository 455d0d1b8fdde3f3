"""What the two worker commands share: flags, the switch, signals, exit codes."""

import gc
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any, Protocol

import structlog
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from prometheus_client import REGISTRY, start_http_server

from marketplace import monitoring, tracing
from marketplace.errors import StripeDenied
from marketplace.gateway.contract import TransferGateway
from marketplace.throttle import gateway
from marketplace.workers.loop import Worker

logger = structlog.get_logger(__name__)


class WorkerFactory(Protocol):
    def __call__(
        self, gateway: TransferGateway, *, concurrency: int | None = None, batch_size: int | None = None
    ) -> Worker: ...


def whole_number(minimum: int, maximum: int) -> Any:
    """An argparse type that refuses nonsense with what is accepted."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not minimum <= int(text) <= maximum:
            raise ArgumentTypeError(f"{text!r} is not valid: expected a whole number from {minimum} to {maximum}")
        return int(text)

    return parse


class WorkerCommand(BaseCommand):
    """Exit status: 0 when stopped by a signal, switched off, or drained; 1 when Stripe refuses our key."""

    switch: str
    make_worker: WorkerFactory

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", help="do all that is due, then exit")
        parser.add_argument(
            "--batch-size", type=whole_number(1, 1000), help="rows claimed at once (default: REVERSAL_BATCH_SIZE)"
        )
        parser.add_argument(
            "--concurrency", type=whole_number(1, 32), help="calls at Stripe at once (default: REVERSAL_CONCURRENCY)"
        )
        parser.add_argument(
            "--metrics-port", type=whole_number(1, 65535), help="serve Prometheus metrics on this port of loopback"
        )

    def handle(self, *_args: str, **options: Any) -> None:
        if not getattr(settings, self.switch):
            self.stdout.write(f"{self.switch} is false: nothing to do here.")
            return
        if not settings.STRIPE_SECRET_KEY:
            raise CommandError("STRIPE_SECRET_KEY is not set: expected the key of the platform's Stripe account.")
        if options["metrics_port"]:
            self._serve_metrics(options["metrics_port"])
        tracing.start()
        worker = type(self).make_worker(gateway(), concurrency=options["concurrency"], batch_size=options["batch_size"])
        # All that starting has loaded stays: no collection need ever look through it again.
        gc.freeze()
        try:
            with worker.stopping_on_signals():
                if options["once"]:
                    self.stdout.write(f"{worker.run_once()} done.")
                else:
                    logger.info("worker_started", worker=self.switch.removesuffix("_ENABLED").lower())
                    worker.run()
        except StripeDenied as error:
            raise CommandError(
                f"Stripe refuses our key or its permissions: {error.message} Nothing was spent; the rows stay due."
            ) from error

    def _serve_metrics(self, port: int) -> None:
        REGISTRY.register(monitoring.PoolCollector())
        try:
            start_http_server(port, addr="127.0.0.1")
        except OSError as error:
            raise CommandError(f"--metrics-port {port}: {error.strerror}") from error
