"""``manage.py reconcile``: what it says, and how it ends."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.utils import timezone
from rich.console import Console

from marketplace import asking
from marketplace.management import since
from marketplace.management.commands import reconcile as command
from marketplace.models import Drift, Reconciliation
from marketplace.reconciliation import run as runs
from tests.factories import SellerTransferFactory
from tests.services.conftest import Make
from tests.structure.sources import ROOT

Run = Callable[..., tuple[int, str, str]]
KEYS = {
    "kind",
    "subject",
    "stripe_id",
    "stripe_account_id",
    "amount",
    "currency",
    "detail",
    "remedy",
    "healed",
}


@pytest.fixture
def run(db: None, gateway: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Exit status, what was printed, and what was said of the end."""
    monkeypatch.setattr(runs.Reconciler, "__init__", _without_patience(runs.Reconciler.__init__))

    def run(*flags: str) -> tuple[int, str, str]:
        printed = io.StringIO()
        try:
            call_command("reconcile", *flags, stdout=printed, stderr=io.StringIO())
        except CommandError as error:
            return error.returncode, printed.getvalue(), str(error)
        return 0, printed.getvalue(), ""

    return run


def _without_patience(make: Any) -> Any:
    return lambda self, **given: make(self, **given | {"patience": timedelta(0)})


@pytest.fixture
def leak(simulator: Any) -> dict[str, str]:
    """An old sale of 100.00, of which 90.00 went to a seller, refunded and not clawed back."""
    simulator.add_funds(1_000_000)
    charge = simulator.create_charge(10_000)["id"]
    account = simulator.create_account()["id"]
    transfer = simulator.create_transfer(9000, account, source_transaction=charge)["id"]
    refund = simulator.create_refund(charge, 5000, status="succeeded")["id"]
    return {"charge": charge, "account": account, "transfer": transfer, "refund": refund}


def test_no_drift_is_status_0_and_says_what_was_compared(run: Run, sold: Make) -> None:
    sold()
    status, printed, said = run()
    assert (status, said) == (0, "")
    assert "Our rows and Stripe, from the beginning to " in printed
    rows = [line.split("│") for line in printed.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row[1:3]] for row in rows] == [
        ["transfers at Stripe", "1"],
        ["requests to Stripe", "4"],
    ]
    assert printed.rstrip().endswith("No drift.")


def test_drift_is_status_1_in_tables_with_totals(run: Run, leak: dict[str, str]) -> None:
    missing = SellerTransferFactory(completed=True)
    status, printed, said = run("--since=1d")
    assert (status, said) == (1, "2 drifts are left: see the runbook, by kind.")
    for shown in (str(missing), "missing at Stripe", "not clawed back", "45.00 EUR", "50.00 EUR", leak["account"]):
        assert shown in printed
    detail = f"refund {leak['refund']}; to be taken from {leak['transfer']}"
    assert f"{leak['charge']} of {leak['account']}: {detail}\n    by hand: runbook, not_clawed_back\n" in printed


def test_without_fix_it_says_what_fix_would_do_and_with_it_what_it_did(run: Run, sold: Make, simulator: Any) -> None:
    transfer = sold().transfers.get()
    simulator.create_reversal(transfer.stripe_transfer_id, 100)
    status, printed, said = run()
    assert (status, said) == (1, "1 drift is left: see the runbook, by kind.")
    assert "--fix would record the reversal\n" in printed
    status, printed, said = run("--fix")
    assert (status, said) == (0, "")
    assert "    healed: record the reversal\n" in printed
    assert run()[0] == 0


def test_what_cannot_be_healed_is_status_1_with_fix_too(run: Run) -> None:
    SellerTransferFactory(completed=True)
    assert run("--fix")[0] == 1


def test_many_are_told_by_their_number(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "MOST_SHOWN", 2)
    for _ in range(3):
        SellerTransferFactory(completed=True)
    _, printed, _ = run()
    assert "Drift, the first 2 of 3 (--format=json has all)" in printed
    assert printed.count("Stripe has no such") == 2


def test_json_has_a_stable_shape(run: Run, leak: dict[str, str]) -> None:
    status, printed, _ = run("--format=json", "--since=1d")
    told = json.loads(printed)
    assert status == 1
    assert set(told) == {"since", "until", "fix", "counts", "totals", "leaks", "drift"}
    assert told["since"] < told["until"]
    assert told["fix"] is False
    assert told["counts"] == {
        "transfers": 1,
        "without_row": 1,
        "reversals": 0,
        "refunds": 1,
        "disputes": 0,
        "rows_not_listed": 0,
        "looked_at_again": 1,
        "in_motion": 0,
        "requests": 4 + 3,
    }
    total = {"currency": "eur", "count": 1, "amount": 4500}
    assert told["totals"] == [{"kind": "not_clawed_back", "healed": 0, **total}]
    assert told["leaks"] == [{"stripe_account_id": leak["account"], "seller": "", **total}]
    (drift,) = told["drift"]
    assert set(drift) == KEYS
    assert drift == {
        "kind": "not_clawed_back",
        "subject": f"charge {leak['charge']}",
        "stripe_id": leak["charge"],
        "stripe_account_id": leak["account"],
        "amount": 4500,
        "currency": "eur",
        "detail": f"refund {leak['refund']}; to be taken from {leak['transfer']}",
        "remedy": "",
        "healed": False,
    }


def test_json_of_a_clean_world_is_whole(run: Run) -> None:
    status, printed, _ = run("--format=json")
    told = json.loads(printed)
    assert (status, told["drift"], told["totals"], told["leaks"], told["since"]) == (0, [], [], [], None)


def test_json_of_several_is_whole(run: Run) -> None:
    for _ in range(3):
        SellerTransferFactory(completed=True)
    told = json.loads(run("--format=json")[1])
    assert [each["kind"] for each in told["drift"]] == [Drift.MISSING] * 3


# --- Trouble ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["soon", "2999-01-01", "2026-13-01T00:00Z", "", "-1d"])
def test_a_time_of_no_sense_is_refused_by_name(run: Run, simulator: Any, text: str) -> None:
    _, _, said = run(f"--since={text}")
    assert repr(text) in said or "2999" in said
    assert simulator.requests.total == 0


def test_without_a_key_stripe_is_not_asked(run: Run, settings: Any) -> None:
    settings.STRIPE_SECRET_KEY = ""
    status, _, said = run()
    assert status == 2
    assert said.startswith("STRIPE_SECRET_KEY is not set")


def test_a_refused_key_names_the_permissions(run: Run, simulator: Any) -> None:
    simulator.faults.add("unauthorized")
    status, _, said = run()
    assert status == 2
    assert said.startswith("Stripe refuses our key or its permissions (Transfers, Balance,")


def test_a_stripe_that_does_not_answer_is_status_2(run: Run, simulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PAUSE_SECONDS", 0)
    simulator.faults.add("unavailable")
    status, _, said = run()
    assert status == 2
    assert said.startswith("Stripe: no answer to 5 requests")
    assert said.endswith(command.GO_ON)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OperationalError("the connection is lost"), 2, "The database does not answer. "),
        (KeyboardInterrupt(), 130, "Broken off. "),
        (runs.TakenOver(), 2, "Another process goes on with this reconciliation: only one at a time."),
    ],
)
def test_whatever_breaks_it_off_is_said_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, said: str
) -> None:
    def fail(_self: Any) -> None:
        raise error

    monkeypatch.setattr(runs.Reconciler, "go", fail)
    assert run()[0] == status
    assert run()[2].startswith(said)


def test_one_that_was_broken_off_with_other_flags_is_named(run: Run) -> None:
    runs.begin(asked="--since=7d --fix", since=timezone.now())
    status, _, said = run()
    assert status == 2
    assert said == (
        "A reconciliation with --since=7d --fix was broken off: finish it with these, or add --restart to forget it."
    )
    assert run("--since=7d", "--fix")[0] == 0
    runs.begin(asked="", since=None)
    assert "with no flags was broken off" in run("--fix")[2]
    assert run("--fix", "--restart")[0] == 0


def test_going_on_is_said(run: Run, gateway: Any) -> None:
    begun = runs.begin(asked="", since=None)
    Reconciliation.objects.filter(pk=begun.pk).update(counts={"requests": 1})
    said = io.StringIO()
    call_command("reconcile", stdout=io.StringIO(), stderr=said)
    assert said.getvalue().startswith("going on with the reconciliation of 20")


def test_as_a_program_it_ends_with_the_status_it_says(
    simulator: Any, child_environment: dict[str, str], leak: dict[str, str]
) -> None:
    def ended(*flags: str) -> Any:
        line = [sys.executable, "manage.py", "reconcile", *flags]
        return subprocess.run(line, cwd=ROOT, env=child_environment, capture_output=True, text=True, check=False)  # noqa: S603

    nonsense = ended("--since=soon")
    assert nonsense.returncode == 2
    assert "'soon' is not valid: expected a duration such as 90s" in nonsense.stderr
    simulator.create_reversal(leak["transfer"], 4500)
    done = ended("--format=json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["drift"] == []


def test_a_time_may_be_a_duration_or_a_moment() -> None:
    now = timezone.now()
    assert abs(since.moment("2h").at - (now - timedelta(hours=2))) < timedelta(seconds=5)
    assert since.moment("2026-11-20T08:30").at.isoformat() == "2026-11-20T08:30:00+00:00"
    assert since.moment("2h").text == "2h"


@pytest.mark.parametrize("step", runs.STEPS)
def test_who_waits_at_a_terminal_reads_one_line_of_each_step(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    written = io.StringIO()
    narrow = Console(file=written, force_terminal=True, width=60, color_system=None)
    monkeypatch.setattr(command, "Console", lambda **_: narrow)
    with command._progress() as tell:
        tell(Reconciliation(step=step, counts={"transfers": 100_000, "looked_at_again": 3, "requests": 1009}))
    lines = [line for line in re.split(r"[\r\n]|\x1b\[[^a-zA-Z]*[a-zA-Z]", written.getvalue()) if line.strip()]
    assert all(len(line) <= 60 for line in lines)
    said = f"{command.STEPS[step]}: 100000 compared, 3 looked at again, 1009 requests to Stripe"
    assert lines[-1][2:].strip() == f"{said[:57]}…"
    # Never a second line, which would have to be taken away again.
    assert "\x1b[1A\x1b[2K\x1b[1A" not in written.getvalue()
