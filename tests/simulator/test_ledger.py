"""Money: it is never made and never lost, whatever is asked and in whatever order."""

from __future__ import annotations

from typing import Any

import pytest
import stripe
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from marketplace.simulator import StripeError, StripeSimulator

HOUR, DAY = 3600, 24 * 3600


class Marketplace(RuleBasedStateMachine):
    transfers: Bundle[str] = Bundle("transfers")
    charges: Bundle[str] = Bundle("charges")
    refunds: Bundle[str] = Bundle("refunds")

    @initialize(
        pending=st.booleans(), negative=st.booleans(), delay=st.sampled_from([0, HOUR]),
        refund=st.sampled_from(["succeeded", "pending"]),
    )  # fmt: skip
    def start(self, pending: bool, negative: bool, delay: int, refund: str) -> None:
        self.sim = StripeSimulator(
            frozen_at=1_800_000_000,
            pending_reversals=pending,
            allow_negative_balances=negative,
            charge_settles_after=delay,
            refund_status=refund,
        )
        self.negative = negative
        self.sellers = [self.sim.create_account()["id"] for _ in range(2)]
        self.put_in = 0

    def attempt(self, act: Any, *args: Any, **options: Any) -> Any:
        """What was made, or None if it was refused as Stripe refuses."""
        try:
            return act(*args, **options)
        except StripeError:
            return None

    @rule(target=charges, amount=st.integers(50, 2000))
    def pay(self, amount: int) -> Any:
        self.put_in += amount
        return self.sim.create_charge(amount)["id"]

    @rule(target=transfers, charge=charges, amount=st.integers(1, 2000), seller=st.integers(0, 1))
    def transfer_from(self, charge: str, amount: int, seller: int) -> Any:
        made = self.attempt(
            self.sim.create_transfer, amount, self.sellers[seller], source_transaction=charge, fund=False
        )
        return made["id"] if made else multiple()

    @rule(target=transfers, amount=st.integers(1, 2000), seller=st.integers(0, 1))
    def transfer(self, amount: int, seller: int) -> Any:
        made = self.attempt(self.sim.create_transfer, amount, self.sellers[seller], fund=False)
        return made["id"] if made else multiple()

    @rule(transfer=transfers, amount=st.one_of(st.none(), st.integers(1, 2000)))
    def reverse(self, transfer: str, amount: int | None) -> None:
        self.attempt(self.sim.create_reversal, transfer, amount or None)

    @rule(target=refunds, charge=charges, amount=st.integers(1, 2000))
    def refund(self, charge: str, amount: int) -> Any:
        made = self.attempt(self.sim.create_refund, charge, amount)
        return made["id"] if made else multiple()

    @rule(refund=refunds, succeed=st.booleans())
    def settle_refund(self, refund: str, succeed: bool) -> None:
        (self.sim.succeed_refund if succeed else self.sim.fail_refund)(refund)

    @rule(charge=charges, status=st.sampled_from(["won", "lost"]))
    def dispute(self, charge: str, status: str) -> None:
        self.sim.close_dispute(self.sim.open_dispute(charge)["id"], status)

    @rule(seller=st.integers(0, 1))
    def pay_out(self, seller: int) -> None:
        self.sim.pay_out(self.sellers[seller])

    @rule(seconds=st.sampled_from([HOUR, 50 * DAY]))
    def wait(self, seconds: int) -> None:
        self.sim.clock.advance(seconds)

    @invariant()
    def books_balance(self) -> None:
        found = self.sim.audit()
        assert found["problems"] == []
        assert found["suspicious"] == []

    @invariant()
    def money_is_neither_made_nor_lost(self) -> None:
        world = self.sim.world
        inside = outside = 0
        for (_, kind), table in world.store.tables.items():
            if kind == "balance_transaction":
                for entry in table.rows.values():
                    inside += entry["net"]
                    if entry["type"] not in {"transfer", "payment", "transfer_refund", "payment_refund"}:
                        outside += entry["net"]
        assert inside == outside, "transfers and reversals must cancel out between the accounts"
        assert inside == sum(row["available"] + row["pending"] for row in world.balances.values())

    @invariant()
    def no_seller_is_below_zero_unless_allowed(self) -> None:
        for seller in self.sellers:
            available, pending = self.sim.balance(seller)
            assert self.negative or available >= 0
            assert self.negative or pending >= 0

    @invariant()
    def charges_say_what_was_refunded(self) -> None:
        world = self.sim.world
        for charge in world.store.table(world.platform, "charge").rows.values():
            refunds = world.store.table(world.platform, "refund").select(charge=charge["id"])
            good = sum(each["amount"] for each in refunds if each["status"] not in {"failed", "canceled"})
            assert charge["amount_refunded"] == good <= charge["amount"]
            assert charge["refunded"] == (good == charge["amount"])


Marketplace.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=25, deadline=None)
TestMarketplace = Marketplace.TestCase


def test_a_charge_is_pending_until_it_settles(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    sim.set(charge_settles_after=7 * DAY)
    charge = sim.create_charge(1000)
    assert sim.balance() == (0, 1000)
    seller = sim.create_account()["id"]
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.transfers.create({"amount": 700, "currency": "eur", "destination": seller})
    assert caught.value.code == "balance_insufficient"
    made = client.v1.transfers.create(
        {"amount": 700, "currency": "eur", "destination": seller, "source_transaction": charge["id"]}
    )
    assert sim.balance(seller) == (0, 700)
    assert made.transfer_group == f"group_{charge['payment_intent']}"
    client.v1.transfers.reversals.create(made.id, {"amount": 200})
    assert sim.balance(seller) == (0, 500)
    sim.clock.advance(7 * DAY)
    assert sim.balance(seller) == (500, 0)
    assert sim.balance() == (500, 0)
    assert sim.events(type="balance.available", account=seller)


def test_transfers_from_a_charge_do_not_exceed_it(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    charge = sim.create_charge(1000)
    seller = sim.create_account()["id"]
    params: Any = {"currency": "eur", "destination": seller, "source_transaction": charge["id"]}
    client.v1.transfers.create(params | {"amount": 600})
    with pytest.raises(stripe.InvalidRequestError, match="must not exceed the source amount"):
        client.v1.transfers.create(params | {"amount": 401})
    with pytest.raises(stripe.InvalidRequestError, match="currency"):
        client.v1.transfers.create(params | {"amount": 1, "currency": "usd"})
    client.v1.transfers.create(params | {"amount": 400})


def test_a_refund_waits_for_the_platforms_money(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    charge = sim.create_charge(1000)
    sim.pay_out()
    refund = client.v1.refunds.create({"charge": charge["id"], "amount": 300})
    assert (refund.status, refund.pending_reason) == ("pending", "insufficient_funds")
    sim.add_funds(299)
    assert client.v1.refunds.retrieve(refund.id).status == "pending"
    sim.add_funds(1)
    read = client.v1.refunds.retrieve(refund.id)
    assert read.status == "succeeded"
    assert "pending_reason" not in read
    assert sim.balance() == (0, 0)
    (event,) = sim.events(type="refund.updated")
    assert event["data"]["previous_attributes"]["status"] == "pending"


def test_a_refund_may_fail_after_it_succeeded(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    charge = sim.create_charge(1000)
    refund = sim.create_refund(charge["id"])
    sim.fail_refund(refund["id"], "lost_or_stolen_card")
    read = client.v1.refunds.retrieve(refund["id"], {"expand": ["failure_balance_transaction"]})
    assert (read.status, read.failure_reason) == ("failed", "lost_or_stolen_card")
    assert read.failure_balance_transaction.net == 1000  # type: ignore[union-attr]
    assert [event["type"] for event in sim.events(object=refund["id"])] == [
        "refund.created",
        "refund.updated",
        "charge.refund.updated",
        "refund.failed",
    ]
    assert client.v1.charges.retrieve(charge["id"]).refunded is False
    assert sim.balance() == (1000, 0)


@pytest.mark.parametrize(("method", "ends"), [("pm_card_pendingRefund", "succeeded"), ("pm_card_refundFail", "failed")])
def test_test_cards_decide_what_becomes_of_a_refund(
    client: stripe.StripeClient, sim: StripeSimulator, method: str, ends: str
) -> None:
    intent = client.v1.payment_intents.create(
        {"amount": 1000, "currency": "eur", "confirm": True, "payment_method": method}
    )
    refund = client.v1.refunds.create({"payment_intent": intent.id})
    assert refund.status == "pending"
    sim.clock.advance(3600)
    assert client.v1.refunds.retrieve(refund.id).status == ends


@pytest.mark.parametrize(
    ("method", "status", "reason", "withdrawn"),
    [
        ("pm_card_createDispute", "needs_response", "fraudulent", 1000 + 1500),
        ("pm_card_createDisputeProductNotReceived", "needs_response", "product_not_received", 1000 + 1500),
        ("pm_card_createDisputeInquiry", "warning_needs_response", "fraudulent", 0),
    ],
)
def test_test_cards_open_a_dispute_a_moment_after_the_charge(
    client: stripe.StripeClient, sim: StripeSimulator, method: str, status: str, reason: str, withdrawn: int
) -> None:
    intent = client.v1.payment_intents.create(
        {"amount": 1000, "currency": "eur", "confirm": True, "payment_method": method}
    )
    assert intent.status == "succeeded"
    assert not client.v1.disputes.list({"payment_intent": intent.id}).data
    sim.clock.advance(1)
    (dispute,) = client.v1.disputes.list({"payment_intent": intent.id}).data
    assert (dispute.status, dispute.reason, dispute.amount) == (status, reason, 1000)
    assert sim.balance() == (1000 - withdrawn, 0)
    assert [each["type"] for each in sim.events() if "dispute" in each["type"]][:1] == ["charge.dispute.created"]


def test_only_a_refund_that_requires_action_can_be_canceled(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    refund = sim.create_refund(sim.create_charge(1000)["id"])
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.refunds.cancel(refund["id"])
    sim.require_action(refund["id"])
    assert client.v1.refunds.cancel(refund["id"]).status == "canceled"
    assert sim.balance() == (1000, 0)


def test_a_pending_reversal_waits_for_the_seller(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    sim.set(pending_reversals=True)
    seller = sim.create_account()["id"]
    transfer = sim.create_transfer(1000, seller)
    sim.pay_out(seller)
    made = client.v1.transfers.reversals.create(transfer["id"], {"amount": 600})
    assert made["status"] == "pending"
    assert client.v1.transfers.retrieve(transfer["id"]).amount_reversed == 0
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.transfers.reversals.create(transfer["id"], {"amount": 500})
    sim.create_transfer(600, seller)
    read = client.v1.transfers.reversals.retrieve(transfer["id"], made.id)
    assert read["status"] == "succeeded"
    assert client.v1.transfers.retrieve(transfer["id"]).amount_reversed == 600
    assert sim.balance(seller) == (0, 0)


def test_a_pending_reversal_fails_after_45_days(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    sim.set(pending_reversals=True)
    seller = sim.create_account()["id"]
    transfer = sim.create_transfer(1000, seller)
    sim.pay_out(seller)
    made = client.v1.transfers.reversals.create(transfer["id"], {"amount": 600})
    sim.clock.advance(45 * DAY)
    assert client.v1.transfers.reversals.retrieve(transfer["id"], made.id)["status"] == "failed"
    sim.add_funds(5000, account=seller)
    assert sim.balance(seller) == (5000, 0)
    assert client.v1.transfers.reversals.create(transfer["id"], {"amount": 1000})["status"] == "succeeded"


def test_a_dispute_takes_the_money_and_a_win_brings_it_back(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    charge = sim.create_charge(10_000)
    dispute = sim.open_dispute(charge["id"], 4000)
    assert sim.balance() == (10_000 - 4000 - 1500, 0)
    sim.close_dispute(dispute["id"], "won")
    read = client.v1.disputes.retrieve(dispute["id"])
    assert read.status == "won"
    assert [each.reporting_category for each in read.balance_transactions] == ["dispute", "dispute_reversal"]
    assert sim.balance() == (10_000 - 1500, 0)
    assert [event["type"] for event in sim.events(object=dispute["id"])] == [
        "charge.dispute.created",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.funds_reinstated",
        "charge.dispute.closed",
    ]


def test_an_inquiry_moves_no_money(sim: StripeSimulator) -> None:
    dispute = sim.open_dispute(sim.create_charge(1000)["id"], withdraw=False)
    assert dispute["balance_transactions"] == []
    assert sim.balance() == (1000, 0)


def test_an_inquiry_becomes_a_chargeback_and_the_bank_decides_twice(sim: StripeSimulator) -> None:
    charge = sim.create_charge(1000)
    opened = sim.open_dispute(charge["id"], withdraw=False)["id"]
    assert sim.respond_to_dispute(opened)["status"] == "warning_under_review"
    with pytest.raises(StripeError, match="takes no evidence"):
        sim.respond_to_dispute(opened)
    pending = sim.create_refund(charge["id"], 400, status="pending")["id"]
    assert sim.escalate_dispute(opened)["status"] == "needs_response"
    failed = sim.get(pending)
    assert failed is not None
    assert (failed["status"], failed["failure_reason"]) == ("failed", "charge_for_pending_refund_disputed")
    assert sim.balance() == (-1500, 0)
    with pytest.raises(StripeError, match="is no open inquiry"):
        sim.escalate_dispute(opened)
    sim.close_dispute(opened, "lost", reinstated=100)
    assert sim.balance() == (-1400, 0)
    sim.close_dispute(opened, "won")
    assert sim.balance() == (-500, 0)
    with pytest.raises(StripeError, match="cannot be lost: its status is won"):
        sim.close_dispute(opened, "lost")
    with pytest.raises(ValueError, match="a dispute is closed as won, lost"):
        sim.close_dispute(opened, "open")


def test_a_dispute_in_another_currency_takes_the_charge_from_the_balance(sim: StripeSimulator) -> None:
    made = sim.open_dispute(sim.create_charge(1000)["id"], 1100, currency="usd")
    assert (made["amount"], made["currency"]) == (1100, "usd")
    assert sim.balance() == (-1500, 0)


def test_what_was_refunded_during_an_inquiry_is_not_charged_back(sim: StripeSimulator) -> None:
    charge = sim.create_charge(1000)
    opened = sim.open_dispute(charge["id"], withdraw=False)["id"]
    sim.create_refund(charge["id"])
    with pytest.raises(StripeError, match="is no open inquiry"):
        sim.escalate_dispute(opened)


def test_a_payment_intent_goes_from_creation_to_charge(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    intent = client.v1.payment_intents.create({"amount": 1000, "currency": "eur"})
    assert intent.status == "requires_payment_method"
    client.v1.payment_intents.update(intent.id, {"amount": 1200, "metadata": {"order": "1"}})
    done = client.v1.payment_intents.confirm(
        intent.id, {"payment_method": "pm_card_visa", "expand": ["latest_charge.balance_transaction"]}
    )
    assert (done.status, done.amount_received) == ("succeeded", 1200)
    assert done.latest_charge.balance_transaction.net == 1200  # type: ignore[union-attr]
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.payment_intents.cancel(intent.id)
    assert caught.value.code == "payment_intent_unexpected_state"
    other = client.v1.payment_intents.create({"amount": 1000, "currency": "eur"})
    assert client.v1.payment_intents.cancel(other.id).status == "canceled"
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.payment_intents.create({"amount": 49, "currency": "eur"})
    assert caught.value.code == "amount_too_small"


def test_accounts_are_made_updated_and_listed(client: stripe.StripeClient, sim: StripeSimulator) -> None:
    made = client.v1.accounts.create(
        {
            "country": "FR",
            "controller": {
                "losses": {"payments": "application"},
                "fees": {"payer": "application"},
                "stripe_dashboard": {"type": "express"},
            },
            "capabilities": {"transfers": {"requested": True}},
        }
    )
    assert made.capabilities is not None
    assert made.capabilities.transfers == "active"
    assert made.controller is not None
    assert made.controller.losses is not None
    assert made.controller.losses.payments == "application"
    assert made.default_currency == "eur"
    client.v1.accounts.update(made.id, {"metadata": {"seller": "9"}})
    assert [each.id for each in client.v1.accounts.list().data] == [made.id]
    assert client.v1.accounts.retrieve_current().id == "acct_platform"
    assert sim.events(type="account.updated", account=made.id)[0]["data"]["previous_attributes"] == {"metadata": {}}
    client.v1.accounts.delete(made.id)
    with pytest.raises(stripe.PermissionError):
        client.v1.accounts.retrieve(made.id)
