"""Whole answers for the API's documents."""

from typing import Any

TRANSFER: dict[str, Any] = {
    "id": 7,
    "status": "reversal_pending",
    "order": 12,
    "seller": 3,
    "amount": 4500,
    "amount_reversed": 0,
    "amount_kept_back": 0,
    "amount_netted": 0,
    "currency": "eur",
    "gives_back_of": None,
    "undoes": None,
    "declined": False,
    "description": "Order 12",
    "stripe_transfer_id": "tr_1hkLekRASfa3f3e63e69a",
    "stripe_reversal_id": "",
    "created_at": "2026-11-20T08:30:00Z",
    "updated_at": "2026-11-27T18:45:12Z",
    "failed_leg": "",
    "correlation_id": "evt_1hkLekRAS2869ffa2df88",
    "retry_count": 0,
    "next_retry_at": "2026-11-28T00:45:12Z",
    "last_error_code": "insufficient_funds",
    "last_error_message": "The connected account's balance does not cover this reversal.",
    "last_error_request_id": "req_9a1f0c2b7d4e61",
    "last_error_at": "2026-11-27T18:45:12Z",
    "why": {
        "kind": "waiting_for_funds",
        "cause": "The seller's Stripe balance does not cover what is owed.",
        "unblocks": "Money on the seller's balance: a sale or a top-up. It is tried again by itself when money comes.",
        "since": "2026-11-27T12:45:10Z",
        "until": "2027-01-11T12:45:10Z",
        "next_attempt": {
            "at": "2026-11-28T00:45:12Z",
            "why": "its own schedule, every 6 h; sooner when money comes, by Stripe's event balance.available or by our"
            " look at the balance",
        },
        "notes": [
            "At 2026-11-27 19:00:04 UTC Stripe said that the seller has 12.00 EUR; it is not looked at any more.",
        ],
        "retries_spent": 0,
        "max_retries": 5,
        "attempts_made": 1,
        "attempts": [
            {
                "at": "2026-11-27T18:45:12Z",
                "number": 1,
                "actor": "reversal worker on host-1, process 77",
                "code": "insufficient_funds",
                "answer": "The connected account's balance does not cover this reversal.",
                "request_id": "req_9a1f0c2b7d4e61",
                "request_url": "https://dashboard.stripe.com/test/logs/req_9a1f0c2b7d4e61",
            }
        ],
        "key": {
            "operation_id": "2f1c9a57-6c9e-4a55-9f3f-0a4b6c1d2e3f",
            "generation": 1,
            "first_used_at": "2026-11-27T12:45:09Z",
            "age_seconds": 23100,
            "reused_until": "2026-11-28T08:45:09Z",
            "looks_first": True,
        },
        "owed": [
            {
                "reversal": 5,
                "status": "pending",
                "is_in_turn": True,
                "amount": 4500,
                "currency": "eur",
                "cause": "refund",
                "refund": 4,
                "stripe_refund_id": "re_1hkLekRASebfb0c2fe0f2",
                "dispute": None,
                "stripe_dispute_id": "",
                "stripe_reversal_id": "",
            }
        ],
        "links": [
            {
                "title": "Transfer tr_1hkLekRASfa3f3e63e69a",
                "url": "https://dashboard.stripe.com/test/connect/transfers/tr_1hkLekRASfa3f3e63e69a",
            }
        ],
        "runbook": "docs/runbook.md#insufficient_funds",
        "actions": [
            {
                "name": "retry",
                "title": "Retry",
                "permission": "marketplace.retry_sellertransfer",
                "is_allowed": False,
                "refusal": "transfer 7 is reversal_pending: only a permanently_failed one can be retried",
                "debt": None,
            },
            {
                "name": "try_now",
                "title": "Try now",
                "permission": "marketplace.retry_sellertransfer",
                "is_allowed": True,
                "refusal": "",
                "debt": None,
            },
        ],
        "now": "2026-11-27T19:10:09Z",
    },
    "reversals": [
        {
            "id": 5,
            "status": "pending",
            "transfer": 7,
            "cause": "refund",
            "amount": 4500,
            "currency": "eur",
            "amount_recovered": 0,
            "amount_written_off": 0,
            "in_place_of": None,
            "description": "Order 12, refund 4",
            "stripe_reversal_id": "",
            "created_at": "2026-11-27T12:45:08Z",
            "updated_at": "2026-11-27T18:45:12Z",
            "refund": 4,
            "stripe_status": "",
            "waiting_for_funds_since": "2026-11-27T12:45:10Z",
            "unwanted_amount": 0,
            "refused": False,
        }
    ],
    "history": [
        {
            "at": "2026-11-27T18:45:12Z",
            "event": "attempt",
            "status": "reversal_pending",
            "actor": "reversal worker on host-1, process 77",
            "reason": "waiting for the seller's balance",
            "attempt": 1,
            "error_code": "insufficient_funds",
            "error_message": "The connected account's balance does not cover this reversal.",
        }
    ],
}
