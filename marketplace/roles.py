"""Who may do what: the four groups, what each may do, and where.

The groups are made by migrations (``Grant``). From ``ACTS`` come docs/roles.md and the tests of each page and endpoint.

A new act of the API or the admin: a line in ``ACTS``, and a migration with ``Grant`` for its permission.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import migrations
from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class Role(TextChoices):
    # Sees everything, changes nothing.
    VIEWER = "viewer", _("viewer")
    # On call: lets what stopped go on.
    OPERATOR = "operator", _("operator")
    # Decides about money: refunds, debts, payments back.
    FINANCE = "finance", _("finance")
    # All of it, and who else may do it.
    ADMIN = "admin", _("admin")


class Scope(TextChoices):
    """What an API token may do of that which its user may."""

    READ = "read", _("read")
    REFUND = "refund", _("refund")
    OPERATE = "operate", _("operate")
    FINANCE = "finance", _("finance")
    TOKENS = "tokens", _("tokens")


@dataclass(frozen=True, kw_only=True)
class Act:
    """Something that a person does, with the endpoints and admin pages (by URL name) where it is done."""

    what: str
    permission: str
    roles: tuple[Role, ...]
    # Permissions needed besides, to see what it is done to.
    also: tuple[str, ...] = ()
    # None: not by a token, only signed in to the admin.
    scope: Scope | None = None
    api: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.permission, *self.also)


EVERYONE = tuple(Role)
ON_CALL = (Role.OPERATOR, Role.ADMIN)
MONEY = (Role.FINANCE, Role.ADMIN)


def _see(model: str, what: str, address: str = "", *more: str, pages: tuple[str, ...] = ()) -> Act:
    listed = (f"GET /api/{address}/", f"GET /api/{address}/{{id}}/") if address else ()
    return Act(
        what=f"see {what}",
        permission=f"marketplace.view_{model}",
        roles=EVERYONE,
        scope=Scope.READ,
        api=(*listed, *more),
        pages=tuple(f"marketplace_{model}_{page}" for page in ("changelist", "change", *pages)),
    )


def _keep(app: str, model: str, what: str) -> tuple[Act, ...]:
    """Rows that are kept by hand, in the admin only."""
    return tuple(
        Act(
            what=f"{verb} {what}",
            permission=f"{app}.{action}_{model}",
            roles=(Role.ADMIN,),
            also=() if action == "view" else (f"{app}.view_{model}",),
            pages=pages,
        )
        for verb, action, pages in (
            ("see", "view", (f"{app}_{model}_changelist", f"{app}_{model}_change")),
            ("add", "add", (f"{app}_{model}_add",)),
            ("change", "change", ()),
        )
        if app == "auth" or action != "view"
    )


ACTS: tuple[Act, ...] = (
    _see("order", "orders", "orders"),
    _see("refund", "refunds", "refunds", "GET /api/orders/{order_id}/refunds/"),
    _see("dispute", "disputes", "disputes"),
    _see("sellertransfer", "transfers", "transfers", pages=("why",)),
    _see("transferreversal", "reversals", "reversals"),
    _see("debt", "debts of sellers", "debts", "GET /api/debts/totals/"),
    _see("seller", "sellers", "sellers"),
    _see("product", "products", "products"),
    _see("webhookevent", "webhook events", "webhook-events"),
    Act(
        what="see counts and money",
        permission="marketplace.view_webhookevent",
        also=tuple(f"marketplace.view_{each}" for each in ("order", "sellertransfer", "refund", "transferreversal")),
        roles=EVERYONE,
        scope=Scope.READ,
        api=("GET /api/stats/",),
    ),
    _see("notice", "notices"),
    _see("noticemessage", "messages to people"),
    _see("reconciliation", "reconciliations with Stripe", "reconciliations"),
    _see("reconciliationfinding", "the drift they found", "drift"),
    _see("workerheartbeat", "workers"),
    _see("circuitbreaker", "circuit breakers"),
    _see("requestallowance", "request allowances"),
    Act(
        what="plan a refund",
        permission="marketplace.add_refund",
        also=("marketplace.view_order", "marketplace.view_sellertransfer"),
        roles=MONEY,
        scope=Scope.REFUND,
        api=("GET /api/orders/{order_id}/refund-plan/",),
    ),
    Act(
        what="refund an order",
        permission="marketplace.add_refund",
        also=("marketplace.view_order",),
        roles=MONEY,
        scope=Scope.REFUND,
        api=("POST /api/orders/{order_id}/refunds/",),
    ),
    Act(
        what="enter how much of an order a dispute is",
        permission="marketplace.enter_dispute_amount",
        also=("marketplace.view_dispute",),
        roles=MONEY,
        scope=Scope.FINANCE,
        api=("POST /api/disputes/{id}/amount/",),
        pages=("marketplace_dispute_enter_amount",),
    ),
    Act(
        what="retry a transfer, try it now, enter its Stripe id",
        permission="marketplace.retry_sellertransfer",
        also=("marketplace.view_sellertransfer",),
        roles=ON_CALL,
        scope=Scope.OPERATE,
        api=(
            "POST /api/transfers/{id}/retry/",
            "POST /api/transfers/{id}/try-now/",
            "POST /api/transfers/{id}/stripe-id/",
        ),
        pages=(
            "marketplace_sellertransfer_retry_one",
            "marketplace_sellertransfer_try_now",
            "marketplace_sellertransfer_enter_transfer_id",
        ),
    ),
    _see("bulkretry", "bulk retries", "bulk-retries", "GET /api/bulk-retries/{id}/items/"),
    Act(
        what="watch a bulk retry",
        permission="marketplace.view_bulkretry",
        roles=EVERYONE,
        scope=Scope.READ,
        pages=("marketplace_bulkretry_progress",),
    ),
    Act(
        what="plan and start a bulk retry",
        permission="marketplace.retry_sellertransfer",
        also=("marketplace.view_bulkretry", "marketplace.view_sellertransfer"),
        roles=ON_CALL,
        scope=Scope.OPERATE,
        api=("POST /api/bulk-retries/", "POST /api/bulk-retries/{id}/start/"),
        pages=("marketplace_bulkretry_add", "marketplace_bulkretry_start"),
    ),
    Act(
        what="approve a bulk retry of another person",
        permission="marketplace.approve_bulkretry",
        also=("marketplace.view_bulkretry",),
        roles=MONEY,
        # The second person is a person, who looks. A program that approves would make two persons one.
        scope=None,
        api=("POST /api/bulk-retries/{id}/approve/",),
        pages=("marketplace_bulkretry_approve",),
    ),
    Act(
        what="stop or cancel a bulk retry",
        permission="marketplace.stop_bulkretry",
        also=("marketplace.view_bulkretry",),
        roles=(Role.OPERATOR, Role.FINANCE, Role.ADMIN),
        scope=Scope.OPERATE,
        api=("POST /api/bulk-retries/{id}/stop/", "POST /api/bulk-retries/{id}/cancel/"),
        pages=("marketplace_bulkretry_stop", "marketplace_bulkretry_cancel"),
    ),
    Act(
        what="decline to pay a seller again",
        permission="marketplace.decline_sellertransfer",
        also=("marketplace.view_sellertransfer",),
        roles=MONEY,
        scope=Scope.FINANCE,
        api=("POST /api/transfers/{id}/decline/",),
        pages=("marketplace_sellertransfer_decline",),
    ),
    Act(
        what="replay a webhook event",
        permission="marketplace.replay_webhookevent",
        also=("marketplace.view_webhookevent",),
        roles=ON_CALL,
        scope=Scope.OPERATE,
        api=("POST /api/webhook-events/{id}/replay/", "POST /api/webhook-events/replay/"),
        pages=("marketplace_webhookevent_replay_one",),
    ),
    Act(
        what="send a message to people again",
        permission="marketplace.resend_noticemessage",
        also=("marketplace.view_noticemessage",),
        roles=ON_CALL,
        pages=("marketplace_noticemessage_resend",),
    ),
    Act(
        what="record that a seller paid a debt",
        permission="marketplace.record_debt_payment",
        also=("marketplace.view_debt",),
        roles=MONEY,
        scope=Scope.FINANCE,
        api=("POST /api/debts/{id}/payments/",),
        pages=("marketplace_debt_record_payment",),
    ),
    Act(
        what="write off a debt",
        permission="marketplace.write_off_debt",
        also=("marketplace.view_debt",),
        roles=MONEY,
        scope=Scope.FINANCE,
        api=("POST /api/debts/{id}/write-off/",),
        pages=("marketplace_debt_write_off",),
    ),
    Act(
        what="make, see and revoke API tokens of one's own",
        permission="marketplace.add_apitoken",
        roles=EVERYONE,
        scope=Scope.TOKENS,
        api=("GET /api/tokens/", "GET /api/tokens/{id}/", "POST /api/tokens/", "POST /api/tokens/{id}/revoke/"),
        pages=("marketplace_apitoken_changelist", "marketplace_apitoken_add"),
    ),
    Act(
        what="see everybody's API tokens",
        permission="marketplace.view_apitoken",
        roles=(Role.ADMIN,),
        scope=Scope.TOKENS,
        pages=("marketplace_apitoken_change",),
    ),
    Act(
        what="revoke anybody's API token",
        permission="marketplace.revoke_apitoken",
        also=("marketplace.view_apitoken",),
        roles=(Role.ADMIN,),
        scope=Scope.TOKENS,
        pages=("marketplace_apitoken_revoke_one",),
    ),
    *_keep("marketplace", "seller", "sellers"),
    *_keep("marketplace", "product", "products"),
    *_keep("auth", "user", "users"),
    *_keep("auth", "group", "groups"),
)


def permissions_of(role: Role) -> frozenset[str]:
    """``app.codename`` of each."""
    return frozenset(name for act in ACTS if role in act.roles for name in act.needs)


def scope_of(permission: str) -> Scope | None:
    """The scope that a token needs for it; None where no token will do."""
    return next((act.scope for act in ACTS if act.permission == permission), None)


class Grant(migrations.RunPython):
    """Makes the groups where they are not there, and gives them permissions: ``Grant({"operator": ["app.codename"]})``.

    Django makes permissions only after all migrations; here they are made before. Applied again it changes nothing, and
    what was given to a group by hand stays.
    """

    def __init__(self, granted: Mapping[str, Sequence[str]]) -> None:
        self.granted = granted
        super().__init__(_granting(granted), migrations.RunPython.noop, elidable=False)

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return self.__class__.__qualname__, [self.granted], {}


def _granting(granted: Mapping[str, Sequence[str]]) -> Callable[[Any, Any], None]:
    def grant(apps: Any, schema_editor: Any) -> None:
        # Not at the top: it wants settings, and the generator of the documents has none.
        from django.contrib.auth.management import create_permissions

        database = schema_editor.connection.alias
        for label in sorted({name.partition(".")[0] for names in granted.values() for name in names}):
            app = apps.get_app_config(label)
            # Apps of migrations have none, and Django makes no permissions for an app without models.
            app.models_module = True
            create_permissions(app, verbosity=0, using=database, apps=apps)
        groups = apps.get_model("auth", "Group").objects.using(database)
        permissions = apps.get_model("auth", "Permission").objects.using(database)
        for role, names in granted.items():
            group, _is_new = groups.get_or_create(name=role)
            for name in names:
                label, _dot, codename = name.partition(".")
                group.permissions.add(permissions.get(content_type__app_label=label, codename=codename))

    return grant
