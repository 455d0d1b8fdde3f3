#!/bin/sh
# The pages are tested in a real browser: find one, or install it. Tests look for it by the same names.
set -eu
for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
    if [ -n "$name" ] && command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing Debian's chromium for the browser tests …"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium >/dev/null
    exit 0
fi
if .venv/bin/playwright install chromium; then exit 0; fi
echo "error: no Chromium found. Install the package 'chromium', or set CHROMIUM to the path of one." >&2
exit 1
