"""Every reader of the environment: what it takes, and how it refuses nonsense."""

import contextlib
import stat
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import environ
import pytest
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

from veza.env import Environment, Variable, local_secret_key, mask, parse_duration

POSTGRESQL = "postgres://user:password@host:5432/name (PostgreSQL only)"


def reading(**values: str) -> Environment:
    # A class of its own: reading a file writes into the class.
    return Environment(source=type("Env", (environ.Env,), {"ENVIRON": dict(values)})())


def refusal(read: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(ImproperlyConfigured) as caught:
        read(*arguments, **more)
    return str(caught.value)


def test_a_variable_that_is_unset_empty_or_blank_has_its_default() -> None:
    assert reading().text("A", "b") == "b"
    assert reading(A="").text("A", "b") == "b"
    assert reading(A="  ").text("A", "b") == "b"
    assert reading(A=" c ").text("A", "b") == "c"


def test_a_value_that_begins_with_a_dollar_is_taken_as_it_is() -> None:
    assert reading(A="$B", B="other").text("A") == "$B"
    assert reading(A="$B").text("A", "default") == "$B"


def test_what_is_read_is_remembered() -> None:
    env = reading(A="x", S="y")
    env.text("A", "b")
    env.text("S", secret=True)
    env.duration("D", "1m")
    assert env.read == {
        "A": Variable("A", "b", secret=False),
        "S": Variable("S", "", secret=True),
        "D": Variable("D", "1m", secret=False),
    }


@pytest.mark.parametrize("word", ["true", "True", "on", "yes", "1"])
def test_true(word: str) -> None:
    assert reading(A=word).boolean("A", "false") is True


@pytest.mark.parametrize("word", ["false", "FALSE", "off", "no", "0"])
def test_false(word: str) -> None:
    assert reading(A=word).boolean("A", "true") is False


@pytest.mark.parametrize("word", ["maybe", "2", "truee", "-"])
def test_neither_true_nor_false(word: str) -> None:
    assert refusal(reading(A=word).boolean, "A", "true") == f"A={word!r} is not valid: expected true or false."


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("7", 7), ("10", 10)])
def test_whole_numbers(text: str, number: int) -> None:
    assert reading(A=text).integer("A", "1", minimum=0, maximum=10) == number


@pytest.mark.parametrize("text", ["-1", "11", "1.0", "1e1", "0x1", "five", "1 0", "+1", "1_0", "٣", "9" * 13])
def test_anything_else_is_no_whole_number(text: str) -> None:
    told = refusal(reading(A=text).integer, "A", "1", minimum=0, maximum=10)
    assert told == f"A={text!r} is not valid: expected a whole number from 0 to 10."


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90s", timedelta(seconds=90)),
        ("1m", timedelta(minutes=1)),
        ("1h", timedelta(hours=1)),
        ("2d", timedelta(days=2)),
        ("366d", timedelta(days=366)),
    ],
)
def test_durations(text: str, duration: timedelta) -> None:
    assert reading(A=text).duration("A", "5s") == duration


@pytest.mark.parametrize(
    "text", ["soon", "60", "0s", "-1m", "1.5h", "1 h", "1H", "1w", "m", "367d", "999999999d", "1m30s", "٣s"]
)
def test_anything_else_is_no_duration(text: str) -> None:
    told = refusal(reading(A=text).duration, "A", "5s")
    assert told == f"A={text!r} is not valid: expected a duration such as 90s, 1m, 1h or 2d."


@given(st.integers(min_value=1, max_value=31_622_400))
def test_every_number_of_seconds_up_to_a_year_is_a_duration(seconds: int) -> None:
    assert parse_duration(f"{seconds}s").total_seconds() == seconds


@given(st.text(max_size=12))
def test_no_text_makes_the_parser_of_durations_raise_anything_but_valueerror(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_duration(text) > timedelta(0)


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        ("1000", {"": 1000}),
        ("0", {"": 0}),
        ("1000, jpy:5", {"": 1000, "jpy": 5}),
        ("usd:7,eur:8", {"": 0, "usd": 7, "eur": 8}),
    ],
)
def test_amounts(text: str, amounts: dict[str, int]) -> None:
    assert reading(A=text).amounts("A", "1") == amounts


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "EUR:1", "eur:", "eur:1;usd:2", "1,", "1" * 16])
def test_anything_else_is_no_amount(text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="expected an amount in minor units for all currencies"):
        reading(A=text).amounts("A", "1")


def test_choices() -> None:
    assert reading(A="json").choice("A", "auto", ["auto", "json"]) == "json"
    assert refusal(reading(A="xml").choice, "A", "auto", ["auto", "json"]) == (
        "A='xml' is not valid: expected one of auto, json."
    )


def test_words() -> None:
    assert reading(A=" a, b,,c ,").words("A") == ["a", "b", "c"]
    assert reading().words("A") == []
    assert reading().words("A", "x,y") == ["x", "y"]


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("", ""),
        ("https://api.stripe.com", "https://api.stripe.com"),
        ("https://api.stripe.com/", "https://api.stripe.com"),
        ("http://127.0.0.1:12111", "http://127.0.0.1:12111"),
        ("http://localhost:1", "http://localhost:1"),
        ("http://[::1]:1", "http://[::1]:1"),
    ],
)
def test_addresses(value: str, taken: str) -> None:
    assert reading(A=value).http_url("A") == taken


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("api.stripe.com", "api.stripe.com"),
        ("ftp://x.com", "ftp://x.com"),
        ("http://example.com", "http://example.com"),
        ("http://127.0.0.1.example.com", "http://127.0.0.1.example.com"),
        ("https://", "https://"),
        ("https://x.com:port", "https://x.com:port"),
        ("https://x.com:99999", "https://x.com:99999"),
        ("https://[x", "https://[x"),
        ("https://user:s3cret@x.com", "https://***@x.com"),
        ("https://user:s3@cr/et@x.com", "https://***@x.com"),
    ],
)
def test_other_addresses_are_refused_without_their_password(value: str, shown: str) -> None:
    assert refusal(reading(A=value).http_url, "A") == (
        f"A={shown!r} is not valid: expected an https:// address (http:// for this machine only),"
        " such as https://api.stripe.com."
    )


@pytest.mark.parametrize("value", ["", "sk_test_abc", "sk_live_abc", "rk_test_a_b", "rk_live_1"])
def test_keys_of_stripe(value: str) -> None:
    assert reading(A=value).stripe_secret_key("A") == value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("s3cret", "***"),
        ("pk_test_s3cret", "pk_test_***"),
        ("sk_test_", "sk_test_***"),
        ("sk_test_s3 cret", "sk_test_***"),
        ("sk_prod_s3cret", "***"),
        ("sk_test_s3cret\nsk_live_s3cret", "sk_test_***"),
    ],
)
def test_what_is_no_key_is_refused_masked(value: str, shown: str) -> None:
    told = refusal(reading(A=value).stripe_secret_key, "A")
    assert told.startswith(f"A={shown!r} is not valid: expected a Stripe secret or restricted key")
    assert "cret" not in told.replace("secret", "")


def test_webhook_secrets() -> None:
    assert reading().stripe_webhook_secrets("A") == []
    assert reading(A="whsec_a, whsec_b+/=").stripe_webhook_secrets("A") == ["whsec_a", "whsec_b+/="]


@pytest.mark.parametrize("value", ["s3cret", "whsec_", "whsec_good,s3cret", "whsec_s3 cret", "whsec_a;whsec_s3cret"])
def test_what_is_no_webhook_secret_is_refused_masked(value: str) -> None:
    told = refusal(reading(A=value).stripe_webhook_secrets, "A")
    assert "A=" in told
    assert "whsec_…" in told
    assert "s3" not in told


def test_databases() -> None:
    config = reading(A="postgres://u:p%40ss@h:5433/name?sslmode=require").database("A")
    assert config is not None
    assert {**config, "OPTIONS": dict(config["OPTIONS"])} == {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "name",
        "USER": "u",
        "PASSWORD": "p@ss",
        "HOST": "h",
        "PORT": 5433,
        "OPTIONS": {"sslmode": "require"},
    }
    assert reading().database("A") is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("sqlite:///x.db", "sqlite:///x.db"),
        ("mysql://u:s3cret@h/db", "mysql://***@h/db"),
        ("postgis://u:s3cret@h/db", "postgis://***@h/db"),
        ("unheard-of://u:s3cret@h/db", "unheard-of://***@h/db"),
        ("postgres://u:s3cret@h:port/db", "postgres://***@h:port/db"),
        ("postgres://u:s3cret@h:5432", "postgres://***@h:5432"),
        ("postgres://u:s3@cret@h/", "postgres://***@h/"),
        ("postgres://u:s3/cret@h:x/db", "postgres://***@h:x/db"),
        ("postgres://h/?password=s3cret", "postgres://h/"),
        ("s3cret", "***"),
        ("u:s3cret@h/db", "***"),
    ],
)
def test_other_databases_are_refused_without_their_password(value: str, shown: str) -> None:
    assert refusal(reading(A=value).database, "A") == f"A={shown!r} is not valid: expected {POSTGRESQL}."


@pytest.mark.parametrize("pool", ["true", "False", "5"])
def test_a_pool_is_none_of_the_addresss_matter(pool: str) -> None:
    told = refusal(reading(A=f"postgres://u:s3cret@h/db?pool={pool}").database, "A")
    assert told.startswith("A='postgres://***@h/db?pool=…' is not valid: expected no pool")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("sk_live_abc", "sk_live_***"),
        ("rk_test_abc", "rk_test_***"),
        ("whsec_abc", "whsec_***"),
        ("abc", "***"),
        ("", "***"),
    ],
)
def test_masks_show_the_public_prefix_and_no_more(value: str, shown: str) -> None:
    assert mask(value) == shown


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_file_fills_in_what_the_environment_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# a comment\n\nA=from file\nexport B='quoted # not a comment'\nC=from file\n")
    env = reading(A="from environment")
    env.read_file(path, required=True)
    assert (env.text("A"), env.text("B"), env.text("C")) == (
        "from environment",
        "quoted # not a comment",
        "from file",
    )


@pytest.mark.parametrize("line", ["STRIPE_SECRET_KEY sk_live_s3cret", "A = s3cret", " A=s3cret", "s3cret"])
def test_a_line_that_is_no_assignment_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / ".env"
    path.write_text(f"A=1\n{line}\n")
    assert refusal(reading().read_file, path, required=False) == (
        f"{path} line 2 is not valid: expected NAME=value without spaces around them, or a comment."
    )


def test_no_file_is_fine_unless_it_was_asked_for(tmp_path: Path) -> None:
    reading().read_file(tmp_path / ".env", required=False)
    told = refusal(reading().read_file, tmp_path / "none", required=True)
    assert told == f"ENV_FILE names {tmp_path / 'none'}, which does not exist."


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"A=\xff\xfe")
    assert refusal(reading().read_file, path, required=False) == f"{path} cannot be read as text (UnicodeDecodeError)."
    assert "IsADirectoryError" in refusal(reading().read_file, tmp_path, required=False)


# --- The key of a developer's own machine -----------------------------------------------------------------------------


def test_the_local_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    key = local_secret_key(tmp_path / "state")
    assert len(key) >= 50
    assert local_secret_key(tmp_path / "state") == key
    assert stat.S_IMODE((tmp_path / "state" / "secret_key").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["secret_key"]
    assert local_secret_key(tmp_path / "other") != key


def test_programs_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    together = threading.Barrier(8)
    keys: list[str] = []

    def start() -> None:
        together.wait(timeout=10)
        keys.append(local_secret_key(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_where_somebody_elses_path_ends_in_a_slash_it_stays() -> None:
    such_as = "https://ops.example.com/hook"
    assert reading(A="https://x.example.com/hook/").endpoint("A", such_as=such_as) == "https://x.example.com/hook/"
    assert reading().endpoint("A", such_as=such_as) == ""
    assert refusal(reading(A="http://x.example.com").endpoint, "A", such_as=such_as) == (
        f"A='http://x.example.com' is not valid: expected an https:// address (http:// for this machine only), such as"
        f" {such_as}."
    )


def test_mail_servers() -> None:
    found = reading(A="smtp+tls://user:pass%40word@mail.example.com:587").email_url("A")
    assert found | {"OPTIONS": {}} == {
        "EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "EMAIL_HOST": "mail.example.com",
        "EMAIL_PORT": 587,
        "EMAIL_HOST_USER": "user",
        "EMAIL_HOST_PASSWORD": "pass@word",
        "EMAIL_USE_TLS": True,
        "EMAIL_FILE_PATH": "",
        "OPTIONS": {},
    }
    assert reading(A="smtp+ssl://mail.example.com:465").email_url("A")["EMAIL_USE_SSL"] is True
    plain = reading(A="smtp://localhost").email_url("A")
    assert (plain["EMAIL_PORT"], plain["EMAIL_HOST_USER"], plain["EMAIL_HOST_PASSWORD"]) == (25, "", "")
    assert reading(A="consolemail://").email_url("A")["EMAIL_BACKEND"].endswith("console.EmailBackend")
    assert reading().email_url("A") == {}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("mail.example.com", "***"),
        ("smtp://", "***"),
        ("http://user:s3cret@host", "***"),
        ("dummymail://", "***"),
        ("smtp://user:s3cret@host:port", "***"),
        ("smtp://host?fail_silently=1", "***"),
    ],
)
def test_other_mail_servers_are_refused_without_their_password(value: str, shown: str) -> None:
    expected = "smtp://, smtp+tls:// or smtp+ssl:// with user:password@host:port, or consolemail://"
    assert refusal(reading(A=value).email_url, "A") == f"A='{shown}' is not valid: expected {expected}."


def test_mail_addresses() -> None:
    assert reading(A="a@example.com, b@example.com").emails("A") == ["a@example.com", "b@example.com"]
    assert reading().emails("A") == []
    assert refusal(reading(A="a@example.com,ops").emails, "A") == (
        "A='ops' is not valid: expected e-mail addresses, separated by commas."
    )
