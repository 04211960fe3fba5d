"""How a step's memory and traffic change with the devices: docs/scaling.md.

    python scripts/scaling.py memory
    python scripts/scaling.py weak [--devices 8 64 256]

Nothing runs: steps are compiled from shapes for simulated devices, as `plan` does.
"""

import argparse
import os

TYPES = ("memory", "weak")
MOST = 256
flags = os.environ.get("XLA_FLAGS", "")
fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
count = f"--xla_force_host_platform_device_count={MOST}"
# Before jax is imported: it reads them once.
os.environ.update(XLA_FLAGS=f"{flags} {fast} {count}", JAX_PLATFORMS="cpu")

import jax  # noqa: E402

from jaxpeft.assembly import configuration  # noqa: E402
from jaxpeft.devices import sharding  # noqa: E402
from jaxpeft.plan import planning  # noqa: E402
from jaxpeft.plan.collectives import Collective  # noqa: E402

SHAPES = "configs/plan_only.yaml"
METHODS = {"lora": (), "full": ("adapter={method: full}",)}
# Of an H100 machine: what a step of such products reaches, and what a device sends to
# the seven beside it and to other machines (400 Gbit/s each).
FLOPS, INSIDE, OUTSIDE = 400e12, 400e9, 50e9
MACHINE = 8
MIB, GB = 2**20, 1e9


def planned(method: str, sizes: dict[str, int], *overrides: str) -> planning.Plan:
    """The plan of Llama shapes on so many of the simulated devices."""
    total = sizes["data"] * sizes["fsdp"] * sizes["tensor"]
    mesh = [f"mesh.{axis}={size}" for axis, size in sizes.items()]
    cfg = configuration.open_config(SHAPES, [*overrides, *METHODS[method], *mesh])
    devices = sharding.make_mesh(**sizes, devices=jax.devices()[:total])
    return planning.plan(cfg, devices, simulated=True, like="gpu")


def memory() -> None:
    """Bytes on a device as fsdp grows, for Llama-3.2-1B's shapes in float32."""
    print("| method | fsdp | weights | adapters | optimizer | kept | of fsdp 1, x N |")
    print("|---|---|---|---|---|---|---|")
    model = ("model.path=configs/shapes/Llama-3.2-1B", "model.dtype=float32")
    for method in METHODS:
        first = 0
        for size in (1, 2, 4, 8):
            sizes = {"data": 1, "fsdp": size, "tensor": 1}
            batch = ("training.batch_size=8", "data.max_length=512")
            found = planned(method, sizes, *model, *batch)
            first = first or found.kept
            parts = (found.weights, found.adapters, found.optimizer, found.kept)
            cells = " | ".join(f"{n / MIB:,.1f}" for n in parts)
            share = found.kept * size / first
            print(f"| {method} | {size} | {cells} | {share:.3f} |", flush=True)


def meshes(devices: int) -> dict[str, dict[str, int]]:
    """The shapes of a mesh that are compared."""
    machines = devices // MACHINE
    return {
        "data": {"data": devices, "fsdp": 1, "tensor": 1},
        "fsdp": {"data": 1, "fsdp": devices, "tensor": 1},
        "data x fsdp 8": {"data": machines, "fsdp": MACHINE, "tensor": 1},
        "fsdp x tensor 8": {"data": 1, "fsdp": machines, "tensor": MACHINE},
    }


def is_inside(one: Collective) -> bool:
    """Whether a collective stays in a machine of neighbouring devices."""
    return len({device // MACHINE for device in one.group}) == 1


def weak(counts: list[int]) -> None:
    """Traffic beside arithmetic: Llama-3.1-8B in bfloat16, 4096 tokens a device."""
    cells = ("method", "mesh", "devices", "GiB a device", "TFLOP", "GB inside")
    cells += ("GB outside", "s computing", "s sending")
    print(f"| {' | '.join(cells)} |\n{'|---' * len(cells)}|")
    for method in METHODS:
        for name in meshes(MACHINE):
            for devices in counts:
                sizes = meshes(devices)[name]
                found = planned(method, sizes, f"training.batch_size={2 * devices}")
                sent = {True: 0.0, False: 0.0}
                for one in found.collectives:
                    sent[is_inside(one)] += one.moved
                each = found.flops / devices
                seconds = sent[True] / INSIDE + sent[False] / OUTSIDE
                print(
                    f"| {method} | {name} | {devices} | {found.total / 2**30:,.1f} "
                    f"| {each / 1e12:,.0f} | {sent[True] / GB:,.2f} "
                    f"| {sent[False] / GB:,.2f} | {each / FLOPS:.2f} | {seconds:.2f} |",
                    flush=True,
                )


def main() -> None:
    """Print a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TYPES)
    parser.add_argument("--devices", type=int, nargs="*", default=[8, 64, 256])
    args = parser.parse_args()
    memory() if args.table == "memory" else weak(args.devices)


if __name__ == "__main__":
    main()
