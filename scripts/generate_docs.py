#!/usr/bin/env python
"""Write docs/states.* from marketplace/states.py and docs/roles.md from marketplace/roles.py.

With ``--check`` only compare.
"""

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from django.db.models import TextChoices  # noqa: E402 - found through the line above

from marketplace import roles, states  # noqa: E402
from marketplace.state_picture import note, picture, steps  # noqa: E402
from marketplace.states import Transitions  # noqa: E402

SOURCE = ROOT / "marketplace" / "states.py"
GENERATED = "made by scripts/generate_docs.py from marketplace/states.py"
# Who moves a row on, by class and member: statuses of two classes that have the same text are equal.
MOVED_BY = {
    "TransferStatus.PENDING": "transfer retry worker; a refund, while it was never sent",
    "TransferStatus.FAILED": "transfer retry worker; a refund, while it is not in doubt",
    "TransferStatus.COMPLETED": "a refund that succeeds",
    "TransferStatus.REVERSAL_PENDING": "reversal worker; a refund that fails",
    "TransferStatus.PARTIALLY_REVERSED": "the next refund that succeeds",
    "TransferStatus.PERMANENTLY_FAILED": "an operator's retry or decline; a refund that fails",
    "ReversalStatus.PENDING": "reversal worker",
    "ReversalStatus.FAILED": "an operator's retry of its transfer",
    "RefundStatus.REQUESTED": "the API request that wrote it; after that the reversal worker",
    "RefundStatus.PENDING": "Stripe, by an event",
    "RefundStatus.REQUIRES_ACTION": "the buyer, at Stripe, which tells by an event",
    "RefundStatus.SUCCEEDED": "Stripe, by an event, if at all",
    "OrderStatus.PENDING": "`payment_intent.succeeded`",
    "OrderStatus.PAID": "its refunds",
    "OrderStatus.PARTIALLY_REFUNDED": "its refunds",
    "OrderStatus.REFUNDED": "a refund that fails after it had succeeded",
    "BulkRetryStatus.PLANNED": "its requester",
    "BulkRetryStatus.AWAITING_APPROVAL": "a second person",
    "BulkRetryStatus.CANARY": "reversal worker; a person who stops it",
    "BulkRetryStatus.RUNNING": "reversal worker; a person who stops it",
    "BulkRetryItemStatus.PLANNED": "reversal worker, when its turn comes",
    "BulkRetryItemStatus.RETRIED": "reversal worker, when it sees what became of the transfer",
    "EventStatus.PROCESSED": "nobody: the steps out of it belong to the transaction that wrote it",
    "EventStatus.IGNORED": "an operator's replay; its payment's event, where it was an early refund",
    "EventStatus.FAILED": "reversal worker, while it has a next time; its payment's event; an operator's replay",
}

SECTIONS: list[tuple[str, str, type[TextChoices], Transitions]] = [
    (
        "A seller's transfer",
        (
            "`SellerTransfer.status`, from `ALLOWED_TRANSITIONS`. Steps marked *seen at Stripe* follow a reversal that"
            " was made elsewhere; steps marked *operator* are a person's."
        ),
        states.TransferStatus,
        states.ALLOWED_TRANSITIONS,
    ),
    (
        "One reversal",
        "`TransferReversal.status`: what is owed or done on a transfer.",
        states.ReversalStatus,
        states.REVERSAL_TRANSITIONS,
    ),
    (
        "A refund",
        "`Refund.status`: Stripe's states, and `requested` before Stripe has answered.",
        states.RefundStatus,
        states.REFUND_TRANSITIONS,
    ),
    (
        "An order",
        "`Order.status`, which follows its payment and refunds.",
        states.OrderStatus,
        states.ORDER_TRANSITIONS,
    ),
    (
        "A webhook event",
        "`WebhookEvent.status`: what became of a verified event.",
        states.EventStatus,
        states.EVENT_TRANSITIONS,
    ),
    (
        "A bulk retry",
        "`BulkRetry.status`: many transfers that need a person, retried together under guard.",
        states.BulkRetryStatus,
        states.BULK_RETRY_TRANSITIONS,
    ),
    (
        "A transfer of a bulk retry",
        "`BulkRetryItem.status`: its result. *Not retried* and *refused* are where it begins.",
        states.BulkRetryItemStatus,
        states.BULK_RETRY_ITEM_TRANSITIONS,
    ),
]


def comments_by_member(path: Path) -> dict[tuple[str, str], str]:
    """(class, member) -> the comment above the member, in one line."""
    source = path.read_text()
    lines = source.splitlines()
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for statement in node.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                above: list[str] = []
                number = statement.lineno - 2
                while lines[number].strip().startswith("#"):
                    above.insert(0, lines[number].strip().removeprefix("#").strip())
                    number -= 1
                found[node.name, statement.targets[0].id] = " ".join(above)
    return found


def mermaid(choices: type[TextChoices], transitions: Transitions) -> str:
    lines = ["stateDiagram-v2", f"    [*] --> {next(iter(choices)).value}"]
    for old, new in steps(transitions):
        label = f" : {note(old, new)}" if note(old, new) else ""
        lines.append(f"    {old.value} --> {new.value}{label}")
    lines += [f"    {status.value} --> [*]" for status in choices if not transitions.get(status)]
    return "\n".join(lines)


def states_page() -> str:
    comments = comments_by_member(SOURCE)
    parts = [f"<!-- {GENERATED}: change that file and run `.venv/bin/python scripts/generate_docs.py` -->", "# States"]
    parts.append(
        "Each table of steps is one constant in [marketplace/states.py](../marketplace/states.py). From it come the"
        " guard in `transition()`, the trigger that makes PostgreSQL refuse every other step whoever asks, this page,"
        " and the tests. What to do about a row that waits or failed is in the [runbook](runbook.md)."
    )
    for title, intro, choices, transitions in SECTIONS:
        parts += [f"## {title}", intro, f"```mermaid\n{mermaid(choices, transitions)}\n```"]
        rows = ["| status | what is true in it | moved on by | may become |", "| --- | --- | --- | --- |"]
        for status in choices:
            comment = comments[choices.__name__, status.name]
            mover = MOVED_BY.get(f"{choices.__name__}.{status.name}", "")
            if bool(mover) != bool(transitions[status]):
                raise SystemExit(f"error: {choices.__name__}.{status.name}: MOVED_BY and its steps do not agree.")
            if not comment:
                raise SystemExit(f"error: {choices.__name__}.{status.name} has no comment in {SOURCE.name}.")
            becomes = ", ".join(
                f"`{new.value}`" + (f" ({note(old, new)})" if note(old, new) else "")
                for old, new in steps(transitions)
                if old is status
            )
            rows.append(f"| `{status.value}` | {comment} | {mover or 'nobody'} | {becomes or 'nothing: final'} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


# --- Roles ------------------------------------------------------------------------------------------------------------


def admin_address(page: str) -> str:
    """``marketplace_order_change``, a URL's name, as people see it: ``/admin/marketplace/order/…/change/``."""
    app, model, name = page.split("_", 2)
    return f"/admin/{app}/{model}/" + {"changelist": "", "add": "add/"}.get(name, f"…/{name}/")


def roles_page() -> str:
    made = "made by scripts/generate_docs.py from marketplace/roles.py"
    intro = """\
Four groups of the admin (Access → Groups), made by the migrations. Put each person into one, with *staff status*. An
*operator* lets what stopped go on, *finance* decides about money, an *admin* does both and says who else may; each sees
all that a *viewer* sees. A superuser may do everything, and alone makes superusers.

Each line is one constant in [marketplace/roles.py](../marketplace/roles.py); tests ask every endpoint and open every
page as each role. Give more to a group, or make groups of your own: migrations add to the four and take nothing away.
Buyers and sellers are in no group: they see [what is theirs](api.md#who-may-do-what)."""
    comments = comments_by_member(ROOT / "marketplace" / "roles.py")
    members = [f"- **{role.value}**: {comments['Role', role.name]}" for role in roles.Role]
    head = ["what", "permission", *(role.value for role in roles.Role), "token's scope", "API", "admin"]
    rows = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for act in roles.ACTS:
        cells = [
            act.what,
            ", ".join(f"`{name.removeprefix('marketplace.')}`" for name in act.needs),
            *("✓" if role in act.roles else "" for role in roles.Role),
            f"`{act.scope.value}`" if act.scope else "",
            ", ".join(f"`{operation}`" for operation in act.api),
            ", ".join(f"`{admin_address(page)}`" for page in act.pages),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    parts = [f"<!-- {made}: change that file and run `.venv/bin/python scripts/generate_docs.py` -->", "# Roles"]
    return "\n\n".join([*parts, intro, "\n".join(members), "\n".join(rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 where a file is not up to date"
    )
    check = parser.parse_args().check
    svg = f"<!-- {GENERATED} -->\n{picture()}"
    pages = {
        ROOT / "docs" / "states.md": states_page(),
        ROOT / "docs" / "states.svg": svg,
        ROOT / "docs" / "roles.md": roles_page(),
    }
    for path, wanted in pages.items():
        if path.exists() and path.read_text() == wanted:
            continue
        name = path.relative_to(ROOT)
        if check:
            sys.exit(f"error: {name} is not what the code says: run .venv/bin/python scripts/generate_docs.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(wanted)
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
