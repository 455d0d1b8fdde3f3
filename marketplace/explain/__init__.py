"""Why a transfer is where it is, what unblocks it, and when. Reads its row and all that holds it back; writes nothing.

The transfer's page, the API's ``why`` and ``manage.py explain`` all show this one answer.
"""
