"""Our rows, Stripe's transfers with their reversals, and Stripe's balance transactions: do the three agree?"""
