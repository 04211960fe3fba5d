"""A classifier beside torch + peft: does a text say that a place is family-friendly?

Command:  python scripts/classification_check.py --data ../shared/data/e2e

The label of a text of the E2E data is what its attributes say: yes, no, or nothing.
Both train LoRA and head on the same batches with the same settings, from a head and
adapters of their own, and say what share of the evaluation's texts they get right.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

LABELS = ("no", "unsaid", "yes")
ATTRIBUTE = re.compile(r"familyFriendly\[(\w+)\]")


def records(path: Path) -> list[dict[str, str]]:
    """The texts of a file and their labels, in an order of their own."""
    made = []
    for record in json.loads(path.read_text(encoding="utf-8")):
        found = ATTRIBUTE.search(record["input"])
        label = found[1] if found else "unsaid"
        made.append({"text": record["output"], "label": label})
    random.Random(0).shuffle(made)
    return made


def ours(folder: Path, args: argparse.Namespace, model: str, seed: int) -> float:
    """The accuracy of a run of the command."""
    sources = {
        name: {"path": str(folder / f"{name}.jsonl"), "format": "text"}
        for name in ("train", "eval")
    }
    config = {
        "output_dir": str(folder / f"run{seed}"),
        "seed": seed,
        "model": {"path": model, "dtype": "float32"},
        "adapter": {"method": "lora", "r": 8, "lora_alpha": 16},
        "objective": {"name": "classification", "labels": list(LABELS)},
        "data": {**sources, "max_length": 96, "shuffle": False},
        "optimizer": {
            "learning_rate": args.rate,
            "weight_decay": 0.0,
            "max_grad_norm": None,
        },
        "schedule": {"name": "constant"},
        "training": {"max_steps": args.steps, "batch_size": args.batch},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "jaxpeft.train", "--config", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (folder / f"run{seed}" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(x) for x in lines if "eval_accuracy" in x][-1]["eval_accuracy"]


def theirs(folder: Path, args: argparse.Namespace, model: str, seed: int) -> float:
    """The accuracy of torch and peft."""
    import peft
    import torch
    import transformers

    torch.manual_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=len(LABELS), pad_token_id=tokenizer.pad_token_id
    )
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear"
    )
    adapted = peft.get_peft_model(base, lora).train()
    trains = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trains, lr=args.rate, weight_decay=0.0)

    def batch(own: list[dict[str, str]]) -> tuple[Any, Any]:
        texts = [record["text"] for record in own]
        made = tokenizer(
            texts, padding=True, truncation=True, max_length=96, return_tensors="pt"
        )
        return made, torch.tensor([LABELS.index(record["label"]) for record in own])

    train, held_out = (records(args.data / f"{n}.json") for n in ("train", "eval"))
    for step in range(args.steps):
        first = step * args.batch % (len(train) - args.batch)
        made, labels = batch(train[first : first + args.batch])
        loss = adapted(**made, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapted.eval()
    hits = 0
    with torch.no_grad():
        for first in range(0, len(held_out), 32):
            made, labels = batch(held_out[first : first + 32])
            hits += int((adapted(**made).logits.argmax(-1) == labels).sum())
    return hits / len(held_out)


def main() -> None:
    """Trains both and says their accuracies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of E2E")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    model = str(resources.files("jaxpeft") / "assets" / "tiny-llama")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("train", "eval"):
            made = records(args.data / f"{part}.json")
            lines = [json.dumps(record) + "\n" for record in made]
            (folder / f"{part}.jsonl").write_text("".join(lines))
        labels = [record["label"] for record in records(args.data / "eval.json")]
        most = max(labels.count(label) for label in LABELS) / len(labels)
        print(f"the most frequent label alone: {most:.1%}")
        for seed in args.seeds:
            for who, train in (("jaxpeft", ours), ("torch + peft", theirs)):
                began = time.monotonic()
                accuracy = train(folder, args, model, seed)
                seconds = time.monotonic() - began
                told = f"{who}, seed {seed}: {accuracy:.1%} in {seconds:.0f} s"
                print(told, flush=True)


if __name__ == "__main__":
    main()
