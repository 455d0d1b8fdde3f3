"""How the demonstration speaks: restrained colour in a terminal, plain lines in a file, and no log lines in between."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from django.core.management.base import OutputWrapper
from rich.console import Console


def console(stream: OutputWrapper | IO[str]) -> Console:
    """Rich, on a command's own output."""
    if isinstance(stream, OutputWrapper):
        # Rich brings its own line ends; the wrapper would add more after every control code.
        stream.ending = ""
    kept: Any = stream
    return Console(file=kept, highlight=False, soft_wrap=True)


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Only warnings and worse of ours, for the steps are told on the terminal already; and of the connection pool only
    errors, for it complains of each query that Ctrl-C broke off.
    """
    levels = {"marketplace": logging.WARNING, "psycopg.pool": logging.ERROR}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
