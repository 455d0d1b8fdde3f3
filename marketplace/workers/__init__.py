"""Long-lived processes that do the due work: claim, call Stripe with no transaction open, settle."""
