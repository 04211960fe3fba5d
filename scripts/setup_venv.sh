#!/usr/bin/env bash
# Make .venv with the package installed in it, for development.
#
#   bash scripts/setup_venv.sh          the package
#   bash scripts/setup_venv.sh test     with an extra of pyproject.toml
#
# PYTHON names the interpreter to build it with; otherwise the first one found that is
# 3.11 or newer. An environment that is up to date is left as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra="${1:-}"
venv=.venv

# True for an interpreter that is new enough and can make environments.
suits() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
        >/dev/null 2>&1
}

find_python() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        if ! suits "$PYTHON"; then
            echo "PYTHON=$PYTHON does not run, is older than Python 3.11, or lacks" \
                "the venv module" >&2
            return 1
        fi
        echo "$PYTHON"
        return
    fi
    for name in python3 python3.13 python3.12 python3.11 python; do
        if suits "$name"; then
            echo "$name"
            return
        fi
    done
    echo "No Python 3.11 or newer with the venv module was found on PATH. Install one" \
        "(python.org; on Debian and Ubuntu also the package python3-venv), or name" \
        "one: PYTHON=/path/to/python3 bash $0" >&2
    return 1
}

# What an installation depends on: this place and the project file.
fingerprint() {
    pwd
    cat pyproject.toml
}

if ! suits "$venv/bin/python"; then
    python=$(find_python)
    echo "Making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

stamp="$venv/.installed${extra:+-$extra}"
if [ -f "$stamp" ] && fingerprint | cmp -s - "$stamp"; then
    exit 0
fi

echo "Installing jaxpeft${extra:+ with the extra '$extra'} into $venv (takes a few" \
    "minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --editable ".${extra:+[$extra]}"
# An extra brings the plain package with it.
fingerprint | tee "$venv/.installed" >"$stamp"
