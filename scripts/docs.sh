#!/usr/bin/env bash
# Build the documentation site into build/site and check it.
#
#   bash scripts/docs.sh            build; any warning is an error
#   bash scripts/docs.sh --serve    then show it at http://127.0.0.1:8000
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup_venv.sh docs
export PATH="$PWD/.venv/bin:$PATH"

# The builder reads the package's source, and imports the extension for docstrings.
export PYTHONPATH="$PWD/scripts/docs"

python scripts/docs/pages.py build/pages

# What it says of docstrings is not among the warnings that it counts.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
zensical build --clean --strict --config-file mkdocs.yml 2>&1 | tee "$log"
if grep -E '^(griffe|mkdocstrings|autorefs)[^:]*:' "$log" >/dev/null; then
    echo "The lines above about docstrings are errors here." >&2
    exit 1
fi
python scripts/docs/check.py build/site

if [ "${1:-}" = "--serve" ]; then
    exec python -m http.server --bind 127.0.0.1 --directory build/site 8000
fi
