"""Typed readers of environment variables.

Each reader refuses nonsense with one sentence: the variable's name, its value (masked where secret) and what is
accepted. Every variable read is remembered in ``Environment.read``, so that a test can hold `.env.template` to it.
"""

import contextlib
import os
import re
import secrets
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.validators import validate_email
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

T = TypeVar("T")

DURATION_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
DURATION_ACCEPTED = "a duration such as 90s, 1m, 1h or 2d"
LONGEST_DURATION = timedelta(days=366)
EMAIL_SCHEMES = frozenset({"smtp", "smtps", "smtp+tls", "smtp+ssl", "consolemail"})
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


def mask(value: str) -> str:
    """Show that a secret is there, and no more of it than its public prefix (``sk_live_``, ``whsec_``)."""
    prefix = re.match(r"(?:sk|rk|pk)_(?:test|live)_|whsec_", value)
    return f"{prefix.group() if prefix else ''}***"


def invalid(name: str, value: str, accepted: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{name}={value!r} is not valid: expected {accepted}.")


def parse_duration(text: str) -> timedelta:
    """``90s``, ``1m``, ``1h``, ``2d`` as a timedelta; ``ValueError`` for anything else, zero and over a year too."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    if match is None:
        raise ValueError(text)
    duration = timedelta(**{DURATION_UNITS[match[2]]: int(match[1])})
    if not timedelta(0) < duration <= LONGEST_DURATION:
        raise ValueError(text)
    return duration


def local_secret_key(state_directory: Path) -> str:
    """A key of this checkout alone, made at the first call, readable by its owner only."""
    path = state_directory / "secret_key"
    if not path.exists():
        state_directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=state_directory, prefix="secret_key.") as draft:
            draft.write(secrets.token_urlsafe(48))
            draft.flush()
            # Of two processes that start together one links its draft, the other reads that one.
            with contextlib.suppress(FileExistsError):
                os.link(draft.name, path)
    return path.read_text()


@dataclass(frozen=True)
class Variable:
    """One variable as the program reads it: what `.env.template` must say."""

    name: str
    default: str
    secret: bool


@dataclass
class Environment:
    """The process environment, seen through readers that refuse nonsense by the variable's name."""

    source: environ.Env = field(default_factory=environ.Env)
    read: dict[str, Variable] = field(default_factory=dict)

    def text(self, name: str, default: str = "", *, secret: bool = False) -> str:
        """The value, or the default where the variable is unset or empty."""
        self.read[name] = Variable(name, default, secret)
        # Not through its str(): that one takes a value which begins with "$" for the name of another variable.
        value: str = self.source.ENVIRON.get(name, "")
        return value.strip() or default

    def read_file(self, path: Path, *, required: bool) -> None:
        """Take up the ``NAME=value`` lines of a file; variables that the environment has already stay as they are.

        A line that is anything else is refused by its number: its text may be a secret.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            if required:
                raise ImproperlyConfigured(f"ENV_FILE names {path}, which does not exist.") from None
            return
        except (OSError, UnicodeDecodeError) as error:
            raise ImproperlyConfigured(f"{path} cannot be read as text ({type(error).__name__}).") from None
        for number, line in enumerate(lines, start=1):
            if line and not line.startswith("#") and not re.match(r"(?:export )?[A-Za-z_0-9]+=", line):
                raise ImproperlyConfigured(
                    f"{path} line {number} is not valid: expected NAME=value without spaces around them, or a comment."
                )
        self.source.read_env(path, overwrite=False)

    def _parsed(self, name: str, default: str, parse: Callable[[str], T], accepted: str) -> T:
        raw = self.text(name, default)
        try:
            return parse(raw)
        except ValueError:
            raise invalid(name, raw, accepted) from None

    def boolean(self, name: str, default: str) -> bool:
        words = {
            "true": True,
            "on": True,
            "yes": True,
            "1": True,
            "false": False,
            "off": False,
            "no": False,
            "0": False,
        }

        def parse(raw: str) -> bool:
            if raw.lower() not in words:
                raise ValueError(raw)
            return words[raw.lower()]

        return self._parsed(name, default, parse, "true or false")

    def integer(self, name: str, default: str, *, minimum: int, maximum: int) -> int:
        def parse(raw: str) -> int:
            if not re.fullmatch(r"-?[0-9]{1,12}", raw) or not minimum <= int(raw) <= maximum:
                raise ValueError(raw)
            return int(raw)

        return self._parsed(name, default, parse, f"a whole number from {minimum} to {maximum}")

    def duration(self, name: str, default: str) -> timedelta:
        return self._parsed(name, default, parse_duration, DURATION_ACCEPTED)

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        def parse(raw: str) -> str:
            if raw not in choices:
                raise ValueError(raw)
            return raw

        return self._parsed(name, default, parse, "one of " + ", ".join(choices))

    def amounts(self, name: str, default: str) -> dict[str, int]:
        """Amounts in minor units: ``1000000,jpy:100000000`` is the first for every currency but yen.

        Under ``""`` stands the one for currencies that are not named; 0 where none is given.
        """

        def parse(raw: str) -> dict[str, int]:
            found = {"": 0}
            for word in raw.split(","):
                match = re.fullmatch(r"(?:([a-z]{3}):)?([0-9]{1,15})", word.strip())
                if match is None:
                    raise ValueError(word)
                found[match[1] or ""] = int(match[2])
            return found

        accepted = "an amount in minor units for all currencies, or several such as 1000000,jpy:100000000"
        return self._parsed(name, default, parse, accepted)

    def words(self, name: str, default: str = "", *, secret: bool = False) -> list[str]:
        """A comma-separated list without empty members."""
        return [word.strip() for word in self.text(name, default, secret=secret).split(",") if word.strip()]

    def http_url(self, name: str, default: str = "", *, such_as: str = "https://api.stripe.com") -> str:
        """An ``http(s)://`` address, or empty. A trailing slash is dropped. Plain http is for loopback only."""
        return self.endpoint(name, default, such_as=such_as).rstrip("/")

    def endpoint(self, name: str, default: str = "", *, such_as: str) -> str:
        """The same, as it is written: for somebody else's path the slash may matter."""
        value = self.text(name, default)
        if not value:
            return ""
        accepted = f"an https:// address (http:// for this machine only), such as {such_as}"
        try:
            parts = urlsplit(value)
            host = parts.hostname
            _ = parts.port
        except ValueError:
            raise invalid(name, value, accepted) from None
        safe = parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK_HOSTS)
        if not safe or not host or parts.username or parts.password:
            raise invalid(name, re.sub(r"//.*@", "//***@", value), accepted)
        return value

    def collector(self, name: str) -> str:
        """An OpenTelemetry collector's address, or empty; plain http too, for it stands beside us and gets no secret.

        Refused where the packages that speak with it are not installed.
        """
        value = self.text(name).rstrip("/")
        if not value:
            return ""
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise invalid(name, re.sub(r"//.*@", "//***@", value), "an address such as http://127.0.0.1:4318")
        try:
            # Not at the top: they are an extra.
            import opentelemetry.exporter.otlp.proto.http
            import opentelemetry.sdk.trace  # noqa: F401 - only whether they are there
        except ImportError:
            accepted = "to be empty where OpenTelemetry is not installed: pip install '.[tracing]'"
            raise invalid(name, value, accepted) from None
        return value

    def email_url(self, name: str) -> dict[str, Any]:
        """Django's settings of a mail server (``EMAIL_HOST`` and so on), or none where the variable is unset."""
        value = self.text(name, secret=True)
        if not value:
            return {}
        accepted = "smtp://, smtp+tls:// or smtp+ssl:// with user:password@host:port, or consolemail://"
        try:
            config: dict[str, Any] = dict(environ.Env.email_url_config(value))
        except (ValueError, KeyError, AttributeError, ImproperlyConfigured):
            raise invalid(name, "***", accepted) from None
        has_host = config["EMAIL_HOST"] is not None or value.startswith("consolemail:")
        if urlsplit(value).scheme not in EMAIL_SCHEMES or not has_host or "OPTIONS" in config:
            raise invalid(name, "***", accepted)
        # Without a user there is no login; Django wants text for that.
        login = {part: config[part] or "" for part in ("EMAIL_HOST_USER", "EMAIL_HOST_PASSWORD")}
        return {**config, **login, "EMAIL_PORT": config["EMAIL_PORT"] or 25}

    def emails(self, name: str) -> list[str]:
        values = self.words(name)
        for value in values:
            try:
                validate_email(value)
            except ValidationError:
                raise invalid(name, value, "e-mail addresses, separated by commas") from None
        return values

    def stripe_secret_key(self, name: str) -> str:
        value = self.text(name, secret=True)
        if value and not re.fullmatch(r"(sk|rk)_(test|live)_[A-Za-z0-9_]+", value):
            raise invalid(
                name,
                mask(value),
                "a Stripe secret or restricted key: sk_test_…, sk_live_…, rk_test_… or rk_live_…",
            )
        return value

    def stripe_webhook_secrets(self, name: str) -> list[str]:
        values = self.words(name, secret=True)
        for value in values:
            if not re.fullmatch(r"whsec_[A-Za-z0-9+/=_-]+", value):
                raise invalid(name, mask(value), "one or more comma-separated endpoint secrets: whsec_…")
        return values

    def database(self, name: str) -> dict[str, Any] | None:
        """Django's description of a PostgreSQL database, or None where the variable is unset."""
        value = self.text(name, secret=True)
        if not value:
            return None
        accepted = "postgres://user:password@host:5432/name (PostgreSQL only)"
        # Up to the last "@": a password may hold one that should have been written as %40.
        shown = re.sub(r"//.*@", "//***@", value.split("?")[0]) if "://" in value else "***"
        try:
            with warnings.catch_warnings():
                # It would warn, with the value, of what we refuse below.
                warnings.simplefilter("ignore")
                config: dict[str, Any] = dict(environ.Env.db_url_config(value))
        except (ValueError, KeyError, AttributeError):
            raise invalid(name, shown, accepted) from None
        if config.get("ENGINE") != "django.db.backends.postgresql" or not config.get("NAME"):
            raise invalid(name, shown, accepted)
        if "pool" in config.get("OPTIONS", {}):
            raise invalid(name, f"{shown}?pool=…", "no pool: this program brings its own, which serves its threads")
        return config

    def listen_url(self, name: str) -> str:
        """An address that psycopg takes, ``none``, or empty."""
        if self.text(name, secret=True) == "none":
            return "none"
        self.database(name)
        value = self.text(name, secret=True)
        try:
            # By the parser that will read it.
            conninfo_to_dict(value)
        except ProgrammingError:
            raise invalid(name, "***", "postgres://user:password@host:5432/name, special characters as %40") from None
        return value
