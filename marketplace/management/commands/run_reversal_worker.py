from marketplace.management.worker_command import WorkerCommand
from marketplace.workers import reversal


class Command(WorkerCommand):
    help = (
        "Take the sellers' money back at Stripe: reverses transfers in reversal_pending as they come due, asks again"
        " for refunds that Stripe has not answered, applies failed webhook events again, looks whether sellers whose"
        " balance was too small have money again. Stops cleanly on SIGTERM."
    )
    switch = "REVERSAL_WORKER_ENABLED"
    make_worker = staticmethod(reversal.worker)
