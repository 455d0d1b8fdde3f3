"""What PostgreSQL itself refuses or does when a row is written, whoever writes it."""

from typing import Any

import pgtrigger

from marketplace.states import Transitions, pairs


def update_of(*columns: str) -> pgtrigger.Operation:
    """Of an update that sets one of the columns. For any other PostgreSQL does not even look at the condition, which
    costs more than most triggers do.
    """
    return pgtrigger.UpdateOf(*columns)  # type: ignore[no-untyped-call]


def listed_steps_only(transitions: Transitions[Any]) -> pgtrigger.FSM:
    """The trigger that refuses every unlisted step, whoever asks: `psql`, ``QuerySet.update``, an old program."""
    steps = pgtrigger.FSM(name="listed_steps_only", field="status", transitions=pairs(transitions))
    # Its class is for any update. No row's status changes but by a statement that sets it.
    steps.operation = update_of("status")
    return steps


def never_changes_once_set(field: str, name: str) -> pgtrigger.Trigger:
    """Stripe's ids and sent amounts are facts: a correction is a new row."""
    return pgtrigger.Protect(
        name=name,
        operation=update_of(field),
        condition=pgtrigger.Condition(f"OLD.{field} <> '' AND OLD.{field} IS DISTINCT FROM NEW.{field}"),
    )


def never_changes(field: str, name: str) -> pgtrigger.Trigger:
    """What may have been sent under a key that is used again is sent as it was, or not at all."""
    return pgtrigger.Protect(
        name=name,
        operation=update_of(field),
        condition=pgtrigger.Condition(f"OLD.{field} IS DISTINCT FROM NEW.{field}"),
    )


def wakes_workers(name: str, channel: str, statuses: list[str]) -> pgtrigger.Trigger:
    """NOTIFY, inside the writer's transaction, when a row becomes due work or its due time changes.

    The payload says in how many milliseconds it is due, so that a worker need not ask, nor trust its host's clock.
    PostgreSQL sends equal notifications of one transaction once, so a refund over many sellers wakes workers once.
    """
    listed = ", ".join(f"'{status}'" for status in statuses)
    return pgtrigger.Trigger(
        name=name,
        level=pgtrigger.Row,
        when=pgtrigger.After,
        operation=pgtrigger.Insert | update_of("status", "next_retry_at", "lease_token"),
        declare=[("is_news", "BOOLEAN"), ("milliseconds", "NUMERIC")],
        func=f"""
            IF TG_OP = 'INSERT' THEN
                is_news := TRUE;
            ELSE
                is_news := OLD.status <> NEW.status OR OLD.next_retry_at IS DISTINCT FROM NEW.next_retry_at
                    OR OLD.lease_token IS NOT NULL;
            END IF;
            IF is_news THEN
                milliseconds := extract(epoch FROM NEW.next_retry_at - statement_timestamp()) * 1000;
                PERFORM pg_notify('{channel}', ceil(greatest(milliseconds, 0))::text);
            END IF;
            RETURN NULL;
            """,
        condition=pgtrigger.Condition(
            f"NEW.status IN ({listed}) AND NEW.next_retry_at IS NOT NULL AND NEW.lease_token IS NULL"
        ),
    )


def never_deleted() -> pgtrigger.Trigger:
    return pgtrigger.Protect(name="never_deleted", operation=pgtrigger.Delete)
