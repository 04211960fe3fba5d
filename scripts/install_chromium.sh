#!/usr/bin/env bash
# Install the browser in which the tests open the reports: as root on Debian and Ubuntu,
# where it is missing. Elsewhere, or offline, it does nothing and those tests are skipped.
set -uo pipefail

if command -v chromedriver >/dev/null && command -v chromium >/dev/null; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive
install() {
    timeout 300 apt-get install --yes --quiet --no-install-recommends \
        chromium chromium-driver
}
{ install || { timeout 120 apt-get update --quiet && install; }; } >/dev/null 2>&1 ||
    echo "chromium could not be installed: tests in a browser are skipped"
exit 0
