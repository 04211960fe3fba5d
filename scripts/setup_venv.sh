#!/usr/bin/env bash
# Make .venv with the package installed in it, for development.
#
#   bash scripts/setup_venv.sh          the package
#   bash scripts/setup_venv.sh test     with an extra of pyproject.toml
#
# PYTHON names the interpreter to build it with; otherwise the first one found that is
# 3.11 or newer. An environment that is up to date is left as it is.
#
# The versions are the exact ones of constraints/, with which the tests have passed;
# scripts/lock.sh writes them. VERSIONS=newest takes the newest ones instead that
# pyproject.toml allows.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra="${1:-}"
venv=.venv
versions="${VERSIONS:-exact}"
case "$versions" in
exact | newest) ;;
*)
    echo "VERSIONS=$versions is neither exact nor newest" >&2
    exit 2
    ;;
esac

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
    for name in python3 python3.12 python3.11 python3.13 python; do
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

if ! suits "$venv/bin/python"; then
    python=$(find_python)
    echo "Making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
constraints="constraints/python$version.txt"
if [ "$versions" = exact ] && [ ! -f "$constraints" ]; then
    versions=newest
    unlisted="There is no $constraints: what is installed are the newest versions that \
pyproject.toml allows, which are not tested with Python $version"
fi

# What an installation depends on: this place, the project file and the versions.
fingerprint() {
    pwd
    cat pyproject.toml
    echo "$versions"
    [ "$versions" = newest ] || cat "$constraints"
}

# What is newest is asked again each time, except where it is all there is.
stamp="$venv/.installed${extra:+-$extra}"
if [ "${VERSIONS:-}" != newest ] && [ -f "$stamp" ] &&
    fingerprint | cmp -s - "$stamp"; then
    exit 0
fi

install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" \
        --editable ".${extra:+[$extra]}"
}

echo "Installing jaxpeft${extra:+ with the extra '$extra'} into $venv (takes a few" \
    "minutes the first time)"
if [ "$versions" = newest ]; then
    [ -z "${unlisted:-}" ] || echo "$unlisted"
    install --upgrade --upgrade-strategy eager
else
    # By variables, so that what builds a package is the listed version too: which of
    # the two does that depends on pip's own version.
    export PIP_CONSTRAINT="${PIP_CONSTRAINT:+$PIP_CONSTRAINT }$constraints"
    export PIP_BUILD_CONSTRAINT="$constraints"
    install || {
        echo "The versions of $constraints could not be installed. Where the lines" \
            "above say that this machine has no such version, try the newest ones:" \
            "VERSIONS=newest bash $0${extra:+ $extra}" >&2
        exit 1
    }
fi
# An extra brings the plain package with it.
fingerprint | tee "$venv/.installed" >"$stamp"
