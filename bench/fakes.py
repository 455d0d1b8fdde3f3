"""The fake Stripe as a child process, and what it saw."""

import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.arithmetic import Call
from bench.processes import PYTHON, Child, ChildFailed, environment, free_port


class FakeStripe:
    def __init__(self, logs: Path, name: str = "stripe") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.child = Child(
            name,
            [PYTHON, "-m", "bench.fake_stripe", str(self.port)],
            env=environment(),
            logs=logs,
            talks=True,
        )
        assert self.child.hear() == "ready"

    def configure(self, **behaviour: float) -> None:
        """Behave so from now on, and forget the calls so far. See ``fake_stripe.World.configure``."""
        self._ask("configure", behaviour)

    def progress(self) -> dict[str, int]:
        return dict(self._ask("progress"))

    def wait_for(
        self,
        answered: int,
        *,
        seconds: float,
        while_runs: Child | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> None:
        """Until so many calls were answered; ``tell`` hears of each look."""
        deadline = time.monotonic() + seconds
        while (seen := self.progress()["answered"]) < answered:
            self.child.require_running()
            if while_runs is not None:
                while_runs.require_running()
            if tell is not None:
                tell(seen)
            if time.monotonic() > deadline:
                raise ChildFailed(f"{seen} of {answered} calls within {seconds:.0f} s")
            time.sleep(0.1 if tell is None else 1.0)

    def calls(self) -> list[Call]:
        """All so far, in order of arrival. One that is no reversal means that the measurement is wrong."""
        seen = self._ask("calls")
        if seen["unknown"]:
            raise ChildFailed(f"the fake Stripe was asked for {seen['unknown'][:3]}")
        return [
            Call(arrived=arrived, answered=answered, status=status, subject=subject)
            for arrived, answered, status, subject in zip(
                seen["arrived"], seen["answered"], seen["status"], seen["subject"], strict=True
            )
        ]

    def _ask(self, what: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", f"/_bench/{what}", body=json.dumps(body))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.stop()
