"""Records a second and memory of reading and tokenizing, beside `datasets.map`.

    python scripts/benchmark_data.py --records 20000 --workers 2

Records are those of LLaMA-Factory's alpaca_en_demo.json, each with a number before its
instruction, so that no two are equal. Every measurement is a process of its own, with
an empty cache; `datasets.map` gives token ids alone, without masks.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / ".." / "shared" / "data" / "llamafactory" / "alpaca_en_demo.json"
TOKENIZER = str(Path(str(resources.files("jaxpeft"))) / "assets" / "tiny-llama")


def make(path: Path, count: int) -> None:
    """Writes a file of so many records."""
    records = json.loads(RECORDS.read_text(encoding="utf-8"))
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            record = records[number % len(records)]
            told = f"{number} {record['instruction']}"
            file.write(json.dumps({**record, "instruction": told}) + "\n")


def used() -> float:
    """Seconds of CPU of this process and those that it has waited for."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, whose))


def megabytes(whose: int) -> int:
    """The most memory that it has held."""
    return resource.getrusage(whose).ru_maxrss >> 10


def with_jaxpeft(path: str, workers: int, cache: str) -> None:
    """Loads the training data as a run does, to its first batch."""
    import grain  # noqa: F401  (its import is not what is measured)
    from transformers import AutoTokenizer

    from jaxpeft.config.data import DataSection
    from jaxpeft.data import load_train

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    more = {"num_workers": workers, "cache_dir": cache}
    section = DataSection.model_validate({"train": {"path": path}, **more})
    start, before = time.monotonic(), used()
    batches = load_train(section, tokenizer, batch_size=8, seed=0)
    _ = batches[0]
    tell(start, before, len(batches.examples))


def with_datasets(path: str, workers: int, cache: str) -> None:
    """The same by the library `datasets`."""
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    datasets.disable_progress_bars()

    def encode(batch: dict) -> dict:
        talks = []
        rows = zip(batch["instruction"], batch["input"], batch["output"])
        for instruction, more, output in rows:
            prompt = f"{instruction}\n{more}" if more else instruction
            turns = (("user", prompt), ("assistant", output))
            talks.append([{"role": r, "content": c} for r, c in turns])
        encoded = tokenizer.apply_chat_template(talks, return_dict=True)
        return {"input_ids": encoded["input_ids"]}

    start, before = time.monotonic(), used()
    data = datasets.load_dataset(
        "json", data_files=path, split="train", cache_dir=cache
    )
    data = data.map(
        encode, batched=True, num_proc=workers, remove_columns=data.column_names
    )
    _ = data[0]
    tell(start, before, len(data))


def tell(start: float, before: float, count: int) -> None:
    """Prints the figures of this process."""
    figures = {
        "seconds": time.monotonic() - start,
        "cpu": used() - before,
        "records": count,
        "memory": megabytes(resource.RUSAGE_SELF),
        "of a worker": megabytes(resource.RUSAGE_CHILDREN),
    }
    print(json.dumps(figures))


WAYS = {"jaxpeft": with_jaxpeft, "datasets": with_datasets}


def measured(way: str, path: Path, workers: int, cache: str) -> dict:
    """The figures of a process of its own."""
    arguments = ["--way", way, "--path", str(path), "--cache", cache]
    command = [sys.executable, __file__, *arguments, "--workers", str(workers)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    if workers > 1 or way == "jaxpeft":
        environment["TOKENIZERS_PARALLELISM"] = "false"
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--without-datasets", action="store_true")
    for name in ("way", "path", "cache"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        WAYS[args.way](args.path, args.workers, args.cache)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        make(path, args.records)
        print("| | s | records/s | CPU s | MB | MB of a worker |\n" + "|---" * 6 + "|")
        rows = [("jaxpeft, first start", "jaxpeft"), ("jaxpeft, second", "jaxpeft")]
        for name, way in rows + [("datasets.map", "datasets")] * (
            not args.without_datasets
        ):
            own = measured(way, path, args.workers, str(Path(folder) / way))
            speed = own["records"] / own["seconds"]
            print(
                f"| {name} | {own['seconds']:.2f} | {speed:,.0f} | {own['cpu']:.2f} | "
                f"{own['memory']} | {own['of a worker']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
