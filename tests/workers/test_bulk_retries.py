"""A bulk retry in the hands of its worker: a few first, then the rest at a pace, and never one twice."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.db.models.functions import Now
from django.utils import timezone
from structlog.testing import capture_logs

from marketplace import throttle
from marketplace.errors import NotAllowedNow, StaleTransition
from marketplace.models import BulkRetry, SellerTransfer
from marketplace.services import bulk_retries, bulk_steps, refund_records, transfers
from marketplace.services.bulk_retries import Criteria
from marketplace.states import TransferStatus
from marketplace.workers import bulk_retries as queue_module
from marketplace.workers import reversal
from marketplace.workers.bulk_retries import BulkRetryQueue
from tests.factories import BulkRetryItemFactory, SellerTransferFactory, UserFactory
from tests.services.test_confirmation import wait_until_blocked
from tests.services.test_refunds import facts
from tests.workers.conftest import REVERSE

LEASE = timedelta(minutes=5)
Make = Callable[..., SellerTransfer]
Run = Callable[[], int]


@pytest.fixture(autouse=True)
def _limits(settings: Any) -> None:
    settings.BULK_RETRY_APPROVAL_ABOVE = {"": 10_000_000}
    settings.BULK_RETRY_CANARY_SIZE = 2
    settings.BULK_RETRY_PER_MINUTE = 60


@pytest.fixture
def ann(db: None) -> User:
    return UserFactory(username="ann", staff=True)


@pytest.fixture
def begun(ann: User) -> Callable[..., BulkRetry]:
    """All that need a person are chosen, and it is started."""

    def make(**criteria: Any) -> BulkRetry:
        planned = bulk_retries.plan(criteria=Criteria(**criteria), by=ann, reason="it works again")
        return bulk_retries.start(bulk_retry_id=planned.pk, by=ann)

    return make


Begun = Callable[..., BulkRetry]


def gone() -> SellerTransfer:
    """Stripe does not have it, and says so again."""
    return SellerTransferFactory(permanently_failed=True)


def step(bulk_retry: BulkRetry, times: int = 1) -> BulkRetry:
    """Its next steps, whenever they are due."""
    queue = BulkRetryQueue()
    for _ in range(times):
        BulkRetry.objects.filter(pk=bulk_retry.pk, next_retry_at__isnull=False).update(next_retry_at=Now())
        for claimed in queue.claim(batch_size=10, lease=LEASE):
            queue.perform(claimed)
    bulk_retry.refresh_from_db()
    return bulk_retry


def results(bulk_retry: BulkRetry) -> list[str]:
    return list(bulk_retry.items.order_by("position").values_list("status", flat=True))


def retries_of(transfer: SellerTransfer) -> int:
    return sum(
        (each.pgh_context or {}).get("reason", "").startswith("bulk retry")
        for each in transfer.history.filter(status="reversal_pending")
    )


# --- From the canary to the end ---------------------------------------------------------------------------------------


def test_the_canary_goes_first_and_the_rest_follows_its_success(
    at_stripe: Make, begun: Begun, run_reversals: Run, simulator: Any
) -> None:
    rows = [at_stripe(permanently_failed=True) for _ in range(4)]
    bulk_retry = begun()
    step(bulk_retry, 4)
    assert (bulk_retry.status, results(bulk_retry)) == ("canary", ["retried", "retried", "planned", "planned"])
    run_reversals()
    step(bulk_retry)
    assert (bulk_retry.status, results(bulk_retry)[:2]) == ("running", ["succeeded", "succeeded"])
    step(bulk_retry)
    assert results(bulk_retry)[2:] == ["retried", "planned"]
    step(bulk_retry)
    run_reversals()
    step(bulk_retry)
    assert (bulk_retry.status, results(bulk_retry)) == ("finished", ["succeeded"] * 4)
    assert bulk_retry.next_retry_at is None
    assert len(simulator.requests.to(REVERSE)) == 4
    for row in rows:
        row.refresh_from_db()
        assert (row.status, retries_of(row)) == ("reversed", 1)
    told = list(bulk_retry.history.order_by("pgh_id").values_list("status", flat=True))
    assert told == ["planned", "canary", "running", "finished"]


def test_the_retry_is_told_by_its_requester_and_reason(at_stripe: Make, begun: Begun) -> None:
    row = at_stripe(permanently_failed=True)
    bulk_retry = step(begun())
    told = row.history.order_by("pgh_id").last()
    assert (told.pgh_context["actor"], told.pgh_context["reason"]) == (
        "user:ann",
        f"bulk retry {bulk_retry.pk}: it works again",
    )


def test_where_there_are_no_more_than_the_canary_it_is_finished(
    at_stripe: Make, begun: Begun, run_reversals: Run
) -> None:
    at_stripe(permanently_failed=True)
    bulk_retry = step(begun())
    run_reversals()
    assert step(bulk_retry).status == "finished"


def test_a_canary_that_fails_stops_it_and_the_rest_is_untouched(
    at_stripe: Make, begun: Begun, run_reversals: Run
) -> None:
    gone()
    rest = [at_stripe(permanently_failed=True) for _ in range(3)]
    bulk_retry = step(begun(), 2)
    run_reversals()
    with capture_logs() as logs:
        step(bulk_retry)
    assert (bulk_retry.status, bulk_retry.stop_reason) == (
        "stopped",
        "1 of 2 of the canary failed again; at most 10 % may",
    )
    assert results(bulk_retry) == ["failed", "succeeded", "planned", "planned"]
    assert bulk_retry.items.get(position=1).outcome.startswith("not_found: ")
    assert "bulk_retry_stopped" in [entry["event"] for entry in logs if entry["log_level"] == "error"]
    step(bulk_retry, 3)
    for row in rest[1:]:
        row.refresh_from_db()
        assert (row.status, retries_of(row)) == ("permanently_failed", 0)
    assert bulk_retry.next_retry_at is None


def test_failures_within_the_limit_do_not_stop_the_canary(
    at_stripe: Make, begun: Begun, run_reversals: Run, settings: Any
) -> None:
    settings.BULK_RETRY_MAX_ERROR_PERCENT = 50
    gone()
    for _ in range(2):
        at_stripe(permanently_failed=True)
    bulk_retry = step(begun(), 2)
    run_reversals()
    assert step(bulk_retry).status == "running"


def test_a_canary_that_is_not_settled_in_time_stops_it(at_stripe: Make, begun: Begun) -> None:
    """Unknown is not failed, and not shown to work either."""
    for _ in range(3):
        at_stripe(permanently_failed=True)
    bulk_retry = step(begun(), 2)
    BulkRetry.objects.filter(pk=bulk_retry.pk).update(canary_until=Now() + timedelta(minutes=1))
    assert step(bulk_retry).status == "canary"
    BulkRetry.objects.filter(pk=bulk_retry.pk).update(canary_until=Now())
    step(bulk_retry)
    assert (bulk_retry.status, bulk_retry.stop_reason) == ("stopped", "2 of 2 of the canary are not settled in time")


def test_the_canarys_time_does_not_run_before_all_of_it_is_retried(at_stripe: Make, begun: Begun) -> None:
    for _ in range(3):
        at_stripe(permanently_failed=True)
    bulk_retry = begun()
    BulkRetry.objects.filter(pk=bulk_retry.pk).update(canary_until=Now() - timedelta(hours=1))
    step(bulk_retry)
    assert (bulk_retry.status, results(bulk_retry)) == ("canary", ["retried", "planned", "planned"])
    assert step(bulk_retry).status == "canary"


@pytest.mark.parametrize("code", ["insufficient_funds", "pending_at_stripe"])
def test_what_waits_for_the_sellers_money_is_settled_and_no_error(begun: Begun, code: str) -> None:
    for _ in range(3):
        gone()
    SellerTransfer.objects.update(last_error_code=code)
    bulk_retry = step(begun(), 2)
    assert results(bulk_retry)[:2] == ["retried", "retried"]
    SellerTransfer.objects.filter(status="reversal_pending").update(last_error_at=Now())
    assert step(bulk_retry).status == "running"
    assert results(bulk_retry) == ["waiting", "waiting", "planned"]


# --- Errors later on --------------------------------------------------------------------------------------------------


def test_too_many_errors_among_the_last_stop_it(
    at_stripe: Make, begun: Begun, run_reversals: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_steps, "WINDOW", 10)
    for _ in range(2):
        at_stripe(permanently_failed=True)
    for _ in range(3):
        gone()
    bulk_retry = step(begun(), 2)
    run_reversals()
    step(bulk_retry, 2)
    run_reversals()
    assert step(bulk_retry).status == "running"
    run_reversals()
    step(bulk_retry)
    assert (bulk_retry.status, bulk_retry.stop_reason) == (
        "stopped",
        "2 of the last 10 failed again; at most 10 % may",
    )
    assert results(bulk_retry) == ["succeeded", "succeeded", "failed", "failed", "planned"]


def test_old_successes_do_not_hide_the_last_errors(
    at_stripe: Make, begun: Begun, run_reversals: Run, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setattr(bulk_steps, "WINDOW", 2)
    settings.BULK_RETRY_MAX_ERROR_PERCENT = 50
    for _ in range(3):
        at_stripe(permanently_failed=True)
    for _ in range(3):
        gone()
    bulk_retry = begun()
    for _ in range(8):
        step(bulk_retry)
        run_reversals()
    assert (bulk_retry.status, bulk_retry.stop_reason) == ("stopped", "2 of the last 2 failed again; at most 50 % may")


def test_old_errors_are_no_reason_to_stop(
    at_stripe: Make, begun: Begun, run_reversals: Run, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setattr(bulk_steps, "WINDOW", 2)
    settings.BULK_RETRY_MAX_ERROR_PERCENT = 50
    at_stripe(permanently_failed=True), gone()
    for _ in range(2):
        at_stripe(permanently_failed=True)
    gone()
    bulk_retry = begun()
    for _ in range(6):
        step(bulk_retry)
        run_reversals()
    assert step(bulk_retry).status == "finished"


def test_no_more_are_open_than_can_be_judged(
    at_stripe: Make, begun: Begun, run_reversals: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        at_stripe(permanently_failed=True)
    bulk_retry = step(begun(), 2)
    run_reversals()
    step(bulk_retry)
    monkeypatch.setattr(bulk_steps, "MOST_OPEN", 1)
    step(bulk_retry, 3)
    assert results(bulk_retry)[2:] == ["retried", "planned", "planned"]
    until = BulkRetry.objects.filter(next_retry_at__gt=Now() + bulk_steps.LOOK_INTERVAL - timedelta(seconds=2))
    assert until.exists()


@pytest.mark.parametrize(("per_minute", "round_", "seconds"), [(60, 1, 1), (1, 1, 60), (45, 1, 2), (600, 10, 1)])
def test_the_pace(per_minute: int, round_: int, seconds: int) -> None:
    assert (bulk_steps.a_round(per_minute), bulk_steps.pause(per_minute)) == (round_, timedelta(seconds=seconds))
    assert round_ * 60 / seconds <= per_minute


def test_a_step_retries_as_many_as_the_pace_says(at_stripe: Make, begun: Begun, settings: Any) -> None:
    settings.BULK_RETRY_PER_MINUTE = 180
    settings.BULK_RETRY_CANARY_SIZE = 5
    for _ in range(6):
        at_stripe(permanently_failed=True)
    bulk_retry = begun()
    assert results(step(bulk_retry)).count("retried") == 3
    assert results(step(bulk_retry)).count("retried") == 5


# --- Stripe is down ---------------------------------------------------------------------------------------------------


def open_breaker(work: str) -> None:
    throttle.failed(work, channel="c", whom="seller 1", everyone=True, is_probe=False, error="503")


def test_while_stripe_fails_for_everyone_it_is_paused_and_no_time_runs(at_stripe: Make, begun: Begun) -> None:
    for _ in range(3):
        at_stripe(permanently_failed=True)
    bulk_retry = begun()
    open_breaker("reversal")
    assert results(step(bulk_retry)) == ["planned"] * 3
    throttle.succeeded("reversal")
    step(bulk_retry, 2)
    open_breaker("reversal")
    BulkRetry.objects.filter(pk=bulk_retry.pk).update(canary_until=Now())
    assert step(bulk_retry).status == "canary"
    throttle.succeeded("reversal")
    # The wait begins anew.
    assert step(bulk_retry).status == "canary"


def test_a_breaker_of_other_work_does_not_hold_it_back(at_stripe: Make, begun: Begun) -> None:
    at_stripe(permanently_failed=True)
    open_breaker("transfer")
    assert results(step(begun())) == ["retried"]


def test_a_breaker_of_what_is_settled_does_not_hold_it_back(at_stripe: Make, begun: Begun, settings: Any) -> None:
    settings.BULK_RETRY_CANARY_SIZE = 3
    sent = SellerTransferFactory(permanently_failed_sending=True)
    for _ in range(2):
        at_stripe(permanently_failed=True)
    bulk_retry = step(begun())
    assert bulk_retry.items.get(transfer=sent).status == "retried"
    SellerTransfer.objects.get(pk=sent.pk).transition(
        TransferStatus.CANCELED, actor="worker", reason="refunded", next_retry_at=None
    )
    step(bulk_retry)
    assert bulk_retry.items.get(transfer=sent).status == "succeeded"
    open_breaker("transfer")
    before = results(bulk_retry).count("retried")
    assert results(step(bulk_retry)).count("retried") == before + 1


# --- What changed meanwhile -------------------------------------------------------------------------------------------


def moved_by_retry(row: SellerTransfer) -> None:
    transfers.retry(transfer_id=row.pk, actor="user:bob", reason="by hand")


def moved_by_failed_refund(row: SellerTransfer) -> None:
    refund = row.reversals.get().refund
    assert refund is not None
    told = {"amount": refund.amount, "stripe_refund_id": refund.stripe_refund_id, "seen_at": timezone.now()}
    refund_records.record(facts(row.order, status="failed", **told), actor="stripe:evt")


def moved_and_failed_again(row: SellerTransfer) -> None:
    moved_by_retry(row)
    row.refresh_from_db()
    row.transition(
        TransferStatus.PERMANENTLY_FAILED, actor="worker", reason="again", failed_leg="reversing", next_retry_at=None
    )


def owes_less(row: SellerTransfer) -> None:
    row.reversals.update(unwanted_amount=1)


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (moved_by_retry, "transfer {pk} is reversal_pending: only a permanently_failed one can be retried"),
        (moved_by_failed_refund, "transfer {pk} is reversal_pending: only a permanently_failed one can be retried"),
        (moved_and_failed_again, "it changed after it was chosen"),
        (owes_less, "it is about 49.99 EUR now, not 50.00 EUR"),
    ],
)
def test_what_changed_after_it_was_chosen_is_left_alone(act: Any, why: str, at_stripe: Make, begun: Begun) -> None:
    row = at_stripe(permanently_failed=True)
    bulk_retry = begun()
    act(row)
    step(bulk_retry)
    item = bulk_retry.items.get()
    assert (item.status, bulk_retry.status) == ("skipped", "finished")
    assert item.outcome == why.format(pk=row.pk)
    assert retries_of(row) == 0


def test_others_take_the_place_of_skipped_ones_in_the_canary(at_stripe: Make, begun: Begun) -> None:
    rows = [at_stripe(permanently_failed=True) for _ in range(4)]
    bulk_retry = begun()
    moved_by_retry(rows[0])
    step(bulk_retry, 4)
    assert (bulk_retry.status, results(bulk_retry)) == ("canary", ["skipped", "retried", "retried", "planned"])


def test_of_two_bulk_retries_of_the_same_transfer_one_retries_it(at_stripe: Make, begun: Begun) -> None:
    row = at_stripe(permanently_failed=True)
    both = [begun(), begun()]
    step(both[0])
    assert sorted(status for each in both for status in results(each)) == ["retried", "skipped"]
    assert retries_of(row) == 1


# --- The sending leg --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trait", "result"),
    [
        ("completed", ("succeeded", "completed")),
        ("reversal_pending", ("succeeded", "sent, and refunded since")),
        ("canceled", ("succeeded", "canceled: nothing was left to send")),
        ("failed", None),
        ("permanently_failed_sending", ("failed", "account_invalid: No such destination")),
    ],
)
@pytest.mark.django_db
def test_what_becomes_of_a_transfer_that_is_sent_again(trait: str, result: Any) -> None:
    transfer = SellerTransferFactory(**{trait: True})
    item = BulkRetryItemFactory(transfer=transfer, failed_leg="sending", retried=True)
    found = bulk_steps._result(item)
    assert (found and (found[0].value, found[1])) == result


def test_a_transfer_that_was_not_sent_is_sent_again(begun: Begun) -> None:
    transfer = SellerTransferFactory(permanently_failed_sending=True)
    step(begun())
    transfer.refresh_from_db()
    assert transfer.status == "failed"
    assert transfer.next_retry_at is not None


# --- Stopped by a person ----------------------------------------------------------------------------------------------


def test_after_a_stop_nothing_is_retried_and_results_are_still_seen(
    at_stripe: Make, begun: Begun, run_reversals: Run, ann: User
) -> None:
    for _ in range(3):
        at_stripe(permanently_failed=True)
    bulk_retry = step(begun())
    bulk_retries.stop(bulk_retry_id=bulk_retry.pk, by=ann, reason="wrong cause")
    step(bulk_retry, 2)
    assert (bulk_retry.status, bulk_retry.stop_reason) == ("stopped", "wrong cause")
    assert results(bulk_retry) == ["retried", "planned", "planned"]
    assert bulk_retry.next_retry_at is not None
    run_reversals()
    step(bulk_retry)
    assert results(bulk_retry) == ["succeeded", "planned", "planned"]
    assert bulk_retry.next_retry_at is None


def test_what_fails_after_a_stop_is_written_down_and_stops_nothing(begun: Begun, ann: User, settings: Any) -> None:
    settings.BULK_RETRY_CANARY_SIZE = 5
    for _ in range(4):
        gone()
    bulk_retry = step(begun(), 4)
    bulk_retries.stop(bulk_retry_id=bulk_retry.pk, by=ann, reason="wrong cause")
    for row in SellerTransfer.objects.all():
        row.transition(
            TransferStatus.PERMANENTLY_FAILED, actor="worker", reason="-", failed_leg="reversing", next_retry_at=None
        )
    step(bulk_retry)
    assert (results(bulk_retry), bulk_retry.stop_reason) == (["failed"] * 4, "wrong cause")
    assert not bulk_retry.stopped_by_itself


def test_a_stop_in_the_middle_of_a_step_ends_it(at_stripe: Make, begun: Begun, ann: User) -> None:
    for _ in range(3):
        at_stripe(permanently_failed=True)
    bulk_retry = begun()
    (claimed,) = bulk_steps.claim(batch_size=1, lease=LEASE)
    bulk_retries.stop(bulk_retry_id=bulk_retry.pk, by=ann, reason="wrong cause")
    bulk_steps.go_on(claimed, actor="worker")
    assert results(bulk_retry) == ["planned"] * 3


# --- Dying, and losing the lease --------------------------------------------------------------------------------------


class Death(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("where", ["before", "between", "after"])
def test_whenever_the_worker_dies_each_is_retried_once(
    where: str, at_stripe: Make, begun: Begun, run_reversals: Run, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.BULK_RETRY_PER_MINUTE = 120
    rows = [at_stripe(permanently_failed=True) for _ in range(3)]
    bulk_retry = begun()
    resume, done = transfers.resume, []

    def dying(transfer: SellerTransfer, **by: Any) -> None:
        if where == "before" or (where == "between" and done):
            raise Death
        resume(transfer, **by)
        done.append(transfer.pk)

    def dead(*_: Any, **__: Any) -> None:
        raise Death

    with monkeypatch.context() as patched:
        patched.setattr(transfers, "resume", dying)
        if where == "after":
            patched.setattr(bulk_steps, "_put_back", dead)
        with pytest.raises(Death):
            step(bulk_retry)
    # Its lease has to run out first.
    step(bulk_retry)
    assert results(bulk_retry).count("retried") == {"before": 0, "between": 1, "after": 2}[where]
    BulkRetry.objects.filter(pk=bulk_retry.pk).update(lease_expires_at=Now())
    for _ in range(5):
        step(bulk_retry)
        run_reversals()
    assert step(bulk_retry).status == "finished"
    assert [retries_of(row) for row in rows] == [1, 1, 1]


def test_who_lost_the_lease_retries_nothing(at_stripe: Make, begun: Begun) -> None:
    at_stripe(permanently_failed=True)
    bulk_retry = begun()
    (late,) = bulk_steps.claim(batch_size=1, lease=LEASE)
    BulkRetry.objects.filter(pk=bulk_retry.pk).update(lease_expires_at=Now())
    assert bulk_steps.claim(batch_size=1, lease=LEASE)
    with pytest.raises(StaleTransition):
        bulk_steps.go_on(late, actor="late")
    assert results(bulk_retry) == ["planned"]


def taken_over(bulk_retry: BulkRetry) -> None:
    BulkRetry.objects.filter(pk=bulk_retry.pk).update(lease_expires_at=Now())
    assert bulk_steps.claim(batch_size=1, lease=LEASE)


@pytest.mark.parametrize("before", ["_review", "_retry_next", "_put_back", "settle_unexpected"])
def test_whenever_the_lease_is_lost_nothing_is_written_from_then_on(
    before: str, at_stripe: Make, begun: Begun, run_reversals: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        at_stripe(permanently_failed=True)
    bulk_retry = step(begun())
    run_reversals()
    assert results(bulk_retry) == ["retried", "planned", "planned"]
    BulkRetry.objects.filter(pk=bulk_retry.pk).update(next_retry_at=Now())
    (late,) = bulk_steps.claim(batch_size=1, lease=LEASE)
    act = getattr(bulk_steps, before)
    seen: list[Any] = []

    def lost_before(*args: Any, **named: Any) -> Any:
        taken_over(bulk_retry)
        bulk_retry.refresh_from_db()
        seen.extend([bulk_retry.version, bulk_retry.lease_token, results(bulk_retry)])
        return act(*args, **named)

    monkeypatch.setattr(bulk_steps, before, lost_before)
    trouble = [ValueError("broken")] if before == "settle_unexpected" else []
    last = bulk_steps.settle_unexpected if trouble else bulk_steps.go_on
    with pytest.raises(StaleTransition):
        last(late, *trouble, actor="late")
    bulk_retry.refresh_from_db()
    assert seen == [bulk_retry.version, bulk_retry.lease_token, results(bulk_retry)]


def test_a_row_given_back_is_due_at_once(at_stripe: Make, begun: Begun) -> None:
    at_stripe(permanently_failed=True)
    begun()
    queue = BulkRetryQueue()
    (claimed,) = queue.claim(batch_size=1, lease=LEASE)
    assert queue.claim(batch_size=1, lease=LEASE) == []
    assert not queue.is_held_back(claimed)
    assert queue.describe(claimed) == {"bulk_retry": claimed.pk}
    queue.release(claimed)
    assert queue.claim(batch_size=1, lease=LEASE) == [claimed]


def test_an_error_of_our_own_stops_it(at_stripe: Make, begun: Begun, ann: User) -> None:
    for _ in range(2):
        at_stripe(permanently_failed=True)
    bulk_retry = step(begun())
    queue = BulkRetryQueue()
    for _ in range(2):
        BulkRetry.objects.filter(pk=bulk_retry.pk).update(next_retry_at=Now())
        (claimed,) = queue.claim(batch_size=1, lease=LEASE)
        queue.settle_unexpected(claimed, ValueError("broken"))
        bulk_retry.refresh_from_db()
        assert (bulk_retry.status, bulk_retry.stop_reason) == ("stopped", "unexpected_error: ValueError: broken")
        assert bulk_retry.lease_token is None
        assert bulk_retry.next_retry_at is not None
    assert results(bulk_retry) == ["retried", "planned"]


def test_the_reversal_worker_serves_it(gateway: Any) -> None:
    served = [watched.queue.name for watched in reversal.worker(gateway)._watched]
    assert bulk_steps.WORK in served
    assert queue_module.BulkRetryQueue.due is bulk_steps.DUE


# --- At the same time -------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_single_retry_at_the_same_time_is_one_retry(begun: Begun, unblocked_database: None) -> None:
    row = gone()
    bulk_retry = begun()
    together = threading.Barrier(2, timeout=30)
    refused: list[str] = []

    def by_hand() -> None:
        try:
            together.wait()
            moved_by_retry(row)
        except NotAllowedNow as refusal:
            refused.append(refusal.message)
        finally:
            connections.close_all()

    def in_bulk() -> None:
        try:
            together.wait()
            step(bulk_retry)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=act) for act in (by_hand, in_bulk)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (result,) = results(bulk_retry)
    assert (result == "retried") == bool(refused)
    assert result in {"retried", "skipped"}
    assert row.history.filter(status="reversal_pending").count() == 1


@pytest.mark.django_db(transaction=True)
def test_once_a_stop_is_answered_nothing_more_is_retried(
    begun: Begun, unblocked_database: None, monkeypatch: pytest.MonkeyPatch, settings: Any, ann: User
) -> None:
    settings.BULK_RETRY_PER_MINUTE = 6000
    settings.BULK_RETRY_CANARY_SIZE = 50
    for _ in range(20):
        gone()
    bulk_retry = begun()
    resume = transfers.resume
    stopping: list[threading.Thread] = []
    answered: list[list[str]] = []

    def stop() -> None:
        try:
            bulk_retries.stop(bulk_retry_id=bulk_retry.pk, by=ann, reason="wrong cause")
            answered.append(results(bulk_retry))
        finally:
            connections.close_all()

    def first_stopped(transfer: SellerTransfer, **by: Any) -> None:
        if not stopping:
            stopping.append(threading.Thread(target=stop))
            stopping[0].start()
            # It waits for the retry in hand.
            wait_until_blocked()
        resume(transfer, **by)

    monkeypatch.setattr(transfers, "resume", first_stopped)
    step(bulk_retry)
    stopping[0].join(30)
    step(bulk_retry)
    assert bulk_retry.status == "stopped"
    assert answered == [results(bulk_retry)]
    assert results(bulk_retry)[0] == "retried"
