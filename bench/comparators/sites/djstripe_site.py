"""dj-stripe's webhook endpoint as its docs set it up, with what it does not need left out: no middleware, no admin.

Runs in the comparator's environment: as ``python djstripe_site.py UUID SECRET`` it makes the tables and the endpoint's
row, as ``djstripe_site:application`` it is served.
"""

import os
import sys

from django.conf import settings

settings.configure(
    SECRET_KEY="only-for-the-benchmark-0123456789-abcdefghijklmnop",
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ["BENCH_SOCKET"],
            "USER": "postgres",
            "NAME": os.environ["BENCH_DATABASE"],
            # Connections are kept, and not asked before each use whether they live.
            "OPTIONS": {"pool": {"min_size": 0, "max_size": 40, "timeout": 5}},
        }
    },
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "djstripe"],
    MIDDLEWARE=[],
    ROOT_URLCONF="djstripe_urls",
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    STRIPE_TEST_SECRET_KEY="sk_test_51BenchmarkBenchmarkBenchmark",
    STRIPE_LIVE_MODE=False,
    DJSTRIPE_FOREIGN_KEY_TO_FIELD="id",
    # The tables as the models say, at once: its migrations take a minute to come to the same.
    MIGRATION_MODULES={"auth": None, "contenttypes": None, "djstripe": None},
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
    },
)


def set_up(uuid: str, secret: str) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from djstripe.models import Account, APIKey, WebhookEndpoint

    call_command("migrate", verbosity=0, run_syncdb=True)
    # The account that the key belongs to is known: otherwise dj-stripe would ask Stripe for it at each event.
    account = Account.objects.create(id="acct_1Benchmark", livemode=False)
    APIKey.objects.create(
        type="secret", secret="sk_test_51BenchmarkBenchmarkBenchmark", livemode=False, djstripe_owner_account=account
    )
    WebhookEndpoint.objects.create(
        id="we_1Benchmark",
        livemode=False,
        djstripe_owner_account=account,
        djstripe_uuid=uuid,
        secret=secret,
        enabled_events=["*"],
        status="enabled",
        url="https://pay.example.com/stripe/webhook/",
    )


if __name__ == "__main__":
    set_up(*sys.argv[1:])
else:
    from django.core.wsgi import get_wsgi_application

    application = get_wsgi_application()
