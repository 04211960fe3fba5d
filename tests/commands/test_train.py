"""A training run from its command to its files, against torch where it computes."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from peft import PeftConfig
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from jaxpeft.assembly import configuration, run
from jaxpeft.report import plots


def masked(tokenizer, turns, max_length):
    """(token ids, labels) of one conversation; only the answer through its end."""
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    prompt = tokenizer.apply_chat_template(
        turns[:-1], tokenize=False, add_generation_prompt=True
    )
    ids, start = (
        tokenizer(text, add_special_tokens=False)["input_ids"],
        len(tokenizer(prompt, add_special_tokens=False)["input_ids"]),
    )
    stop = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
    labels = [i if start <= at < stop else -100 for at, i in enumerate(ids)]
    return ids[:max_length], labels[:max_length]


def reference_loss(folder, conversations, max_length):
    """Mean loss over the supervised tokens of all conversations, one at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for turns in conversations:
        ids, labels = masked(tokenizer, turns, max_length)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        target = torch.tensor(labels[1:])
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        total, count = total + loss.item(), count + int((target != -100).sum())
    return total / count


def test_the_run_directory_holds_what_is_promised(finished, metrics):
    found = {entry.name for entry in finished.iterdir()}
    assert found == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "adapter",
        "loss.png",
        "report.html",
        "environment.json",
        "samples.json",
        "summary.json",
    }
    steps = sorted(int(step.name) for step in (finished / "checkpoints").iterdir())
    assert steps == [10, 20, 25]
    for step in steps:
        assert (finished / "checkpoints" / str(step) / "manifest.json").is_file()
    assert {entry.name for entry in (finished / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    with Image.open(finished / "loss.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(maxcolors=2**20)) > 10


def test_the_metrics_are_a_line_a_step(finished, metrics, files):
    training, evaluations = metrics(finished)
    assert [line["step"] for line in training] == list(range(1, 26))
    for line in training:
        assert set(line) == {
            "step",
            "loss",
            "learning_rate",
            "grad_norm",
            "update_norm",
            "tokens",
            "tokens_per_second",
            "data_wait",
            "epoch",
        }
        assert all(math.isfinite(value) for value in line.values())
        assert line["epoch"] == pytest.approx(line["step"] * 4 / 48, abs=1e-3)
    first, last = training[:5], training[-5:]
    assert np.mean([s["loss"] for s in last]) < np.mean([s["loss"] for s in first])
    assert [line["step"] for line in evaluations] == [0, 10, 20, 25]
    losses = [line["eval_loss"] for line in evaluations]
    assert losses[-1] < losses[0]
    assert plots.read_metrics(finished / "metrics.jsonl") == (training, evaluations)


def test_the_learning_rate_is_that_of_transformers_schedule(finished, metrics):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    schedule = get_scheduler(
        "cosine", optimizer, num_warmup_steps=2, num_training_steps=25
    )
    expected = []
    for _ in range(25):
        expected += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    rates = [line["learning_rate"] for line in metrics(finished)[0]]
    np.testing.assert_allclose(rates, expected, atol=1e-8)


def test_tokens_count_every_token_but_padding(finished, metrics, records, conversation):
    tokenizer = AutoTokenizer.from_pretrained(
        configuration.open_config(finished / "config.yaml").model.path
    )
    sizes = [len(masked(tokenizer, conversation(r), 128)[0]) for r in records[:48]]
    drawn = np.resize(sizes, 100).reshape(25, 4).sum(axis=1)
    tokens = [line["tokens"] for line in metrics(finished)[0]]
    np.testing.assert_array_equal(tokens, np.cumsum(drawn))


def test_the_resolved_configuration_repeats_the_run(
    finished, metrics, command, tmp_path
):
    path = str(finished / "config.yaml")
    resolved = configuration.open_config(path)
    written = yaml.safe_load((finished / "config.yaml").read_text())
    assert written["training"]["max_nonfinite_steps"] == 10
    assert resolved.model_dump() == configuration.open_config(path).model_dump()
    done = command(
        "train", "--config", path, f"output_dir={tmp_path / 'again'}", "seed=42"
    )
    assert done.code == 0
    before, after = (
        [s["loss"] for s in metrics(r)[0]] for r in (finished, tmp_path / "again")
    )
    assert before == after


def test_each_step_trains_on_its_own_examples(
    trained, metrics, tiny, records, conversation, tmp_path
):
    """At a rate of 0 the model stays the base, so each loss says what it saw."""
    done = trained(
        "run",
        **{
            "data.shuffle": False,
            "data.max_length": 80,  # cuts the longer half
            "data.eval": {"path": str(write(tmp_path / "eval.json", records[:7]))},
            "optimizer.learning_rate": 0.0,
            "training.max_steps": 4,
            "training.gradient_accumulation_steps": 2,
        },
    )
    assert done.code == 0 and "were cut" in done.out
    talks = [conversation(record) for record in records]
    training, evaluations = metrics(tmp_path / "run")
    for k, line in enumerate(training):
        expected = reference_loss(tiny, talks[4 * k : 4 * k + 4], 80)
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
    expected = reference_loss(tiny, talks[:7], 80)
    assert evaluations[0]["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_epochs_count_passes_over_the_data(trained, metrics, tmp_path):
    lengths = {"training.max_steps": None, "training.num_epochs": 0.5}
    assert trained("run", **lengths).code == 0
    training, _ = metrics(tmp_path / "run")
    assert [line["step"] for line in training] == list(range(1, 7))
    assert training[-1]["epoch"] == 0.5


@pytest.mark.parametrize(
    ("epochs", "each", "steps"),
    [(0.7, 10, 7), (1, 2.5, 3), (3, 10 / 3, 10), (0.1, 1, 1)],
)
def test_a_last_step_begun_is_taken_whole(epochs, each, steps):
    assert run.steps_in(epochs, each) == steps


def test_packed_rows_hold_more_tokens(trained, metrics, tmp_path):
    assert trained("plain").code == 0
    done = trained("packed", **{"data.packing": True, "data.max_length": 256})
    assert done.code == 0 and "packed rows" in done.out
    plain, packed = (metrics(tmp_path / name)[0] for name in ("plain", "packed"))
    assert packed[-1]["tokens"] > 1.8 * plain[-1]["tokens"]
    assert packed[-1]["loss"] < packed[0]["loss"]
    assert packed[-1]["epoch"] > 1.8 * plain[-1]["epoch"]


def test_sources_are_mixed_by_their_weights(trained, files, records, tmp_path):
    talks = [{"prompt": r["input"], "completion": r["output"]} for r in records[:4]]
    sources = [
        {"path": files["train"], "weight": 3.0},
        {
            "path": str(write(tmp_path / "talks.jsonl", talks)),
            "format": "prompt_completion",
        },
    ]
    done = trained("run", **{"data.train": sources})
    assert done.code == 0
    assert "training data: 52 examples" in done.out
    answer = records[0]["output"]
    (line,) = [s for s in done.out.splitlines() if s.startswith("  the first, ⟦")]
    assert f"⟦{answer[:40]}" in line and f"{answer[-20:]}<|im_end|>⟧" in line


def test_plain_text_is_learned_whole(trained, metrics, records, tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(record["output"] for record in records[:8]))
    done = trained(
        "run",
        **{
            "data.train": {"path": str(text), "format": "text"},
            "data.shuffle": False,
            "optimizer.learning_rate": 0.0,
            "training.max_steps": 1,
        },
    )
    assert done.code == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    total = count = 0
    for record in records[:4]:
        ids = [*tokenizer(record["output"])["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
        total, count = total + loss * (len(ids) - 1), count + len(ids) - 1
    training, _ = metrics(tmp_path / "run")
    assert training[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_early_stopping_ends_the_run_and_its_repetition(
    trained, metrics, files, tmp_path
):
    changes = {
        "data.eval": {"path": files["eval"]},
        "optimizer.learning_rate": 0.0,  # nothing gets better
        "training.eval_steps": 1,
        "training.early_stopping_patience": 3,
        "training.save_steps": 1,
    }
    for _ in range(2):
        done = trained("run", **changes)
        assert done.code == 0
        training, evaluations = metrics(tmp_path / "run")
        assert [line["step"] for line in training] == [1, 2, 3, 4]
        assert evaluations[-1]["step"] == 4
    assert (tmp_path / "run" / "adapter").is_dir()


def test_training_goes_on_from_an_adapter(trained, metrics, files, tmp_path):
    evaluated = {"data.eval": {"path": files["eval"]}}
    assert trained("first", **evaluated).code == 0
    init = {"init_from": str(tmp_path / "first" / "adapter")}
    assert trained("second", adapter=init, **evaluated).code == 0
    before, after = (metrics(tmp_path / name)[1] for name in ("first", "second"))
    assert after[0]["eval_loss"] == pytest.approx(before[-1]["eval_loss"], abs=1e-6)
    assert after[-1]["eval_loss"] < after[0]["eval_loss"]
    own = PeftConfig.from_pretrained(tmp_path / "second" / "adapter")
    assert (own.r, own.lora_alpha, own.lora_dropout) == (4, 8, 0)
    assert own.target_modules == {"q_proj", "up_proj"}

    changed = {"adapter": {**init, "lora_dropout": 0.1}, "training.max_steps": 1}
    assert trained("third", **changed).code == 0
    own = PeftConfig.from_pretrained(tmp_path / "third" / "adapter")
    assert own.lora_dropout == 0.1

    done = trained("fourth", adapter={**init, "r": 8, "target_modules": ["q_proj"]})
    assert done.code == 2
    assert "rank 4 in the adapter, 8 in the configuration" in done.err
    assert "set adapter.r to 4" in done.err
    assert "adapts model.layers.mlp.up_proj.kernel, which the config" in done.err
    assert not (tmp_path / "fourth").exists()


def test_the_configuration_written_for_an_init_from_run_repeats_it(
    trained, command, tmp_path
):
    """The adapter's own targets, not the default ones, are what it resolves to."""
    assert trained("first").code == 0
    init = {"init_from": str(tmp_path / "first" / "adapter")}
    assert trained("second", adapter=init).code == 0
    config, output = tmp_path / "second" / "config.yaml", tmp_path / "again"
    done = command("train", "--config", str(config), f"output_dir={output}")
    assert done.code == 0, done.err


def test_virtual_tokens_are_trained_and_asked_and_repeated(trained, command, tmp_path):
    """Of a method without a module, the configuration as it is written holds too."""
    rules = {"method": "prompt_tuning", "num_virtual_tokens": 3}
    assert trained("first", adapter=rules).code == 0
    run = tmp_path / "first"
    kind = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert kind["peft_type"] == "PROMPT_TUNING" and kind["num_virtual_tokens"] == 3
    words = ["--prompt", "Lisbon, sun", "--max-new-tokens", "5"]
    asked = command("generate", "--run", str(run), *words)
    assert asked.code == 0, asked.err
    output = tmp_path / "again"
    done = command(
        "train", "--config", str(run / "config.yaml"), f"output_dir={output}"
    )
    assert done.code == 0, done.err
    stored = "adapter/adapter_model.safetensors"
    assert (output / stored).read_bytes() == (run / stored).read_bytes()


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path
