"""Buyers, operators, sellers, banks, and people at Stripe's dashboard: what they do, and when it pleases them."""

from collections.abc import Callable

from django.contrib.auth.models import User
from django.db import connection

from marketplace.errors import DATABASE_TROUBLE, MarketplaceError
from marketplace.models import GIVE_BACK_UNDECIDED
from marketplace.services import bulk_retries, disputes, refund_attempts, refunds, transfers
from marketplace.simulator import StripeError
from tests.simulation.scene import Scene
from tests.simulation.scheduler import Host, Task
from tests.simulation.world import CURRENCIES, Bought, buy

# How often somebody asks for a refund that is not allowed yet.
PATIENCE = 3


def answered(act: Callable[[], str]) -> str:
    """What ``act`` says, or as a page or the API would say that it cannot be."""
    try:
        return act()
    except MarketplaceError as error:
        return type(error).__name__
    except DATABASE_TROUBLE:
        connection.close()
        return "503"


class People:
    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        # What is going to be done: one after the other from the end, at any time.
        self.plans: list[Callable[[], None]] = []
        self.reversed_by_hand: set[str] = set()
        # What somebody entered of disputes in another currency than their order's, by Stripe's id.
        self.entered: dict[str, int] = {}
        self._requests = 0

    def plan(self) -> None:
        """What will be refunded of each order, and by which way."""
        chance = self.scene.chance
        for order in self.scene.world.orders:
            left = order.amount
            for _ in range(chance.choice([1, 1, 2, 2, 3])):
                # Equal parts often: keys made from amounts would meet.
                third = max(order.amount // 3, 1)
                amount = min(chance.choice([left, third, third, chance.randint(1, order.amount)]), left)
                if amount > 0:
                    left -= amount
                    self.plans.append(self._refund(order, amount))
            if self.scene.profile.disputes and chance.random() < self.scene.profile.disputes:
                self.plans += [self._dispute(order) for _ in range(chance.choice([1, 1, 1, 2]))]
        if self.scene.profile.finance:
            self.plans += [self._buy_again] * chance.choice([2, 4, 6])
        chance.shuffle(self.plans)

    def _refund(self, order: Bought, amount: int) -> Callable[[], None]:
        if self.scene.chance.random() < 0.4:
            return lambda: self._refund_by_hand(order, amount)
        self._requests += 1
        key = f"request {self._requests}"
        is_impatient = self.scene.chance.random() < 0.2
        return lambda: self._ask(order, amount, key, is_impatient=is_impatient)

    def do_next(self) -> None:
        self.plans.pop()()

    def _buy_again(self) -> None:
        """Of the same sellers, who may have debts by now."""
        scene, chance = self.scene, self.scene.chance
        debts = self._orders_with_debts()
        is_early = not scene.is_quiet and not debts and chance.random() < 0.99
        if is_early or not scene.scheduler.idle_crews:
            self.plans.insert(0, self._buy_again)
            return
        like = chance.choice([each for each in scene.world.orders if not debts or each.pk in debts])
        order = scene.scheduler.call(lambda: buy(scene.world, chance, scene.simulator, like=like))
        scene.counts["bought again"] += 1
        scene.note(f"order {order.pk} is bought")
        if chance.random() < 0.8:
            self.plans.insert(0, self._refund(order, chance.choice([order.amount, chance.randint(1, order.amount)])))

    @staticmethod
    def _orders_with_debts() -> set[int]:
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT order_id FROM marketplace_transferreversal AS debt
                JOIN marketplace_sellertransfer AS transfer ON transfer.id = transfer_id WHERE debt.status = 'failed'
                """
            )
            return {row[0] for row in cursor.fetchall()}

    # --- Refunds ------------------------------------------------------------------------------------------------------

    def _ask(self, order: Bought, amount: int, key: str, *, is_impatient: bool = False, tries: int = 0) -> None:
        """Ask for a refund by our API. Without an answer, or impatiently, it is asked for again with the same key."""
        scene = self.scene

        def again(*, new_key: bool = False) -> None:
            used = f"{key}'" if new_key else key
            self.plans.insert(0, lambda: self._ask(order, amount, used, tries=tries + 1))

        def ended(task: Task) -> None:
            scene.must_not_err(task)
            scene.note(f"refund of {amount} on order {order.pk}: {task.result}")
            if tries < PATIENCE and not scene.is_quiet:
                if task.result == "NotAllowedNow":
                    # Not paid, as far as is known here.
                    again(new_key=True)
                elif task.result in {None, "503"}:
                    again()

        if not scene.scheduler.idle_crews:
            again()
            return
        if is_impatient:
            again()
        scene.scheduler.begin(
            Task(
                f"asks for refund, {key}",
                Host("web"),
                lambda: answered(lambda: self._request(order, amount, key)),
                ended=ended,
            )
        )

    def _request(self, order: Bought, amount: int, key: str) -> str:
        """As the API does it."""
        requested = refunds.request(
            order_id=order.pk,
            amount=amount,
            currency=order.currency,
            reason="",
            requested_by=self.scene.world.operator,
            request_key=key,
        )
        if requested.is_new:
            return str(refund_attempts.send(requested.refund, self.scene.gateway).status)
        return "as before"

    def _refund_by_hand(self, order: Bought, amount: int) -> None:
        scene = self.scene
        status = scene.chance.choice(["succeeded", "succeeded", "pending"])
        try:
            made = scene.simulator.create_refund(order.payment_intent, amount, status=status)
        except StripeError as error:
            scene.note(f"refund by hand refused: {error}")
            return
        scene.counts["refunds by hand"] += 1
        scene.note(f"by hand: {made['id']} refunds {amount} of order {order.pk}: {made['status']}")

    def refund_a_part_of_all(self) -> None:
        for order in self.scene.world.orders:
            self._refund_by_hand(order, max(order.amount // 3, 1))

    def follow_up_on_a_refund(self) -> None:
        """A bank answers at last: a pending refund goes one way or the other, a succeeded one comes back."""
        scene = self.scene
        found = scene.at_stripe("refund")
        if not found:
            return
        refund = scene.chance.choice(found)
        if refund["status"] == "pending":
            succeed = scene.simulator.succeed_refund
            act = scene.chance.choice(
                [succeed, succeed, succeed, scene.simulator.fail_refund, scene.simulator.cancel_refund]
            )
        elif refund["status"] == "succeeded" and scene.chance.random() < 0.25:
            act = scene.simulator.fail_refund
        else:
            return
        act(refund["id"])
        scene.counts[f"refunds that {refund['status']} later"] += 1
        scene.note(f"{refund['id']} is {refund['status']} now")

    def let_all_refunds_succeed(self) -> None:
        for refund in self.scene.at_stripe("refund"):
            if refund["status"] in {"pending", "requires_action"}:
                self.scene.simulator.succeed_refund(refund["id"])

    # --- Disputes -----------------------------------------------------------------------------------------------------

    def _dispute(self, order: Bought) -> Callable[[], None]:
        chance = self.scene.chance
        some = chance.randint(1, order.amount)
        amount = chance.choice([order.amount, order.amount, some, some, order.amount + some])
        currency = chance.choice([None, None, None, None, None, "gbp"])
        withdraw = chance.random() < 0.6

        def open_it() -> None:
            scene = self.scene
            made = scene.simulator.open_dispute(order.charge, amount, currency=currency, withdraw=withdraw)
            scene.counts["disputes"] += 1
            said = f"{made['amount']} {made['currency']} of order {order.pk}: {made['status']}"
            scene.note(f"{made['id']} disputes {said}")

        return open_it

    def follow_up_on_a_dispute(self) -> None:
        """The platform answers, or the bank decides."""
        scene, chance = self.scene, self.scene.chance
        found = scene.at_stripe("dispute")
        if not found:
            return
        dispute = chance.choice(found)["id"]
        do = scene.simulator
        closes = [("won", None), ("won", None), ("lost", None), ("lost", chance.randint(1, 50))]
        closes += [("warning_closed", None), ("prevented", None)]
        status, reinstated = chance.choice(closes)
        acts = [do.respond_to_dispute, do.escalate_dispute]
        closing: Callable[[str], dict[str, object]] = lambda id_: do.close_dispute(id_, status, reinstated)  # noqa: E731
        try:
            made = chance.choice([*acts, closing, closing])(dispute)
        except StripeError:
            # Not in the state that it is in.
            return
        scene.counts[f"disputes {made['status']}"] += 1
        scene.note(f"{dispute} is {made['status']} now")

    def enter_amounts(self) -> bool:
        """An operator says of disputes in another currency how much of the order they are; whether there were any."""
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT dispute.id, stripe_dispute_id, bought.amount FROM marketplace_dispute AS dispute
                JOIN marketplace_order AS bought ON bought.id = order_id WHERE last_error_code <> '' ORDER BY dispute.id
                """
            )
            waiting = cursor.fetchall()
        for number, stripe_id, most in waiting:
            self.entered[stripe_id] = self.scene.chance.randint(1, most)
            self._enter(number, self.entered[stripe_id])
        return bool(waiting)

    def _enter(self, dispute: int, amount: int) -> None:
        def run() -> int:
            return disputes.enter_amount(dispute_id=dispute, amount=amount, actor="operator", reason="by the bank").pk

        scene = self.scene
        scene.scheduler.begin(Task(f"enters dispute {dispute}", Host("web"), run, ended=scene.must_not_err))

    # --- Sellers ------------------------------------------------------------------------------------------------------

    def pay_out_or_sell(self) -> None:
        scene = self.scene
        account = scene.chance.choice(sorted(scene.world.accounts))
        if scene.chance.random() < 0.6:
            scene.simulator.pay_out(account)
            scene.simulator.may_go_negative(account, False)
            scene.counts["payouts"] += 1
            scene.note(f"{account} is paid out")
        else:
            currency = scene.chance.choice(scene.world.orders).currency
            scene.simulator.add_funds(scene.chance.choice([1, 500, 50_000]), currency, account=account)
            scene.note(f"{account} has sold again")

    def pay_out_all(self) -> None:
        for account in sorted(self.scene.world.accounts):
            self.scene.simulator.pay_out(account)
            self.scene.simulator.may_go_negative(account, False)

    def change_a_capability(self) -> None:
        scene = self.scene
        account = scene.chance.choice(sorted(scene.world.accounts))
        status = scene.chance.choice(["inactive", "active"])
        scene.simulator.set_capability(account, "transfers", status)
        scene.counts["capabilities changed"] += 1
        scene.note(f"transfers to {account} are {status}")

    def provide(self) -> None:
        """Everybody gets what their transfers and reversals need."""
        scene = self.scene
        is_waiting_there = scene.profile.stripe["pending_reversals"]
        for account in sorted(scene.world.accounts):
            scene.simulator.set_capability(account, "transfers", "active")
            if scene.chance.random() < 0.5 and not is_waiting_there:
                scene.simulator.may_go_negative(account, True)
                continue
            for currency in sorted({order.currency for order in scene.world.orders if account in order.sold}):
                scene.simulator.add_funds(1_000_000, currency, account=account)
        for currency in sorted({order.currency for order in scene.world.orders}):
            scene.simulator.add_funds(1_000_000, currency)

    def lend_the_platform_some_money(self) -> None:
        for currency in sorted(set(CURRENCIES)):
            if self.scene.chance.random() < 0.8:
                self.scene.simulator.add_funds(100_000, currency)

    # --- Operators ----------------------------------------------------------------------------------------------------

    def reverse_by_hand(self) -> None:
        """At the dashboard, past our program."""
        scene = self.scene
        found = [row for row in scene.at_stripe("transfer") if row["amount"] > row["amount_reversed"]]
        if not found:
            return
        row = scene.chance.choice(found)
        left = row["amount"] - row["amount_reversed"]
        # Often what our program is just going to take, too: somebody was quicker, or thought it had been forgotten.
        owed = [amount for amount in self._owed(row["id"]) if amount <= left]
        amount = scene.chance.choice([left, scene.chance.randint(1, left), *owed, *owed])
        try:
            made = scene.simulator.create_reversal(row["id"], amount)
        except StripeError as error:
            scene.note(f"reversal by hand refused: {error}")
            return
        self.reversed_by_hand.add(made["id"])
        scene.counts["reversals by hand"] += 1
        scene.note(f"by hand: {made['id']} takes {amount} of {row['id']}")

    @staticmethod
    def _owed(stripe_transfer_id: str) -> list[int]:
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT reversal.amount FROM marketplace_transferreversal AS reversal
                JOIN marketplace_sellertransfer AS transfer ON transfer.id = transfer_id
                WHERE stripe_transfer_id = %s AND reversal.status = 'pending' ORDER BY reversal.id
                """,
                [stripe_transfer_id],
            )
            return [row[0] for row in cursor.fetchall()]

    @staticmethod
    def permanently_failed() -> list[int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT id FROM marketplace_sellertransfer WHERE status = 'permanently_failed' ORDER BY id")
            return [row[0] for row in cursor.fetchall()]

    def retry_one(self) -> None:
        """An operator; or two who do not know of each other."""
        found = self.permanently_failed()
        if found:
            transfer = self.scene.chance.choice(found)
            for _ in range(min(self.scene.chance.choice([1, 1, 2]), self.scene.scheduler.idle_crews)):
                self.retry(transfer)

    def retry(self, transfer: int) -> None:
        scene = self.scene

        def run() -> str:
            return str(transfers.retry(transfer_id=transfer, actor="operator", reason="tries again").status)

        def ended(task: Task) -> None:
            scene.must_not_err(task)
            scene.note(f"retry of transfer {transfer}: {task.result}")
            scene.counts["retries by operators"] += task.result in {"failed", "reversal_pending"}
            scene.counts["retries by operators, refused"] += task.result == "NotAllowedNow"

        scene.scheduler.begin(Task(f"retries transfer {transfer}", Host("web"), lambda: answered(run), ended=ended))

    def retry_together(self) -> None:
        """An operator retries all that need a person as one; over the sum a second person approves, or is away."""
        scene, is_there = self.scene, self.scene.chance.random() < 0.8
        # Payments back are made together where they are chosen by name, and only there.
        criteria = bulk_retries.Criteria(error_code=scene.chance.choice(["", GIVE_BACK_UNDECIDED]))

        def run() -> str:
            operator = scene.world.operator
            chosen = bulk_retries.plan(criteria=criteria, by=operator, reason="tries together")
            begun = bulk_retries.start(bulk_retry_id=chosen.pk, by=operator)
            if begun.status == "awaiting_approval" and is_there:
                finance, _ = User.objects.get_or_create(username="finance", is_staff=True)
                begun = bulk_retries.approve(bulk_retry_id=begun.pk, by=finance, reason="agreed")
            return begun.status

        def ended(task: Task) -> None:
            scene.must_not_err(task)
            scene.note(f"bulk retry: {task.result}")
            scene.counts["bulk retries"] += task.result == "canary"
            scene.counts["bulk retries, not begun"] += task.result != "canary"

        scene.scheduler.begin(Task("retries together", Host("web"), lambda: answered(run), ended=ended))
