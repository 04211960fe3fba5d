#!/usr/bin/env bash
# Build the documentation site into build/site and check it: any warning is an error.
#
#   bash scripts/docs.sh            build
#   bash scripts/docs.sh --serve    then show it at http://127.0.0.1:8000
#   bash scripts/docs.sh --update   write the newest versions to constraints/docs.txt
#
# It works in .venv-docs, which holds the tools alone: the package is read and not
# imported. PYTHON names the interpreter to make it with, 3.11 or newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv-docs
pins=constraints/docs.txt
python="$venv/bin/python"

install() {
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
}

if [ "${1:-}" = "--update" ]; then
    "${PYTHON:-python3}" -m venv --clear "$venv"
    "$python" -c 'import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*project["optional-dependencies"]["docs"], sep="\n")' >"$venv/wanted"
    install --requirement "$venv/wanted"
    {
        echo "# The extra \`docs\` in exact versions; made by bash scripts/docs.sh --update"
        "$python" -m pip freeze
    } >"$pins"
elif ! cmp -s "$pins" "$venv/.installed"; then
    "${PYTHON:-python3}" -m venv --clear "$venv"
    install --requirement "$pins"
fi
cp "$pins" "$venv/.installed"

export PATH="$PWD/$venv/bin:$PATH"
# The builder reads the package's source, and imports the extension for docstrings.
export PYTHONPATH="$PWD/scripts/docs"

python scripts/docs/pages.py build/pages

# What is said of docstrings is not among the warnings that the builder counts.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
zensical build --clean --strict --config-file mkdocs.yml 2>&1 | tee "$log"
if grep -qE '^(griffe|mkdocstrings|autorefs)' "$log"; then
    echo "The lines above about docstrings are errors here." >&2
    exit 1
fi
python scripts/docs/check.py build/site

if [ "${1:-}" = "--serve" ]; then
    exec python -m http.server --bind 127.0.0.1 --directory build/site 8000
fi
