"""Loading a checkpoint into the devices of a mesh, beside safetensors' plain load.

    python scripts/benchmark_load.py [--gigabytes 1]

Writes a random Llama in 8 files, then reads it in fresh processes, in turns: into 8
simulated devices (whose memory is the host's) and with safetensors' own load. Peak is
the process's largest resident memory above what it had before; a perfect load has the
model's own size. The files are in the system's cache: what is timed is the copying.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEVICES, FILES = 8, 8
MESHES = {
    "fsdp 8": {"data": 1, "fsdp": 8},
    "tensor 8": {"data": 1, "tensor": 8},
    "fsdp 4, tensor 2": {"data": 1, "fsdp": 4, "tensor": 2},
    "one device": None,
}
PLAIN = "safetensors"


def config(gigabytes: float) -> dict:
    """A Llama of about so many GB in float32."""
    layers = max(1, round(gigabytes * 1e9 / 4 / 12.6e6))
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 8192,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }


def write(folder: Path, gigabytes: float) -> None:
    """The model in 8 files."""
    import jax

    from jaxpeft import hf, models, tree

    cfg = models.config(config(gigabytes))
    params = models.random(cfg, jax.random.key(0))
    hf.save(params, folder, cfg, max_shard_bytes=1.02 * tree.nbytes(params) / FILES)


def kilobytes(key: str) -> int:
    """A line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def load(folder: Path, way: str) -> dict[str, float]:
    """Seconds, and MB above what the process had."""
    if way == PLAIN:
        from safetensors.numpy import load_file

        before, start = kilobytes("VmRSS"), time.perf_counter()
        found = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        kept = sum(x.nbytes for one in found for x in one.values())
    else:
        import jax

        from jaxpeft import hf, models, tree
        from jaxpeft.devices import sharding

        sizes = MESHES[way]
        mesh = sharding.make_mesh(**sizes) if sizes else None
        cfg = models.config(folder)
        jax.device_put(1.0).block_until_ready()
        before, start = kilobytes("VmRSS"), time.perf_counter()
        params = hf.load(folder, cfg, mesh=mesh)
        kept = tree.nbytes(params)
    seconds = time.perf_counter() - start
    peak = (kilobytes("VmHWM") - before) * 1024
    return {"seconds": seconds, "peak": peak, "kept": kept}


def child(folder: Path, way: str) -> dict[str, float]:
    """`load` in a process of its own."""
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    done = subprocess.run(
        [sys.executable, __file__, "--folder", str(folder), "--way", way],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(load(args.folder, args.way)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, args.gigabytes)
        ways = [*MESHES, PLAIN]
        found = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way in ways:
                found[way].append(child(folder, way))
    print("| load | seconds | GB/s | model MB | peak MB above the start |")
    print("|---|---|---|---|---|")
    for way, rows in found.items():
        seconds = statistics.median(row["seconds"] for row in rows)
        peak = max(row["peak"] for row in rows) / 1e6
        kept = rows[0]["kept"]
        print(
            f"| {way} | {seconds:.2f} | {kept / seconds / 1e9:.2f} | {kept / 1e6:,.0f} "
            f"| {peak:,.0f} |"
        )


if __name__ == "__main__":
    main()
