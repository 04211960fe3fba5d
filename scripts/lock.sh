#!/usr/bin/env bash
# Write the exact versions that the two commands install: constraints/pythonX.Y.txt for
# each Python that is tested, from the ranges of pyproject.toml and its extras. Needs the
# package index and a minute; any Python 3.11 or newer runs it.
#
#   bash scripts/lock.sh                      the newest versions there are
#   bash scripts/lock.sh --keep               only what pyproject.toml has changed
#   bash scripts/lock.sh --keep -P wandb      that, and the newest wandb
#
# Other arguments go on to `uv pip compile`. The resolver runs in a scratch environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

keep=--upgrade
if [ "${1:-}" = --keep ]; then
    keep=--no-upgrade
    shift
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check uv

# All but the accelerators', which say themselves what belongs together.
extras=$("$scratch/venv/bin/python" -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    extras = tomllib.load(file)["project"]["optional-dependencies"]
print(*(f"--extra={name}" for name in extras if name not in ("cuda", "tpu")))')

# resolve FILE VERSION ARGUMENTS: FILE is read for what to keep, and written.
resolve() {
    "$scratch/venv/bin/uv" pip compile pyproject.toml --quiet --no-config \
        --output-file "$1" --python-version "$2" "${@:3}" \
        --custom-compile-command "bash scripts/lock.sh" --no-annotate >/dev/null
}

for version in 3.11 3.12; do
    file="constraints/python$version.txt"
    echo "Resolving $file"
    [ ! -f "$file" ] || cp "$file" "$scratch/lock.txt"
    # One version a package on every platform, the one that this Python can have.
    # shellcheck disable=SC2086 - several words
    resolve "$scratch/lock.txt" "$version" $extras --universal \
        --fork-strategy fewest "$keep" "$@"
    # torch says itself which CUDA it wants, and a build for CPUs wants none. NVIDIA's
    # assembler is asked for by name, and says itself what belongs to it.
    sed -E '/^nvidia-cuda-nvcc==/b; /^(nvidia|cuda|triton)-?/d' \
        "$scratch/lock.txt" >"$file"
    rm "$scratch/lock.txt"

    # Who starts with quickstart gets wheels, on each of these platforms.
    for platform in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu \
        aarch64-apple-darwin; do
        resolve "$scratch/wheels.txt" "$version" --python-platform "$platform" \
            --constraints "$file" --only-binary :all: ||
            { echo "$file: not all of it has a wheel for $platform" >&2 && exit 1; }
        rm "$scratch/wheels.txt"
    done
done

# The hooks format and lint as the tests do.
ruff=$(sed -n 's/^ruff==//p' constraints/python3.11.txt)
sed "s/ruff==[0-9.]*/ruff==$ruff/" .pre-commit-config.yaml >"$scratch/hooks.yaml"
cp "$scratch/hooks.yaml" .pre-commit-config.yaml
