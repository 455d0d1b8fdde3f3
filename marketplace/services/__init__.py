"""The decisions: each function is one business act in one transaction. Nothing here calls Stripe inside one."""
