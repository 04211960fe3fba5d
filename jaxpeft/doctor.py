"""`python -m jaxpeft.doctor`: whether this machine can train, and what to do if not."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jaxpeft
from jaxpeft import cli, console

# The distribution's name -> a module of it that has to be there.
REQUIRED = {
    **{"jax": "jax", "jaxlib": "jaxlib", "flax": "flax", "optax": "optax"},
    **{"orbax-checkpoint": "orbax.checkpoint", "grain": "grain", "numpy": "numpy"},
    **{"transformers": "transformers", "safetensors": "safetensors"},
}
# Extra of `pip install 'jaxpeft[EXTRA]'` -> a distribution of it, and what it is for.
EXTRAS = {
    "cuda": (r"jax-cuda\d+-plugin", "NVIDIA GPUs"),
    "tpu": ("libtpu", "Cloud TPU"),
    "datasets": ("pyarrow", "parquet files"),
    "eval": ("lm_eval", "the metrics bleu and chrf, evaluate --tasks"),
    "optuna": ("optuna", "sweep --search optuna"),
    "tensorboard": ("tensorboardX", "training.report_to: tensorboard"),
    "wandb": ("wandb", "training.report_to: wandb"),
    "trackio": ("trackio", "training.report_to: trackio"),
    "board": ("starlette", "the board"),
}
# What says that a machine has an accelerator, whether JAX sees it or not.
HARDWARE = {
    "cuda": ("/proc/driver/nvidia/version", "/dev/nvidia0"),
    "tpu": ("/dev/accel0", "/dev/vfio/0"),
}
SLOW = 30.0  # seconds of the check's step that are worth a remark


@dataclasses.dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        text: what was found.
        remedy: what to do about it; empty where all is well.
        fails: whether nothing can be trained as it is.
    """

    text: str
    remedy: str = ""
    fails: bool = False


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns 0, or 1 where training cannot."""
    parser = cli.parser(
        "doctor",
        "Say what this machine has and lacks: versions, devices, extras, folders for "
        "caches, and whether a training step compiles and runs.",
    )
    parser.parse_args(list(argv))
    console.say(
        f"jaxpeft {jaxpeft.__version__}, Python {platform.python_version()}, "
        f"{platform.platform()}"
    )
    failures = 0
    for check in (packages, devices, extras, programs_folder, models_folder, step):
        for finding in run(check):
            mark = "ok  " if not finding.remedy else "FAIL" if finding.fails else "note"
            console.say(f"{mark}  {finding.text}")
            if finding.remedy:
                console.say(f"      {finding.remedy}")
            failures += finding.fails
        if failures:
            console.say(f"{failures} of these must be mended before anything can train")
            return 1
    console.say("ready to train: jaxpeft train --config jaxpeft:quickstart.yaml")
    return 0


def run(check: Callable[[], list[Finding]]) -> list[Finding]:
    """What a check finds; an exception of it is a failure as well.

    Args:
        check: one of this module's.
    """
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - whatever is broken is to be told
        told = str(error).strip().splitlines() or [""]
        return [
            Finding(
                f"{check.__name__}: {type(error).__name__}: {told[0]}",
                "install jaxpeft into a new environment: python -m venv .venv && "
                ".venv/bin/pip install jaxpeft",
                fails=True,
            )
        ]


def packages() -> list[Finding]:
    """Which of the packages that every command needs are there."""
    found = {name: installed(name) for name in REQUIRED}
    missing = [
        name
        for name, module in REQUIRED.items()
        if found[name] is None or importlib.util.find_spec(module.split(".")[0]) is None
    ]
    if missing:
        return [
            Finding(
                f"packages: {', '.join(missing)} missing",
                f"pip install {' '.join(missing)}, or pip install jaxpeft anew",
                fails=True,
            )
        ]
    return [Finding("packages: " + ", ".join(f"{n} {v}" for n, v in found.items()))]


def devices() -> list[Finding]:
    """Which devices JAX has, and whether it passes over one that is there."""
    import jax

    from jaxpeft import hardware

    try:
        every = jax.devices()
    except RuntimeError as error:
        return [
            Finding(
                f"devices: JAX finds none: {str(error).splitlines()[0]}",
                "check the driver and JAX_PLATFORMS, or set JAX_PLATFORMS=cpu to go on "
                "without it",
                fails=True,
            )
        ]
    kinds = Counter(device.device_kind for device in every)
    told = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    limit = (every[0].memory_stats() or {}).get("bytes_limit")
    more = f", {limit / 2**30:.0f} GiB each" if limit else ""
    known = hardware.current().device
    if known and known.in_16_bits:
        kind = "bfloat16" if known.bf16 else "float16"
        more += f", {known.in_16_bits / 1e12:.0f} TFLOP/s in {kind}"
    findings = [Finding(f"devices: {told} ({jax.default_backend()}{more})")]
    if jax.default_backend() == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        findings += [
            Finding(
                f"an accelerator is here ({path}), and JAX does not use it",
                f"pip install 'jaxpeft[{extra}]'",
            )
            for extra, paths in HARDWARE.items()
            for path in [p for p in paths if Path(p).exists()][:1]
        ]
    return findings


def extras() -> list[Finding]:
    """Which extras are installed, and what the others are for."""
    names = {d.metadata["Name"] or "" for d in importlib.metadata.distributions()}
    have, lack = [], []
    for extra, (pattern, purpose) in EXTRAS.items():
        there = any(re.fullmatch(pattern, name, re.IGNORECASE) for name in names)
        (have if there else lack).append(f"{extra} ({purpose})")
    return [
        Finding(f"extras: {', '.join(have) or 'none'}"),
        *([Finding(f"extras not installed: {', '.join(lack)}")] if lack else []),
    ]


def programs_folder() -> list[Finding]:
    """Whether compiled programs can be kept for the next start."""
    from jaxpeft.devices import programs

    try:
        folder = programs.folder()
    except (OSError, RuntimeError) as error:  # no home folder, for one
        return [
            Finding(
                f"cache of compiled programs: each start compiles ({error}); "
                f"{programs.SETTING} names a folder for it"
            )
        ]
    if folder is None:
        return [Finding("cache of compiled programs: off, each start compiles")]
    return writable("cache of compiled programs", folder, programs.SETTING)


def models_folder() -> list[Finding]:
    """Whether models can be downloaded."""
    from huggingface_hub import constants

    return writable("cache of models", Path(constants.HF_HUB_CACHE), "HF_HOME")


def writable(what: str, folder: Path, setting: str) -> list[Finding]:
    """Whether a folder, made where it is missing, can be written.

    Args:
        what: the folder is.
        folder: its path.
        setting: the environment's variable that names another.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        return [
            Finding(
                f"{what}: {str(folder)!r} cannot be written ({error.strerror})",
                f"set {setting} to a folder that can be",
            )
        ]
    return [Finding(f"{what}: {folder}, {free:,.0f} GiB free")]


def step() -> list[Finding]:
    """Whether a training step compiles, runs and lowers the loss."""
    import jax
    import jax.numpy as jnp
    import optax

    from jaxpeft import adapters, optim, tree

    start = time.monotonic()
    base = {"kernel": jnp.eye(64)}
    params = adapters.inject(
        {"model": {"layers": {"mlp": {"up_proj": base}}}},
        {"r": 4, "target_modules": ["up_proj"]},
        jax.random.key(0),
    )
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    tx = optim.adamw(1e-2)

    def loss(trainable: dict) -> jax.Array:
        kernel = tree.combine(trainable, frozen)["model"]["layers"]["mlp"]["up_proj"]
        return jnp.mean((jnp.ones((8, 64)) @ kernel["kernel"] - 2.0) ** 2)

    @jax.jit
    def take(trainable: dict, state: optax.OptState) -> tuple:
        value, gradient = jax.value_and_grad(loss)(trainable)
        updates, state = tx.update(gradient, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    state, losses = tx.init(trainable), []
    for _ in range(10):
        trainable, state, value = take(trainable, state)
        losses.append(float(value))
    took = time.monotonic() - start
    text = f"a step compiles and runs ({took:.1f} s); loss {losses[0]:.3f} to "
    text += f"{losses[-1]:.3f}"
    if not losses[-1] < losses[0]:
        return [
            Finding(
                f"{text}: it does not fall",
                "update the device's driver, or try JAX_PLATFORMS=cpu",
                fails=True,
            )
        ]
    slow = "look for other programs on this machine" if took > SLOW else ""
    return [Finding(text, slow)]


def installed(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    raise SystemExit(cli.process(main))
