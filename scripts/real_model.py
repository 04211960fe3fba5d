"""A real base model through every command, beside torch + peft in the same run.

    python scripts/gguf_to_hf.py FILE.gguf --out models/SmolLM2-135M-Instruct
    python scripts/real_model.py --model models/SmolLM2-135M-Instruct --data e2e
    python scripts/real_model.py --model models/SmolLM2-135M-Instruct --data gsm8k

Both start from one LoRA that PEFT drew, take the same batches and settings, and end
with an evaluation. Then jaxpeft evaluates, chats and exports; PEFT opens the export and
answers the same questions. Prints the table of docs/benchmarks.md, and ends with 1
where losses differ by more than 1e-3 or an answer differs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
BOUND = 1e-3
MIB = 2**20
QUESTIONS = 4
SETTINGS = {
    "batch_size": 8,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "r": 16,
    "lora_alpha": 32,
}


class Source(NamedTuple):
    """A data set: where it lies, and how each of the two is told to read it."""

    train: Path
    held_out: Path
    max_length: int
    ours: dict[str, Any]
    theirs: tuple[str, ...]
    prompt: str


OPTIMIZER = ("learning_rate", "weight_decay", "max_grad_norm")
FIELDS = {"prompt": "question", "completion": "answer"}
SOURCES = {
    "e2e": Source(
        DATA / "e2e" / "train.json",
        DATA / "e2e" / "eval.json",
        256,
        {"format": "alpaca"},
        (),
        "",
    ),
    "gsm8k": Source(
        DATA / "gsm8k" / "train.jsonl",
        DATA / "gsm8k" / "eval.jsonl",
        384,
        {"format": "prompt_completion", "fields": FIELDS},
        ("--fields", "question", "answer"),
        "question",
    ),
}


class Ran(NamedTuple):
    """What a program printed, and what it took."""

    text: str
    seconds: float
    peak: int  # bytes


def run(*command: str, said: str | None = None) -> Ran:
    """Runs a command to its end; a parent of its own measures its peak memory."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:])\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(f'peak KiB: {peak}', file=sys.stderr)\n"
        "sys.exit(done.returncode)\n"
    )
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, *command],
        cwd=ROOT,
        input=said,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    peak = int(done.stderr.rsplit("peak KiB: ", 1)[1]) * 1024
    return Ran(done.stdout, time.perf_counter() - begun, peak)


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON list, or of a file with an object a line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return json.loads(text)


def first_records(source: Path, count: int, folder: Path) -> Path:
    """A file with the first `count` records of `source`, in its own form."""
    kept = records(source)[:count]
    path = folder / f"eval{source.suffix}"
    if source.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    else:
        path.write_text(json.dumps(kept), "utf-8")
    return path


def drawn_adapter(model: Path, folder: Path) -> None:
    """A fresh LoRA on every linear layer, drawn and written by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=SETTINGS["r"],
        lora_alpha=SETTINGS["lora_alpha"],
        target_modules="all-linear",
    )
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    get_peft_model(base, config).save_pretrained(folder)


def train_ours(source: Source, held_out: Path, args, work: Path) -> Ran:
    """`jaxpeft.train` on the first steps, in the file's order."""
    config = {
        "output_dir": str(work / "run"),
        "model": {"path": str(args.model), "dtype": "float32"},
        "adapter": {"method": "lora", "init_from": str(work / "start")},
        "data": {
            "train": {"path": str(source.train), **source.ours},
            "eval": {"path": str(held_out), **source.ours},
            "max_length": source.max_length,
            "shuffle": False,
        },
        "optimizer": {
            "name": "adamw",
            **{name: SETTINGS[name] for name in OPTIMIZER},
        },
        "schedule": {"name": "cosine", "warmup_steps": args.steps // 3},
        "training": {
            "max_steps": args.steps,
            "batch_size": SETTINGS["batch_size"],
            "logging_steps": 1,
            "eval_steps": None,
        },
    }
    path = work / "config.yaml"  # JSON is YAML
    path.write_text(json.dumps(config), "utf-8")
    return run("-m", "jaxpeft.train", "--config", str(path))


def train_theirs(source: Source, held_out: Path, args, work: Path) -> Ran:
    """`scripts/torch_reference.py` on the same."""
    s = SETTINGS
    command = ["scripts/torch_reference.py", "--model", str(args.model)]
    command += ["--train", str(source.train), "--eval", str(held_out)]
    command += ["--adapter", str(work / "start"), "--out", str(work / "torch")]
    command += ["--order", "file", "--steps", str(args.steps), *source.theirs]
    command += ["--max-length", str(source.max_length)]
    command += ["--warmup-steps", str(args.steps // 3)]
    names = "batch_size learning_rate weight_decay max_grad_norm"
    for name in names.split():
        command += [f"--{name.replace('_', '-')}", str(s[name])]
    return run(*command)


def peft_answers(model: Path, adapter: Path, prompts: list[str], length: int) -> list:
    """PEFT's greedy answers with the adapter that jaxpeft exported."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, adapter).eval()
    answers = []
    for prompt in prompts:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = tuned.generate(**inputs, max_new_tokens=length, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return answers


def our_answers(work: Path, prompts: list[str], length: int) -> list[str]:
    """`jaxpeft.generate` of the finished run."""
    asked, told = work / "prompts.jsonl", work / "answers.jsonl"
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    asked.write_text(lines, "utf-8")
    options = ("--prompts", str(asked), "--out", str(told))
    run(
        *("-m", "jaxpeft.generate", "--run", str(work / "run"), *options),
        *("--max-new-tokens", str(length)),
    )
    return [row["answer"].strip() for row in records(told)]


def questions(source: Source, held_out: Path) -> list[str]:
    """What the first held-out records ask."""
    rows = records(held_out)[:QUESTIONS]
    if source.prompt:
        return [row[source.prompt] for row in rows]
    parts = [(row["instruction"], row.get("input", "")) for row in rows]
    return ["\n".join(part for part in pair if part) for pair in parts]


def relative(a: float, b: float) -> float:
    """How far `a` is from `b`, of `b`."""
    return abs(a - b) / abs(b)


def compare(name: str, args, work: Path) -> bool:
    """One data set end to end; True where everything agrees."""
    source = SOURCES[name]
    held_out = first_records(source.held_out, args.eval_examples, work)
    drawn_adapter(args.model, work / "start")

    theirs = train_theirs(source, held_out, args, work)
    ours = train_ours(source, held_out, args, work)

    lines = [json.loads(line) for line in theirs.text.splitlines()]
    their_steps = [line for line in lines if "loss" in line]
    their_evals = [line["eval_loss"] for line in lines if "eval_loss" in line]
    logged = records(work / "run" / "metrics.jsonl")
    our_steps = [line for line in logged if "loss" in line]
    our_evals = [line["eval_loss"] for line in logged if "eval_loss" in line]
    losses = zip(our_steps, their_steps, strict=True)
    apart = max(relative(a["loss"], b["loss"]) for a, b in losses)
    seconds = step_seconds(our_steps)

    print(f"### {name}: {args.steps} steps of {SETTINGS['batch_size']}\n")
    print("| program | loss before | after | median s/step | command s | peak MiB |")
    print("|---|---|---|---|---|---|")
    step = statistics.median(line["seconds"] for line in their_steps)
    for who, evals, a_step, done in (
        ("jaxpeft", our_evals, seconds, ours),
        ("torch + peft", their_evals, step, theirs),
    ):
        print(
            f"| {who} | {evals[0]:.4f} | {evals[-1]:.4f} | {a_step:.2f} "
            f"| {done.seconds:.0f} | {done.peak / MIB:,.0f} |"
        )
    print(f"\nlargest relative difference of a step's loss: {apart:.1e}")

    told = json.loads(
        run("-m", "jaxpeft.evaluate", "--run", str(work / "run"), "--json").text
    )
    print(f"evaluate: {json.dumps(told)}")
    chat = ("-m", "jaxpeft.chat", "--run", str(work / "run"), "--max-new-tokens", "24")
    said = run(*chat, said="What is the capital of France?\n").text.strip()
    print(f"chat, asked for the capital of France: {said}")

    exported = work / "peft"
    target = ("--to", "peft", "--out", str(exported))
    run("-m", "jaxpeft.export", "--run", str(work / "run"), *target)
    prompts = questions(source, held_out)
    here = our_answers(work, prompts, args.max_new_tokens)
    there = peft_answers(args.model, exported, prompts, args.max_new_tokens)
    same = sum(a == b for a, b in zip(here, there, strict=True))
    print(f"answers equal to PEFT's with the exported adapter: {same} of {len(here)}")
    print(f"asked: {prompts[0]}\nanswered: {here[0]}")
    ends = max(relative(a, b) for a, b in zip(our_evals, their_evals, strict=True))
    return apart <= BOUND and ends <= BOUND and same == len(here)


def step_seconds(steps: list[dict[str, Any]]) -> float:
    """The median seconds of a step, from the log's tokens and tokens a second."""
    pairs = zip(steps, steps[1:], strict=False)
    return statistics.median(
        (line["tokens"] - before["tokens"]) / line["tokens_per_second"]
        for before, line in pairs
    )


def main() -> None:
    """Compare on the data set that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", choices=SOURCES, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--eval-examples", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    args = parser.parse_args()
    args.model = args.model.resolve()
    with tempfile.TemporaryDirectory() as work:
        sys.exit(not compare(args.data, args, Path(work)))


if __name__ == "__main__":
    main()
