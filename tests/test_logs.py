"""Logs: one line per step, readable by machines, and never a secret in it."""

import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.redaction import redact
from tests.structure.sources import ROOT

SECRETS = [
    "sk_test_s3cret",
    "sk_org_s3cret",
    "sk_live_s3cret",
    "rk_live_s3_cret",
    "pk_test_s3cret",
    "whsec_s3cret+/=",
    "pi_1_secret_s3cret",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("text", ["{}", "key={}", "'{}'", "a\n{}\nb", "Bearer {}", "a{}", "({}, 1)"])
def test_a_secret_is_masked_wherever_it_stands(secret: str, text: str) -> None:
    masked = redact(text.format(secret))
    assert "s3" not in masked
    assert secret.split("s3", maxsplit=1)[0] + "***" in masked
    assert "s3" not in redact(repr(text.format(secret)))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgres://user:s3cret@host/db", "postgres://user:***@host/db"),
        ("postgres://:s3cret@host/db", "postgres://:***@host/db"),
        ("Invalid API Key provided: sk_test_****1234", "Invalid API Key provided: sk_test_***"),
    ],
)
def test_passwords_and_starred_keys_are_masked(text: str, masked: str) -> None:
    assert redact(text) == masked


@pytest.mark.parametrize(
    "text", ["tr_1 reversed", "https://api.stripe.com/v1/transfers", "a sk_test_ key", "task_test"]
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


@given(st.text())
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    assert redact(redact(text)) == redact(text)


# A program of its own, because logging is configured for the whole process.
PROGRAM = """
import logging, sys
import structlog
from veza import logs

logs.configure(level="INFO", log_format=sys.argv[1])
log = structlog.get_logger("ours")
bound = log.bind(transfer=7)
bound.info("step", key="sk_test_s3cret", nested={"a": ["whsec_s3cret", ("sk_live_s3cret",)]}, number=3)
logging.getLogger("theirs").warning("said %s", "rk_live_s3cret", extra={"more": "sk_test_s3cret"})
bound.debug("too fine")


def breaks(argument):
    local = "sk_test_s3cret in a local variable"
    password = "only-in-a-variable-s3cret"
    raise ValueError("no such key: sk_test_s3cret and whsec_s3cret\\nsk_live_s3cret")


try:
    try:
        breaks("sk_live_s3cret")
    except ValueError as error:
        raise RuntimeError("postgres://u:s3cret@h/db") from error
except RuntimeError:
    bound.exception("broke", key="sk_test_s3cret")
    logging.getLogger("theirs").exception("broke too: sk_test_s3cret")
"""


def logged(log_format: str) -> str:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", "-c", PROGRAM, log_format],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("log_format", ["console", "json", "auto"])
def test_no_secret_is_logged_not_even_from_exceptions(log_format: str) -> None:
    written = logged(log_format)
    for shown in ("sk_test_***", "whsec_***", "rk_live_***", "sk_live_***", "postgres://u:***@h/db", "ValueError"):
        assert shown in written
    assert "s3cret" not in written


def test_json_is_one_object_per_line() -> None:
    first, second, third, fourth = map(json.loads, logged("json").splitlines())
    assert first["event"] == "step"
    assert (first["transfer"], first["number"], first["level"], first["logger"]) == (7, 3, "info", "ours")
    assert first["nested"] == {"a": ["whsec_***", ["sk_live_***"]]}
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["more"]) == ("said rk_live_***", "sk_test_***")
    assert third["exception"][0]["exc_type"] == "RuntimeError"
    assert "locals" not in third["exception"][0]["frames"][0]
    assert fourth["event"] == "broke too: sk_test_***"


def test_a_pipe_gets_json_and_no_colours() -> None:
    assert logged("auto").startswith("{")
    assert "\x1b[" not in logged("console")


HOPELESS = """
import sys
import structlog
from veza import logs


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("nobody says this")


logs.configure(level="INFO", log_format=sys.argv[1])
log = structlog.get_logger("ours")
log.info("step", value=Unspeakable())
log.info("goes on")
sys.stderr.close()
log.info("to nobody")
print("still here")
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_line_that_cannot_be_written_is_not_the_callers_problem(log_format: str) -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", HOPELESS, log_format], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "still here\n"
    assert "a line could not be written" in done.stderr
    assert "nobody says this" in done.stderr
    assert "goes on" in done.stderr.splitlines()[-1]


def test_the_sdks_own_lines_are_not_logged_a_second_time() -> None:
    assert logging.getLogger("stripe").level == logging.WARNING
