"""Tasks of EleutherAI's harness: its numbers of our model beside those of its own.

    python scripts/harness_check.py --data ../shared/data
    python scripts/harness_check.py --data ../shared/data --model SmolLM2-135M-Instruct

Makes three tasks of files: multiple choice, answers that are generated after examples,
and the likelihood of whole texts, some longer than a small model's context. Asks them
of the model here and of the harness's own model of transformers (`HFLM`), both in
float32 on the CPU, and prints figures and CPU seconds, without those of loading. Ends
with 1 where a figure differs, an answer does, or a log-likelihood by more than 1e-4; of
whole texts by more than 1e-6 of it.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jaxpeft.assembly import trained
from jaxpeft.config import ModelSection
from jaxpeft.devices import programs, sharding
from jaxpeft.evaluate import loading, tasks
from jaxpeft.evaluate.harness_model import HarnessModel

TINY = Path(__file__).parent.parent / "jaxpeft" / "assets" / "tiny-llama"
CHOICE, ANSWER, TEXT = "our_choice", "our_answer", "our_text"
TASKS: dict[str, dict[str, Any]] = {
    CHOICE: {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    ANSWER: {
        "output_type": "generate_until",
        "fewshot_split": "test",
        "num_fewshot": 2,
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:", "\n\n"], "max_gen_toks": 96},
        "filter_list": [
            {
                "name": "last",
                "filter": [
                    {"function": "regex", "regex_pattern": r"(-?[0-9]+)"}
                    | {"group_select": -1},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [
            {"metric": "exact_match", "regexes_to_ignore": [",", r"[\s\S]*#### "]}
        ],
    },
    TEXT: {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
}
LETTERS = 6000  # of a text that the shipped model's context cannot hold
NEAR = 1e-4  # of log-likelihoods
NEAR_OF_TEXT = 1e-6  # relative: float32 sums of thousands


class Side(NamedTuple):
    """What one model made of the tasks."""

    outcome: tasks.Outcome
    seconds: dict[str, float]


def documents(data: Path, count: int) -> dict[str, list[dict[str, Any]]]:
    """The documents of each task, from GSM8K and a few texts."""
    lines = (data / "gsm8k" / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line) for line in lines[: count + 3]]
    ends = [one["answer"].rpartition("#### ")[2] for one in asked]
    choice = [
        {
            "question": one["question"],
            "choices": sorted(dict.fromkeys(ends[at : at + 4])),
            "gold": sorted(dict.fromkeys(ends[at : at + 4])).index(ends[at]),
        }
        for at, one in enumerate(asked[:count])
    ]
    path = data / "llamafactory" / "c4_demo.jsonl"
    texts = [json.loads(s) for s in path.read_text(encoding="utf-8").splitlines()]
    texts = [{"text": one["text"]} for one in texts[:count]]
    texts.append({"text": " ".join(one["text"] for one in texts)[:LETTERS]})
    return {CHOICE: choice, ANSWER: asked[:count], TEXT: texts}


def write(folder: Path, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Writes the tasks and their documents, as `--include_path` takes them."""
    for name, rows in found.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        about = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "test_split": "test",
            "metadata": {"version": 1},
            **TASKS[name],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(about), "utf-8")


def asked(model: Any, folder: Path, chat: bool = False) -> Side:
    """What a model of the harness makes of the tasks in a folder, one after another."""
    report: dict[str, Any] = {"results": {}}
    samples, seconds = {}, {}
    for name in sorted(path.stem for path in folder.glob("*.yaml")):
        choice = loading.Choice([name], str(folder), chat=chat)
        loaded = loading.load(choice)
        start = time.process_time()
        found = tasks.run(model, loaded, choice)
        seconds[name] = time.process_time() - start
        report["results"] |= found.report["results"]
        samples |= found.samples
    return Side(tasks.Outcome(report, samples), seconds)


def ours(
    path: str, batch_size: int, chat: bool = False, adapter: Path | None = None
) -> HarnessModel:
    """The model here."""
    section = ModelSection.model_validate({"path": path, "dtype": "float32"})
    mesh = sharding.make_mesh()
    model = trained.to_answer(section, adapter, mesh)
    return HarnessModel(model, batch_size=batch_size, mesh=mesh, chat=chat)


def theirs(path: str, batch_size: int, adapter: Path | None = None) -> Any:
    """The harness's own model of transformers."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=path,
        peft=None if adapter is None else str(adapter),
        device="cpu",
        dtype="float32",
        batch_size=batch_size,
    )


def differences(
    here: tasks.Outcome, there: tasks.Outcome
) -> tuple[list[str], dict[str, float]]:
    """What differs, and of each task the largest difference of two log-likelihoods."""
    found: list[str] = []
    largest: dict[str, float] = {}
    for name, rows in there.samples.items():
        assert len(rows) == len(here.samples[name]) > 0
        for own, other in zip(here.samples[name], rows, strict=True):
            assert own["arguments"] == other["arguments"]
            place = f"{name} {own['doc_id']}"
            for one, two in zip(own["resps"], other["resps"], strict=True):
                if isinstance(one[0], str):
                    found += [f"{place}: {one} and {two}"] * (one != two)
                    continue
                (a, greedy), (b, as_well) = map(_likelihood, (one[0], two[0]))
                largest[name] = max(largest.get(name, 0.0), abs(a - b))
                bound = NEAR if name != TEXT else max(NEAR, NEAR_OF_TEXT * abs(b))
                if abs(a - b) > bound or greedy != as_well:
                    found.append(f"{place}: {one} and {two}")
        for key, value in there.report["results"][name].items():
            own = here.report["results"][name][key]
            same = own == value
            if isinstance(value, float):
                same = abs(own - value) <= 1e-6 * max(1.0, abs(value))
            found += [f"{name} {key}: {own} and {value}"] * (not same)
    return found, largest


def _likelihood(value: Any) -> tuple[float, Any]:
    return (value[0], value[1]) if isinstance(value, list) else (value, None)


def main() -> int:
    """Compares, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT adapter")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--limit", type=int, default=32, help="documents of each task")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--chat", action="store_true", help="--apply_chat_template")
    args = parser.parse_args()
    programs.keep()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), documents(args.data, args.limit))
        own = ours(args.model, args.batch_size, args.chat, args.adapter)
        here = asked(own, Path(folder), args.chat)
        other = theirs(args.model, args.batch_size, args.adapter)
        there = asked(other, Path(folder), args.chat)
    for name, seconds in there.seconds.items():
        print(
            f"{name}: {here.seconds[name]:.1f} s here, {seconds:.1f} s theirs, of CPU"
        )
    for line in tasks.lines(here.outcome.report):
        print(line)
    found, largest = differences(here.outcome, there.outcome)
    for name, one in largest.items():
        print(f"{name}: the largest difference of two log-likelihoods is {one:.2g}")
    for line in found:
        print(f"DIFFERS {line}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
