"""The same LoRA fine-tuning in torch + peft, to compare jaxpeft with on real data.

    python scripts/torch_reference.py --model ../shared/models/tiny-llama \\
        --train ../shared/data/e2e/train.json --eval ../shared/data/e2e/eval.json

Prints a JSON line a step and one for each evaluation. `--order file` trains in the
order of the file (step k takes examples k * batch_size and on), as jaxpeft does with
`shuffle: false`; with `--adapter` both start from the same adapter, and the losses can
be compared step by step.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    get_scheduler,
)

IGNORED = -100


class Example(NamedTuple):
    """A rendered record: its tokens, and which of them the loss counts."""

    tokens: list[int]
    supervised: list[bool]


def read(path: Path) -> list[dict]:
    """The records of a JSON list or of a file with one JSON object a line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return json.loads(text)


def messages(row: dict, fields: Sequence[str] | None = None) -> tuple[str, str]:
    """Question and answer of an alpaca record, or of the two `fields` named."""
    if fields:
        return row[fields[0]], row[fields[1]]
    asked = [row["instruction"], row.get("input", "")]
    return "\n".join(part for part in asked if part), row["output"]


def render(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str, max_length: int
) -> Example:
    """One exchange through the chat template, cut at `max_length` tokens.

    The answer and the end of turn after it are supervised, nothing else. They are
    found by their place in the text: the template's rendering of the question with
    the assistant's header is a prefix of the whole.
    """
    asked = [{"role": "user", "content": question}]
    whole = [*asked, {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(
        asked, tokenize=False, add_generation_prompt=True
    )
    text = tokenizer.apply_chat_template(whole, tokenize=False)
    if not text.startswith(prompt + answer):
        raise SystemExit("the chat template rewrites the answer: no place to supervise")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, spans = encoded["input_ids"], encoded["offset_mapping"]
    answer_end = len(prompt) + len(answer)
    # The first token past the answer ends the turn; the template's line break does not.
    turn_end = next(i for i, span in enumerate(spans) if span[0] >= answer_end)
    supervised = [
        span[0] >= len(prompt) and i <= turn_end for i, span in enumerate(spans)
    ]
    return Example(tokens[:max_length], supervised[:max_length])


def load_examples(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    fields: Sequence[str] | None = None,
) -> list[Example]:
    """Every record of the file, rendered, in the file's order."""
    pairs = (messages(row, fields) for row in read(path))
    return [render(tokenizer, asked, told, max_length) for asked, told in pairs]


def batches(
    examples: Sequence[Example], batch_size: int, order: str, seed: int
) -> Iterator[list[Example]]:
    """Endless batches, in the file's order or shuffled anew for every epoch."""
    rng = np.random.default_rng(seed)

    def indices() -> Iterator[int]:
        while True:
            count = len(examples)
            yield from range(count) if order == "file" else rng.permutation(count)

    stream = indices()
    while True:
        yield [examples[next(stream)] for _ in range(batch_size)]


def collate(batch: Sequence[Example], pad: int) -> dict[str, torch.Tensor]:
    """Tensors (batch, longest): input_ids, attention_mask and labels."""
    longest = max(len(example.tokens) for example in batch)
    shape = (len(batch), longest)
    tensors = {
        "input_ids": torch.full(shape, pad),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for row, (tokens, supervised) in enumerate(batch):
        ids, mask = torch.tensor(tokens), torch.tensor(supervised)
        tensors["input_ids"][row, : len(tokens)] = ids
        tensors["attention_mask"][row, : len(tokens)] = 1
        tensors["labels"][row, : len(tokens)] = ids.where(mask, IGNORED)
    return tensors


def token_losses(
    model: torch.nn.Module, tensors: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the supervised tokens' losses, and how many there are."""
    tensors = dict(tensors)
    targets = tensors.pop("labels")[:, 1:].flatten()
    logits = model(**tensors, use_cache=False).logits[:, :-1].flatten(0, 1).float()
    loss = torch.nn.functional.cross_entropy(
        logits, targets, ignore_index=IGNORED, reduction="sum"
    )
    return loss, (targets != IGNORED).sum()


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, examples: Sequence[Example], batch_size: int, pad: int
) -> float:
    """The loss per supervised token over all the examples."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(examples), batch_size):
        loss, tokens = token_losses(
            model, collate(examples[start : start + batch_size], pad)
        )
        total, count = total + loss.item(), count + int(tokens)
    model.train()
    return total / count


def load_model(
    path: Path,
    r: int = 16,
    lora_alpha: float = 32,
    adapter: Path | None = None,
    seed: int = 42,
) -> PeftModel:
    """The float32 base with a LoRA on every linear layer, new or read from disk."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if adapter:
        return PeftModel.from_pretrained(base, adapter, is_trainable=True)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=lora_alpha,
        target_modules="all-linear",
    )
    return get_peft_model(base, lora)


def train(
    model: torch.nn.Module, stream: Iterator[list[Example]], pad: int, args
) -> Iterator[dict]:
    """Train for `args.steps`, yielding step, loss, learning_rate, grad_norm, seconds.

    The loss of a step is the sum over the batch divided by its supervised tokens,
    whatever the accumulation, as in jaxpeft.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=args.learning_rate, weight_decay=args.weight_decay
    )
    schedule = get_scheduler(args.schedule, optimizer, args.warmup_steps, args.steps)
    micro = args.batch_size // args.accumulation
    model.train()
    for step in range(1, args.steps + 1):
        start, batch = time.perf_counter(), next(stream)
        parts = [
            collate(batch[i : i + micro], pad) for i in range(0, len(batch), micro)
        ]
        count = sum(int((part["labels"][:, 1:] != IGNORED).sum()) for part in parts)
        total = 0.0
        for part in parts:
            loss = token_losses(model, part)[0] / count
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trainable, args.max_grad_norm)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield {
            "step": step,
            "loss": total,
            "learning_rate": rate,
            "grad_norm": norm.item(),
            "seconds": time.perf_counter() - start,
        }


def sample(model: PeftModel, tokenizer: PreTrainedTokenizerBase, asked: str) -> str:
    """The greedy answer to one question."""
    model.eval()
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True)


def arguments() -> argparse.Namespace:
    """The command line; defaults are the settings of configs/e2e_lora.yaml."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="Hugging Face directory")
    add("--train", type=Path, required=True, help="alpaca json or jsonl")
    add("--eval", type=Path, required=True)
    add("--fields", nargs=2, metavar=("PROMPT", "COMPLETION"), help="instead of alpaca")
    add("--adapter", type=Path, help="PEFT adapter to start from")
    add("--out", type=Path, help="where to write the trained adapter")
    add("--order", choices=("shuffled", "file"), default="shuffled")
    add("--seed", type=int, default=42)
    add("--r", type=int, default=16)
    add("--lora-alpha", type=float, default=32)
    add("--max-length", type=int, default=256)
    add("--steps", type=int, default=200)
    add("--batch-size", type=int, default=16)
    add("--accumulation", type=int, default=1)
    add("--learning-rate", type=float, default=3e-3)
    add("--schedule", default="cosine", help="a transformers schedule")
    add("--warmup-steps", type=int, default=20)
    add("--weight-decay", type=float, default=0.01)
    add("--max-grad-norm", type=float, default=1.0)
    args = parser.parse_args()
    if args.batch_size % args.accumulation:
        parser.error("--batch-size must be a multiple of --accumulation")
    return args


def main() -> None:
    """Evaluate, train, evaluate again, print what happened as JSON lines."""
    args = arguments()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    pad = tokenizer.pad_token_id or 0
    model = load_model(args.model, args.r, args.lora_alpha, args.adapter, args.seed)
    rendering = (tokenizer, args.max_length, args.fields)
    training = load_examples(args.train, *rendering)
    held_out = load_examples(args.eval, *rendering)
    question, expected = messages(read(args.eval)[0], args.fields)

    def report(step: int) -> None:
        loss = evaluate(model, held_out, args.batch_size, pad)
        answer = sample(model, tokenizer, question)
        print(json.dumps({"step": step, "eval_loss": loss, "sample": answer}))

    print(json.dumps({"question": question, "expected": expected}))
    report(0)
    start = time.perf_counter()
    stream = batches(training, args.batch_size, args.order, args.seed)
    for line in train(model, stream, pad, args):
        print(json.dumps(line), flush=True)
    print(json.dumps({"train_seconds": time.perf_counter() - start}))
    report(args.steps)
    if args.out:
        model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
