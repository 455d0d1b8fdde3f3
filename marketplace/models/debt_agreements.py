"""What rows say of settled debts is what the debts' entries say."""

import pgtrigger

from marketplace.models.triggers import update_of


def agrees_with_debt_entries(name: str, checked: str, *columns: str) -> list[pgtrigger.Trigger]:
    """When a transaction ends, what the row says of settled debts is what their entries say; ``checked`` looks."""
    changed = " OR ".join(f"OLD.{column} <> NEW.{column}" for column in columns)
    there = " OR ".join(f"NEW.{column} <> 0" for column in columns)
    return [
        pgtrigger.Trigger(
            name=f"{name}_{when}",
            level=pgtrigger.Row,
            when=pgtrigger.After,
            operation=operation,
            timing=pgtrigger.Deferred,
            condition=pgtrigger.Condition(condition),
            func=f"{checked} RETURN NULL;",
        )
        for when, operation, condition in (
            ("written", pgtrigger.Insert, there),
            ("changed", update_of(*columns), changed),
        )
    ]


def reversal_agrees(reversal: str) -> str:
    """As PL/pgSQL: raises unless the columns of the reversal, named by an expression, are the sums of its entries."""
    return f"""
            IF EXISTS (
                SELECT FROM marketplace_transferreversal AS debt
                WHERE debt.id = {reversal} AND (debt.amount_recovered, debt.amount_written_off) <> (
                    SELECT COALESCE(sum(amount) FILTER (WHERE kind <> 'written_off'), 0),
                        COALESCE(sum(amount) FILTER (WHERE kind = 'written_off'), 0)
                    FROM marketplace_debtentry WHERE reversal_id = debt.id)
            ) THEN
                RAISE EXCEPTION 'reversal % does not agree with its debt entries', {reversal}
                    USING ERRCODE = 'check_violation';
            END IF;"""  # noqa: S608 - an expression of our own


def transfer_agrees(transfer: str) -> str:
    """The same of what was netted from a transfer."""
    return f"""
            IF EXISTS (
                SELECT FROM marketplace_sellertransfer AS paying
                WHERE paying.id = {transfer} AND paying.amount_netted <> (
                    SELECT COALESCE(sum(amount), 0) FROM marketplace_debtentry WHERE transfer_id = paying.id)
            ) THEN
                RAISE EXCEPTION 'transfer % does not agree with its debt entries', {transfer}
                    USING ERRCODE = 'check_violation';
            END IF;"""  # noqa: S608 - as above
