"""The audit as one page of HTML without outside assets."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import Any

from .ledger import shown

NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
ROWS_MAX = 2000
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1f36; --dim: #697386; --paper: #fff; --card: #f7f8fa;
  --line: #e3e8ee; --good: #0b7a4b; --bad: #b3093c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --dim: #98a2b5; --paper: #12141c;
  --card: #1b1e29; --line: #2c3142; --good: #4ad295; --bad: #ff7a9c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; } p { margin: .25rem 0; }
.dim { color: var(--dim); } .good { color: var(--good); } .bad { color: var(--bad); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .45rem .75rem; text-align: left;
  border-top: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
th { background: var(--card); font-weight: 600; border-top: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.part td { color: var(--dim); border-top: 0; }
tr.part td:first-child { padding-left: 2rem; }
code { font: .86em ui-monospace, monospace; white-space: normal; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin-top: 1rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem 1rem; }
.tile b { display: block; font-size: 1.15rem; }
"""


def render(found: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(found["at"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    totals = found["totals"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Stripe simulator: audit</title><style>{_STYLE}</style></head><body>
<h1>What really happened</h1>
<p class="dim">Simulator's time {at} · seed {escape(str(found["seed"]))}</p>
{_verdict(found)}
<div class="tiles">
{_tile("Transfers", str(totals["transfers"]))}{_tile("Reversals", str(totals["reversals"]))}
{_tile("Transferred", _sums(totals["transferred"]))}{_tile("Reversed", _sums(totals["reversed"]))}
</div>
<h2>Balances</h2>{_accounts(found["accounts"])}
<h2>Transfers and their reversals</h2>{_transfers(found["transfers"])}
</body></html>
"""


def _verdict(found: dict[str, Any]) -> str:
    lines = []
    if found["ok"]:
        lines.append('<p class="good">✓ Balances add up; no transfer is reversed by more than its amount.</p>')
    lines += [f'<p class="bad">✗ {escape(each)}</p>' for each in found["problems"]]
    lines += [f'<p class="bad">⚠ {escape(each)}</p>' for each in found["suspicious"]]
    if not found["suspicious"]:
        lines.append('<p class="good">✓ No operation was done twice.</p>')
    return "".join(lines)


def _tile(name: str, value: str) -> str:
    return f'<div class="tile"><span class="dim">{name}</span><b>{escape(value)}</b></div>'


def _sums(amounts: dict[str, int]) -> str:
    return ", ".join(_money(amount, currency) for currency, amount in amounts.items()) or NONE


def _money(amount: int, currency: str) -> str:
    return f"{MINUS}{shown(-amount, currency)}" if amount < 0 else shown(amount, currency)


def _accounts(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return '<p class="dim">No money has moved yet.</p>'
    body = "".join(
        f"<tr><td><code>{escape(row['account'])}</code></td><td>{row['currency']}</td>"
        f'<td class="number">{_money(row["available"], row["currency"])}</td>'
        f'<td class="number">{_money(row["pending"], row["currency"])}</td>'
        f'<td class="{"good" if row["balances"] else "bad"}">{"✓" if row["balances"] else "✗"}</td></tr>'
        for row in rows
    )
    return (
        '<div class="wide"><table><tr><th>Account</th><th>Currency</th><th class="number">Available</th>'
        f'<th class="number">Pending</th><th>Adds up</th></tr>{body}</table></div>'
    )


def _transfers(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return '<p class="dim">No transfers yet.</p>'
    body = "".join(_transfer(row) for row in rows[-ROWS_MAX:][::-1])
    more = f'<p class="dim">The latest {ROWS_MAX} of {len(rows)}.</p>' if len(rows) > ROWS_MAX else ""
    return (
        f'{more}<div class="wide"><table><tr><th>Transfer</th><th>Seller</th><th class="number">Amount</th>'
        f'<th class="number">Reversed</th><th>Idempotency key</th><th>Metadata</th></tr>{body}</table></div>'
    )


def _transfer(row: dict[str, Any]) -> str:
    currency = row["currency"]
    wrong = "bad" if row["reversed_sum"] > row["amount"] else ""
    line = (
        f"<tr><td><code>{escape(row['id'])}</code></td><td><code>{escape(row['destination'])}</code></td>"
        f'<td class="number">{_money(row["amount"], currency)}</td>'
        f'<td class="number {wrong}">{_money(row["reversed_sum"], currency)}</td><td></td>'
        f"<td>{_metadata(row['metadata'])}</td></tr>"
    )
    return line + "".join(_reversal(each, currency) for each in row["reversals"])


def _reversal(row: dict[str, Any], currency: str) -> str:
    return (
        f'<tr class="part"><td><code>{escape(row["id"])}</code></td>'
        f"<td>{escape(row.get('status', ''))}</td><td></td>"
        f'<td class="number">{_money(row["amount"], currency)}</td>'
        f"<td><code>{escape(row['idempotency_key'] or NONE)}</code></td>"
        f"<td>{_metadata(row['metadata'])}</td></tr>"
    )


def _metadata(values: dict[str, str]) -> str:
    return "<br>".join(f"<code>{escape(name)}: {escape(value)}</code>" for name, value in values.items())
