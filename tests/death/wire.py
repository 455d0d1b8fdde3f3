"""The network between the workers and Stripe, which a test can hold, cut, or turn into a black hole."""

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from tests.death.processes import PATIENCE, wait_until

CHUNK = 65536


class Wire:
    """A loopback port whose bytes go to another one and back, as long as nothing is done to it."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()
        self._requests_flow = asyncio.Event()
        self._answers_flow = asyncio.Event()
        self._swallows = False
        self.held_requests = 0
        self.held_answers = 0
        self.connections = 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.restore()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    # --- What may be done to it ---------------------------------------------------------------------------------------

    def restore(self) -> None:
        """As new: what was held goes on, what was swallowed stays lost."""

        async def restore() -> None:
            if self._swallows:
                await self._cut()
            self._swallows = False
            self._requests_flow.set()
            self._answers_flow.set()
            if self._server is None:
                self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port, backlog=512)

        self._do(restore())

    def hold_requests(self) -> None:
        """They do not get there, until they may: also those whose sender is dead by then."""
        self._soon(self._requests_flow.clear)

    def hold_answers(self) -> None:
        """Stripe has done it, and nobody hears of it."""
        self._soon(self._answers_flow.clear)

    def swallow(self) -> None:
        """A black hole: connections are accepted, and whatever is sent is gone."""

        async def swallow() -> None:
            await self._cut()
            self._swallows = True

        self._do(swallow())

    def refuse(self) -> None:
        """Nobody listens any more, and what was open breaks."""
        self._do(self._close())

    def wait_for_held_requests(self, count: int) -> None:
        wait_until(lambda: self.held_requests >= count, lambda: f"{count} requests, {self.held_requests} are held")

    def wait_for_held_answers(self, count: int) -> None:
        wait_until(lambda: self.held_answers >= count, lambda: f"{count} answers, {self.held_answers} are held")

    # --- How it works -------------------------------------------------------------------------------------------------

    def _do(self, act: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(act, self._loop).result(PATIENCE)

    def _soon(self, act: Callable[[], None]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (act(), done.set()))
        assert done.wait(PATIENCE)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _cut(self) -> None:
        for handler in list(self._handlers):
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        self.connections += 1
        onward: asyncio.StreamWriter | None = None
        try:
            if self._swallows:
                while await reader.read(CHUNK):
                    pass
                return
            answers, onward = await asyncio.open_connection("127.0.0.1", self._upstream)
            sending = asyncio.create_task(self._pump_requests(reader, onward))
            try:
                await self._pump_answers(answers, writer)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        except (asyncio.CancelledError, OSError):
            pass
        finally:
            for each in (writer, onward):
                if each is not None:
                    with contextlib.suppress(OSError):
                        each.transport.abort()
            self._handlers.discard(handler)

    async def _pump_requests(self, reader: asyncio.StreamReader, onward: asyncio.StreamWriter) -> None:
        """What a sender had sent before it died arrives all the same: the way on stays open."""
        while data := await reader.read(CHUNK):
            if not self._requests_flow.is_set():
                # Only a whole request is held: a sender killed between its headers and its body has asked nothing.
                while not _is_whole(data) and (more := await reader.read(CHUNK)):
                    data += more
                self.held_requests += 1
                try:
                    await self._requests_flow.wait()
                finally:
                    self.held_requests -= 1
            onward.write(data)
            await onward.drain()

    async def _pump_answers(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await answers.read(CHUNK):
            if not self._answers_flow.is_set():
                self.held_answers += 1
                try:
                    await self._answers_flow.wait()
                finally:
                    self.held_answers -= 1
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()


def _is_whole(request: bytes) -> bool:
    headers, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", headers)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)
