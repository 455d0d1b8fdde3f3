import gc
import os

from django.core.wsgi import get_wsgi_application
from django.db import connections

from marketplace import tracing

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "veza.settings")

application = get_wsgi_application()

# Only now are the settings there.
tracing.start()

# Seconds until a request that finds PostgreSQL away is answered: Stripe sends its events again, people press a key.
# Workers have more patience.
connections["default"].settings_dict["OPTIONS"]["pool"]["timeout"] = 1

# All that starting has loaded stays: no collection need ever look through it again.
gc.freeze()
