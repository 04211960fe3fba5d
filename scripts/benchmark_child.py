"""What the programs under benchmark share: shapes, weights, data and the protocol.

A child builds its model, trains one step and prints a JSON line about it. Then it
answers every line `steps N` on its standard input with a JSON line, until the input
ends: so two children can take turns and only one of them computes at a time.
"""

import argparse
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when this module is imported, before a child imports its framework.
STARTED = time.perf_counter()

MIB = 2**20
QUANTIZATIONS = ("none", "int8", "fp8", "nf4", "nf4_single")
SHAPES: dict[str, dict[str, Any]] = {
    "cpu": {
        "hidden": 768,
        "layers": 12,
        "heads": 12,
        "kv_heads": 4,
        "mlp": 2048,
        "vocab": 8192,
        "tied": False,
        "batch": 4,
        "length": 256,
    },
    # Llama-3.2-1B
    "gpu": {
        "hidden": 2048,
        "layers": 16,
        "heads": 32,
        "kv_heads": 8,
        "mlp": 8192,
        "vocab": 128_256,
        "tied": True,
        "batch": 4,
        "length": 1024,
    },
}


def add_shapes(parser: argparse.ArgumentParser) -> None:
    """Flags for the shapes, the device, threads, rank and seed."""
    for name, value in SHAPES["cpu"].items():
        gpu = SHAPES["gpu"][name]
        text = f"default: {value}, on a GPU {gpu}"
        if isinstance(value, bool):
            action = argparse.BooleanOptionalAction
            parser.add_argument(f"--{name}", action=action, default=None, help=text)
        else:
            flag = "--" + name.replace("_", "-")
            parser.add_argument(flag, type=int, help=text)
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--threads", type=int, help="default: every core")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA; alpha is twice")
    parser.add_argument("--seed", type=int, default=0)


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what was left to the device: the device itself, shapes, threads."""
    if args.device == "auto":
        nvidia = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")
        args.device = "gpu" if nvidia else "cpu"
    for name, value in SHAPES[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.threads = args.threads or len(usable_cores())
    return args


def flags(args: argparse.Namespace) -> list[str]:
    """The flags of `add_shapes` that say what `args` says."""
    result = ["--tied" if args.tied else "--no-tied"]
    names = [name for name in SHAPES["cpu"] if name != "tied"]
    for name in [*names, "device", "threads", "rank", "seed"]:
        result += ["--" + name.replace("_", "-"), str(getattr(args, name))]
    return result


def arguments(description: str) -> argparse.Namespace:
    """A child's command line; binds the process to as many cores as it has threads."""
    parser = argparse.ArgumentParser(description=description)
    add_shapes(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=("none", "full", "dots"), default="none")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="none")
    args = complete(parser.parse_args())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, usable_cores()[: args.threads])
    return args


def usable_cores() -> list[int]:
    """The numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def llama_config(args: argparse.Namespace) -> dict[str, Any]:
    """The Hugging Face configuration of the model under benchmark."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": args.hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.hidden // args.heads,
        "intermediate_size": args.mlp,
        "vocab_size": args.vocab,
        "tie_word_embeddings": args.tied,
        "max_position_embeddings": max(2048, args.length),
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }


def weight(args: argparse.Namespace, name: str, shape: tuple[int, ...]):
    """The float32 base weight with this Hugging Face name, in its layout (out, in).

    It depends on the seed and the name alone, so that every child has the same model
    and their losses can be compared.
    """
    import numpy as np

    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    rng = np.random.default_rng([args.seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= 0.02
    return values


def tokens(args: argparse.Namespace):
    """The batch (batch, length) of int32 tokens that every step trains on.

    Each token but the first of a row is also a target of the one before it.
    """
    import numpy as np

    rng = np.random.default_rng(args.seed)
    return rng.integers(0, args.vocab, (args.batch, args.length), dtype=np.int32)


def process_memory() -> dict[str, float | None]:
    """Peak and current resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        kib = {"peak_mib": fields["VmHWM"], "current_mib": fields["VmRSS"]}
        return {name: int(value.split()[0]) / 1024 for name, value in kib.items()}
    import resource

    # In bytes on macOS, the one system without /proc that this meets.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_mib": peak / MIB, "current_mib": None}


def serve(
    about: dict[str, Any],
    step: Callable[[], float],
    memory: Callable[[], dict[str, float | None]] = process_memory,
) -> None:
    """Train the first step, report it with `about`, then steps as they are asked for.

    `step` trains one step to its very end (nothing may still be running on a device)
    and returns its loss.
    """

    def answer(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    built, loss = time.perf_counter(), step()
    now = time.perf_counter()
    first = {"first_step_seconds": now - STARTED, "build_seconds": built - STARTED}
    answer({**about, **first, "loss": loss, **memory()})
    for request in sys.stdin:
        word, _, count = request.strip().partition(" ")
        if word != "steps":
            raise SystemExit(f"unknown request {request!r}: expected 'steps N'")
        seconds = []
        for _ in range(int(count)):
            start = time.perf_counter()
            loss = step()
            seconds.append(time.perf_counter() - start)
        answer({"seconds": seconds, "loss": loss, **memory()})
