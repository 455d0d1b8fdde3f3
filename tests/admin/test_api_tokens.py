"""API tokens in the admin, and from a terminal."""

from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from marketplace.models import ApiToken
from marketplace.services import api_tokens
from tests.factories import ApiTokenFactory, UserFactory

LIST = reverse("admin:marketplace_apitoken_changelist")
ADD = reverse("admin:marketplace_apitoken_add")
NEW = {"name": "the shop", "scopes": ["read", "operate"], "days": 30}


@pytest.fixture
def user(db: None) -> User:
    return UserFactory(username="ada", staff=True, permissions=["add_apitoken"])


@pytest.fixture
def client(user: User) -> Client:
    signed_in = Client()
    signed_in.force_login(user)
    return signed_in


def address(name: str, token: ApiToken) -> str:
    return reverse(f"admin:marketplace_apitoken_{name}", args=[token.pk])


def test_a_token_is_made_and_shown_once(client: Client, user: User) -> None:
    answer = client.post(ADD, NEW)
    token = ApiToken.objects.get()
    secret = answer.context["made"].secret
    assert f">{secret}<" in answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    assert (token.user, token.name, token.scopes) == (user, "the shop", ["read", "operate"])
    assert (token.expires_at - token.created_at).days == 30
    assert api_tokens.digest(secret) == token.digest
    for page in (LIST, address("change", token), ADD):
        shown = client.get(page).content.decode()
        assert secret not in shown
        assert token.digest not in shown


@pytest.mark.parametrize("wrong", [{"name": ""}, {"scopes": []}, {"scopes": ["all"]}, {"days": 0}, {"days": 366}])
def test_what_cannot_be_is_said_beside_the_field(wrong: dict[str, Any], client: Client) -> None:
    answer = client.post(ADD, {**NEW, **wrong})
    assert answer.status_code == 200
    assert list(answer.context["form"].errors) == list(wrong)
    assert not ApiToken.objects.exists()


def test_one_sees_and_revokes_the_own_only(client: Client, user: User) -> None:
    own, other = ApiTokenFactory(user=user), ApiTokenFactory()
    assert list(client.get(LIST).context["cl"].result_list) == [own]
    assert client.get(address("change", own)).status_code == 200
    assert client.get(address("change", other)).status_code == 403
    assert client.post(address("revoke_one", other)).status_code == 403
    client.post(LIST, {"action": "revoke_selected", "_selected_action": [own.pk, other.pk]})
    own.refresh_from_db()
    other.refresh_from_db()
    assert (own.revoked_at is None, other.revoked_at) == (False, None)


def test_who_may_have_none_revokes_none_either(db: None) -> None:
    """Also not one of one's own, from before."""
    user = UserFactory(staff=True)
    token, client = ApiTokenFactory(user=user), Client()
    client.force_login(user)
    assert client.post(address("revoke_one", token)).status_code == 403
    token.refresh_from_db()
    assert token.revoked_at is None


def test_who_sees_all_revokes_of_those_selected_the_own_only(db: None) -> None:
    user = UserFactory(staff=True, permissions=["add_apitoken", "view_apitoken"])
    own, other, client = ApiTokenFactory(user=user), ApiTokenFactory(), Client()
    client.force_login(user)
    selected = {"action": "revoke_selected", "_selected_action": [own.pk, other.pk]}
    client.post(reverse("admin:marketplace_apitoken_changelist"), selected)
    assert list(ApiToken.objects.filter(revoked_at__isnull=False)) == [own]


def test_an_admin_sees_and_revokes_all(db: None) -> None:
    signed_in = Client()
    signed_in.force_login(UserFactory(staff=True, permissions=["view_apitoken", "revoke_apitoken"]))
    tokens = [ApiTokenFactory(), ApiTokenFactory()]
    assert signed_in.get(LIST).context["cl"].result_count == 2
    answer = signed_in.post(
        LIST, {"action": "revoke_selected", "_selected_action": [t.pk for t in tokens]}, follow=True
    )
    assert "Revoked: " in answer.content.decode()
    assert ApiToken.objects.filter(revoked_at__isnull=False).count() == 2
    assert signed_in.get(ADD).status_code == 403


def test_revoking_is_asked_for_once_more(client: Client, user: User) -> None:
    token = ApiTokenFactory(user=user, name="the shop")
    page = address("revoke_one", token)
    assert "Revoke the shop" in client.get(page).content.decode()
    token.refresh_from_db()
    assert token.revoked_at is None
    assert "Revoked the shop." in client.post(page, follow=True).content.decode()
    assert "was revoked before" in client.post(page, follow=True).content.decode()
    shown = client.get(address("change", token)).content.decode()
    assert "revoke_one" not in shown
    assert client.get(reverse("admin:marketplace_apitoken_revoke_one", args=[10**6])).status_code == 302
    assert client.get(reverse("admin:marketplace_apitoken_change", args=["x"])).status_code == 302


def test_the_list_tells_the_state(client: Client, user: User) -> None:
    active = ApiTokenFactory(user=user)
    ApiTokenFactory(user=user, revoked_at=active.expires_at)
    old = ApiTokenFactory(user=user)
    ApiToken.objects.filter(pk=old.pk).update(created_at="2025-01-01T00:00Z", expires_at="2025-02-01T00:00Z")
    shown = client.get(LIST).content.decode()
    assert all(word in shown for word in ("active", "revoked", "expired"))


# --- From a terminal --------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command("api_tokens", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_a_command_makes_lists_and_revokes(user: User) -> None:
    out, err = run("make", "ada", "--name", "the shop", "--scope", "read", "--scope", "refund", "--days", "5")
    token = ApiToken.objects.get()
    assert api_tokens.digest(out.strip()) == token.digest
    assert err.startswith(f"API token {token.pk} of ada, good until 20")
    for arguments in ((), ("ada",)):
        listed, _ = run("list", *arguments)
        assert listed.split("\t")[:5] == [str(token.pk), "ada", "the shop", f"{token.prefix}…", "read,refund"]
        assert out.strip() not in listed
    assert run("revoke", str(token.pk)) == ("Revoked the shop of ada.\n", "")
    assert run("list") == ("", "")


def test_the_list_says_what_is_used_and_expired(user: User) -> None:
    token = ApiTokenFactory(user=user)
    moment = "2025-02-01T00:00Z"
    ApiToken.objects.filter(pk=token.pk).update(created_at="2025-01-01T00:00Z", expires_at=moment, last_used_at=moment)
    assert "expired 2025-02-01\tused 2025-02-01" in run("list")[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["make", "bob", "--name", "n", "--scope", "read"], "there is no user 'bob'"),
        (["make", "ada", "--name", "n", "--scope", "all"], "invalid choice"),
        (["make", "ada", "--name", "n", "--scope", "read", "--days", "0"], "expected a whole number from 1 to 3650"),
        (["make", "ada", "--name", "n", "--scope", "read", "--days", "366"], "at most 365 days, not 366"),
        (["list", "bob"], "there is no user 'bob'"),
        (["revoke", "7"], "there is no API token 7"),
        (["revoke", "x"], "invalid int value"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(arguments: list[str], says: str, user: User) -> None:
    with pytest.raises(CommandError, match=says):
        run(*arguments)
    assert not ApiToken.objects.exists()


def test_revoking_twice_is_said(user: User) -> None:
    token = ApiTokenFactory(user=user)
    run("revoke", str(token.pk))
    with pytest.raises(CommandError, match="was revoked before"):
        run("revoke", str(token.pk))
