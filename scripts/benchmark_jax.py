"""The jaxpeft side of the benchmark: a child that scripts/benchmark.py starts.

The step is the one that `jaxpeft.train` takes, with the optimizer that its
configuration makes.
"""

# First, since its import starts the clock.
import benchmark_child as child  # isort: skip

import argparse
from typing import Any

from jaxpeft.devices.huge_pages import restart_with_huge_pages

# As the training command does.
restart_with_huge_pages()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import jaxpeft  # noqa: E402
from jaxpeft import adapters, hf, models, optim, quant, tree  # noqa: E402
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step  # noqa: E402
from jaxpeft.models import ModelConfig, ParamSpec  # noqa: E402


def base_weights(args: argparse.Namespace, cfg: ModelConfig) -> dict:
    """The seeded base weights, stacked and in our layout, or in few bits."""

    def build(path: str, spec: ParamSpec) -> Any:
        def one(name: str) -> np.ndarray:
            values = child.weight(args, name, spec.hf_shape())
            return values.T if spec.transposed else values

        dtype = jnp.dtype(args.dtype)
        if not spec.stacked:
            return jnp.asarray(one(spec.hf), dtype)
        stack = np.empty(spec.shape, dtype)
        for layer, name in enumerate(spec.hf_names()):
            stack[layer] = one(name)
        if args.quantization == "none" or not hf.is_quantized(path, spec, ()):
            return jax.device_put(stack)
        make = quant.KERNELS[args.quantization]
        made = [make(jnp.asarray(matrix), args.dtype) for matrix in stack]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *made)

    return tree.map_named(build, models.param_specs(cfg), is_leaf=models.is_spec)


def batch_of(args: argparse.Namespace) -> dict[str, jax.Array]:
    """The fixed batch as the data pipeline lays it out: one part, all supervised."""
    tokens = child.tokens(args)
    targets = np.zeros_like(tokens)
    targets[:, :-1] = tokens[:, 1:]
    supervised = np.ones(tokens.shape, bool)
    supervised[:, -1] = False
    positions = np.broadcast_to(np.arange(args.length, dtype=np.int32), tokens.shape)
    leaves = {
        "tokens": tokens,
        "targets": targets,
        "supervised": supervised,
        "positions": positions,
    }
    return {name: jnp.asarray(leaf)[None] for name, leaf in leaves.items()}


def device_memory() -> dict[str, float | None]:
    """Peak and current memory of the GPU's arrays in MiB."""
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "peak_mib": stats.get("peak_bytes_in_use", 0) / child.MIB,
        "current_mib": stats.get("bytes_in_use", 0) / child.MIB,
    }


def main() -> None:
    """Build the model and serve the protocol."""
    args = child.arguments(__doc__.partition("\n")[0])
    widened = args.device == "cpu" and args.dtype != "float32"
    cfg = models.config(
        child.llama_config(args),
        remat=args.remat,
        activation_dtype="float32" if widened else None,
    )
    params = adapters.inject(
        base_weights(args, cfg),
        {"r": args.rank, "lora_alpha": 2 * args.rank},
        jax.random.key(args.seed),
    )
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    tx = optim.make(
        {"name": "adamw", "learning_rate": 2e-4, "weight_decay": 0.01},
        {"name": "constant"},
        1000,
    )
    state = TrainState.create(trainable, tx, jax.random.key(args.seed))
    batch = batch_of(args)
    train_step = jax.jit(make_train_step(cfg, tx), donate_argnums=(0,))

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, Frozen(frozen), batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    on_gpu = args.device == "gpu"
    about = {
        "program": f"jaxpeft {jaxpeft.__version__} (jax {jax.__version__})",
        "device": jax.devices()[0].device_kind if on_gpu else "cpu",
        "parameters": tree.count(params),
        "trainable": tree.count(trainable),
    }
    child.serve(about, step, device_memory if on_gpu else child.process_memory)


if __name__ == "__main__":
    main()
