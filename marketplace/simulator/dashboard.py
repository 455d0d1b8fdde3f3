"""What happens at Stripe outside the API: a person at the dashboard, a bank, a seller, time.

Every method is safe from any thread and answers with plain dicts. Objects made here come with no API
request, so their events name none.
"""

from __future__ import annotations

import copy
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

from . import accounts, disputes, errors, events, funds, ledger, payments, refunds, reversals, transfers
from .shapes import Obj

if TYPE_CHECKING:
    from .core import Core


class Dashboard:
    def __init__(self, core: Core) -> None:
        self._core = core

    # Objects

    def create_account(
        self,
        id: str | None = None,  # noqa: A002
        *,
        country: str = "DE",
        default_currency: str | None = None,
        email: str | None = "seller@example.com",
        transfers: bool = True,
        may_go_negative: bool | None = None,
        losses: str = "application",
        metadata: dict[str, str] | None = None,
    ) -> Obj:
        """A connected account, ready to receive transfers. `losses`: who pays for its negative balance."""
        params: Obj = {
            "id": id,
            "country": country,
            "default_currency": default_currency,
            "email": email,
            "controller": {"losses": {"payments": losses}, "stripe_dashboard": {"type": "express"}},
            "capabilities": {"transfers": {"requested": True}} if transfers else {},
            "metadata": metadata or {},
        }
        with self._core.world.transaction() as world:
            if id is not None and world.account(id) is not None:
                raise ValueError(f"there is an account {id!r} already")
            account = accounts.create(world, params)
            if may_go_negative is not None:
                accounts.flag(world, account["id"], may_go_negative=may_go_negative)
            return copy.deepcopy(account)

    def create_charge(
        self,
        amount: int,
        currency: str = "eur",
        *,
        transfer_group: str | None = None,
        metadata: dict[str, str] | None = None,
        payment_intent: bool = True,
        settles_after: float | None = None,
    ) -> Obj:
        """A paid charge, by default with its payment intent and both events, as after a checkout."""
        with self._core.world.transaction() as world:
            owner = world.platform
            if payment_intent:
                params = {"amount": amount, "currency": currency, "transfer_group": transfer_group,
                          "metadata": metadata or {}, "payment_method": "pm_card_visa"}  # fmt: skip
                before = world.settings.charge_settles_after
                world.settings.charge_settles_after = before if settles_after is None else settles_after
                try:
                    intent = payments.confirm(world, owner, payments.create(world, owner, params), {})
                finally:
                    world.settings.charge_settles_after = before
                charge = world.store.get(owner, "charge", intent["latest_charge"])
            else:
                charge = payments.make_charge(
                    world, owner, amount=amount, currency=currency, transfer_group=transfer_group,
                    metadata=metadata, settles_after=settles_after,
                )  # fmt: skip
                events.emit(world, owner, "charge.succeeded", charge)
            return copy.deepcopy(charge) or {}

    def create_transfer(
        self,
        amount: int,
        destination: str,
        currency: str = "eur",
        *,
        source_transaction: str | None = None,
        transfer_group: str | None = None,
        metadata: dict[str, str] | None = None,
        fund: bool = True,
    ) -> Obj:
        """A transfer made by hand. With `fund`, what the platform lacks for it is topped up first."""
        params: Obj = {"amount": amount, "currency": currency, "destination": destination,
                       "metadata": metadata or {}}  # fmt: skip
        optional = {"source_transaction": source_transaction, "transfer_group": transfer_group}
        params |= {name: value for name, value in optional.items() if value is not None}
        with self._core.world.transaction() as world:
            missing = amount - ledger.available(world, world.platform, currency)
            if fund and source_transaction is None and missing > 0:
                funds.add(world, world.platform, missing, currency)
            return copy.deepcopy(transfers.create(world, world.platform, params))

    def create_reversal(
        self, transfer: str, amount: int | None = None, *, metadata: dict[str, str] | None = None
    ) -> Obj:
        """A reversal made by hand: the rest of the transfer, if no amount is given."""
        with self._core.world.transaction() as world:
            found = self._get("transfer", transfer)
            params: Obj = {"metadata": metadata or {}}
            params["amount"] = found["amount"] - found["amount_reversed"] if amount is None else amount
            return copy.deepcopy(reversals.create(world, world.platform, found, params))

    def create_refund(
        self,
        charge: str,
        amount: int | None = None,
        *,
        status: str | None = None,
        metadata: dict[str, str] | None = None,
        reason: str | None = None,
    ) -> Obj:
        """A refund made by hand. `charge` may name a payment intent. `status` overrides the setting this
        once.
        """
        params: Obj = {
            "payment_intent" if charge.startswith("pi_") else "charge": charge,
            "metadata": metadata or {},
        }
        if amount is not None:
            params["amount"] = amount
        if reason is not None:
            params["reason"] = reason
        with self._core.world.transaction() as world:
            before = world.settings.refund_status
            world.settings.refund_status = before if status is None else status
            try:
                return copy.deepcopy(refunds.create(world, world.platform, params))
            finally:
                world.settings.refund_status = before

    def _get(self, kind: str, id_: str) -> Obj:
        world = self._core.world
        found = world.store.get(world.platform, kind, id_)
        if found is None:
            raise errors.missing_object(kind, id_)
        return found

    def get(self, id: str) -> Obj | None:  # noqa: A002
        """Any object by its id, whichever account it belongs to; a copy."""
        with self._core.world.lock:
            world = self._core.world
            found = world.store.find(id) or world.account(id)
            if found is not None and "snapshot" in found:
                return events.as_object(world, found)
            return copy.deepcopy(found)

    def reversals_of(self, transfer: str) -> list[Obj]:
        """All of a transfer's reversals, oldest first."""
        with self._core.world.lock:
            world = self._core.world
            rows = world.store.table(world.platform, "transfer_reversal").select(transfer=transfer)
            return copy.deepcopy(list(rows))

    # Refunds and disputes later on

    def succeed_refund(self, refund: str) -> Obj:
        with self._core.world.transaction() as world:
            return copy.deepcopy(refunds.succeed(world, world.platform, refund))

    def fail_refund(self, refund: str, reason: str = "unknown") -> Obj:
        with self._core.world.transaction() as world:
            return copy.deepcopy(refunds.fail(world, world.platform, refund, reason))

    def cancel_refund(self, refund: str) -> Obj:
        with self._core.world.transaction() as world:
            return copy.deepcopy(refunds.fail(world, world.platform, refund, "merchant_request", "canceled"))

    def require_action(self, refund: str) -> Obj:
        with self._core.world.transaction() as world:
            return copy.deepcopy(refunds.require_action(world, world.platform, refund))

    def open_dispute(
        self,
        charge: str,
        amount: int | None = None,
        *,
        currency: str | None = None,
        reason: str = "fraudulent",
        withdraw: bool = True,
    ) -> Obj:
        """Without `withdraw` an inquiry. `amount` and `currency`, where they are not the charge's."""
        with self._core.world.transaction() as world:
            made = disputes.open_dispute(
                world, world.platform, charge, amount=amount, currency=currency, reason=reason, withdraw=withdraw
            )
            return copy.deepcopy(made)

    def respond_to_dispute(self, dispute: str) -> Obj:
        with self._core.world.transaction() as world:
            return copy.deepcopy(disputes.respond(world, world.platform, dispute))

    def escalate_dispute(self, dispute: str) -> Obj:
        """An inquiry becomes a chargeback: now the money is withdrawn."""
        with self._core.world.transaction() as world:
            return copy.deepcopy(disputes.escalate(world, world.platform, dispute))

    def close_dispute(self, dispute: str, status: str, reinstated: int | None = None) -> Obj:
        """`won`, `lost`, `prevented` or `warning_closed`. `reinstated`: so much comes back, in the balance's currency;
        without it all, of one that is won or prevented.
        """
        if status not in disputes.CLOSES:
            raise ValueError(f"a dispute is closed as {', '.join(disputes.CLOSES)}, not {status!r}")
        with self._core.world.transaction() as world:
            closed = disputes.close(world, world.platform, dispute, status=status, reinstated=reinstated)
            return copy.deepcopy(closed)

    def stop_waiting(self, reversal: str, status: str = "failed") -> Obj:
        """A pending reversal (preview mode) ends as `failed` or `canceled`."""
        with self._core.world.transaction() as world:
            return copy.deepcopy(reversals.stop_waiting(world, world.platform, reversal, status))

    # Accounts and money

    def add_funds(self, amount: int, currency: str = "eur", *, account: str | None = None) -> Obj:
        with self._core.world.transaction() as world:
            return copy.deepcopy(funds.add(world, self._known(account), amount, currency))

    def pay_out(self, account: str | None = None, currency: str | None = None) -> list[Obj]:
        """The account's whole available balance goes to its bank."""
        with self._core.world.transaction() as world:
            return copy.deepcopy(funds.pay_out(world, self._known(account), currency))

    def balance(self, account: str | None = None, currency: str = "eur") -> tuple[int, int]:
        """Available and pending."""
        with self._core.world.lock:
            row = ledger.balance(self._core.world, self._known(account), currency)
            return row["available"], row["pending"]

    def may_go_negative(self, account: str, allowed: bool | None = True) -> None:  # noqa: FBT001
        """Whether reversals may take the account below zero; None: as the general setting says."""
        with self._core.world.transaction() as world:
            accounts.flag(world, self._known(account), may_go_negative=allowed)

    def set_capability(self, account: str, capability: str = "transfers", status: str = "active") -> Obj:
        with self._core.world.transaction() as world:
            found = self._get("account", account)
            changed = {**found["capabilities"], capability: status}
            return copy.deepcopy(accounts.change(world, found, {"capabilities": changed}))

    def deauthorize(self, account: str) -> None:
        with self._core.world.transaction() as world:
            accounts.deauthorize(world, self._get("account", account))

    def _known(self, account: str | None) -> str:
        world = self._core.world
        if account is None:
            return world.platform
        if world.account(account) is None:
            raise errors.missing_object("account", account)
        return account

    # Keys, events, webhooks

    def revoke_key(self, key: str) -> None:
        self._core.revoked_keys.add(key)

    def restore_key(self, key: str) -> None:
        self._core.revoked_keys.discard(key)

    def events(
        self,
        *,
        type: str | None = None,  # noqa: A002
        object: str | None = None,  # noqa: A002
        account: str | None = None,
    ) -> list[Obj]:
        """Events, oldest first: of one type, about one object. `account="*"` takes those of sellers too."""
        with self._core.world.lock:
            world = self._core.world
            if account == "*":
                owners = [who for who, kind in world.store.tables if kind == "event"]
            else:
                owners = [self._known(account)]
            found = []
            for owner in owners:
                wanted = {} if type is None else {"type": type}
                for row in list(world.store.table(owner, "event").select(**wanted)):
                    made = events.as_object(world, row)
                    if object is None or made["data"]["object"].get("id") == object:
                        found.append(made)
            return found

    def emit(self, type: str, object: Obj, *, previous: Obj | None = None, account: str | None = None) -> Obj:  # noqa: A002
        """An event of any type about any object, as though Stripe had made it."""
        with self._core.world.transaction() as world:
            row = events.emit(world, self._known(account), type, object, previous=previous)
            return events.as_object(world, row)

    def sign(
        self,
        event: Obj | bytes,
        secret: str | list[str] | tuple[str, ...] | None = None,
        *,
        at: float | None = None,
    ) -> tuple[bytes, str]:
        """The raw body and its Stripe-Signature, ready to be posted. `at` is the real time unless said."""
        body = event if isinstance(event, bytes) else json.dumps(event, separators=(",", ":")).encode()
        if secret is None:
            chosen = self._core.options.webhook_secrets
        else:
            chosen = (secret,) if isinstance(secret, str) else tuple(secret)
        return body, events.signature(body, chosen, at=time.time() if at is None else at)

    def resend(self, event: str) -> int:
        """Send an event once more; to how many endpoints."""
        with self._core.world.transaction() as world:
            home = world.store.homes.get(event)
            row = world.store.find(event)
            if home is None or row is None:
                raise errors.missing_object("event", event)
            return self._core.delivery.resend(world, home[0], row)

    def roll_secret(self, endpoint: str, *, keep_old: bool = True) -> str:
        """A new secret; with `keep_old` both sign until the next roll."""
        with self._core.world.transaction() as world:
            hidden = world.store.get(world.platform, "_endpoint_secret", f"secret/{endpoint}")
            if hidden is None:
                raise errors.missing_object("webhook endpoint", endpoint)
            fresh = f"whsec_{secrets.token_hex(16)}"
            old = hidden["secrets"][:1] if keep_old else []
            world.store.put(world.platform, "_endpoint_secret", {**hidden, "secrets": [fresh, *old]})
            return fresh

    def set(self, **values: Any) -> dict[str, Any]:
        """Change settings: `refund_status="pending"`, `pending_reversals=True`, …; all of them come back."""
        with self._core.world.lock:
            settings = self._core.world.settings
            for name, value in values.items():
                if not hasattr(settings, name):
                    raise ValueError(f"no setting {name!r}: one of {', '.join(vars(settings))}")
                setattr(settings, name, value)
            return dict(vars(settings))
