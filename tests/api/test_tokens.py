"""API tokens: made and told once, never more than their user, expired, revoked; /api/tokens/."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.models.functions import Now
from rest_framework.test import APIClient
from structlog.testing import capture_logs

from marketplace.errors import TooMuch
from marketplace.migrations import __path__ as migrations_path
from marketplace.models import ApiToken, IdempotentRequest
from marketplace.redaction import redact
from marketplace.roles import Scope
from marketplace.services import api_tokens
from tests.api.conftest import VIEWS, Scene, client_of, problem
from tests.api.test_replay import failed_event
from tests.factories import ApiTokenFactory, SellerTransferFactory, UserFactory

TOKENS = "/api/tokens/"
NEW = {"name": "the shop", "scopes": ["read", "refund"]}
DOING = ["add_refund", "retry_sellertransfer", "write_off_debt", "add_apitoken"]


@pytest.fixture
def user(db: None) -> User:
    return UserFactory(username="ada", staff=True, permissions=[*VIEWS, *DOING])


@pytest.fixture
def session(user: User) -> APIClient:
    client = APIClient()
    client.force_login(user)
    return client


def bearer(secret: str, scheme: str = "Bearer") -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"{scheme} {secret}")
    return client


def made(user: User, *scopes: Scope, age: timedelta = timedelta(days=1)) -> api_tokens.Made:
    return api_tokens.make(user=user, name="a program", scopes=scopes or [Scope.READ], age=age, actor="a test")


# --- Made -------------------------------------------------------------------------------------------------------------


def test_a_token_is_told_once_and_its_digest_stored(session: APIClient, user: User) -> None:
    with capture_logs() as logs:
        response = session.post(TOKENS, NEW)
    shown = response.json()
    secret = shown.pop("token")
    row = ApiToken.objects.get()
    assert response.status_code == 201
    assert secret.startswith("vzt_")
    assert len(secret) > 40
    assert response["Location"] == f"/api/tokens/{row.pk}/"
    assert session.get(response["Location"]).json() == shown
    assert (shown["name"], shown["scopes"], shown["username"], shown["is_active"]) == (
        "the shop",
        ["read", "refund"],
        "ada",
        True,
    )
    assert secret.startswith(shown["prefix"])
    assert secret not in str(ApiToken.objects.values().get())
    assert secret not in str(logs)
    assert [line["token"] for line in logs if line["event"] == "api_token_made"] == [row.pk]
    assert bearer(secret).get("/api/orders/").status_code == 200


def test_it_lives_for_ninety_days_or_as_long_as_one_says(session: APIClient) -> None:
    for asked, days in ((NEW, 90), ({**NEW, "expires_in_days": 3}, 3)):
        token = ApiToken.objects.get(pk=session.post(TOKENS, asked).json()["id"])
        assert token.expires_at - token.created_at == timedelta(days=days)


def test_a_shorter_limit_shortens_the_usual_life(session: APIClient, settings: Any) -> None:
    settings.API_TOKEN_MAX_AGE = timedelta(days=7)
    token = ApiToken.objects.get(pk=session.post(TOKENS, NEW).json()["id"])
    assert token.expires_at - token.created_at == timedelta(days=7)
    refused = problem(session.post(TOKENS, {**NEW, "expires_in_days": 8}), 400, "invalid-request")
    assert refused["errors"] == {"expires_in_days": ["8: expected at most 7"]}


def test_nobody_makes_one_that_lives_longer(user: User, settings: Any) -> None:
    with pytest.raises(TooMuch, match="at most 365 days, not 366"):
        made(user, age=timedelta(days=366))
    assert not ApiToken.objects.exists()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": 5}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["everything"]}, "scopes.0"),
        ({"scopes": "read"}, "scopes"),
        ({"expires_in_days": 0}, "expires_in_days"),
        ({"expires_in_days": "9"}, "expires_in_days"),
        ({"expires_in_days": 3651}, "expires_in_days"),
        ({"user": 1}, "user"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], field: str, session: APIClient) -> None:
    assert list(problem(session.post(TOKENS, {**NEW, **wrong}), 400, "invalid-request")["errors"]) == [field]
    assert not ApiToken.objects.exists()


def test_a_repeated_request_makes_none_and_does_not_tell_it_again(session: APIClient) -> None:
    first, again = (session.post(TOKENS, NEW, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == {**first.json(), "token": None}
    assert first.json()["token"] not in IdempotentRequest.objects.get().body
    assert ApiToken.objects.count() == 1


def test_a_token_makes_none_that_is_more_than_itself(user: User) -> None:
    maker = made(user, Scope.READ, Scope.TOKENS, age=timedelta(days=9))
    client = bearer(maker.secret)
    refused = problem(client.post(TOKENS, {**NEW, "expires_in_days": 1}), 400, "invalid-request")
    assert refused["errors"] == {"scopes": ["refund: expected none that this token has not"]}
    reading = {"name": "n", "scopes": ["read"]}
    refused = problem(client.post(TOKENS, {**reading, "expires_in_days": 9}), 400, "invalid-request")
    assert "expected no later than this token does" in refused["errors"]["expires_in_days"][0]
    assert client.post(TOKENS, {**reading, "expires_in_days": 8}).status_code == 201


def test_staff_need_the_permission_to_have_tokens(db: None) -> None:
    client = APIClient()
    client.force_login(UserFactory(staff=True, permissions=VIEWS))
    for answer in (client.post(TOKENS, NEW), client.get(TOKENS)):
        assert "marketplace.add_apitoken" in problem(answer, 403)["detail"]
    problem(APIClient().post(TOKENS, NEW), 401)


# --- Used -------------------------------------------------------------------------------------------------------------


def test_it_does_only_what_its_scopes_say(scene: Scene) -> None:
    user = UserFactory(staff=True, superuser=True)
    failing, key = SellerTransferFactory(permanently_failed=True), {"Idempotency-Key": "k"}
    doing = {
        Scope.READ: lambda client: client.get("/api/stats/"),
        Scope.REFUND: lambda client: client.post(f"/api/orders/{scene.order.pk}/refunds/", {}, headers=key),
        Scope.OPERATE: lambda client: client.post(f"/api/transfers/{failing.pk}/retry/", {}),
        Scope.FINANCE: lambda client: client.post(f"/api/debts/{scene.reversal.pk}/write-off/", {}, headers=key),
        Scope.TOKENS: lambda client: client.post(TOKENS, {}),
    }
    assert set(doing) == set(Scope)
    for scope, act in doing.items():
        assert act(client_of(user, *{scope, Scope.READ})).status_code in {200, 400, 422}
        refused = problem(act(client_of(user, *({*Scope} - {scope}))), 403)
        assert refused["detail"] == f"This token has not the scope {scope.value}."


def test_it_does_no_more_than_its_user(user: User) -> None:
    event = failed_event()
    refused = problem(client_of(user).post(f"/api/webhook-events/{event.pk}/replay/", {}), 403)
    assert refused["detail"] == "This needs the permission marketplace.replay_webhookevent."


def test_a_permission_that_was_taken_away_is_taken_from_its_tokens(user: User) -> None:
    client = client_of(user)
    assert client.get("/api/orders/").status_code == 200
    user.user_permissions.clear()
    problem(client.get("/api/orders/"), 403)


def test_what_belongs_to_no_scope_no_token_does(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.roles.scope_of", lambda _: None)
    assert problem(client_of(user).get("/api/orders/"), 403)["detail"] == "This token may not do this: sign in."


def test_buyers_and_sellers_have_tokens_too(scene: Scene) -> None:
    buyer = scene.order.buyer
    assert client_of(buyer, Scope.READ).get(f"/api/orders/{scene.order.pk}/").status_code == 200
    problem(client_of(buyer, Scope.TOKENS).get("/api/orders/"), 403)
    for answer in (client_of(buyer, Scope.READ).get(TOKENS), client_of(buyer, Scope.READ).post(TOKENS, NEW)):
        assert problem(answer, 403)["detail"] == "This token has not the scope tokens."
    assert client_of(buyer, Scope.TOKENS).post(TOKENS, {"name": "n", "scopes": ["tokens"]}).status_code == 400
    assert client_of(buyer).post(TOKENS, {**NEW, "expires_in_days": 5}).status_code == 201


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Token"])
def test_both_schemes_are_taken(scheme: str, user: User) -> None:
    assert bearer(made(user).secret, scheme).get("/api/orders/").status_code == 200


def test_an_expired_and_a_revoked_one_are_refused(user: User) -> None:
    expired, revoked = made(user), made(user)
    ApiToken.objects.filter(pk=expired.token.pk).update(
        created_at=Now() - timedelta(days=2), expires_at=Now() - timedelta(seconds=1)
    )
    api_tokens.revoke(token_id=revoked.token.pk, actor="a test")
    for token, word in ((expired, "expired"), (revoked, "was revoked")):
        answer = bearer(token.secret).get("/api/orders/")
        assert f"This token {word} at 20" in problem(answer, 401)["detail"]
        assert answer["WWW-Authenticate"] == "Bearer"
        scrape = {"Authorization": f"Bearer {token.secret}", "X-Real-IP": "10.0.0.1"}
        assert APIClient().get("/metrics", headers=scrape).status_code == 403


def test_the_tokens_of_who_is_not_active_are_refused(user: User) -> None:
    token = made(user)
    user.is_active = False
    user.save(update_fields=["is_active"])
    assert problem(bearer(token.secret).get("/api/orders/"), 401)["detail"] == "No such token is known."


def test_the_last_use_is_written_once_a_minute(user: User) -> None:
    token = made(user)
    client = bearer(token.secret)

    def used() -> Any:
        assert client.get("/api/orders/").status_code == 200
        return ApiToken.objects.get(pk=token.token.pk).last_used_at

    assert token.token.last_used_at is None
    first = used()
    assert first is not None
    assert used() == first
    ApiToken.objects.update(last_used_at=Now() - timedelta(minutes=2))
    assert used() > first


def test_metrics_need_the_scope_to_read(user: User) -> None:
    elsewhere = {"X-Forwarded-For": "10.0.0.1"}
    assert client_of(user, Scope.READ).get("/metrics", headers=elsewhere).status_code == 200
    assert client_of(user, Scope.TOKENS).get("/metrics", headers=elsewhere).status_code == 403


def test_it_is_masked_wherever_it_is_written(user: User) -> None:
    secret = made(user).secret
    assert redact(f"Authorization: Bearer {secret}\nx") == "Authorization: Bearer vzt_***\nx"


# --- Listed and revoked -----------------------------------------------------------------------------------------------


def test_one_sees_the_own_and_with_the_permission_all(session: APIClient, user: User) -> None:
    own, other = ApiTokenFactory(user=user), ApiTokenFactory()
    assert [row["id"] for row in session.get(TOKENS).json()["results"]] == [own.pk]
    problem(session.get(f"{TOKENS}{other.pk}/"), 404)
    problem(session.post(f"{TOKENS}{other.pk}/revoke/"), 404)
    seeing = client_of(UserFactory(staff=True, permissions=["add_apitoken", "view_apitoken"]))
    assert {own.pk, other.pk} <= {row["id"] for row in seeing.get(TOKENS).json()["results"]}
    refused = problem(seeing.post(f"{TOKENS}{other.pk}/revoke/"), 403)
    assert "marketplace.revoke_apitoken" in refused["detail"]
    assert not ApiToken.objects.filter(revoked_at__isnull=False).exists()


def test_they_are_filtered(session: APIClient, user: User) -> None:
    good = ApiTokenFactory(user=user, name="the shop", prefix="vzt_shop12")
    bad = ApiTokenFactory(user=user, revoked_at=good.expires_at)
    for query, expected in (
        ({"active": "true"}, [good.pk]),
        ({"active": "false"}, [bad.pk]),
        ({"search": "shop"}, [good.pk]),
        ({"search": "vzt_shop12"}, [good.pk]),
        ({"user": user.pk}, [bad.pk, good.pk]),
        ({"user": user.pk + 1}, []),
    ):
        assert [row["id"] for row in session.get(TOKENS, query).json()["results"]] == expected, query


def test_a_revoked_one_is_refused_from_then_on(session: APIClient, user: User) -> None:
    token = made(user)
    with capture_logs() as logs:
        shown = session.post(f"{TOKENS}{token.token.pk}/revoke/").json()
    assert (shown["is_active"], shown["revoked_at"] is None) == (False, False)
    assert [(line["token"], line["actor"]) for line in logs if line["event"] == "api_token_revoked"] == [
        (token.token.pk, "user:ada")
    ]
    problem(bearer(token.secret).get("/api/orders/"), 401)
    problem(session.post(f"{TOKENS}{token.token.pk}/revoke/"), 409, "not-allowed-now")


def test_an_admin_revokes_those_of_others(db: None) -> None:
    other = ApiTokenFactory()
    admin = client_of(UserFactory(staff=True, permissions=["add_apitoken", "view_apitoken", "revoke_apitoken"]))
    assert admin.post(f"{TOKENS}{other.pk}/revoke/").status_code == 200
    other.refresh_from_db()
    assert other.revoked_at is not None


# --- Of before --------------------------------------------------------------------------------------------------------


def old_tokens_moved() -> None:
    from importlib import import_module
    from pkgutil import iter_modules

    (name,) = [module.name for module in iter_modules(migrations_path) if module.name.endswith("_api_tokens")]
    with connection.cursor() as cursor:
        cursor.execute(import_module(f"marketplace.migrations.{name}").OLD_TOKENS)


def test_tokens_of_before_go_on_working_and_are_clear_text_no_more(user: User) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE authtoken_token (key varchar(40), created timestamptz, user_id integer)")
        cursor.execute("INSERT INTO authtoken_token VALUES (%s, now() - interval '1 year', %s)", [key, user.pk])
        old_tokens_moved()
        cursor.execute("SELECT count(*) FROM authtoken_token")
        assert cursor.fetchone() == (0,)
    assert bearer(key, "Token").get("/api/orders/").status_code == 200
    token = ApiToken.objects.get()
    assert token.scopes == ["read", "refund", "operate", "finance"]
    assert timedelta(days=89) < token.expires_at - api_tokens.timezone.now() < timedelta(days=91)


def test_where_there_were_none_nothing_is_moved(user: User) -> None:
    old_tokens_moved()
    assert not ApiToken.objects.exists()
