"""`StripeSimulator`: a simulator inside the current process, for tests and scripts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .audit import audit
from .core import DEFAULT_SECRET, Core, Options
from .dashboard import Dashboard
from .delivery import Sent, WebhookFaults
from .faults import Plan
from .request_log import RequestLog
from .server import Server
from .world import Settings, World


class SimulatorClock:
    """The simulator's time. Moving it does everything that falls due on the way, before it returns."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def now(self) -> float:
        return self._core.world.now()

    @property
    def frozen(self) -> bool:
        return self._core.clock.frozen

    def advance(self, seconds: float) -> float:
        if seconds < 0:
            raise ValueError(f"the clock is advanced by 0 seconds or more, not by {seconds!r}")
        return self.move_to(self.now() + seconds)

    def move_to(self, moment: float) -> float:
        """Forward; what is due is done on the way. Backward only the clock moves."""
        core = self._core
        with core.world.lock:
            if moment >= core.world.now():
                core.world.run_due(until=moment)
            else:
                core.clock.move_to(moment)
            if core.journal is not None:
                core.journal.moved(core.world)
        return moment

    def freeze(self, at: float | None = None) -> None:
        self._core.clock.freeze(at)

    def run(self) -> None:
        self._core.clock.run()
        self._core.on_wake()


class StripeSimulator(Dashboard):
    """A Stripe of your own on a loopback port, from `with` to its end.

    Besides what is here, everything of `Dashboard`: objects made without HTTP, and what happens outside
    the API.
    """

    def __init__(
        self,
        seed: int | str = 1,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        frozen_at: float | None = None,
        rate_limit: int | None = None,
        global_rate_limit: int | None = None,
        webhook_urls: Iterable[str] = (),
        webhook_secrets: Iterable[str] = (DEFAULT_SECRET,),
        webhook_faults: WebhookFaults | None = None,
        faults: Iterable[dict[str, Any]] = (),
        state_file: Path | str | None = None,
        **settings: Any,
    ) -> None:
        """`settings` are the fields of `Settings`, such as `charge_settles_after=3600`."""
        options = Options(
            seed=seed,
            settings=Settings(**settings),
            faults=list(faults),
            rate_limit=rate_limit,
            global_rate_limit=global_rate_limit,
            webhook_urls=tuple(webhook_urls),
            webhook_secrets=tuple(webhook_secrets),
            webhook_faults=webhook_faults or WebhookFaults(),
            frozen_at=frozen_at,
            state_file=None if state_file is None else Path(state_file),
        )
        self.core = Core(options)
        super().__init__(self.core)
        self.clock = SimulatorClock(self.core)
        self._server = Server(self.core, host=host, port=port)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def world(self) -> World:
        return self.core.world

    @property
    def faults(self) -> Plan:
        return self.core.faults

    @property
    def requests(self) -> RequestLog:
        return self.core.log

    @property
    def webhooks_sent(self) -> list[Sent]:
        return list(self.core.delivery.sent)

    @property
    def webhook_faults(self) -> WebhookFaults:
        return self.core.delivery.faults

    def audit(self) -> dict[str, Any]:
        return audit(self.core.world)

    def reset(self) -> None:
        """An empty Stripe again, as it was started, on the same port."""
        self.core.reset()

    def deliver_to(self, *urls: str) -> None:
        """Send all events to these addresses from now on, signed with the simulator's own secrets."""
        self.core.delivery.urls = urls

    def wait_for_webhooks(self, timeout: float = 10) -> bool:
        """Until everything due has been sent; whether that came in time."""
        return self.core.delivery.wait(self.core.world, timeout)

    def start(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="stripe-simulator", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            self._thread.join()
            failure, self._failure = self._failure, None
            raise failure
        return self

    def _run(self, ready: threading.Event) -> None:
        async def serve() -> None:
            stopped = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            self._stopped = stopped
            try:
                await self._server.start()
            except BaseException as failure:  # noqa: BLE001  # the caller's thread raises it
                self._failure = failure
                return
            finally:
                ready.set()
            await stopped.wait()
            await self._server.stop()

        asyncio.run(serve())

    def stop(self) -> None:
        if self._thread is not None:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()
            self._thread = None
        self.core.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
