"""The program's own settings, under an environment that the tests give: a developer's `.env` and exported variables do
not reach them. Only the database may be chosen from outside: ``DATABASE_URL`` (a server) and ``TEST_DATABASE_NAME``.
"""

import os
import re
from pathlib import Path

_template = Path(__file__).resolve().parent.parent / ".env.template"
for _name in re.findall(r"^#?\s?([A-Z][A-Z0-9_]+)=", _template.read_text(), flags=re.MULTILINE):
    if _name != "DATABASE_URL":
        os.environ.pop(_name, None)
os.environ.update(
    ENV_FILE=os.devnull,
    SECRET_KEY="for-tests-only-and-never-for-anything-else",
    STRIPE_SECRET_KEY="sk_test_ForTestsOnly",
    STRIPE_WEBHOOK_SECRETS="whsec_testPlatform,whsec_testConnect",
    LOG_LEVEL="WARNING",
    LOG_FORMAT="console",
)

import structlog  # noqa: E402 - the environment comes first

from veza.settings import *  # noqa: E402, F403
from veza.settings import DATABASES, STATE_DIR  # noqa: E402

# A server of the tests' own, which does not wait for the disk: see tests/copies.py.
DATABASES["default"]["EMBEDDED_DIRECTORY"] = STATE_DIR / "tests" / "postgres"
DATABASES["default"]["TEST"] = {"NAME": os.environ.get("TEST_DATABASE_NAME", "test_veza")}
# Hashing slowly is the point of the real ones.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# structlog.testing.capture_logs() sees only loggers that did not keep their processors.
structlog.configure(**{**structlog.get_config(), "cache_logger_on_first_use": False})
