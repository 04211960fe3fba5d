"""Steps of dpo beside TRL's, in turns, and what a step of dpo takes of memory.

    python scripts/benchmark_preference.py
    python scripts/benchmark_preference.py --model MODEL --pairs 4 --length 512

Both train LoRA in float32 on the same made-up pairs, all of one length, half of it the
prompt's; a process of each tells its own peak, above what its imports take. Torch has
the threads of OMP_NUM_THREADS, XLA all cores: `taskset` makes them the same.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import jax
import numpy as np

from jaxpeft import adapters, hf, models, objectives, optim, tree
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step

RULES = {"method": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


def made(pairs: int, length: int, vocabulary: int) -> dict[str, np.ndarray]:
    """A batch of pairs, (2 * pairs, length)."""
    tokens = np.random.default_rng(0).integers(5, vocabulary, (2 * pairs, length))
    tokens = tokens.astype(np.int32)
    tokens[1::2, : length // 2] = tokens[::2, : length // 2]
    answer = np.broadcast_to(np.arange(length) >= length // 2, tokens.shape)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "supervised": np.roll(answer, -1, axis=1) & (np.arange(length) < length - 1),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
    }


class Ours:
    """Steps of jaxpeft, compiled before the first is timed."""

    def __init__(self, folder: str, batch: dict[str, np.ndarray], name: str = "dpo"):
        cfg = models.config(folder)
        objective = objectives.OBJECTIVES[name].make()
        params = adapters.inject(hf.load(folder, cfg), RULES, jax.random.key(0))
        held = objective.held(params)
        trains, frozen = tree.partition(params, adapters.trainable_mask(params))
        tx = optim.make({"name": "adamw", "learning_rate": 1e-4}, {}, 100)
        state = TrainState.create(trains, tx, jax.random.key(0))
        self.batch = {name: x[None] for name, x in batch.items()}
        self.fixed = Frozen(frozen, held)
        step = jax.jit(make_train_step(cfg, tx, objective), donate_argnums=0)
        self.compiled = step.lower(state, self.fixed, self.batch).compile()
        self.state = state

    def step(self) -> None:
        """Takes a step and waits for it."""
        self.state, metrics = self.compiled(self.state, self.fixed, self.batch)
        jax.block_until_ready(metrics)

    def memory(self) -> tuple[int, int]:
        """(bytes of arguments, bytes of temporaries)."""
        found = self.compiled.memory_analysis()
        return found.argument_size_in_bytes, found.temp_size_in_bytes


class Theirs:
    """Steps of TRL's DPOTrainer on the same batch."""

    def __init__(self, folder: str, batch: dict[str, np.ndarray]):
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        import datasets
        import peft
        import torch
        import transformers
        import trl

        pairs = len(batch["tokens"]) // 2
        rows = [
            {"prompt": "a", "chosen": "b", "rejected": "c"} for _ in range(2 * pairs)
        ]
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        )
        lora = peft.LoraConfig(
            r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        args = trl.DPOConfig(
            output_dir="build/benchmark_preference",
            per_device_train_batch_size=pairs,
            learning_rate=1e-4,
            **{"bf16": False, "use_cpu": True, "gradient_checkpointing": False},
            **{"report_to": [], "save_strategy": "no", "disable_tqdm": True},
        )
        self.trainer = trl.DPOTrainer(
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder),
            peft_config=lora,
        )
        self.trainer.create_optimizer()
        halves = [np.concatenate([x[::2], x[1::2]]) for x in (batch["tokens"],)]
        length = batch["tokens"].shape[1]
        mask = np.broadcast_to(np.arange(length) >= length // 2, halves[0].shape)
        self.batch = {
            "input_ids": torch.tensor(halves[0]).long(),
            "attention_mask": torch.ones(halves[0].shape, dtype=torch.long),
            "completion_mask": torch.tensor(mask.copy()).long(),
        }
        self.torch = torch

    def step(self) -> None:
        """Takes a step."""
        trainer = self.trainer
        trainer.model.train()
        trainer.compute_loss(trainer.model, dict(self.batch)).backward()
        weights = [p for p in trainer.model.parameters() if p.requires_grad]
        self.torch.nn.utils.clip_grad_norm_(weights, 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()


SIDES = {"jaxpeft": Ours, "trl": Theirs}
IMPORTS = {"jaxpeft": (), "trl": ("datasets", "peft", "torch", "transformers", "trl")}


def resident(key: str) -> float:
    """What this process holds (VmRSS) or has held at the most (VmHWM), in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def peak(name: str, folder: str, batch: dict[str, np.ndarray], steps: int) -> None:
    """Prints the peak of a side above its imports, in this process."""
    for module in IMPORTS[name]:
        importlib.import_module(module)
    jax.devices()
    before = resident("VmRSS")
    side = SIDES[name](folder, batch)
    for _ in range(steps):
        side.step()
    above = resident("VmHWM") - before
    print(json.dumps({"peak of": name, "MiB above imports": round(above)}))


def main() -> None:
    """Prints one line of JSON for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    shipped = str(resources.files("jaxpeft") / "assets" / "tiny-llama")
    parser.add_argument("--model", default=shipped)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    vocabulary = models.config(args.model).vocab_size
    batch = made(args.pairs, args.length, vocabulary)
    if args.peak:
        peak(args.peak, args.model, batch, args.steps)
        return
    for name in SIDES:
        subprocess.run([sys.executable, *sys.argv, "--peak", name], check=True)
    sides = {name: side(args.model, batch) for name, side in SIDES.items()}
    memory = {"dpo": sides["jaxpeft"].memory()}
    memory["sft, as many rows"] = Ours(args.model, batch, "sft").memory()
    twice = made(2 * args.pairs, args.length, vocabulary)
    memory["sft, twice the rows"] = Ours(args.model, twice, "sft").memory()
    for name, (given, temporary) in memory.items():
        mib = {"arguments": given / 2**20, "temporaries": temporary / 2**20}
        print(json.dumps({"step": name} | {n: round(x, 1) for n, x in mib.items()}))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.turns + 1):
        for name, side in sides.items():
            for _ in range(args.steps):
                start = time.perf_counter()
                side.step()
                if turn:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
    speeds = {
        n: batch["tokens"].size / statistics.median(s) for n, s in seconds.items()
    }
    for name, speed in speeds.items():
        print(json.dumps({"steps of": name, "tokens a second": round(speed)}))
    print(json.dumps({"ratio": round(speeds["jaxpeft"] / speeds["trl"], 2)}))


if __name__ == "__main__":
    main()
