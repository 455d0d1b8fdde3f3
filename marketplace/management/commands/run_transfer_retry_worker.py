from marketplace.management.worker_command import WorkerCommand
from marketplace.workers import transfer_retry


class Command(WorkerCommand):
    help = (
        "Send the sellers their shares: creates the Stripe transfers of pending and failed rows as they come due."
        " Stops cleanly on SIGTERM."
    )
    switch = "TRANSFER_RETRY_ENABLED"
    make_worker = staticmethod(transfer_retry.worker)
