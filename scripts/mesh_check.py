"""Sharded training steps beside one device's, on simulated devices: docs/scaling.md.

    python scripts/mesh_check.py
    python scripts/mesh_check.py --only lora --meshes "fsdp 8" --json steps.json

For each mesh of 8 devices: how far the losses of 10 steps are from one device's, on a
small random Llama in float32; and what the compiled step of Llama-3.2-1B's shapes keeps
on each device and sends to the others. No weights of that size exist: it is compiled
from shapes alone.
"""

import argparse
import json
import os
from typing import Any

DEVICES = 8
flags = os.environ.get("XLA_FLAGS", "")
count = f"--xla_force_host_platform_device_count={DEVICES}"
# Before jax is imported: it reads them once.
os.environ.update(XLA_FLAGS=f"{flags} {count}", JAX_PLATFORMS="cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jaxpeft import adapters, models, optim, tree  # noqa: E402
from jaxpeft.assembly import configuration  # noqa: E402
from jaxpeft.assembly.places import make_places  # noqa: E402
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step  # noqa: E402
from jaxpeft.devices import cpus, sharding  # noqa: E402
from jaxpeft.devices.compiled import build  # noqa: E402
from jaxpeft.plan import planning  # noqa: E402

cpus.give_threads()

SMALL = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
}
MESHES = {
    "data 8": {"data": 8},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "tensor 8": {"data": 1, "tensor": 8},
    "data 2, fsdp 2, tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "data 2, fsdp 4": {"data": 2, "fsdp": 4},
    "context 8": {"data": 1, "context": 8},
    "data 2, fsdp 2, context 2": {"data": 2, "fsdp": 2, "context": 2},
}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
METHODS = {
    "lora": (LORA, {"name": "adamw"}),
    "oft": ({"method": "oft", "target_modules": "all-linear"}, {"name": "adamw"}),
    "lora, adamw_8bit": (LORA, {"name": "adamw_8bit", "min_quantized_size": 256}),
    "full": ({"method": "full"}, {"name": "adamw"}),
    "full, one layer": ({"method": "full", "trainable_layers": 1}, {"name": "adamw"}),
}
RATE = 1e-3
SHAPES = "configs/plan_only.yaml"
LARGE = (
    "model.path=configs/shapes/Llama-3.2-1B",
    "model.dtype=float32",
    "training.batch_size=8",
    "data.max_length=512",
)


def random_params(cfg: models.ModelConfig) -> Any:
    """Normal numbers and norms of ones."""
    leaves, treedef = jax.tree.flatten(models.shapes(cfg, "float32"))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    layers = cfg.num_hidden_layers
    values = [
        jnp.ones(x.shape, x.dtype)
        if x.ndim == 1 + (x.shape[0] == layers)
        else 0.1 * jax.random.normal(key, x.shape)
        for x, key in zip(leaves, keys, strict=True)
    ]
    return treedef.unflatten(values)


def losses(method: str, mesh: Any, steps: int) -> np.ndarray:
    """Those of some steps on random tokens."""
    rules, section = METHODS[method]
    cfg = models.config(SMALL, remat="full")
    settings = {"learning_rate": RATE, "max_grad_norm": 1.0, **section}
    tx = optim.make(settings, {"name": "constant"}, 100)
    params = adapters.inject(random_params(cfg), rules, jax.random.key(1))
    places = make_places(params, cfg, mesh, tx)
    trainable, frozen = tree.partition(params, places.mask)
    state = TrainState.create(trainable, tx, jax.random.key(2))
    state = sharding.put(state, places.state)
    frozen, found = sharding.put(frozen, places.frozen), []
    step = None
    for seed in range(steps):
        batch = sharding.put_batch(batch_of(seed, cfg.vocab_size), mesh)
        if step is None:
            step = build(
                make_train_step(cfg, tx),
                (state, Frozen(frozen), batch),
                carries=True,
                mesh=mesh,
            )[1]
        state, metrics = step(state, Frozen(frozen), batch)
        found.append(float(metrics["loss"]))
    return np.array(found)


def batch_of(seed: int, vocabulary: int) -> dict[str, Any]:
    """Random tokens, all of them supervised."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary, (1, 8, 16)).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=-1),
        "supervised": np.ones(tokens.shape, bool),
        "positions": np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape),
    }


def traffic(method: str, sizes: dict[str, int]) -> dict[str, Any]:
    """What a step of the large shapes keeps on a device, and what it sends."""
    rules, section = METHODS[method]
    overrides = [*LARGE, f"adapter={json.dumps(rules)}"]
    overrides += [f"optimizer.{key}={value}" for key, value in section.items()]
    axes = (*sharding.AXES, sharding.CONTEXT)
    overrides += [f"mesh.{axis}={sizes.get(axis, 1)}" for axis in axes]
    cfg = configuration.open_config(SHAPES, overrides)
    found = planning.plan(cfg, sharding.make_mesh(**sizes), simulated=True)
    names = ("kept", "weights", "adapters", "optimizer", "activations", "temporaries")
    figures: dict[str, Any] = {name: getattr(found, name) for name in names}
    figures["collectives"] = [one._asdict() for one in found.collectives]
    return {**figures, "sent": found.sent}


def main() -> None:
    """Print the table as Markdown; exits with 1 where losses differ by over 1e-5."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--meshes", nargs="*", choices=MESHES, default=list(MESHES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", help="a file for all figures")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    print("| method | mesh | losses apart | kept | activations | temporaries | sent |")
    print("|---|---|---|---|---|---|---|")
    one = sharding.make_mesh(devices=jax.devices()[:1])
    for method in args.only:
        expected = losses(method, one, args.steps)
        for name in args.meshes:
            mesh = sharding.make_mesh(**MESHES[name])
            apart = np.abs(losses(method, mesh, args.steps) - expected) / expected
            found = {"apart": float(np.max(apart)), **traffic(method, MESHES[name])}
            figures[f"{method}; {name}"] = found
            sizes = (found[key] for key in ("kept", "activations", "temporaries"))
            sent = ", ".join(f"{k} {v / 2**20:,.1f}" for k, v in found["sent"].items())
            print(
                f"| {method} | {name} | {found['apart']:.1e} | "
                + " | ".join(f"{size / 2**20:,.0f}" for size in sizes)
                + f" | {sent} |",
                flush=True,
            )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file)
    worst = max(found["apart"] for found in figures.values())
    raise SystemExit(int(worst > 1e-5))


if __name__ == "__main__":
    main()
