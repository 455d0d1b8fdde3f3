"""Settings, all from the environment (or `.env` beside `manage.py`). `.env.template` lists every variable.

``ENV_FILE`` names another file; ``ENV_FILE=/dev/null`` none.

A value that makes no sense stops the program here, by the variable's name.
"""

import os
from pathlib import Path
from typing import Any

from django.templatetags.static import static
from django.urls import reverse_lazy

from veza import database, logs
from veza.env import Environment, invalid, local_secret_key, mask

BASE_DIR = Path(__file__).resolve().parent.parent

env = Environment()
env_file = os.environ.get("ENV_FILE", "")
env.read_file(Path(env_file) if env_file else BASE_DIR / ".env", required=bool(env_file))

# What this checkout makes for itself: the embedded database, a local key, the demonstration's files.
STATE_DIR = BASE_DIR / env.text("VEZA_STATE_DIR", ".veza")

# --- Django -----------------------------------------------------------------------------------------------------------

DEBUG = env.boolean("DEBUG", "false")
DATABASE = env.database("DATABASE_URL")
SECRET_KEY = env.text("SECRET_KEY", secret=True)
if not SECRET_KEY and DATABASE is None:
    # A developer's own machine: a key made once and kept beside the embedded database.
    SECRET_KEY = local_secret_key(STATE_DIR)
if len(SECRET_KEY) < 32:
    raise invalid("SECRET_KEY", mask(SECRET_KEY) if SECRET_KEY else "", "a random string of at least 32 characters")
ALLOWED_HOSTS = env.words("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
CSRF_TRUSTED_ORIGINS = env.words("CSRF_TRUSTED_ORIGINS")
for origin in CSRF_TRUSTED_ORIGINS:
    if not origin.startswith(("https://", "http://")):
        raise invalid("CSRF_TRUSTED_ORIGINS", origin, "origins with their scheme, such as https://pay.example.com")
# TLS ends at a proxy in front of us, or nowhere on a developer's machine.
USE_TLS = env.boolean("USE_TLS", "false")

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "pgtrigger",
    "pghistory",
    "marketplace",
]

MIDDLEWARE = [
    "veza.middleware.request_ids",
    "django.middleware.security.SecurityMiddleware",
    "veza.middleware.webhooks_at_once",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "veza.urls"
WSGI_APPLICATION = "veza.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES: dict[str, dict[str, Any]] = {"default": database.configuration(DATABASE, STATE_DIR)}
# A direct way to PostgreSQL for its notifications, where DATABASE_URL leads through PgBouncer; "none": look instead.
DATABASE_LISTEN_URL = env.listen_url("DATABASE_LISTEN_URL")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = reverse_lazy("admin:login")

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# Static files come from the packages themselves: no collectstatic step to forget.
WHITENOISE_USE_FINDERS = True

SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = USE_TLS
SECURE_HSTS_SECONDS = 31_536_000 if USE_TLS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = USE_TLS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if USE_TLS else None
# A load balancer asks for these from inside, without TLS.
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^metrics$"]
X_FRAME_OPTIONS = "DENY"

# When a history row was written, not when its transaction began.
PGHISTORY_CREATED_AT_FUNCTION = "CLOCK_TIMESTAMP()"

# --- Stripe -----------------------------------------------------------------------------------------------------------

STRIPE_SECRET_KEY = env.stripe_secret_key("STRIPE_SECRET_KEY")
STRIPE_WEBHOOK_SECRETS = env.stripe_webhook_secrets("STRIPE_WEBHOOK_SECRETS")
STRIPE_API_BASE = env.http_url("STRIPE_API_BASE")
STRIPE_LIVEMODE = STRIPE_SECRET_KEY.startswith(("sk_live_", "rk_live_"))
if STRIPE_LIVEMODE and DEBUG:
    raise invalid(
        "STRIPE_SECRET_KEY",
        mask(STRIPE_SECRET_KEY),
        "a test key while DEBUG is true: error pages show too much",
    )
if STRIPE_LIVEMODE and STRIPE_API_BASE and STRIPE_API_BASE != "https://api.stripe.com":
    raise invalid("STRIPE_API_BASE", STRIPE_API_BASE, "no other server than Stripe's together with a live key")
# Connecting, and waiting for an answer, of one call. Stripe's own SDK would wait 80 s.
STRIPE_CONNECT_TIMEOUT = env.duration("STRIPE_CONNECT_TIMEOUT", "5s")
STRIPE_READ_TIMEOUT = env.duration("STRIPE_READ_TIMEOUT", "20s")
# To each of Stripe's endpoints, by all processes on this database together. Stripe's own default limit is 25
# (docs.stripe.com/rate-limits). 0 is none.
STRIPE_MAX_REQUESTS_PER_SECOND = env.integer("STRIPE_MAX_REQUESTS_PER_SECOND", "20", minimum=0, maximum=1000)
# How old a webhook's signature may be. Stripe's libraries use five minutes.
STRIPE_WEBHOOK_TOLERANCE = env.duration("STRIPE_WEBHOOK_TOLERANCE", "5m")
STRIPE_WEBHOOK_MAX_BYTES = env.integer("STRIPE_WEBHOOK_MAX_BYTES", "1048576", minimum=1024, maximum=16_777_216)
# Nothing that reaches us is larger than a webhook.
DATA_UPLOAD_MAX_MEMORY_SIZE = STRIPE_WEBHOOK_MAX_BYTES

# --- The marketplace --------------------------------------------------------------------------------------------------

# The platform's part of each sale, in hundredths of a percent; frozen in the order when it is placed.
COMMISSION_BASIS_POINTS = env.integer("COMMISSION_BASIS_POINTS", "1000", minimum=0, maximum=9999)
# Who bears that part of what is refunded; frozen in the order too. Equal to shares.RefundCommission, which cannot be
# imported while settings are read; a test compares them.
REFUND_COMMISSION_POLICIES = ("proportional", "platform_keeps", "platform_bears")
REFUND_COMMISSION = env.choice("REFUND_COMMISSION", "proportional", REFUND_COMMISSION_POLICIES)
# What becomes of what sellers gave for a refund that failed afterwards.
NET_DEBTS = env.boolean("NET_DEBTS", "false")
GIVE_BACK = env.choice("GIVE_BACK", "automatic", ("automatic", "ask"))
# From when on a dispute counts as lost, and its sellers give their part: Stripe recommends once it is opened, and once
# it is lost for sellers abroad (docs.stripe.com/connect/disputes).
DISPUTE_CLAWBACK_ON = env.choice("DISPUTE_CLAWBACK_ON", "opened", ("opened", "funds_withdrawn", "lost"))

# --- Notices: of rows that need a person ------------------------------------------------------------------------------

# For links in messages.
SITE_URL = env.http_url("SITE_URL", such_as="https://pay.example.com")
globals().update(env.email_url("EMAIL_URL"))
# For each step of talking to the mail server.
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = env.text("DEFAULT_FROM_EMAIL", "veza@localhost")
NOTICE_EMAILS = env.emails("NOTICE_EMAILS")
if NOTICE_EMAILS and not env.text("EMAIL_URL", secret=True):
    raise invalid("EMAIL_URL", "", "the mail server by which NOTICE_EMAILS are reached")
SELLER_NOTICES = env.boolean("SELLER_NOTICES", "false")
if SELLER_NOTICES and not env.text("EMAIL_URL", secret=True):
    raise invalid("EMAIL_URL", "", "the mail server by which SELLER_NOTICES are sent")
NOTICE_WEBHOOK_URL = env.endpoint("NOTICE_WEBHOOK_URL", such_as="https://ops.example.com/hooks/veza")
NOTICE_WEBHOOK_SECRET = env.text("NOTICE_WEBHOOK_SECRET", secret=True)
if NOTICE_WEBHOOK_URL and len(NOTICE_WEBHOOK_SECRET) < 32:
    masked = mask(NOTICE_WEBHOOK_SECRET) if NOTICE_WEBHOOK_SECRET else ""
    raise invalid("NOTICE_WEBHOOK_SECRET", masked, "a random string of at least 32 characters, for NOTICE_WEBHOOK_URL")
NOTICE_DIGEST_ABOVE = env.integer("NOTICE_DIGEST_ABOVE", "3", minimum=0, maximum=100)
NOTICE_DIGEST_INTERVAL = env.duration("NOTICE_DIGEST_INTERVAL", "15m")

# --- Workers ----------------------------------------------------------------------------------------------------------

REVERSAL_WORKER_ENABLED = env.boolean("REVERSAL_WORKER_ENABLED", "true")
REVERSAL_MAX_RETRIES = env.integer("REVERSAL_MAX_RETRIES", "5", minimum=0, maximum=1000)
REVERSAL_CHECK_INTERVAL = env.duration("REVERSAL_CHECK_INTERVAL", "1m")
REVERSAL_BACKOFF_BASE = env.duration("REVERSAL_BACKOFF_BASE", "1m")
REVERSAL_BACKOFF_MAX = env.duration("REVERSAL_BACKOFF_MAX", "1h")
REVERSAL_BATCH_SIZE = env.integer("REVERSAL_BATCH_SIZE", "32", minimum=1, maximum=1000)
REVERSAL_CONCURRENCY = env.integer("REVERSAL_CONCURRENCY", "16", minimum=1, maximum=32)
REVERSAL_LEASE = env.duration("REVERSAL_LEASE", "5m")
REVERSAL_INSUFFICIENT_FUNDS_INTERVAL = env.duration("REVERSAL_INSUFFICIENT_FUNDS_INTERVAL", "6h")
REVERSAL_INSUFFICIENT_FUNDS_MAX_AGE = env.duration("REVERSAL_INSUFFICIENT_FUNDS_MAX_AGE", "45d")
REVERSAL_BALANCE_CHECK_INTERVAL = env.duration("REVERSAL_BALANCE_CHECK_INTERVAL", "1h")

TRANSFER_RETRY_ENABLED = env.boolean("TRANSFER_RETRY_ENABLED", "true")
TRANSFER_RETRY_MAX_RETRIES = env.integer("TRANSFER_RETRY_MAX_RETRIES", "5", minimum=0, maximum=1000)
TRANSFER_RETRY_CHECK_INTERVAL = env.duration("TRANSFER_RETRY_CHECK_INTERVAL", "1m")
TRANSFER_RETRY_BACKOFF_BASE = env.duration("TRANSFER_RETRY_BACKOFF_BASE", "1m")
TRANSFER_RETRY_BACKOFF_MAX = env.duration("TRANSFER_RETRY_BACKOFF_MAX", "1h")

# Retrying many transfers together: so many first, waited for so long; then at this rate, until too many fail again.
BULK_RETRY_CANARY_SIZE = env.integer("BULK_RETRY_CANARY_SIZE", "5", minimum=1, maximum=100)
BULK_RETRY_CANARY_WAIT = env.duration("BULK_RETRY_CANARY_WAIT", "15m")
BULK_RETRY_PER_MINUTE = env.integer("BULK_RETRY_PER_MINUTE", "60", minimum=1, maximum=6000)
BULK_RETRY_MAX_ERROR_PERCENT = env.integer("BULK_RETRY_MAX_ERROR_PERCENT", "10", minimum=0, maximum=99)
# Over this sum, by currency, a second person has to approve.
BULK_RETRY_APPROVAL_ABOVE = env.amounts("BULK_RETRY_APPROVAL_ABOVE", "1000000")

for base, maximum in (
    ("REVERSAL_BACKOFF_BASE", "REVERSAL_BACKOFF_MAX"),
    ("TRANSFER_RETRY_BACKOFF_BASE", "TRANSFER_RETRY_BACKOFF_MAX"),
):
    if globals()[base] > globals()[maximum]:
        shown = {name: env.text(name, env.read[name].default) for name in (base, maximum)}
        raise invalid(base, shown[base], f"at most {maximum}, which is {shown[maximum]}")

# --- API --------------------------------------------------------------------------------------------------------------

# Of one user, or of one token. 0 is no limit.
API_REQUESTS_PER_MINUTE = env.integer("API_REQUESTS_PER_MINUTE", "600", minimum=0, maximum=1_000_000)
# Of these, how many may change something.
API_CHANGES_PER_MINUTE = env.integer("API_CHANGES_PER_MINUTE", "120", minimum=0, maximum=1_000_000)
# The longest life that a token may be given.
API_TOKEN_MAX_AGE = env.duration("API_TOKEN_MAX_AGE", "365d")
# How long the answer under an Idempotency-Key is kept, at least.
API_IDEMPOTENCY_KEY_MAX_AGE = env.duration("API_IDEMPOTENCY_KEY_MAX_AGE", "7d")

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "marketplace.api.authentication.ApiTokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_THROTTLE_CLASSES": ["marketplace.api.pace.Pace"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["marketplace.api.fields.StrictJSONParser"],
    "DEFAULT_SCHEMA_CLASS": "marketplace.api.schema.Schema",
    "DEFAULT_FILTER_BACKENDS": ["marketplace.api.filters.KnownParametersOnly"],
    "DEFAULT_PAGINATION_CLASS": "marketplace.api.pagination.KeysetPagination",
    "EXCEPTION_HANDLER": "marketplace.api.problems.handle",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}

SPECTACULAR_SETTINGS = {
    "TITLE": "Veza marketplace",
    "DESCRIPTION": "Refunds, and the reversals that bring the sellers' money back.\n\n"
    "Amounts are whole numbers in the minor unit of the currency beside them: 1250 with eur is 12.50 EUR, 1250 with"
    " jpy is 1250 JPY. Every error is a problem of RFC 9457 (`application/problem+json`).\n\n"
    "Staff see what Django's permissions allow them; buyers see their own orders and refunds, sellers their own"
    " transfers and reversals. What one may not see does not exist for one: 404.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    # Swagger UI would ask a host on the internet to check the document.
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "validatorUrl": None, "defaultModelsExpandDepth": 0},
    "REDOC_DIST": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/api",
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "marketplace.api.schema_examples.add_examples",
    ],
    "ENUM_NAME_OVERRIDES": {
        "TransferStatus": "marketplace.states.TransferStatus",
        "ReversalStatus": "marketplace.states.ReversalStatus",
        "RefundStatus": "marketplace.states.RefundStatus",
        "OrderStatus": "marketplace.states.OrderStatus",
        "EventStatus": "marketplace.states.EventStatus",
        "WhyKind": "marketplace.explain.shapes.Kind",
        "BulkRetryStatus": "marketplace.states.BulkRetryStatus",
        "BulkRetryItemStatus": "marketplace.states.BulkRetryItemStatus",
    },
}

# --- Demonstration ----------------------------------------------------------------------------------------------------

DEMO_WEB_PORT = env.integer("DEMO_WEB_PORT", "8000", minimum=1, maximum=65535)
DEMO_SIMULATOR_PORT = env.integer("DEMO_SIMULATOR_PORT", "12111", minimum=1, maximum=65535)
DEMO_METRICS_PORT = env.integer("DEMO_METRICS_PORT", "9464", minimum=1, maximum=65535)

# --- Metrics ---------------------------------------------------------------------------------------------------------

# A folder that the web processes of this host share, so that each tells the counters of all. prometheus_client reads
# the variable itself, when it is first imported: later than this.
PROMETHEUS_MULTIPROC_DIR = env.text("PROMETHEUS_MULTIPROC_DIR")
if PROMETHEUS_MULTIPROC_DIR:
    if not os.access(PROMETHEUS_MULTIPROC_DIR, os.W_OK | os.X_OK) or not Path(PROMETHEUS_MULTIPROC_DIR).is_dir():
        raise invalid("PROMETHEUS_MULTIPROC_DIR", PROMETHEUS_MULTIPROC_DIR, "a folder that this process may write to")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = PROMETHEUS_MULTIPROC_DIR

# --- Logs -------------------------------------------------------------------------------------------------------------

LOG_LEVEL = env.choice("LOG_LEVEL", "INFO", ["DEBUG", "INFO", "WARNING", "ERROR"])
LOG_FORMAT = env.choice("LOG_FORMAT", "auto", ["auto", "console", "json"])
LOGGING_CONFIG = None
logs.configure(level=LOG_LEVEL, log_format=LOG_FORMAT)

# --- Traces -----------------------------------------------------------------------------------------------------------

OTEL_EXPORTER_OTLP_ENDPOINT = env.collector("OTEL_EXPORTER_OTLP_ENDPOINT")
OTEL_SERVICE_NAME = env.text("OTEL_SERVICE_NAME", "veza-marketplace")

UNFOLD = {
    "SITE_TITLE": "Veza marketplace",
    "SITE_HEADER": "Veza marketplace",
    "SITE_SUBHEADER": "Refunds and reversals",
    "SITE_SYMBOL": "currency_exchange",
    # Unfold's own has too little contrast as text on its dark pages (WCAG AA): this is its next lighter one.
    "COLORS": {"primary": {"500": "oklch(71.4% .203 305.504)"}},
    "STYLES": [lambda _request: static("marketplace/admin.css")],
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_HISTORY": False,
    "DASHBOARD_CALLBACK": "marketplace.admin.dashboard.context",
    "SIDEBAR": {
        "navigation": [
            {
                "title": group,
                "separator": True,
                "items": [
                    {
                        "title": title,
                        "icon": icon,
                        "link": reverse_lazy(f"admin:{model}_changelist"),
                        "permission": f"marketplace.admin.menu.{model}",
                    }
                    for title, icon, model in items
                ],
            }
            for group, items in (
                (
                    "Money",
                    [
                        ("Orders", "shopping_cart", "marketplace_order"),
                        ("Refunds", "undo", "marketplace_refund"),
                        ("Disputes", "gavel", "marketplace_dispute"),
                        ("Transfers", "send_money", "marketplace_sellertransfer"),
                        ("Reversals", "currency_exchange", "marketplace_transferreversal"),
                        ("Debts of sellers", "account_balance_wallet", "marketplace_debt"),
                        ("Bulk retries", "replay", "marketplace_bulkretry"),
                    ],
                ),
                (
                    "Catalogue",
                    [
                        ("Sellers", "storefront", "marketplace_seller"),
                        ("Products", "inventory_2", "marketplace_product"),
                    ],
                ),
                (
                    "Stripe",
                    [
                        ("Webhook events", "webhook", "marketplace_webhookevent"),
                        ("Reconciliations", "balance", "marketplace_reconciliation"),
                        ("Drift", "difference", "marketplace_reconciliationfinding"),
                    ],
                ),
                (
                    "People",
                    [
                        ("Notices", "notifications", "marketplace_notice"),
                        ("Messages", "outgoing_mail", "marketplace_noticemessage"),
                    ],
                ),
                (
                    "Workers",
                    [
                        ("Workers", "engineering", "marketplace_workerheartbeat"),
                        ("Circuit breakers", "power_off", "marketplace_circuitbreaker"),
                        ("Request allowances", "speed", "marketplace_requestallowance"),
                    ],
                ),
                (
                    "Access",
                    [
                        ("Users", "person", "auth_user"),
                        ("Groups", "group", "auth_group"),
                        ("API tokens", "key", "marketplace_apitoken"),
                    ],
                ),
            )
        ],
    },
}
