"""A setting that makes no sense stops every program at once: one sentence, no traceback, no secret."""

import os
import subprocess
import sys

import pytest

from tests.structure.sources import ROOT

KEY = "a-random-string-of-at-least-32-characters"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"ENV_FILE": os.devnull, "SECRET_KEY": KEY, "DJANGO_SETTINGS_MODULE": "veza.settings", **variables}
    return subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", *(arguments or ("manage.py", "check"))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


REFUSED = {
    "no duration": (
        {"REVERSAL_CHECK_INTERVAL": "soon"},
        "REVERSAL_CHECK_INTERVAL='soon' is not valid: expected a duration such as 90s, 1m, 1h or 2d.",
    ),
    "no number": (
        {"REVERSAL_MAX_RETRIES": "many"},
        "REVERSAL_MAX_RETRIES='many' is not valid: expected a whole number from 0 to 1000.",
    ),
    "nobody to bear the commission": (
        {"REFUND_COMMISSION": "the buyer"},
        "REFUND_COMMISSION='the buyer' is not valid: expected one of proportional, platform_keeps, platform_bears.",
    ),
    "no time to claw back": (
        {"DISPUTE_CLAWBACK_ON": "won"},
        "DISPUTE_CLAWBACK_ON='won' is not valid: expected one of opened, funds_withdrawn, lost.",
    ),
    "no truth": (
        {"TRANSFER_RETRY_ENABLED": "perhaps"},
        "TRANSFER_RETRY_ENABLED='perhaps' is not valid: expected true or false.",
    ),
    "base above maximum": (
        {"REVERSAL_BACKOFF_BASE": "2h"},
        "REVERSAL_BACKOFF_BASE='2h' is not valid: expected at most REVERSAL_BACKOFF_MAX, which is 1h.",
    ),
    "base above maximum, of the other worker": (
        {"TRANSFER_RETRY_BACKOFF_BASE": "61m", "TRANSFER_RETRY_BACKOFF_MAX": "60m"},
        "TRANSFER_RETRY_BACKOFF_BASE='61m' is not valid: expected at most TRANSFER_RETRY_BACKOFF_MAX, which is 60m.",
    ),
    "a live key while debugging": (
        {"DEBUG": "true", "STRIPE_SECRET_KEY": "sk_live_s3cret"},
        (
            "STRIPE_SECRET_KEY='sk_live_***' is not valid: expected a test key while DEBUG is true:"
            " error pages show too much."
        ),
    ),
    "a restricted live key while debugging": (
        {"DEBUG": "true", "STRIPE_SECRET_KEY": "rk_live_s3cret"},
        (
            "STRIPE_SECRET_KEY='rk_live_***' is not valid: expected a test key while DEBUG is true:"
            " error pages show too much."
        ),
    ),
    "a live key and another server": (
        {"STRIPE_SECRET_KEY": "sk_live_s3cret", "STRIPE_API_BASE": "http://127.0.0.1:12111"},
        (
            "STRIPE_API_BASE='http://127.0.0.1:12111' is not valid: expected no other server than Stripe's together"
            " with a live key."
        ),
    ),
    "plain http to another host": (
        {"STRIPE_API_BASE": "http://stripe.example.com"},
        (
            "STRIPE_API_BASE='http://stripe.example.com' is not valid: expected an https:// address (http:// for this"
            " machine only), such as https://api.stripe.com."
        ),
    ),
    "no key": (
        {"STRIPE_SECRET_KEY": "s3cret"},
        (
            "STRIPE_SECRET_KEY='***' is not valid: expected a Stripe secret or restricted key: sk_test_…, sk_live_…,"
            " rk_test_… or rk_live_…."
        ),
    ),
    "no webhook secret": (
        {"STRIPE_WEBHOOK_SECRETS": "whsec_good,s3cret"},
        "STRIPE_WEBHOOK_SECRETS='***' is not valid: expected one or more comma-separated endpoint secrets: whsec_….",
    ),
    "sqlite": (
        {"DATABASE_URL": "sqlite:///db.sqlite3"},
        (
            "DATABASE_URL='sqlite:///db.sqlite3' is not valid: expected postgres://user:password@host:5432/name"
            " (PostgreSQL only)."
        ),
    ),
    "mysql": (
        {"DATABASE_URL": "mysql://user:s3cret@host/name"},
        (
            "DATABASE_URL='mysql://***@host/name' is not valid: expected postgres://user:password@host:5432/name"
            " (PostgreSQL only)."
        ),
    ),
    "no database": (
        {"DATABASE_URL": "s3cret"},
        "DATABASE_URL='***' is not valid: expected postgres://user:password@host:5432/name (PostgreSQL only).",
    ),
    "a short key": (
        {"SECRET_KEY": "s3cret"},
        "SECRET_KEY='***' is not valid: expected a random string of at least 32 characters.",
    ),
    "no key with a database of its own": (
        {"SECRET_KEY": "", "DATABASE_URL": "postgres://u:s3cret@127.0.0.1:1/n"},
        "SECRET_KEY='' is not valid: expected a random string of at least 32 characters.",
    ),
    "an origin without its scheme": (
        {"CSRF_TRUSTED_ORIGINS": "pay.example.com"},
        (
            "CSRF_TRUSTED_ORIGINS='pay.example.com' is not valid: expected origins with their scheme, such as"
            " https://pay.example.com."
        ),
    ),
    "an unknown format of logs": (
        {"LOG_FORMAT": "xml"},
        "LOG_FORMAT='xml' is not valid: expected one of auto, console, json.",
    ),
    "mail to somebody without a server": (
        {"NOTICE_EMAILS": "ops@example.com"},
        "EMAIL_URL='' is not valid: expected the mail server by which NOTICE_EMAILS are reached.",
    ),
    "mail to sellers without a server": (
        {"SELLER_NOTICES": "true"},
        "EMAIL_URL='' is not valid: expected the mail server by which SELLER_NOTICES are sent.",
    ),
    "an unsigned webhook": (
        {"NOTICE_WEBHOOK_URL": "https://ops.example.com/hook", "NOTICE_WEBHOOK_SECRET": "s3cret"},
        (
            "NOTICE_WEBHOOK_SECRET='***' is not valid: expected a random string of at least 32 characters, for"
            " NOTICE_WEBHOOK_URL."
        ),
    ),
    "a file that is not there": ({"ENV_FILE": "/nowhere/.env"}, "ENV_FILE names /nowhere/.env, which does not exist."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nonsense_stops_the_program(case: str) -> None:
    variables, sentence = REFUSED[case]
    done = run(**variables)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"error: {sentence}\n"
    assert "s3cret" not in done.stderr


def test_nonsense_stops_the_web_server_too() -> None:
    done = run("-c", "import veza.wsgi", REVERSAL_CHECK_INTERVAL="soon")
    assert done.returncode != 0
    assert "REVERSAL_CHECK_INTERVAL='soon' is not valid" in done.stderr.splitlines()[-1]


def test_defaults_are_enough_to_start() -> None:
    done = run("manage.py", "check")
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr


def test_a_live_key_without_debugging_is_taken() -> None:
    program = "from veza import settings; print(settings.STRIPE_LIVEMODE, settings.DEBUG)"
    for key in ("sk_live_x", "rk_live_x"):
        assert run("-c", program, STRIPE_SECRET_KEY=key).stdout == "True False\n"
    assert run("-c", program, STRIPE_SECRET_KEY="sk_test_x", DEBUG="true").stdout == "False True\n"


def test_tls_makes_cookies_and_redirects_strict() -> None:
    program = (
        "from veza import settings as s; print(s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE, s.SECURE_SSL_REDIRECT,"
        " s.SECURE_HSTS_SECONDS > 0)"
    )
    assert run("-c", program, USE_TLS="true").stdout == "True True True True\n"
    assert run("-c", program).stdout == "False False False False\n"


def test_no_secret_is_in_a_page_about_an_error_even_while_debugging() -> None:
    program = (
        "import django; django.setup()\n"
        "from django.views.debug import SafeExceptionReporterFilter\n"
        "print(SafeExceptionReporterFilter().get_safe_settings())"
    )
    done = run(
        "-c",
        program,
        DEBUG="true",
        STRIPE_SECRET_KEY="sk_test_s3cret",
        STRIPE_WEBHOOK_SECRETS="whsec_s3cret",
        DATABASE_URL="postgres://u:s3cret@127.0.0.1:1/n",
    )
    assert done.returncode == 0, done.stderr
    assert "STRIPE_SECRET_KEY" in done.stdout
    assert "s3cret" not in done.stdout
    assert KEY not in done.stdout
