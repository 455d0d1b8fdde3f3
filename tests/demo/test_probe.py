"""The smoke probe against a running system: a live server, both workers in threads, webhooks over HTTP."""

import io
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from marketplace.demo import ground, probe
from marketplace.models import Seller, SellerTransfer, TransferReversal
from marketplace.states import TransferStatus
from marketplace.workers import reversal, transfer_retry

Run = Callable[..., str]
PATIENCE = 20


@pytest.fixture
def webhooks(transactional_db: None, live_server: Any, simulator: Any, settings: Any) -> Iterator[None]:
    """The simulator sends its events to a live server."""
    settings.STRIPE_WEBHOOK_SECRETS = list(simulator.core.options.webhook_secrets)
    simulator.deliver_to(f"{live_server.url}/webhooks/stripe/")
    yield
    # None of them may come to the next test.
    simulator.deliver_to()
    assert simulator.wait_for_webhooks(PATIENCE)


@pytest.fixture
def start(gateway: Any, unblocked_database: None) -> Iterator[Callable[..., None]]:
    """Run workers in threads until the test ends."""
    running: list[tuple[Any, threading.Thread]] = []

    def start(*modules: Any) -> None:
        for module in modules:
            worker = module.worker(gateway, concurrency=2)
            thread = threading.Thread(target=worker.run)
            thread.start()
            running.append((worker, thread))

    yield start
    for worker, thread in running:
        worker.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


Failure = Callable[..., tuple[str, str]]


@pytest.fixture
def failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> Failure:
    """What a probe that fails printed, and its error. ``time_ends_at`` names the step that is looked at once only: the
    ones before it have all the time they need, however loaded the machine.
    """
    patient = probe._Probe.wait

    def fail(time_ends_at: str = "") -> tuple[str, str]:
        def wait(self: Any, step: str, look: Any, **words: Any) -> Any:
            self.timeout = 0 if step == time_ends_at else PATIENCE
            return patient(self, step, look, **words)

        monkeypatch.setattr(probe._Probe, "wait", wait)
        return _failure()

    return fail


def _failure() -> tuple[str, str]:
    printed = io.StringIO()
    with pytest.raises(CommandError) as failed:
        call_command("smoke_probe", stdout=printed)
    assert failed.value.returncode == 1
    return printed.getvalue(), str(failed.value)


def test_it_follows_a_refund_until_stripe_shows_the_reversal(
    run: Run, webhooks: None, simulator: Any, start: Callable[..., None]
) -> None:
    start(transfer_retry, reversal)
    printed = run("smoke_probe")
    transfer = SellerTransfer.objects.get()
    assert transfer.status == TransferStatus.REVERSED
    (at_stripe,) = simulator.reversals_of(transfer.stripe_transfer_id)
    assert at_stripe["id"] == transfer.stripe_reversal_id
    steps = ["order", "payment at Stripe", "payment's webhook", "transfer", "refund", "refund's webhook", "reversal"]
    told = [line.split(" s  ")[1].strip() for line in printed.splitlines() if "✓" in line]
    assert [line.split("  ")[0] for line in told] == [*steps, "at Stripe"]
    assert "All well in" in printed


def test_its_seller_is_made_once(run: Run, webhooks: None, simulator: Any, start: Callable[..., None]) -> None:
    start(transfer_retry, reversal)
    run("smoke_probe")
    run("smoke_probe")
    assert Seller.objects.get().name == "Smoke probe"


def test_without_webhooks_it_names_them(failure: Failure) -> None:
    printed, error = failure("payment's webhook")
    assert 'step "payment\'s webhook" failed' in error
    assert "✗ payment's webhook" in printed
    assert "is pending; the inbox has no event of pi_" in printed
    assert "STRIPE_WEBHOOK_SECRETS" in printed


def test_webhooks_with_another_secret_are_named(failure: Failure, webhooks: None, settings: Any) -> None:
    settings.STRIPE_WEBHOOK_SECRETS = ["whsec_another"]
    printed, error = failure("payment's webhook")
    assert "payment's webhook" in error
    assert "STRIPE_WEBHOOK_SECRETS" in printed


def test_without_the_transfer_worker_it_names_that(failure: Failure, webhooks: None) -> None:
    printed, error = failure("transfer")
    assert "step 'transfer' failed" in error
    assert "is pending, no error, next attempt 20" in printed
    assert "is run_transfer_retry_worker running" in printed


def test_without_the_reversal_worker_it_names_that(
    failure: Failure, webhooks: None, simulator: Any, start: Callable[..., None]
) -> None:
    start(transfer_retry)
    printed, error = failure("reversal")
    assert "step 'reversal' failed" in error
    assert "is reversal_pending, no error" in printed
    assert "is run_reversal_worker running" in printed


def test_a_refund_that_stripe_does_not_answer_is_named(
    failure: Failure, webhooks: None, simulator: Any, start: Callable[..., None]
) -> None:
    start(transfer_retry)
    simulator.faults.add("unavailable", endpoint="POST /v1/refunds")
    printed, error = failure("refund's webhook")
    assert "refund's webhook" in error
    assert "asked for; Stripe has not answered" in printed
    assert "is requested, last error unknown" in printed


def test_a_refund_that_stays_pending_at_stripe_is_named(
    failure: Failure, webhooks: None, simulator: Any, start: Callable[..., None]
) -> None:
    start(transfer_retry, reversal)
    simulator.set(refund_status="pending")
    printed, error = failure("reversal")
    assert "step 'reversal' failed" in error
    assert re.search(r"seen last +refund \d+ is pending", printed)


@pytest.fixture
def seller(transactional_db: None, gateway: Any) -> Seller:
    """The probe's own, as an earlier run leaves it."""
    return ground.seller(gateway, handle="smoke-probe-seller", name="Smoke probe")


def test_a_transfer_that_needs_a_person_fails_it_at_once(
    failure: Failure, simulator: Any, seller: Seller, request: pytest.FixtureRequest, start: Callable[..., None]
) -> None:
    simulator.set_capability(seller.stripe_account_id, status="inactive")
    request.getfixturevalue("webhooks")  # only now: of the line above we have not heard
    start(transfer_retry)
    printed, error = failure()
    assert "step 'transfer' failed" in error
    assert "is permanently_failed, last error insufficient_capabilities_for_transfer" in printed
    assert "the row's history in the admin" in printed


def test_a_seller_who_cannot_be_paid_is_named(failure: Failure, seller: Seller) -> None:
    Seller.objects.update(transfers_capability="pending")
    printed, error = failure()
    assert "step 'order' failed" in error
    assert "its transfers capability is pending" in printed


def test_a_reversal_that_is_not_ours_is_shown(
    failure: Failure, webhooks: None, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our row says one thing, Stripe another."""
    start(transfer_retry, reversal)
    monkeypatch.setattr(TransferReversal.objects, "get", lambda **_: TransferReversal(stripe_reversal_id="trr_other"))
    printed, error = failure()
    assert "step 'at Stripe' failed" in error
    assert "exactly one reversal" in printed


def test_a_stripe_that_does_not_answer_is_told(failure: Failure, simulator: Any) -> None:
    simulator.faults.add("unavailable")
    _, error = failure()
    assert "smoke probe: Stripe does not answer" in error


def test_its_time_is_for_all_steps_together(run: Run) -> None:
    with pytest.raises(CommandError, match='step "payment\'s webhook" failed'):
        run("smoke_probe", "--timeout", "1s")


def test_an_attempt_that_failed_points_to_stripe_rather_than_to_the_worker(
    failure: Failure, webhooks: None, simulator: Any, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(transfer_retry)
    simulator.faults.add("unavailable", endpoint="POST /v1/transfers/{id}/reversals")
    webhook = probe._Probe.refund_webhook

    def refund_webhook(self: Any, refund: Any) -> None:
        webhook(self, refund)
        reversal.worker(self.gateway).run_once()

    monkeypatch.setattr(probe._Probe, "refund_webhook", refund_webhook)
    printed, _ = failure("reversal")
    assert "is reversal_pending, last error unknown: Stripe is temporarily unavailable" in printed
    assert "Stripe's answer above: the worker runs, and tries again at that time" in printed


@pytest.mark.parametrize("wrong", ["0s", "soon", "60"])
def test_a_timeout_that_makes_no_sense_is_refused(wrong: str) -> None:
    with pytest.raises(CommandError, match=r"argument --timeout: '.*' is not valid: expected a duration such as"):
        call_command("smoke_probe", "--timeout", wrong)
