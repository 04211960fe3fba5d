"""A reward model from its command to its files, which transformers and PEFT open."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def pair(number):
    question = f"What is {number} and one?"
    chosen, rejected = f"It is {number + 1}.", f"It may be {number} or so."
    return {"prompt": question, "chosen": chosen, "rejected": rejected, "margin": 0.1}


@pytest.fixture
def pairs(tmp_path):
    for name, numbers in (("train", range(12)), ("eval", range(12, 17))):
        lines = [json.dumps(pair(n)) + "\n" for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    sources = {
        f"data.{name}": {"path": str(tmp_path / f"{name}.jsonl"), "format": "messages"}
        for name in ("train", "eval")
    }
    steps = {"training.max_steps": 4, "training.eval_steps": 2}
    objective = {"name": "reward", "center_rewards_coefficient": 0.01}
    return {"objective": objective, **sources, **steps}


def test_a_run_is_what_peft_and_transformers_open(
    trained, pairs, command, metrics, tiny, tmp_path
):
    from peft import PeftModel

    done = trained("run", **pairs)
    assert done.code == 0, done.err
    run, path = tmp_path / "run", tmp_path / "scores.jsonl"
    lines, evaluations = metrics(run)
    assert {"rewards/chosen", "rewards/margins", "rewards/accuracies"} <= set(lines[-1])
    said = ["--json", "--predictions", str(path)]
    done = command("evaluate", "--run", str(run), *said)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["eval_loss"] == pytest.approx(evaluations[-1]["eval_loss"], abs=1e-5)
    scores = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(scores) == result["eval_pairs"] == 5

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    model = PeftModel.from_pretrained(base, run / "adapter").eval()
    for number, line in enumerate(scores, 12):
        for side in ("chosen", "rejected"):
            talk = [
                {"role": "user", "content": pair(number)["prompt"]},
                {"role": "assistant", "content": pair(number)[side]},
            ]
            text = tokenizer.apply_chat_template(talk, tokenize=False)
            made = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            with torch.no_grad():
                theirs = model(**made).logits.item()
            np.testing.assert_allclose(line[side], theirs, atol=2e-5)
    done = command("generate", "--run", str(run), "--prompt", "Hello")
    assert done.code == 2 and "writes no text" in done.err
