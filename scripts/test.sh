#!/usr/bin/env bash
# Set up .venv with the test extra, then check format, lint, types and tests.
#
#   bash scripts/test.sh                    everything
#   bash scripts/test.sh --fast             without slow tests, and two cases of each
#   bash scripts/test.sh tests/data -x      arguments go on to pytest
#
# PYTEST_WORKERS sets the number of test processes (default: one a core, at most 8).
# What they compile is kept for the next time, up to 1 GiB in the user's cache folder;
# JAXPEFT_TEST_CACHE names another.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fast=
if [ "${1:-}" = --fast ]; then
    fast=1
    shift
    set -- -m "not slow" "$@"
fi

bash scripts/setup_venv.sh test
export PATH="$PWD/.venv/bin:$PATH"

[ -n "$fast" ] || bash scripts/install_chromium.sh

# Tests run where everybody can run them, offline, a thread for each worker.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Compiled tests are kept too: each process would compile them all before its first.
export PYTHONDONTWRITEBYTECODE=

check() {
    echo "== $*"
    "$@"
}

check ruff format --check .
check ruff check .

# Types are checked beside the tests: that takes one core two minutes.
types="$(mktemp)"
pyright --pythonpath .venv/bin/python >"$types" 2>&1 &
checker=$!
trap 'kill "$checker" 2>/dev/null || true; rm -f "$types"' EXIT

failed=
check pytest --numprocesses "${PYTEST_WORKERS:-auto}" --maxprocesses 8 \
    --dist worksteal "$@" || failed=1
echo "== pyright --pythonpath .venv/bin/python"
wait "$checker" || failed=1
cat "$types"
[ -z "$failed" ] || exit 1
echo "All checks passed."
