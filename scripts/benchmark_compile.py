"""How long the step compiles with an adapter, beside one of the whole model without.

    python scripts/benchmark_compile.py
    python scripts/benchmark_compile.py --model ../shared/models/some-model --rounds 5

From shapes alone: no weights are read or made. Two models: the shipped one, and one of
16 layers with the shapes of Llama-3.2-1B. Times are of the processor (all threads), the
least of some rounds: tracing and lowering in Python, and compiling in XLA. Nothing is
taken from a cache.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import adapters, models, optim, tree
from jaxpeft.assembly.step import TrainState, make_eval_step, make_train_step

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "jaxpeft" / "assets" / "tiny-llama"
SIXTEEN = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
SIZE = (16, 128)  # sequences, tokens
WITHOUT = "no adapter"
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
ADAPTERS: dict[str, dict[str, Any]] = {
    WITHOUT: {"method": "full"},
    "lora": {"method": "lora", **LORA},
    "lora, dropout": {"method": "lora", **LORA, "lora_dropout": 0.1},
    "dora": {"method": "dora", **LORA},
}


def arguments_of(cfg: models.ModelConfig, adapter: dict[str, Any], tx: Any) -> tuple:
    """(state, frozen) of a run with this adapter, as shapes."""
    params, key = models.shapes(cfg, "float32"), jax.random.key(0)
    if adapter["method"] == "full":
        trainable, frozen = params, jax.tree.map(lambda _: None, params)
    else:
        params = jax.eval_shape(
            lambda p: adapters.inject(p, adapter, key, models.module_names(cfg)), params
        )
        mask = adapters.trainable_mask(params)
        trainable, frozen = tree.partition(params, mask)
    state = jax.eval_shape(lambda p: TrainState.create(p, tx, key), trainable)
    return state, frozen


def compile_once(function: Callable, arguments: tuple, **options: Any) -> tuple:
    """(seconds in Python, seconds in XLA, lines of the program)."""
    jax.clear_caches()
    start = time.process_time()
    lowered = jax.jit(function, **options).trace(*arguments).lower()
    between = time.process_time()
    lowered.compile()
    end = time.process_time()
    return between - start, end - between, lowered.as_text().count("\n")


def measure(cfg: models.ModelConfig, rounds: int) -> dict[tuple[str, str], tuple]:
    """{(program, adapter): the least of `compile_once`}."""
    tx = optim.make({"name": "adamw", "learning_rate": 1e-3}, {"name": "constant"}, 100)
    names, found = ("tokens", "targets", "positions"), {}
    whole = {n: jax.ShapeDtypeStruct(SIZE, jnp.int32) for n in names}
    whole["supervised"] = jax.ShapeDtypeStruct(SIZE, jnp.bool_)
    parts = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), whole)
    for _ in range(rounds):
        for name, adapter in ADAPTERS.items():
            state, frozen = arguments_of(cfg, adapter, tx)
            step = (make_train_step(cfg, tx), (state, frozen, parts))
            evaluation = (make_eval_step(cfg), (state.params, frozen, whole))
            for program, (function, arguments) in {
                "step": step,
                "evaluation": evaluation,
            }.items():
                donated = {"donate_argnums": 0} if program == "step" else {}
                seconds = compile_once(function, arguments, **donated)
                before = found.get((program, name), seconds)
                found[program, name] = tuple(map(min, before, seconds))
    return found


def main() -> None:
    """Prints a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder with config.json, in place of both")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    args = parser.parse_args()
    chosen = {"tiny-llama": models.config(SHIPPED), "16 layers": models.config(SIXTEEN)}
    if args.model:
        chosen = {Path(args.model).name: models.config(args.model)}
    print("| model | program | adapter | Python s | XLA s | ratio | lines |")
    print("|---|---|---|---|---|---|---|")
    for model, cfg in chosen.items():
        found = measure(cfg, args.rounds)
        for program in ("step", "evaluation"):
            base = sum(found[program, WITHOUT][:2])
            for name in ADAPTERS:
                python, xla, lines = found[program, name]
                ratio = (python + xla) / base
                row = (model, program, name, f"{python:.2f}", f"{xla:.2f}")
                print(f"| {' | '.join(row)} | {ratio:.2f} | {lines:,} |", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    main()
