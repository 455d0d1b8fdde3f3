"""What leaves this program for people and their programs, other than Stripe: e-mail, and signed webhooks."""
