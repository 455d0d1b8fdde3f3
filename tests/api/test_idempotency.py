"""Idempotency-Key on every request that changes something: one answer, one effect."""

import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection, connections
from django.db.models.functions import Now
from rest_framework.request import Request
from rest_framework.test import APIClient, APIRequestFactory
from structlog.testing import capture_logs

from marketplace.api import idempotency
from marketplace.models import IdempotentRequest, SellerTransfer
from marketplace.services import transfers
from tests.api.conftest import VIEWS, client_of, problem
from tests.api.test_replay import failed_event
from tests.conftest import plain_parameters
from tests.factories import SellerTransferFactory, UserFactory

BODY = {"reason": "the account is open again"}
KEY = {"Idempotency-Key": "k-1"}


@pytest.fixture
def user(db: None) -> User:
    return UserFactory(staff=True, permissions=[*VIEWS, "retry_sellertransfer", "replay_webhookevent"])


@pytest.fixture
def client(user: User) -> APIClient:
    return client_of(user)


def failed(**fields: Any) -> SellerTransfer:
    transfer: SellerTransfer = SellerTransferFactory(permanently_failed=True, **fields)
    return transfer


def retry(client: APIClient, transfer: SellerTransfer, body: Any = None, **headers: str) -> Any:
    sent = BODY if body is None else body
    return client.post(f"/api/transfers/{transfer.pk}/retry/", sent, headers={**KEY, **headers})


def test_a_repeated_retry_gives_the_first_answer_and_happens_once(client: APIClient) -> None:
    transfer = failed()
    first, again = retry(client, transfer), retry(client, transfer)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.content == again.content
    assert (first["ETag"], first["Content-Type"]) == (again["ETag"], again["Content-Type"])
    assert (first.has_header("Idempotent-Replayed"), again["Idempotent-Replayed"]) == (False, "true")
    assert transfer.history.filter(pgh_label="status").count() == 1


def test_a_repeated_replay_gives_the_first_answer(client: APIClient) -> None:
    event = failed_event()
    answers = [client.post(f"/api/webhook-events/{event.pk}/replay/", BODY, headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    event.refresh_from_db()
    assert event.replay_count == 1


def test_all_that_says_what_is_asked_counts() -> None:
    make = APIRequestFactory()

    def of(method: str, address: str, body: dict[str, int]) -> str:
        return idempotency.fingerprint(Request(getattr(make, method)(address, body, format="json")))

    asked: list[tuple[str, str, dict[str, int]]] = [
        ("post", "/api/a/", {}),
        ("put", "/api/a/", {}),
        ("post", "/api/b/", {}),
        ("post", "/api/a/?x=1", {}),
        ("post", "/api/a/", {"x": 1}),
    ]
    assert len({of(*each) for each in asked}) == len(asked)
    assert of(*asked[0]) == of(*asked[0])


def test_the_key_is_its_users_own(client: APIClient) -> None:
    transfer = failed()
    retry(client, transfer)
    other = client_of(UserFactory(staff=True, permissions=[*VIEWS, "retry_sellertransfer"]))
    problem(retry(other, transfer), 409, "not-allowed-now")
    theirs = failed()
    assert retry(other, theirs).status_code == 200
    for whose, row in ((client, transfer), (other, theirs)):
        again = retry(whose, row)
        assert (again["Idempotent-Replayed"], again.json()["id"]) == ("true", row.pk)


@pytest.mark.parametrize("body", [{"reason": "another"}, {**BODY, "more": 1}, []])
def test_another_body_under_the_same_key_is_refused(body: Any, client: APIClient) -> None:
    transfer = failed()
    retry(client, transfer)
    assert "'k-1' was used before" in problem(retry(client, transfer, body), 409, "conflicting-facts")["detail"]


def test_another_address_under_the_same_key_is_refused(client: APIClient) -> None:
    retry(client, failed())
    problem(retry(client, failed()), 409, "conflicting-facts")


def test_what_was_refused_frees_its_key(client: APIClient) -> None:
    transfer = failed(stripe_transfer_id="")
    problem(retry(client, transfer), 409, "not-allowed-now")
    problem(retry(client, transfer, {"reason": ""}), 400, "invalid-request")
    assert not IdempotentRequest.objects.exists()
    assert retry(client, failed()).status_code == 200


@pytest.mark.parametrize("key", ["", "x" * 256, "clé", "a\tb"])
def test_what_is_no_key_is_refused(key: str, client: APIClient) -> None:
    refused = problem(retry(client, failed(), **{"Idempotency-Key": key}), 400, "invalid-request")
    assert list(refused["errors"]) == ["Idempotency-Key"]


def test_a_key_is_not_looked_at_where_nothing_is_changed(client: APIClient) -> None:
    assert client.get("/api/transfers/", headers={"Idempotency-Key": ""}).status_code == 200
    assert not IdempotentRequest.objects.exists()


def test_whoever_may_not_does_not_take_a_key(db: None) -> None:
    viewer = client_of(UserFactory(staff=True, permissions=VIEWS))
    problem(retry(viewer, failed()), 403)
    problem(retry(client_of(None), failed()), 401)
    assert not IdempotentRequest.objects.exists()


def test_a_fault_of_ours_frees_the_key(client: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise ZeroDivisionError

    transfer = failed()
    client.raise_request_exception = False
    with monkeypatch.context() as patch:
        patch.setattr(transfers, "retry", broken)
        problem(retry(client, transfer), 500)
    assert retry(client, transfer).status_code == 200


# --- While the first is being answered --------------------------------------------------------------------------------


def asked(user: User, transfer: SellerTransfer, monkeypatch: pytest.MonkeyPatch) -> IdempotentRequest:
    """A request that was begun and whose process died."""
    with monkeypatch.context() as patch:
        patch.setattr(idempotency.Idempotent, "_conclude", lambda *_: None)
        retry(client_of(user), transfer, {"reason": ""})
    return IdempotentRequest.objects.get()


def test_the_second_at_the_same_time_is_told_to_wait(
    user: User, client: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = failed()
    asked(user, transfer, monkeypatch)
    problem(retry(client, transfer, {"reason": ""}), 409, "still-running")
    problem(retry(client, transfer), 409, "conflicting-facts")


def test_a_claim_whose_process_died_runs_out(user: User, client: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = failed()
    row = asked(user, transfer, monkeypatch)
    IdempotentRequest.objects.update(claimed_at=Now() - idempotency.CLAIM_LASTS)
    again = idempotency.claim(user, "k-1", row.fingerprint)
    assert (again.pk, again.claimed_at > row.claimed_at) == (row.pk, True)
    problem(retry(client, transfer, {"reason": ""}), 409, "still-running")


def test_who_lost_the_claim_keeps_no_answer(user: User, client: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stood still for longer than the claim lasts; somebody else answers meanwhile."""
    transfer = failed()
    act = transfers.retry

    def late(**arguments: Any) -> Any:
        IdempotentRequest.objects.update(claimed_at=Now())
        return act(**arguments)

    monkeypatch.setattr(transfers, "retry", late)
    assert retry(client, transfer).status_code == 200
    assert IdempotentRequest.objects.get().status_code is None


def test_a_key_that_is_freed_at_this_moment_is_told_to_wait(user: User) -> None:
    with pytest.raises(idempotency.StillRunning):
        idempotency._claim_again(user, "k-9", "f")


@pytest.mark.parametrize("trouble", [OperationalError("gone"), OperationalError("gone too")])
def test_what_was_done_is_answered_though_the_answer_cannot_be_kept(
    trouble: Exception, client: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise trouble

    transfer = failed()
    monkeypatch.setattr(idempotency.Idempotent, "_kept", away)
    with capture_logs() as logs:
        assert retry(client, transfer).status_code == 200
    assert [(line["event"], line["error"]) for line in logs if "kept" in line["event"]] == [
        ("answer_not_kept", "OperationalError")
    ]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("unblocked_database")
def test_of_many_at_once_one_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    user = UserFactory(staff=True, permissions=[*VIEWS, "retry_sellertransfer"])
    transfer = failed()
    clients = [client_of(user) for _ in range(4)]
    together = threading.Barrier(len(clients))
    answers: list[Any] = []

    def ask(client: APIClient) -> None:
        try:
            together.wait(10)
            answers.append(retry(client, transfer))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=ask, args=[client]) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    done = [answer for answer in answers if answer.status_code == 200]
    assert len(answers) == len(clients)
    assert done
    assert len({answer.content for answer in done}) == 1
    for answer in answers:
        if answer.status_code != 200:
            problem(answer, 409, "still-running")
    assert transfer.history.filter(pgh_label="status").count() == 1
    assert IdempotentRequest.objects.get().status_code == 200


# --- Kept for a time --------------------------------------------------------------------------------------------------


def test_old_answers_go_with_each_new_key(user: User, settings: Any) -> None:
    settings.API_IDEMPOTENCY_KEY_MAX_AGE = timedelta(days=7)
    for number in range(idempotency.SWEPT_AT_ONCE + 2):
        IdempotentRequest.objects.create(user=user, key=f"old {number}", fingerprint="f")
    IdempotentRequest.objects.update(claimed_at=Now() - timedelta(days=7, seconds=1))
    young = IdempotentRequest.objects.create(user=user, key="young", fingerprint="f")
    IdempotentRequest.objects.filter(pk=young.pk).update(claimed_at=Now() - timedelta(days=6, hours=23))
    idempotency.claim(user, "new", "f")
    left = set(IdempotentRequest.objects.values_list("key", flat=True))
    assert {"young", "new"} <= left
    assert len(left) == 4


@pytest.mark.django_db(transaction=True)
def test_what_another_is_sweeping_is_left_to_it() -> None:
    user = UserFactory()
    old = IdempotentRequest.objects.create(user=user, key="old", fingerprint="f")
    IdempotentRequest.objects.update(claimed_at=Now() - timedelta(days=400))
    with psycopg.connect(**plain_parameters()) as sweeping, connection.cursor() as cursor:
        sweeping.execute("SELECT FROM marketplace_idempotentrequest WHERE id = %s FOR UPDATE", [old.pk])
        cursor.execute("SET lock_timeout = '1s'")
        try:
            assert idempotency.claim(user, "new", "f").key == "new"
        finally:
            cursor.execute("RESET lock_timeout")
    assert IdempotentRequest.objects.filter(pk=old.pk).exists()
