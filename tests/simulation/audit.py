"""The books of the simulated Stripe against our rows, read by plain SQL. Shares no line with the program.

The numbers are those of the invariants in the design (its section 6); P is about paying, R about the buyer's refunds, D
about disputes.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from django.db import connection

from tests.simulation.wire import HARMLESS, Asked

# As the design has them, written down a second time.
STEPS = {
    "pending": {"completed", "failed", "canceled", "permanently_failed"},
    "failed": {"completed", "canceled", "permanently_failed"},
    "completed": {"reversal_pending", "partially_reversed", "reversed"},
    # Back to completed, and canceled by a person: what is no longer owed, and what is not to be given back.
    "reversal_pending": {"reversed", "partially_reversed", "completed", "permanently_failed"},
    "partially_reversed": {"reversal_pending", "reversed"},
    "permanently_failed": {"reversal_pending", "failed", "partially_reversed", "reversed", "completed", "canceled"},
    "reversed": set(),
    "canceled": set(),
}
REVERSAL_STEPS = {
    "pending": {"succeeded", "failed", "canceled"},
    "failed": {"pending", "succeeded", "canceled"},
    "succeeded": set(),
    "canceled": set(),
}
FINAL = {"completed", "partially_reversed", "reversed", "canceled"}
WAITING = {"pending", "failed", "reversal_pending"}


@dataclass
class Facts:
    """What the simulation knows, because it did it."""

    simulator: Any
    orders: list[Any]
    reversed_by_hand: set[str]
    # What a person entered of disputes in another currency than their order's, by Stripe's id.
    entered: dict[str, int]
    # From when on a dispute counts as lost.
    clawback_on: str
    asked: list[Asked]
    outages: int
    capabilities_changed: int
    breakers_opened: int
    # Seconds for which a reversal waits for its seller's money.
    funds_patience: float
    # No call fails but in an outage, or for the one seller of whom all do.
    is_fair_weather: bool
    elapsed: float


@dataclass
class Audit:
    facts: Facts
    breaches: list[str] = field(default_factory=list)

    def check(self, holds: object, what: str) -> None:
        if not holds:
            self.breaches.append(what)


def audit(facts: Facts) -> list[str]:
    """What is wrong; nothing, if nothing is."""
    books = Audit(facts)
    stripe = _stripe(facts.simulator)
    transfers = rows(
        """
        SELECT transfer.*, stripe_account_id FROM marketplace_sellertransfer AS transfer
        JOIN marketplace_seller AS seller ON seller.id = seller_id ORDER BY transfer.id
        """
    )
    reversals = rows("SELECT * FROM marketplace_transferreversal ORDER BY id")
    refunds = rows("SELECT * FROM marketplace_refund ORDER BY id")
    by_transfer = defaultdict(list)
    for each in reversals:
        by_transfer[each["transfer_id"]].append(each)
    _simulators_own(books, stripe)
    _once(books, stripe, reversals)
    for transfer in transfers:
        _transfer(books, stripe, transfer, by_transfer[transfer["id"]])
    _nobody_else_paid(books, stripe, transfers)
    _orders(books, stripe, transfers, by_transfer)
    _refunds(books, stripe, refunds)
    _disputes(books, stripe)
    _nothing_waits(books, transfers, refunds)
    _retried_together(books)
    _history(books, "marketplace_sellertransferhistory", STEPS, transfers)
    _history(books, "marketplace_transferreversalhistory", REVERSAL_STEPS, reversals)
    _failures(books, transfers)
    if facts.is_fair_weather and not facts.outages:
        books.check(not facts.breakers_opened, "3: a breaker opened, though Stripe never failed for all")
    return books.breaches


def rows(sql: str, params: Any = None) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


@dataclass
class Stripe:
    """Everything at Stripe, read from its store and its own audit."""

    audit: dict[str, Any]
    transfers: dict[str, dict[str, Any]]
    refunds: dict[str, dict[str, Any]]
    disputes: dict[str, dict[str, Any]]
    # Refunds that have succeeded at some time, whatever became of them.
    ever_succeeded: set[str]


def _stripe(simulator: Any) -> Stripe:
    told = simulator.audit()
    store = simulator.core.world.store
    ever = set()
    for row in store.table("acct_platform", "event").rows.values():
        if "refund" in row["type"] and row["type"] != "charge.refunded":
            refund = json.loads(row["snapshot"])
            if refund["status"] == "succeeded":
                ever.add(refund["id"])
    return Stripe(
        audit=told,
        transfers={each["id"]: each for each in told["transfers"]},
        refunds=dict(store.table("acct_platform", "refund").rows),
        disputes=dict(store.table("acct_platform", "dispute").rows),
        ever_succeeded=ever,
    )


def _simulators_own(books: Audit, stripe: Stripe) -> None:
    books.check(not stripe.audit["problems"], f"the simulator's own books: {stripe.audit['problems']}")
    for each in stripe.audit["suspicious"]:
        books.breaches.append(f"2: done twice at Stripe: {each}")


def _once(books: Audit, stripe: Stripe, reversals: list[dict[str, Any]]) -> None:
    made: Counter[str] = Counter()
    for transfer in stripe.transfers.values():
        made[f"transfer {transfer['metadata'].get('operation_id')}"] += 1
        made.update(
            f"reversal {each['metadata']['operation_id']}"
            for each in transfer["reversals"]
            if "operation_id" in each["metadata"] and each.get("status", "succeeded") in {"succeeded", "pending"}
        )
    made.update(
        f"refund {each['metadata']['operation_id']}"
        for each in stripe.refunds.values()
        if "operation_id" in each["metadata"]
    )
    for what, times in made.items():
        books.check(times == 1, f"2: {what} was done {times} times at Stripe")
    proofs = Counter(each["stripe_reversal_id"] for each in reversals if each["stripe_reversal_id"])
    for proof, times in proofs.items():
        books.check(times == 1, f"2: {proof} belongs to {times} rows")


def _transfer(books: Audit, stripe: Stripe, row: dict[str, Any], reversals: list[dict[str, Any]]) -> None:
    name = f"transfer {row['id']} ({row['status']})"
    theirs = stripe.transfers.get(row["stripe_transfer_id"])
    if theirs is None:
        books.check(row["status"] == "canceled", f"P: {name} has no transfer at Stripe")
        books.check(
            not any(
                each["metadata"].get("operation_id") == str(row["operation_id"]) for each in stripe.transfers.values()
            ),
            f"P: {name} was refunded before it was paid, and was paid",
        )
        return
    said = (theirs["amount"], theirs["currency"], theirs["destination"], theirs["metadata"].get("operation_id"))
    ours = (row["amount"], row["currency"], row["stripe_account_id"], str(row["operation_id"]))
    books.check(said == ours, f"P: {name} is {said} at Stripe, {ours} here")
    done = {each["id"]: each for each in theirs["reversals"] if each.get("status", "succeeded") == "succeeded"}
    known = {each["stripe_reversal_id"]: each for each in reversals if each["status"] == "succeeded"}
    dropped = {str(each["operation_id"]) for each in reversals if each["status"] == "canceled"}
    for proof, each in known.items():
        books.check(proof in done, f"3: {name}: {proof} is no reversal of it at Stripe")
        if proof in done:
            books.check(done[proof]["amount"] == each["amount"], f"1: {name}: {proof} has another amount at Stripe")
            whose = done[proof]["metadata"].get("operation_id")
            expected_of = None if each["cause"] == "seen_at_stripe" else str(each["operation_id"])
            books.check(
                # One that landed after it was dropped has a row of its own.
                whose == expected_of or whose in dropped,
                f"3: {name}: reversal {each['id']} has {proof} for its proof, which is of operation {whose}",
            )
    for proof, each in done.items():
        made_by_us = "operation_id" in each["metadata"]
        books.check(
            proof in known or (not made_by_us and proof in books.facts.reversed_by_hand),
            f"1: {name}: {proof} of {each['amount']} at Stripe is in no row",
        )
    books.check(
        row["amount_reversed"] == sum(each["amount"] for each in known.values()),
        f"1: {name}: {row['amount_reversed']} is reversed, by {[each['amount'] for each in known.values()]}",
    )
    expected = (
        "reversed"
        if row["amount_reversed"] == row["amount"]
        else "partially_reversed"
        if row["amount_reversed"]
        else "completed"
    )
    books.check(row["status"] == expected, f"3: {name} should be {expected}")
    if row["amount_reversed"]:
        books.check(row["stripe_reversal_id"] in done, f"3: {name}: its proof {row['stripe_reversal_id']!r} is none")
    for each in reversals:
        open_ones = each["status"] in {"pending", "failed"}
        given_up = each["status"] == "failed" and each["stripe_reversal_id"]
        books.check(not open_ones or given_up, f"8: {name}: reversal {each['id']} is {each['status']} still")


def _nobody_else_paid(books: Audit, stripe: Stripe, transfers: list[dict[str, Any]]) -> None:
    ours = {row["stripe_transfer_id"] for row in transfers}
    for each in stripe.transfers:
        books.check(each in ours, f"P: {each} at Stripe is in no row")


def _orders(
    books: Audit, stripe: Stripe, transfers: list[dict[str, Any]], reversals: dict[int, list[dict[str, Any]]]
) -> None:
    for order in books.facts.orders:
        rows_of_order = [row for row in transfers if row["order_id"] == order.pk]
        of_order = {row["stripe_account_id"]: row for row in rows_of_order if row["gives_back_of_id"] is None}
        shares = {who: sold - sold * order.commission // 10_000 for who, sold in order.sold.items()}
        books.check(set(of_order) == set(shares), f"P: order {order.pk} has transfers to {sorted(of_order)}")
        refunded = sum(
            refund["amount"]
            for refund in stripe.refunds.values()
            if refund["charge"] == order.charge
            and refund["id"] in stripe.ever_succeeded
            and refund["status"] not in {"failed", "canceled"}
        )
        refunded += sum(
            _lost(books.facts, each, order) for each in stripe.disputes.values() if each["charge"] == order.charge
        )
        refunded = min(refunded, order.amount)
        taken = {}
        touched = False
        for who, row in of_order.items():
            books.check(
                row["amount"] + row["amount_kept_back"] + row["amount_netted"] == shares.get(who),
                f"P: order {order.pk}: {who} is to get {shares.get(who)}, the row says {row['amount']},"
                f" {row['amount_kept_back']} kept back and {row['amount_netted']} netted",
            )
            # What the seller was paid in all, first and again, also by netting; and what was taken of that.
            paid, by_us, by_others, forgiven, declined = row["amount_netted"], 0, 0, 0, 0
            for each in rows_of_order:
                if each["stripe_account_id"] != who:
                    continue
                by_us += sum(debt["amount_recovered"] for debt in reversals[each["id"]])
                forgiven += sum(debt["amount_written_off"] for debt in reversals[each["id"]])
                declined += each["amount"] if each["declined"] else 0
                theirs = stripe.transfers.get(each["stripe_transfer_id"])
                if theirs is not None:
                    paid += theirs["amount"]
                    ours, others = _reversed(theirs)
                    by_us, by_others = by_us + ours, by_others + others
            touched = touched or by_others + forgiven + declined > 0
            taken[who] = shares.get(who, 0) - paid + by_us
            exact = shares.get(who, 0) * refunded / order.amount
            books.check(
                taken[who] - declined <= exact + 2,
                f"1: order {order.pk}: {taken[who]} of {shares.get(who)} was taken from {who},"
                f" of {order.amount} the buyer got {refunded}",
            )
            books.check(
                taken[who] + by_others + forgiven >= exact - 2,
                f"1: order {order.pk}: only {taken[who] + by_others + forgiven} of {shares.get(who)} came back from"
                f" {who}, of {order.amount} the buyer got {refunded}",
            )
        if not touched and set(of_order) == set(shares):
            _is_fair(books, order, shares, taken, refunded)


def _reversed(transfer: dict[str, Any]) -> tuple[int, int]:
    """By us, and by others."""
    by_us = by_others = 0
    for each in transfer["reversals"]:
        if each.get("status", "succeeded") == "succeeded":
            if "operation_id" in each["metadata"]:
                by_us += each["amount"]
            else:
                by_others += each["amount"]
    return by_us, by_others


def _is_fair(books: Audit, order: Any, shares: dict[str, int], taken: dict[str, int], refunded: int) -> None:
    """Whoever gave the last cent was due it at least as much as anybody who did not give the next one. The platform
    gives what is left.
    """
    parts = [(shares[who], taken[who]) for who in shares]
    parts.append((order.amount - sum(shares.values()), refunded - sum(taken.values())))
    what = f"1: order {order.pk}: of {order.amount} the buyer got {refunded}; (share, taken) is {parts}"
    books.check(all(0 <= gave <= share for share, gave in parts), what)
    if refunded == order.amount:
        books.check(all(gave == share for share, gave in parts), what)
        return
    for share, gave in parts:
        for other, others_gave in parts:
            # share / (2·gave - 1) is what the last cent was due by; other / (2·others_gave + 1) the next one.
            if gave > 0:
                books.check(share * (2 * others_gave + 1) >= other * (2 * gave - 1), what)


def _refunds(books: Audit, stripe: Stripe, refunds: list[dict[str, Any]]) -> None:
    known = {row["stripe_refund_id"]: row for row in refunds if row["stripe_refund_id"]}
    orders = {order.charge: order for order in books.facts.orders}
    for id_, theirs in stripe.refunds.items():
        row = known.get(id_)
        if row is None:
            books.check(theirs["charge"] not in orders, f"R: {id_} at Stripe is in no row")
            continue
        said, ours = (theirs["status"], theirs["amount"]), (row["status"], row["amount"])
        books.check(said == ours, f"R: {id_} is {said} at Stripe, {ours} here")
        operation = theirs["metadata"].get("operation_id")
        books.check(operation in {None, str(row["operation_id"])}, f"R: {id_} is of another operation than its row")
    for row in refunds:
        if not row["stripe_refund_id"]:
            books.check(
                row["status"] == "failed" and row["last_error_code"],
                f"R: refund {row['id']} is {row['status']} without being at Stripe",
            )
    for order in books.facts.orders:
        found = rows("SELECT status, amount, amount_refunded FROM marketplace_order WHERE id = %s", [order.pk])[0]
        stand = sum(
            each["amount"]
            for each in stripe.refunds.values()
            if each["charge"] == order.charge and each["status"] == "succeeded"
        )
        books.check(
            found["amount_refunded"] == min(stand, order.amount),
            f"R: order {order.pk}: {found['amount_refunded']} is refunded, {stand} at Stripe",
        )


def _lost(facts: Facts, dispute: dict[str, Any], order: Any) -> int:
    """What of the order's amount is lost by a dispute that is as Stripe has it."""
    amount = dispute["amount"] if dispute["currency"] == order.currency else facts.entered.get(dispute["id"], 0)
    moved = [each["amount"] for each in dispute["balance_transactions"]]
    out, back = -sum(each for each in moved if each < 0), sum(each for each in moved if each > 0)
    is_inquiry = dispute["status"].startswith("warning_") and not out
    if dispute["status"] in {"won", "prevented", "warning_closed"}:
        return 0
    if dispute["status"] != "lost" and (facts.clawback_on == "lost" or is_inquiry):
        return 0
    if dispute["status"] != "lost" and facts.clawback_on == "funds_withdrawn" and not out:
        return 0
    # Rounded up: of what came back no cent more is given than there was.
    return -(-amount * (out - back) // out) if out else amount


def _disputes(books: Audit, stripe: Stripe) -> None:
    known = {row["stripe_dispute_id"]: row for row in rows("SELECT * FROM marketplace_dispute")}
    orders = {order.charge: order for order in books.facts.orders}
    for id_, theirs in stripe.disputes.items():
        row, order = known.pop(id_, None), orders[theirs["charge"]]
        if row is None:
            books.breaches.append(f"D: {id_} at Stripe is in no row")
            continue
        said, ours = (theirs["status"], theirs["amount"]), (row["status"], row["amount"])
        books.check(said == ours, f"D: {id_} is {said} at Stripe, {ours} here")
        books.check(row["order_id"] == order.pk, f"D: {id_} is of order {order.pk}, not {row['order_id']}")
        lost = _lost(books.facts, theirs, order)
        books.check(row["amount_lost"] == lost, f"D: of {id_} {lost} is lost, {row['amount_lost']} here")
        parts = json.loads(row["seller_parts"]) if isinstance(row["seller_parts"], str) else row["seller_parts"]
        books.check(
            sum(parts.values()) + row["platform_part"] == lost, f"D: the parts of {id_} are {parts}, of {lost} lost"
        )
        books.check(not row["last_error_code"], f"D: {id_} waits for a person: {row['last_error_message']}")
    books.check(not known, f"D: {sorted(known)} are no disputes at Stripe")


def _nothing_waits(books: Audit, transfers: list[dict[str, Any]], refunds: list[dict[str, Any]]) -> None:
    for row in transfers:
        name = f"transfer {row['id']} ({row['status']})"
        books.check(
            row["status"] in FINAL, f"8: {name} is not done: {row['last_error_code']} {row['last_error_message']}"
        )
        if row["status"] not in WAITING:
            books.check(row["next_retry_at"] is None, f"8: {name} waits for nothing, until {row['next_retry_at']}")
        books.check(row["lease_token"] is None, f"8: {name} is in somebody's hands still")
        if row["status"] in {"reversed", "partially_reversed"}:
            books.check(not row["last_error_code"], f"8: {name} has the error {row['last_error_code']}")
    for row in refunds:
        books.check(row["status"] != "requested", f"8: refund {row['id']} was never answered")
        books.check(row["lease_token"] is None, f"8: refund {row['id']} is in somebody's hands still")
    for row in rows(
        "SELECT id, type, status, last_error_code, last_error_message, lease_token FROM marketplace_webhookevent"
        " WHERE status = 'failed' OR lease_token IS NOT NULL"
    ):
        books.breaches.append(f"5: event {row['id']} {row['type']} is {row['status']}: {row['last_error_message']}")


def _retried_together(books: Audit) -> None:
    """What was begun together came to its end, and each transfer of it was retried once at most."""
    for row in rows("SELECT id, status, next_retry_at, lease_token FROM marketplace_bulkretry"):
        is_over = row["next_retry_at"] is None and row["lease_token"] is None
        books.check(is_over and row["status"] not in {"canary", "running"}, f"8: bulk retry {row['id']} is not over")
    for row in rows(
        """
        SELECT item.bulk_retry_id, item.transfer_id, item.status, item.retried_at IS NOT NULL AS is_retried,
            (SELECT count(*) FROM marketplace_sellertransferhistory AS told
             WHERE told.pgh_obj_id = item.transfer_id AND told.pgh_label = 'status'
               AND told.pgh_context->>'reason' LIKE 'bulk retry ' || item.bulk_retry_id || ':%') AS times
        FROM marketplace_bulkretryitem AS item
        """
    ):
        name = f"transfer {row['transfer_id']} of bulk retry {row['bulk_retry_id']}"
        books.check(row["times"] == row["is_retried"], f"2: {name} ({row['status']}) was retried {row['times']} times")
        books.check(row["status"] != "retried", f"8: what became of {name} was never written down")


def _history(books: Audit, table: str, steps: dict[str, set[str]], live: list[dict[str, Any]]) -> None:
    last: dict[int, str] = {}
    for row in rows(f"SELECT pgh_id, pgh_obj_id, pgh_label, status, pgh_context FROM {table} ORDER BY pgh_id"):  # noqa: S608
        name = f"{table.removeprefix('marketplace_').removesuffix('history')} {row['pgh_obj_id']}"
        before, now = last.get(row["pgh_obj_id"]), row["status"]
        if before is None:
            books.check(row["pgh_label"] == "created", f"4: the history of {name} begins with {row['pgh_label']}")
        elif before != now:
            books.check(now in steps[before], f"4: {name} went from {before} to {now}")
        context = json.loads(row["pgh_context"]) if isinstance(row["pgh_context"], str) else row["pgh_context"]
        if before != now:
            books.check(
                context and context.get("actor") and context.get("reason"),
                f"4: the history of {name} does not say who made it {now}, or why: {context}",
            )
        last[row["pgh_obj_id"]] = now
    for row in live:
        books.check(
            last.get(row["id"]) == row["status"], f"4: the history of {row['id']} ends with {last.get(row['id'])}"
        )


def _failures(books: Audit, transfers: list[dict[str, Any]]) -> None:
    """Whoever asked for a person had a reason that is allowed, and no retry was spent for nothing."""
    history: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows(
        """
        SELECT pgh_obj_id, status, retry_count, last_error_code, last_error_at
        FROM marketplace_sellertransferhistory ORDER BY pgh_id
        """
    ):
        history[row["pgh_obj_id"]].append(row)
    groups = {row["id"]: row["operation_id"].hex for row in rows("SELECT id, operation_id FROM marketplace_order")}
    troubles = _troubles(books.facts.asked)
    for transfer in transfers:
        name = f"transfer {transfer['id']}"
        spent, before = 0, None
        for row in history[transfer["id"]]:
            if before is not None and row["retry_count"] > before["retry_count"]:
                spent += row["retry_count"] - before["retry_count"]
            if row["status"] == "permanently_failed" and (before is None or before["status"] != row["status"]):
                spent += row["last_error_code"] == "retries_exhausted"
                books.check(
                    _is_allowed(books, transfer, row),
                    f"8: {name} asked for a person without need: {row['last_error_code']!r}",
                )
            before = row
        subjects = {
            transfer["stripe_transfer_id"],
            str(transfer["operation_id"]),
            f"order_{groups[transfer['order_id']]}",
        } - {""}
        met = sum(troubles[subject] for subject in subjects)
        books.check(
            spent <= met + books.facts.outages,
            f"8: {name} spent {spent} retries; {met} calls about it met with trouble",
        )


def _troubles(asked: list[Asked]) -> Counter[str]:
    met: Counter[str] = Counter()
    for each in asked:
        refused = each.status is None or (each.status >= 400 and each.status not in {401, 403, 409, 429})
        if not each.is_outage and (refused or (each.trouble and each.trouble not in HARMLESS)):
            met[each.subject] += 1
    return met


def _is_allowed(books: Audit, transfer: dict[str, Any], failed: dict[str, Any]) -> bool:
    match failed["last_error_code"]:
        case "retries_exhausted":
            return True
        case "partly_reversed_elsewhere":
            theirs = books.facts.simulator.reversals_of(transfer["stripe_transfer_id"])
            return any(each["id"] in books.facts.reversed_by_hand for each in theirs)
        case "insufficient_capabilities_for_transfer":
            return books.facts.capabilities_changed > 0
        case "give_back_undecided":
            return transfer["gives_back_of_id"] is not None
        case "insufficient_funds":
            return books.facts.elapsed > books.facts.funds_patience
        case _:
            return False
