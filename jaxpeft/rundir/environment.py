"""What a run was made with, besides its configuration: `environment.json`."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxpeft import replacing
from jaxpeft.devices import determinism

ENVIRONMENT = "environment.json"
PACKAGES = (
    *("jaxpeft", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint"),
    *("transformers", "tokenizers", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu"),
)
VARIABLES = (determinism.XLA_FLAGS, "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
SETTINGS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)
SECRET = re.compile(r"token|secret|passw|credential|api[-_]?key|auth", re.IGNORECASE)
LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
GIT_SECONDS = 5.0


def collect(
    *, seed: int, deterministic: bool, fingerprint: Mapping[str, str]
) -> dict[str, Any]:
    """Versions, devices, the program's revision and its command, as JSON can hold them.

    Args:
        seed: the run's seed.
        deterministic: whether the run repeats bit for bit.
        fingerprint: the digests of `data` and `base`.

    Returns:
        {name: value}. What cannot be found out is null.
    """
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(sys.argv),
        "seed": seed,
        "deterministic": deterministic,
        "data": fingerprint["data"],
        "base": fingerprint["base"],
        "git": revision(),
        "python": platform.python_version(),
        "packages": versions(),
        "platform": platform.platform(),
        "host": platform.node(),
        "backend": jax.default_backend(),
        "devices": dict(Counter(device.device_kind for device in jax.devices())),
        "processes": jax.process_count(),
        "settings": settings(),
    }


def record(path: Path, found: dict[str, Any], first: int) -> None:
    """Writes what `collect` found at the start of a run, or where it goes on.

    A run that continues keeps what stands in the file; under `resumed` comes an entry
    with the step and with what is different this time.

    Args:
        path: the `environment.json` to write.
        found: what `collect` returned.
        first: the steps taken so far.
    """
    started = _read(path) if first else None
    if started is None:
        content = {"first_step": first + 1, **found, "resumed": []}
    else:
        changed = {k: v for k, v in found.items() if started.get(k) != v}
        entry = {"first_step": first + 1, **changed}
        content = {**started, "resumed": [*started.get("resumed", []), entry]}
    replacing.write_text(path, json.dumps(content, indent=2) + "\n")


def command(argv: Sequence[str]) -> str:
    """The command line for a shell, a program's name alone, without what looks secret.

    Hidden are the values of overrides and options whose names look so
    (`hub.token=...`), and logins in addresses.

    Args:
        argv: the program's path and its arguments, as `sys.argv` has them.
    """
    words, hidden = [_program(argv[0]) if argv else ""], False
    for word in argv[1:]:
        name, equals, _ = word.partition("=")
        if hidden:
            shown = "***"
        elif equals and SECRET.search(name):
            shown = f"{name}=***"
        else:
            shown = LOGIN.sub("***@", shlex.quote(word))
        hidden = not hidden and not equals and bool(_is_secret_option(word))
        words.append(shown)
    return " ".join(words)


def _program(path: str) -> str:
    """What starts a program: a module of this package goes by its dotted name."""
    package = Path(__file__).parents[1]
    if not Path(path).is_relative_to(package):
        return Path(path).name
    parts = Path(path).relative_to(package).with_suffix("").parts
    return ".".join(["python -m jaxpeft", *(p for p in parts if p != "__main__")])


def _is_secret_option(word: str) -> bool:
    return word.startswith("--") and bool(SECRET.search(word))


def versions() -> dict[str, str]:
    """The versions of the `PACKAGES` that are installed, by name."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def settings() -> dict[str, Any]:
    """The settings that change the numbers besides the configuration, by name."""
    variables = {name: os.environ.get(name) for name in VARIABLES}
    return {**variables, **{name: getattr(jax.config, name) for name in SETTINGS}}


def revision() -> dict[str, Any] | None:
    """The git commit of this package's source, or of the current directory.

    Returns:
        {"of": which of the two, "commit": its hash, "dirty": whether anything that git
        keeps differs from it}; None where git has no answer.
    """
    package = Path(__file__).parent
    # A package installed beneath somebody's repository is no part of it.
    if _git(package, "ls-files", "--error-unmatch", Path(__file__).name) is not None:
        return _revision_of(package, "jaxpeft")
    return _revision_of(Path.cwd(), "current directory")


def _revision_of(directory: Path, of: str) -> dict[str, Any] | None:
    commit = _git(directory, "rev-parse", "HEAD")
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return {"of": of, "commit": commit, "dirty": bool(changes)}


def _git(directory: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, is missing or takes long."""
    # A repository's own settings may name a program to be run for them.
    safe = ["-c", "core.fsmonitor=false", "--no-optional-locks"]
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *safe, *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
