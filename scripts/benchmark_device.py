"""The very step of large models on the devices here, beside what its plan says of it.

    python scripts/benchmark_device.py
    python scripts/benchmark_device.py --only "8B QLoRA" attention --minutes 5

No weights are needed: they are drawn at random on the devices, in the places and the
storage that a run gives them; configs/shapes has the sizes. Each row is a process of
its own, so that one that needs too much memory ends alone. Rows that are worth most
come first, and none begins after `--minutes`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONFIG = "configs/plan_only.yaml"
SHAPES = "configs/shapes/Llama-3"
ONE, EIGHT = f"model.path={SHAPES}.2-1B", f"model.path={SHAPES}.1-8B"
QLORA, FULL = "model.quantization=nf4", "adapter={method: full}"
EIGHT_BIT = "optimizer.name=adamw_8bit"


def batch(sequences: int, length: int, parts: int = 1) -> tuple[str, ...]:
    """The overrides for so many sequences a step, in so many parts."""
    return (
        f"training.batch_size={sequences * parts}",
        f"training.gradient_accumulation_steps={parts}",
        f"data.max_length={length}",
    )


# 2 x 4096 with 16 parts are the settings of NeMo AutoModel's published figures.
STEPS = {
    "1B LoRA 4 x 2048": (ONE, *batch(4, 2048)),
    "8B LoRA 2 x 4096, 4 parts": (EIGHT, "model.remat=dots", *batch(2, 4096, 4)),
    "8B QLoRA 1 x 2048": (EIGHT, QLORA, *batch(1, 2048)),
    "8B QLoRA 4 x 2048": (EIGHT, QLORA, *batch(4, 2048)),
    "8B full adamw_8bit 1 x 2048": (EIGHT, FULL, EIGHT_BIT, *batch(1, 2048)),
    "1B LoRA 1 x 8192": (ONE, *batch(1, 8192)),
    "1B LoRA 1 x 32768": (ONE, *batch(1, 32768)),
    "8B QLoRA 1 x 32768": (EIGHT, QLORA, *batch(1, 32768)),
    "1B full adamw 4 x 2048": (ONE, FULL, *batch(4, 2048)),
}
LENGTHS = (2048, 8192, 32768)
KERNELS = [f"attention {n}" for n in LENGTHS] + ["product nf4", "product bfloat16"]
COLUMNS = {
    "row": "{row}",
    "s": "{seconds:.4f}",
    "estimated s": "{estimated:.4f}",
    "tokens/s": "{tokens_per_second:,.0f}",
    "share of peak": "{share:.1%}",
    "peak GiB": "{peak:.2f}",
    "planned GiB": "{planned:.2f}",
    "first call s": "{first:.0f}",
}


def step_of(overrides: list[str], rounds: int) -> dict[str, float]:
    """Times the step of a configuration with these overrides."""
    import jax

    from jaxpeft import hardware
    from jaxpeft.assembly import configuration
    from jaxpeft.devices import sharding
    from jaxpeft.plan import flops
    from jaxpeft.plan.step import Step

    began = time.perf_counter()
    cfg = configuration.open_config(CONFIG, overrides)
    mesh = sharding.make_mesh(**cfg.mesh.model_dump())
    step = Step(cfg, mesh, widened=False)
    jaxpr, program = step.build()
    state, frozen, rows = _drawn(step)
    state, metrics = program(state, frozen, rows)
    jax.block_until_ready(state)
    first = time.perf_counter() - began

    def once() -> None:
        nonlocal state, metrics
        state, metrics = program(state, frozen, rows)
        jax.block_until_ready((state, metrics))

    tokens = cfg.training.batch_size * cfg.data.max_length
    found = _timed(once, rounds, hardware.of_mesh(mesh), flops.count(jaxpr), program)
    return {**found, "first": first, "tokens_per_second": tokens / found["seconds"]}


def _drawn(step: Any) -> tuple:
    """The arguments of a step: random weights, an optimizer that begins, a batch."""
    import jax
    import jax.numpy as jnp

    def zeros(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.zeros(x.shape, x.dtype)

    def random(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jnp.floating):
            draw = jax.random.normal(jax.random.key(x.size % 997), x.shape, x.dtype)
            return draw * jnp.asarray(0.02, x.dtype)
        if x.dtype in (jnp.uint8, jnp.uint32, jnp.int8):
            bits = jax.random.bits(jax.random.key(1), x.shape, _unsigned(x.dtype))
            return jax.lax.bitcast_convert_type(bits, x.dtype)
        return zeros(x)

    def make(function: Any, shapes: Any) -> Any:
        places = jax.tree.map(lambda x: x.sharding, shapes)
        made = jax.jit(lambda: jax.tree.map(function, shapes), out_shardings=places)
        return made()

    batch = dict(step.batch)
    length, vocabulary = batch["tokens"].shape[-1], step.model.vocab_size

    def of_rows(name: str, x: Any) -> Any:
        if name in ("tokens", "targets"):
            draw = jax.random.randint(jax.random.key(2), x.shape, 0, vocabulary)
            return draw.astype(x.dtype)
        if name == "positions":
            return jnp.broadcast_to(jnp.arange(length, dtype=x.dtype), x.shape)
        return jnp.ones(x.shape, x.dtype)

    rows = {
        name: jax.device_put(of_rows(name, x), x.sharding) for name, x in batch.items()
    }
    state = make(zeros, step.state)
    state = state.replace(params=make(random, step.state.params))
    rates = make(lambda x: jnp.full(x.shape, 1e-5, x.dtype), step.frozen.rates)
    frozen = step.frozen._replace(
        params=make(random, step.frozen.params),
        held=make(random, step.frozen.held),
        rates=rates,
    )
    return state, frozen, rows


def _unsigned(dtype: Any) -> Any:
    import numpy as np

    return np.dtype(f"uint{8 * np.dtype(dtype).itemsize}")


def kernel_of(name: str, rounds: int) -> dict[str, float]:
    """Times one kernel forwards and backwards, alone."""
    import jax
    import jax.numpy as jnp

    from jaxpeft import hardware, quant
    from jaxpeft.devices import sharding
    from jaxpeft.models.attention import attend

    what, kind = name.split()
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    draw = jax.random.normal
    if what == "attention":
        length = int(kind)
        q = draw(jax.random.key(0), (1, length, 32, 128), jnp.bfloat16)
        k, v = draw(jax.random.key(1), (2, 1, length, 8, 128), jnp.bfloat16)
        # Packed examples of a quarter of the row each.
        segments = (jnp.arange(length, dtype=jnp.int32) * 4 // length + 1)[None]
        work, arguments = 4 * 32 * 128 * length**2 // 2 // 4 * 7 // 2, (q, k, v)

        def function(q: Any, k: Any, v: Any) -> Any:
            return attend(q, k, v, segments)
    else:
        x = draw(jax.random.key(0), (2048, 4096), jnp.bfloat16)
        matrix = draw(jax.random.key(1), (4096, 14336), jnp.bfloat16) * 0.02
        kernel = quant.KERNELS[kind](matrix, "bfloat16") if kind == "nf4" else matrix
        work, arguments = 4 * 2048 * 4096 * 14336, (x,)

        def function(x: Any) -> Any:
            return x @ kernel

    def both(*arguments: Any) -> Any:
        out, back = jax.vjp(function, *arguments)
        return out, back(out)

    began = time.perf_counter()
    with jax.set_mesh(mesh):
        program = jax.jit(both).lower(*arguments).compile()
    jax.block_until_ready(program(*arguments))
    first = time.perf_counter() - began

    def once() -> None:
        jax.block_until_ready(program(*arguments))

    found = _timed(once, 10 * rounds, hardware.of_mesh(mesh), work, program)
    return {**found, "first": first, "tokens_per_second": float("nan")}


def _timed(once: Any, rounds: int, target: Any, work: float, program: Any) -> dict:
    """The median of so many calls, beside the plan's estimate and memory."""
    import jax

    from jaxpeft.plan.estimate import estimate

    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    memory, gib = program.memory_analysis(), 2**30
    planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    device, guess = target.device, estimate(program, target)
    most = device.bf16 * target.count if device else float("nan")
    return {
        "seconds": median,
        "estimated": guess.seconds if guess else float("nan"),
        "share": work / median / most,
        "peak": peak / gib,
        "planned": planned / gib,
    }


def main() -> None:
    """Starts a process for each row and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[""], help="rows that begin so")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a file of JSON lines, one a row")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--add", nargs="*", default=[], help="further overrides")
    args = parser.parse_args()
    if args.row:
        if args.row in KERNELS:
            found = kernel_of(args.row, args.rounds)
        else:
            found = step_of([*STEPS[args.row], *args.add], args.rounds)
        print(json.dumps({"row": args.row, **found}))
        return
    began, failed = time.monotonic(), []
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    first = [name for name in KERNELS if name != "attention 32768"]
    for name in [*list(STEPS)[:2], *first, *list(STEPS)[2:], "attention 32768"]:
        if not name.startswith(tuple(args.only)):
            continue
        left = 60 * args.minutes - (time.monotonic() - began)
        if left < 20:
            failed.append(f"{name}: no time was left")
            continue
        command = [sys.executable, __file__, "--row", name]
        command += ["--rounds", str(args.rounds), "--add", *args.add]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            failed.append(f"{name}: not done in the time that was left")
            continue
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
            failed.append(f"{name}: {reason[:300]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {' | '.join(t.format(**found) for t in COLUMNS.values())} |")
        sys.stdout.flush()
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
    for line in failed:
        print(f"- {line}")


if __name__ == "__main__":
    main()
