"""``manage.py replay_events``: what it takes, what it says, and how it ends."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.db.models.functions import Now
from django.utils import timezone

from marketplace import asking, inbox, replay
from marketplace.management.commands import replay_events
from marketplace.models import WebhookEvent
from marketplace.states import EventStatus
from tests.factories import SellerFactory, WebhookEventFactory
from tests.structure.sources import ROOT

Run = Callable[..., str]


@pytest.fixture
def run(db: None, gateway: Any) -> Run:
    def run(*flags: str) -> str:
        printed = io.StringIO()
        call_command("replay_events", *flags, stdout=printed)
        return printed.getvalue()

    return run


@pytest.fixture
def missed(simulator: Any) -> list[str]:
    """Three events that say nothing and one that cannot be applied, none of which reached us."""
    simulator.deliver_to("http://127.0.0.1:9/")
    simulator.webhook_faults.dropped = 1.0
    made = [simulator.emit("charge.refunded", {"id": "ch_1", "object": "charge"})["id"] for _ in range(3)]
    return [*made, simulator.emit("refund.created", {"id": "re_1", "object": "refund"})["id"]]


def failing(run: Run, *flags: str) -> str:
    with pytest.raises(CommandError) as failed:
        run(*flags)
    assert failed.value.returncode == 1
    return str(failed.value)


def lines(printed: str) -> dict[str, list[str]]:
    """The table's numbers by what they mean."""
    rows = [[cell.strip() for cell in line.strip("│┃|").split("│")] for line in printed.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in rows}


# --- From Stripe ------------------------------------------------------------------------------------------------------


def test_the_table_tells_what_became_of_the_events(run: Run, simulator: Any, missed: list[str]) -> None:
    simulator.emit("charge.refunded", {"id": "ch_2", "object": "charge"})
    printed = io.StringIO()
    with pytest.raises(CommandError, match="1 event is not applied: see webhook events that failed"):
        call_command("replay_events", "--since=1d", stdout=printed)
    shown = lines(printed.getvalue())
    assert shown["found"] == ["5", "5"]
    assert shown["new: ignored"] == ["4", "0"]
    assert shown["new: FAILED"] == ["1", "0"]
    assert shown["seen before"] == ["0", "4"]
    assert shown["seen before: FAILED"] == ["0", "1"]
    assert "UNREADABLE" not in shown
    assert WebhookEvent.objects.count() == 5


def test_json_has_the_same_numbers(run: Run, simulator: Any) -> None:
    simulator.emit("charge.refunded", {"id": "ch_1", "object": "charge"})
    told = json.loads(run("--since=1d", "--format=json"))
    assert [(each["name"], each["found"], each["ignored"], each["seen"]) for each in told["passes"]] == [
        ("undelivered", 0, 0, 0),
        ("all", 1, 1, 0),
    ]
    assert told["dry_run"] is False
    assert told["since"] < told["until"]


def test_a_dry_run_only_counts(run: Run, missed: list[str]) -> None:
    printed = run("--since=1d", "--dry-run")
    assert lines(printed)["new, would be taken"] == ["4", "4"]
    assert "dry run" in printed
    assert not WebhookEvent.objects.exists()


def test_a_type_may_be_chosen(run: Run, missed: list[str]) -> None:
    assert lines(run("--since=1d", "--type=charge.refunded"))["found"] == ["3", "3"]


def test_sellers_accounts_are_asked_when_that_is_wanted(run: Run, simulator: Any) -> None:
    seller = SellerFactory(stripe_account_id=simulator.create_account()["id"])
    simulator.set_capability(seller.stripe_account_id, status="inactive")
    assert json.loads(run("--since=1d", "--format=json"))["passes"][-1]["name"] == "all"
    told = json.loads(run("--since=1d", "--format=json", "--connected-accounts", "--type=account.updated"))
    assert [(each["name"], each["accounts"]) for each in told["passes"]] == [("sellers", 1)]


def test_a_refused_key_is_said_in_one_line(run: Run, simulator: Any) -> None:
    simulator.faults.add("unauthorized")
    assert failing(run, "--since=1d").startswith("Stripe refuses our key or its permissions (Events: read): ")


def test_a_stripe_that_does_not_answer_is_said_in_one_line(
    run: Run, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PAUSE_SECONDS", 0)
    simulator.faults.add("unavailable")
    said = failing(run, "--since=1d")
    assert said.startswith("Stripe: no answer to 5 requests")
    assert said.endswith("What was taken before stands; run it again.")


def test_a_database_that_does_not_answer_is_said_in_one_line(
    run: Run, missed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_event: Any) -> Any:
        raise OperationalError("the connection is lost")

    monkeypatch.setattr(inbox, "receive", away)
    assert failing(run, "--since=1d") == "The database does not answer. What was taken before stands; run it again."


def test_as_a_program_it_ends_with_the_status_it_says(
    simulator: Any, child_environment: dict[str, str], missed: list[str]
) -> None:
    command = [sys.executable, "manage.py", "replay_events", "--since=1d", "--format=json"]
    done = subprocess.run(command, cwd=ROOT, env=child_environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 1, done.stderr
    assert done.stdout, done.stderr
    assert json.loads(done.stdout)["passes"][0]["found"] == 4
    assert done.stderr.splitlines()[-1].startswith("CommandError: 1 event is not applied")


# --- From the inbox ---------------------------------------------------------------------------------------------------


def test_what_failed_is_applied_again(run: Run) -> None:
    row = WebhookEventFactory(status=EventStatus.FAILED, type="charge.refunded", last_error_code="OldError")
    shown = lines(run("--failed", "--reason=mended"))
    assert (shown["found"], shown["ignored"]) == (["1"], ["1"])
    row.refresh_from_db()
    assert (row.status, row.replay_count) == (EventStatus.IGNORED, 1)
    entry = row.history.order_by("pgh_id").last()
    assert entry is not None
    reasons = set(row.history.values_list("pgh_context__reason", flat=True))
    assert "mended" in reasons
    assert "command:replay_events" in set(row.history.values_list("pgh_context__actor", flat=True))


def test_what_was_ignored_is_applied_again_where_it_is_named(run: Run) -> None:
    named, other = (WebhookEventFactory(status=EventStatus.IGNORED, type="charge.refunded") for _ in range(2))
    told = json.loads(run("--ignored", f"--id={named.stripe_event_id}", "--format=json"))
    assert told["passes"][0]["found"] == 1
    assert (told["since"], told["until"]) == (None, None)
    counts = dict(WebhookEvent.objects.values_list("stripe_event_id", "replay_count"))
    assert counts == {named.stripe_event_id: 1, other.stripe_event_id: 0}


def test_only_the_type_that_was_asked_for(run: Run) -> None:
    WebhookEventFactory(status=EventStatus.IGNORED, type="charge.refunded")
    WebhookEventFactory(status=EventStatus.IGNORED, type="account.updated")
    assert lines(run("--ignored", "--type=account.updated", "--dry-run"))["would be replayed"] == ["1"]
    assert not WebhookEvent.objects.filter(replay_count__gt=0).exists()


def test_one_in_a_workers_hands_is_left_to_it(run: Run) -> None:
    row = WebhookEventFactory(status=EventStatus.FAILED, type="charge.refunded")
    expires = Now() + timedelta(minutes=1)
    WebhookEvent.objects.filter(pk=row.pk).update(
        lease_token="00000000-0000-4000-8000-000000000000", lease_expires_at=expires
    )
    assert lines(run("--failed"))["in other hands"] == ["1"]


def test_one_that_fails_again_is_named_by_the_exit_status(run: Run) -> None:
    WebhookEventFactory(status=EventStatus.FAILED, type="refund.created", payload={"data": {"object": {}}})
    WebhookEventFactory(status=EventStatus.FAILED, type="refund.created", payload={"data": {"object": {}}})
    assert failing(run, "--failed").startswith("2 events are not applied")


def test_more_than_a_page_is_gone_through_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "LARGEST_PAGE", 2)
    for _ in range(5):
        WebhookEventFactory(status=EventStatus.FAILED, type="refund.created", payload={"data": {"object": {}}})
    failing(run, "--failed")
    assert set(WebhookEvent.objects.values_list("replay_count", flat=True)) == {1}


def test_one_that_is_not_there_is_named_and_nothing_is_done(run: Run) -> None:
    row = WebhookEventFactory(status=EventStatus.FAILED, type="charge.refunded")
    said = failing(run, "--failed", f"--id={row.stripe_event_id}", "--id=evt_nowhere", "--type=charge.refunded")
    assert said == "not in the inbox as failed of type charge.refunded: evt_nowhere"
    row.refresh_from_db()
    assert row.replay_count == 0


# --- Flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "one of the arguments --since --failed --ignored is required"),
        (["--since=1d", "--failed"], "not allowed with argument"),
        (["--since=soon"], "'soon' is not valid: expected"),
        (["--since=2999-01-01"], "it lies in the future"),
        (["--since=31d"], "Stripe shows events of the last 30 days only"),
        (["--since=2020-01-01T00:00Z"], "Stripe shows events of the last 30 days only"),
        (["--since=2026-13-01T00:00Z"], "is not valid: expected"),
        (["--since=1d", "--type=invoice.paid"], "'invoice.paid' is not valid: expected one of account."),
        (["--since=1d", "--id=evt_1"], "--id goes with --failed or --ignored only"),
        (["--since=1d", "--reason=why"], "--reason goes with --failed or --ignored only"),
        (["--since=1d", "--type=balance.available"], "balance.available is not fetched"),
        (["--since=1d", "--type=account.updated"], "add --connected-accounts"),
        (["--since=1d", "--type=refund.created", "--connected-accounts"], "--connected-accounts is of no use"),
        (["--failed", "--connected-accounts"], "--connected-accounts goes with --since only"),
        (["--ignored"], "--ignored needs a --type or an --id"),
        (["--failed", "--id=re_1"], "'re_1' is not valid: expected the id of an event"),
        (["--failed", "--reason= "], "expected a text of 1 to 500 printable characters"),
        (["--failed", f"--reason={'a' * 501}"], "expected a text of 1 to 500 printable characters"),
        (["--failed", "--reason=a\nb"], "expected a text of 1 to 500 printable characters"),
        (["--failed", "--format=xml"], "invalid choice: 'xml'"),
    ],
)
def test_flags_of_no_sense_are_refused_by_name(run: Run, simulator: Any, flags: list[str], said: str) -> None:
    assert said in failing(run, *flags)
    assert simulator.requests.total == 0


def test_without_a_key_stripe_is_not_asked(run: Run, settings: Any) -> None:
    settings.STRIPE_SECRET_KEY = ""
    assert failing(run, "--since=1d").startswith("STRIPE_SECRET_KEY is not set")


def test_a_time_may_be_a_duration_or_a_moment_with_or_without_a_zone() -> None:
    now = timezone.now()
    assert abs(replay_events.beginning("2h") - (now - timedelta(hours=2))) < timedelta(seconds=5)
    moment = (now - timedelta(hours=3)).replace(microsecond=0)
    assert replay_events.beginning(moment.isoformat()) == moment
    assert replay_events.beginning(moment.replace(tzinfo=None).isoformat()) == moment


def test_the_progress_of_a_terminal_is_told(run: Run, missed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()

    class Terminal(replay_events.Console):
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "stderr": False, "file": drawn, "force_terminal": True, "width": 120})

    monkeypatch.setattr(replay_events, "Console", Terminal)
    told: list[str] = []
    kept = replay_events.Console.status

    def status(self: Any, text: str) -> Any:
        spinner = kept(self, text)
        monkeypatch.setattr(spinner, "update", told.append)
        return spinner

    monkeypatch.setattr(Terminal, "status", status)
    failing(run, "--since=1d")
    assert told[0].startswith("undelivered: 4 events, up to ")
    assert told[0].endswith(", 1 not applied")
