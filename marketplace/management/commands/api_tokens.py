"""API tokens from a terminal."""

from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError

from marketplace.errors import MarketplaceError
from marketplace.models import ApiToken
from marketplace.roles import Scope
from marketplace.services import api_tokens

ACTOR = "manage.py api_tokens"


def days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 3650):
        raise ArgumentTypeError(f"{text!r}: expected a whole number from 1 to 3650")
    return int(text)


class Command(BaseCommand):
    help = "Make, list and revoke API tokens; a new one is printed once, on a line of its own"

    def add_arguments(self, parser: ArgumentParser) -> None:
        acts = parser.add_subparsers(dest="act", required=True, help="what to do")
        making = acts.add_parser("make", help="make a token and print it")
        making.add_argument("user", help="whose token it is: a user name")
        making.add_argument("--name", required=True, help="what it is for, such as the program that uses it")
        making.add_argument(
            "--scope", action="append", required=True, choices=Scope.values, help="what it may do; may be repeated"
        )
        making.add_argument("--days", type=days, help="it expires after so many days (90)")
        listing = acts.add_parser("list", help="list tokens, without those that are revoked")
        listing.add_argument("user", nargs="?", help="only this user's")
        revoking = acts.add_parser("revoke", help="refuse a token from now on")
        revoking.add_argument("id", type=int, help="its number, as list shows it")

    def handle(self, *_: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['act']}")(options)
        except MarketplaceError as error:
            raise CommandError(error.message) from error

    def _make(self, options: dict[str, Any]) -> None:
        made = api_tokens.make(
            user=_user(options["user"]),
            name=options["name"],
            scopes=[Scope(scope) for scope in options["scope"]],
            age=api_tokens.age_of(options["days"]),
            actor=ACTOR,
        )
        self.stderr.write(f"{made.token} of {options['user']}, good until {made.token.expires_at:%Y-%m-%d}:")
        self.stdout.write(made.secret)

    def _list(self, options: dict[str, Any]) -> None:
        rows = ApiToken.objects.filter(revoked_at__isnull=True).select_related("user").order_by("id")
        for token in rows.filter(user=_user(options["user"])) if options["user"] else rows:
            until = f"{'expired' if api_tokens.is_expired(token) else 'until'} {token.expires_at:%Y-%m-%d}"
            used = f"used {token.last_used_at:%Y-%m-%d}" if token.last_used_at else "never used"
            self.stdout.write(
                f"{token.pk}\t{token.user.get_username()}\t{token.name}\t{token.prefix}…\t{','.join(token.scopes)}"
                f"\t{until}\t{used}"
            )

    def _revoke(self, options: dict[str, Any]) -> None:
        try:
            token = api_tokens.revoke(token_id=options["id"], actor=ACTOR)
        except ApiToken.DoesNotExist:
            raise CommandError(f"there is no API token {options['id']}: see manage.py api_tokens list") from None
        self.stdout.write(f"Revoked {token.name} of {token.user.get_username()}.")


def _user(name: str) -> User:
    try:
        return User.objects.get(username=name)
    except User.DoesNotExist:
        raise CommandError(f"there is no user {name!r}") from None
