"""A classifier from its command to its files, which transformers and PEFT open."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

WORDS = {"good": "great lovely superb fine".split(), "bad": "poor awful dire".split()}
STEPS = {"training.max_steps": 6, "training.save_steps": 3, "training.eval_steps": 3}


def record(number):
    label = ("good", "bad")[number % 2]
    word = WORDS[label][number // 2 % len(WORDS[label])]
    return {"text": f"It was {word}{' to see' * (number % 3)}.", "label": label}


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """{"objective", "data.train", "data.eval"}: 24 records of two classes, 7 others."""
    folder = tmp_path_factory.mktemp("labelled")
    for name, numbers in (("train", range(24)), ("eval", range(24, 31))):
        lines = [json.dumps(record(n)) + "\n" for n in numbers]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    sources = {
        f"data.{name}": {"path": str(folder / f"{name}.jsonl"), "format": "text"}
        for name in ("train", "eval")
    }
    return {"objective": {"name": "classification"}, **sources, **STEPS}


def predictions(command, run, tmp_path):
    path = tmp_path / "predictions.jsonl"
    done = command("evaluate", "--run", str(run), "--json", "--predictions", str(path))
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(done.out), lines


def scored(model, tokenizer):
    """The scores of the evaluation's records by transformers, one batch of all."""
    texts = [record(n)["text"] for n in range(24, 31)]
    with torch.no_grad():
        return model.eval()(
            **tokenizer(texts, padding=True, return_tensors="pt")
        ).logits.numpy()


def test_a_run_is_what_peft_and_transformers_open(
    trained, labelled, command, metrics, tiny, tmp_path
):
    from peft import PeftModel

    dropping = {"adapter": {"r": 4, "lora_dropout": 0.1}}
    done = trained("run", **labelled, **dropping)
    assert done.code == 0, done.err
    run, tokenizer = tmp_path / "run", AutoTokenizer.from_pretrained(tiny)
    lines, evaluations = metrics(run)
    assert {"loss", "accuracy"} <= set(lines[-1])
    result, said = predictions(command, run, tmp_path)
    assert result["eval_loss"] == pytest.approx(evaluations[-1]["eval_loss"], abs=1e-5)
    hits = [line["label"] == line["prediction"] for line in said]
    assert result["eval_accuracy"] == pytest.approx(np.mean(hits))
    assert result["eval_examples"] == len(said) == 7
    assert [line["label"] for line in said] == [
        record(n)["label"] for n in range(24, 31)
    ]
    scores = np.array([line["scores"] for line in said])

    pad = tokenizer.pad_token_id
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny, num_labels=2, pad_token_id=pad
    )
    model = PeftModel.from_pretrained(base, run / "adapter")
    np.testing.assert_allclose(scored(model, tokenizer), scores, atol=2e-5)

    out = tmp_path / "merged"
    done = command("export", "--run", str(run), "--to", "merged", "--out", str(out))
    assert done.code == 0, done.err
    merged = AutoModelForSequenceClassification.from_pretrained(out)
    assert merged.config.id2label == {0: "bad", 1: "good"}
    again = AutoTokenizer.from_pretrained(out)
    np.testing.assert_allclose(scored(merged, again), scores, atol=2e-4)
    out = tmp_path / "peft"
    adapter = ["--model", str(tiny), "--adapter", str(run / "adapter")]
    done = command("export", *adapter, "--to", "peft", "--out", str(out))
    assert done.code == 0, done.err
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])

    for asked in (["--run", str(run)], adapter, ["--model", str(tmp_path / "merged")]):
        done = command("generate", *asked, "--prompt", "Hello")
        assert done.code == 2
        assert "LlamaForSequenceClassification) and writes no text" in done.err
    done = command(
        "export", "--run", str(run), "--to", "vllm", "--out", str(tmp_path / "vllm")
    )
    assert done.code == 2 and "no head of scores" in done.err


def test_it_goes_on_to_the_bit_and_another_starts_from_it(
    trained, labelled, tmp_path, command
):
    dropping = {"adapter": {"r": 4, "lora_dropout": 0.1}}
    straight = trained("run", **labelled, **dropping)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "6")
    again = trained("again", **labelled, **dropping)
    assert "continuing after step 3" in again.out
    assert again.digest == straight.digest
    start = {"adapter": {"init_from": str(tmp_path / "run" / "adapter")}}
    done = trained("next", **labelled, **start)
    assert done.code == 0, done.err
    first = json.loads((tmp_path / "next" / "metrics.jsonl").read_text().split("\n")[0])
    result, _ = predictions(command, tmp_path / "run", tmp_path)
    assert first["eval_loss"] == pytest.approx(result["eval_loss"], abs=1e-5)


def test_a_whole_model_trains_and_a_classifier_is_a_base(
    trained, labelled, command, tmp_path
):
    done = trained("run", **labelled, adapter={"method": "full"})
    assert done.code == 0, done.err
    _, said = predictions(command, tmp_path / "run", tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    scores = np.array([line["scores"] for line in said])
    np.testing.assert_allclose(scored(model, tokenizer), scores, atol=2e-5)

    base = {"model": {"path": str(tmp_path / "run/model"), "dtype": "float32"}}
    done = trained("next", **labelled, **base, adapter={"method": "ia3"})
    assert done.code == 0, done.err
    first = json.loads((tmp_path / "next" / "metrics.jsonl").read_text().split("\n")[0])
    logs = torch.log_softmax(torch.tensor(scores), 1)
    number = {"bad": 0, "good": 1}
    loss = -np.mean([logs[i, number[x["label"]]] for i, x in enumerate(said)])
    assert first["eval_loss"] == pytest.approx(loss, abs=1e-5)
    done = trained("words", **base)
    assert done.code == 2 and "has no head that writes text" in done.err
    wrong = {"objective": {"name": "classification", "num_labels": 3}}
    done = trained("three", **{**labelled, **wrong}, **base)
    assert done.code == 2 and "the training data have 2 labels: bad, good" in done.err
    wrong = {"objective": {"name": "classification", "labels": ["good", "bad"]}}
    done = trained("other", **{**labelled, **wrong}, **base)
    assert done.code == 2 and "the model's own labels are bad, good" in done.err


@pytest.mark.parametrize("method", ["prompt_tuning", "bitfit"])
def test_methods_without_a_place_for_the_head_are_refused(method, trained, labelled):
    done = trained("run", **labelled, adapter={"method": method})
    assert done.code == 2
    assert f"adapter.method: found '{method}'; the head of scores" in done.err


def test_bases_of_few_bits_plans_and_sweeps(
    trained, labelled, command, settings, metrics, tmp_path
):
    few = {"model.quantization": "int8", "training.max_steps": 3}
    done = trained("run", **{**labelled, **few})
    assert done.code == 0, done.err
    config = tmp_path / "run.yaml"
    done = command("plan", "--config", str(config), "output_dir=x")
    assert done.code == 0, done.err
    rates = "optimizer.learning_rate=0.01,0.003"
    output = f"output_dir={tmp_path / 'sweep'}"
    done = command("sweep", "--config", str(config), "--grid", rates, output)
    assert done.code == 0, done.err
    points = [path.parent for path in tmp_path.glob("sweep*/**/metrics.jsonl")]
    assert len(points) == 2
    first, alone = metrics(tmp_path / "run")
    same = [
        one
        for one, evaluated in map(metrics, points)
        if evaluated[-1]["eval_loss"] == pytest.approx(alone[-1]["eval_loss"], abs=1e-5)
    ]
    assert len(same) == 1 and same[0][-1]["accuracy"] == first[-1]["accuracy"]


def test_eight_devices_take_the_step_of_one(
    trained, labelled, settings, metrics, on_eight, tmp_path
):
    changes = {**labelled, "training.batch_size": 8, "training.max_steps": 3}
    assert trained("one", **changes).code == 0
    mesh = {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}}
    path, output = tmp_path / "eight.yaml", tmp_path / "eight"
    path.write_text(yaml.safe_dump(settings(**changes, **mesh, output_dir=str(output))))
    on_eight(path)
    losses = [[m["loss"] for m in metrics(tmp_path / n)[0]] for n in ("one", "eight")]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_ten_steps_are_those_of_torch_and_peft(
    trained, labelled, metrics, tiny, tmp_path
):
    import peft
    from safetensors.numpy import load_file

    torch.manual_seed(0)
    tokenizer, rate = AutoTokenizer.from_pretrained(tiny), 3e-3
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny, num_labels=2, pad_token_id=tokenizer.pad_token_id
    )
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules="all-linear"
    )
    model = peft.get_peft_model(base, lora).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.02)
    model.save_pretrained(tmp_path / "start")
    trains = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trains, lr=rate, weight_decay=0.0)
    theirs = []
    for step in range(10):
        own = [record(n % 24) for n in range(4 * step, 4 * step + 4)]
        batch = tokenizer([r["text"] for r in own], padding=True, return_tensors="pt")
        labels = torch.tensor([int(r["label"] == "good") for r in own])
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
    model.save_pretrained(tmp_path / "end")

    settings = {
        "training.max_steps": 10,
        "training.batch_size": 4,
        "data.shuffle": False,
        "adapter": {"init_from": str(tmp_path / "start")},
        "optimizer": {
            "learning_rate": rate,
            "weight_decay": 0.0,
            "max_grad_norm": None,
        },
    }
    done = trained("run", **{**labelled, **settings})
    assert done.code == 0, done.err
    losses = [line["loss"] for line in metrics(tmp_path / "run")[0]]
    np.testing.assert_allclose(losses, theirs, rtol=1e-3)
    start, end, ours = (
        load_file(tmp_path / name / "adapter_model.safetensors")
        for name in ("start", "end", "run/adapter")
    )
    assert set(ours) == set(end)
    moved = sum(float(((end[n] - start[n]) ** 2).sum()) for n in end) ** 0.5
    apart = sum(float(((end[n] - ours[n]) ** 2).sum()) for n in end) ** 0.5
    assert apart < 2e-2 * moved
