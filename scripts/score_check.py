"""Scores of a real model's answers before and after LoRA, beside torch's generate.

    python scripts/gguf_to_hf.py FILE.gguf --out models/SmolLM2-135M-Instruct
    python scripts/score_check.py --model models/SmolLM2-135M-Instruct --data e2e

Trains a LoRA here, asks the base and the trained model the same questions of the
evaluation data, and then torch + PEFT with transformers' generate, greedy and batched
alike. Prints a table, and ends with 1 where an answer differs: then it says which, and
how near the two tokens were to each other in torch where they part.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from peft import PeftModel
from real_model import SOURCES

from jaxpeft import cli, metrics, train
from jaxpeft.assembly import configuration, trained
from jaxpeft.devices import programs
from jaxpeft.generate.scoring import Scoring

METRICS: dict[str, list[Any]] = {
    "e2e": ["rouge_l", "token_f1"],
    "gsm8k": [{"name": "exact_match", "extract": "last_number"}, "rouge_l"],
}


def configure(args: argparse.Namespace, output: Path) -> dict[str, Any]:
    """The configuration of the run here."""
    source = SOURCES[args.data]
    return {
        "output_dir": str(output),
        "model": {"path": args.model, "dtype": "float32"},
        "adapter": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "data": {
            "train": {"path": str(source.train), **source.ours},
            "eval": {"path": str(source.held_out), **source.ours},
            "max_length": source.max_length,
            "length_buckets": 1,
            "shuffle": False,
        },
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"name": "constant"},
        "training": {
            "max_steps": args.steps or 1,
            "batch_size": 8,
            "eval_steps": None,
            "eval_on_start": False,
            "eval_max_examples": 8,
            "samples": 0,
            "logging_steps": 1,
        },
        "evaluation": {
            "metrics": METRICS[args.data] + args.metric,
            "max_examples": args.examples,
            "max_new_tokens": args.max_new_tokens,
            "batch_size": args.batch_size,
        },
    }


def ours(config: Path, run: Path | None) -> tuple[Scoring, Any, list[float]]:
    """The scoring, what came of it, and the seconds with compiling and without."""
    if run is None:
        cfg, adapter = configuration.open_config(config), None
    else:
        cfg, adapter = configuration.open_run(run)
    model = trained.to_evaluate(cfg, adapter)
    made = metrics.made(cfg.evaluation.metrics)
    size = cfg.evaluation.batch_size or 8
    scoring = Scoring(model.base, model.batches, made, cfg.evaluation, size, model.mesh)
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        scored = scoring.run(model.params)
        seconds.append(time.monotonic() - start)
    return scoring, scored, seconds


def theirs(
    args: argparse.Namespace, scoring: Scoring, adapter: Path | None
) -> tuple[list[str], float, Any]:
    """torch's answers to the same questions, the seconds, and the model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    stop, found = scoring.stop, []
    prompts = [one.prompt for one in scoring.questions]
    start = time.monotonic()
    for first in range(0, len(prompts), args.batch_size):
        rows = prompts[first : first + args.batch_size]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=args.max_new_tokens,
                do_sample=False,
                eos_token_id=stop,
                pad_token_id=stop[0],
            )
        found += out[:, width:].tolist()
    seconds = time.monotonic() - start
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in found]
    return texts, seconds, model


def margin(model: Any, tokenizer: Any, prompt: list[int], one: str, other: str) -> str:
    """How near the two tokens are in torch at the place where two answers part."""
    a, b = (tokenizer(x, add_special_tokens=False)["input_ids"] for x in (one, other))
    same = next(
        (i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b))
    )
    with torch.no_grad():
        logits = model(torch.tensor([prompt + a[:same]])).logits[0, -1]
    first, second = logits.topk(2).values.tolist()
    near = f"{first - second:.1e}"
    return f"after {same} tokens, where torch's first two logits are {near} apart"


def main() -> int:
    """Trains, asks, compares, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", choices=SOURCES, default="e2e")
    parser.add_argument("--steps", type=int, default=15, help="0: the base alone")
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--metric", action="append", default=[])
    args = parser.parse_args()
    programs.keep()
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        config = work / "run.yaml"
        config.write_text(yaml.safe_dump(configure(args, work / "run")))
        with contextlib.redirect_stdout(sys.stderr):
            arguments = ["--config", str(config), "evaluation.metrics=[]"]
            if args.steps and cli.run(train.main, arguments):
                return 1
        config.write_text(yaml.safe_dump(configure(args, work / "run")))
        lines = []
        states = {"before": None} | ({"after": work / "run"} if args.steps else {})
        for state, run in states.items():
            cfg = run and (run / "config.yaml")
            if cfg:
                cfg.write_text(config.read_text())
            scoring, scored, seconds = ours(config, run)
            answers, their_seconds, model = theirs(
                args, scoring, run and run / "adapter"
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
            references = [one.reference for one in scoring.questions]
            for name, metric in scoring.metrics.items():
                scores = [metric.each(a, r) for a, r in zip(answers, references)]
                value = metric.figure(scores, answers, references)
                lines.append((state, name, scored.figures[f"eval_{name}"], value))
            lines.append((state, "seconds, compiled", seconds[1], their_seconds))
            lines.append((state, "seconds with compiling", seconds[0], their_seconds))
            for row, answer, asked in zip(scored.rows, answers, scoring.questions):
                if row["answer"] != answer:
                    differ += 1
                    near = margin(model, tokenizer, asked.prompt, answer, row["answer"])
                    print(f"{state}: example {row['example']} differs {near}")
    for state, name, own, other in lines:
        print(f"| {state} | {name} | {own:.4f} | {other:.4f} |", flush=True)
    print(f"{differ} of {len(states) * args.examples} answers differ")
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main())
