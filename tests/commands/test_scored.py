"""Runs whose evaluations answer: how they are steered, resumed, and told."""

import csv
import json
import shutil

import pytest
import torch
import transformers
import yaml
from peft import PeftModel

from jaxpeft import hf

# Eight questions, whose answers of a word or two are soon known by heart.
WORDS = "sun rain snow hail fog storm wind cloud".split()
CHANGES = {
    "adapter": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "optimizer.learning_rate": 1e-2,
    "schedule.name": "plateau",
    "schedule.patience": 3,
    "schedule.factor": 0.5,
    "training.max_steps": 80,
    "training.eval_steps": 5,
    "training.save_steps": 5,
    "training.save_total_limit": None,
    "training.early_stopping_patience": 5,
    "training.metric_for_best_model": "exact_match",
    "evaluation.metrics": ["exact_match", "rouge_l", "choice_accuracy"],
    "evaluation.max_new_tokens": 6,
}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.json"
    records = [
        {"instruction": f"Word {number}?", "output": word}
        for number, word in enumerate(WORDS)
    ]
    path.write_text(json.dumps(records))
    return {"path": str(path)}


@pytest.fixture(scope="module")
def changes(words):
    return {**CHANGES, "data.train": words, "data.eval": words}


def predicted(run):
    """{step: the rows of its file}."""
    return {
        int(path.stem): [json.loads(line) for line in path.read_text().splitlines()]
        for path in (run / "predictions").iterdir()
    }


def test_exact_match_steers_a_run_that_resumes_to_the_bit(
    trained, changes, metrics, command, tmp_path
):
    done = trained("run", **changes)
    assert done.code == 0, done.err
    run = tmp_path / "run"
    said = "evaluations also score exact_match, rouge_l, choice_accuracy of the answers"
    assert f"{said} to 8 evaluation examples" in done.out
    evaluations = metrics(run)[1]
    scores = [line["eval_exact_match"] for line in evaluations]
    best = max(scores[1:])
    step = next(s["step"] for s in evaluations[1:] if s["eval_exact_match"] == best)
    # It did learn, and ended three evaluations after the first of the best ones.
    assert best > 0.5 and evaluations[-1]["step"] == step + 5 * 5 < 80
    assert f"the best exact_match is {best:.4f}, of step {step}" in done.out
    assert f"highest evaluation exact_match: {best:.4f} after step {step}" in done.out
    assert "by the evaluations the learning rate goes from 1.00e-02 to 5.00e-03" in (
        done.out
    )
    answers = predicted(run)
    assert sorted(answers) == [line["step"] for line in evaluations]
    for line in evaluations:
        rows = answers[line["step"]]
        assert [row["reference"] for row in rows] == WORDS
        exact = [row["answer"].strip() == row["reference"] for row in rows]
        assert line["eval_exact_match"] == sum(exact) / 8
        chosen = [row["chosen"] == row["reference"] for row in rows]
        assert line["eval_choice_accuracy"] == sum(chosen) / 8

    written = command("evaluate", "--run", str(run), "--json")
    assert json.loads(written.out)["eval_exact_match"] == best

    # Cut off while it waits for an improvement, it ends where it ended.
    again = tmp_path / "again"
    shutil.copytree(run, again)
    for folder in (again / "checkpoints").iterdir():
        if int(folder.name) > step + 5:
            shutil.rmtree(folder)
    resumed = trained("again", **changes)
    assert resumed.code == 0, resumed.err
    assert f"continuing after step {step + 5}" in resumed.out
    assert resumed.digest == done.digest
    assert metrics(again)[1] == evaluations
    assert predicted(again) == answers
    # The best so far is one of these answers: with others it is another run.
    other = trained("again", "evaluation.max_new_tokens=3", **changes)
    assert other.code == 2 and "answers" in other.err


def test_answers_and_choices_are_torch_s(finished, tiny, command, tmp_path):
    path = tmp_path / "predictions.jsonl"
    section = "{metrics: [rouge_l, {name: choice_accuracy, choices: [rain, snow]}], "
    done = command(
        *("evaluate", "--run", str(finished), "--json", "--predictions", str(path)),
        f"evaluation={section}max_new_tokens: 12, max_examples: 4, batch_size: 3}}",
    )
    # The references are no such choices.
    assert done.code == 2 and "example 0: the reference 'It will" in done.err
    section = section.replace(", {name: choice_accuracy, choices: [rain, snow]}", "")
    done = command(
        *("evaluate", "--run", str(finished), "--json", "--predictions", str(path)),
        *("--metric", "choice_accuracy"),
        f"evaluation={section}max_new_tokens: 12, max_examples: 4, batch_size: 3}}",
    )
    assert done.code == 0, done.err
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    model = PeftModel.from_pretrained(model, str(finished / "adapter")).eval()
    tokenizer = hf.load_tokenizer(tiny)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 4
    scores = [row["scores"]["rouge_l"] for row in rows]
    assert json.loads(done.out)["eval_rouge_l"] == pytest.approx(sum(scores) / 4)
    choices = sorted({row["reference"] for row in rows})
    for row in rows:
        text = row["prompt"].removeprefix("user\n").removesuffix("\nassistant\n")
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
        )["input_ids"]
        with torch.no_grad():
            answer = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=hf.stop_ids(tiny, tokenizer),
            )[0, ids.shape[1] :]
            sums = []
            for choice in choices:
                own = tokenizer(choice, add_special_tokens=False, return_tensors="pt")
                whole = torch.cat([ids, own["input_ids"]], 1)
                logps = model(whole).logits.log_softmax(-1)[0, ids.shape[1] - 1 : -1]
                sums.append(logps.gather(1, own["input_ids"].T).sum().item())
        assert row["answer"] == tokenizer.decode(answer, skip_special_tokens=True)
        assert row["chosen"] == choices[sums.index(max(sums))]


OWN = """
def upset(answer, reference):
    if answer != reference:
        raise ValueError("no")
    return 1.0

def wordy(answer, reference):
    return "good"
"""


def test_a_function_of_the_user_s_own_that_fails(
    trained, changes, metrics, command, tmp_path
):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    changes = {
        **changes,
        "evaluation.metrics": [],
        "evaluation.max_examples": 2,
        "training.max_steps": 2,
        "training.metric_for_best_model": "upset",
    }
    # Before the first step it ends the command, and nothing is written.
    done = trained("run", "--metric", f"{path}:wordy", **changes)
    assert done.code == 2 and "own.py:wordy: gave 'good'" in done.err
    done = trained("run", **changes)
    assert done.code == 2
    assert "metric_for_best_model: found 'upset'; an evaluation gives no" in done.err
    assert not (tmp_path / "run").exists()
    # On an answer it costs a score, and no step.
    done = trained("run", "--metric", f"{path}:upset", **changes)
    assert done.code == 0, done.err
    assert "after step 2: example 0: --metric" in done.err
    assert "ValueError: no; mend the function; the run goes on" in done.err
    assert [line["eval_upset"] for line in metrics(tmp_path / "run")[1]] == [None] * 2
    # `evaluate` is there to tell the score.
    run = ["evaluate", "--run", str(tmp_path / "run")]
    failed = command(*run, "--metric", f"{path}:upset")
    assert failed.code == 2 and "failed on the answer" in failed.err
    taken = command(*run, "--metric", "rouge_l", "--predictions", str(path))
    assert taken.code == 2 and "exists; name a new file" in taken.err


def test_what_cannot_be_asked_ends_before_anything_is_written(
    trained, changes, files, tmp_path
):
    text = tmp_path / "text.txt"
    text.write_text("A document, and no question.\n")
    gsm8k = [{"name": "exact_match", "extract": "gsm8k"}]
    for more, told in (
        ({"data.eval": {"path": str(text), "format": "text"}}, "none of the 1 eval"),
        (
            {"evaluation.metrics": gsm8k},
            "example 0: the reference 'sun' holds no '#### '",
        ),
        ({"schedule.mode": "min"}, "schedule.mode: found 'min' beside"),
        ({"training.metric_for_best_model": "accurate"}, "did you mean 'accuracy'"),
    ):
        done = trained("run", **{**changes, **more})
        assert done.code == 2 and told in done.err, done.err
        assert not (tmp_path / "run").exists()


def test_a_sweep_is_ordered_by_the_metric(settings, changes, command, tmp_path):
    path = tmp_path / "sweep.yaml"
    few = {"training.max_steps": 20, "training.eval_steps": 10}
    few |= {"evaluation.metrics": ["rouge_l"]}
    few |= {"training.metric_for_best_model": "rouge_l"}
    config = settings(**{**changes, **few})
    config["schedule"] = {"name": "constant"}
    path.write_text(yaml.safe_dump(config))
    out = tmp_path / "sweep"
    done = command(
        *("sweep", "--config", str(path), f"output_dir={tmp_path / 'run'}"),
        *("--grid", "optimizer.learning_rate=1e-6,1e-2", "--out", str(out)),
    )
    assert done.code == 0, done.err
    sweep = json.loads((out / "sweep.json").read_text())
    assert sweep["judged_by"] == "best_eval_rouge_l"
    low, high = sweep["points"]
    assert low["best_figure"] < high["best_figure"]
    assert (
        f"best: learning_rate=0.01, best_eval_rouge_l {high['best_figure']:.4f}"
        in done.out
    )
    table = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert [row["optimizer.learning_rate"] for row in table] == ["0.01", "1e-06"]
    assert float(table[0]["best_eval_rouge_l"]) == high["best_figure"]
    rows = predicted(out / "points" / "01")
    assert sorted(rows) == [0, 10, 20] and rows[20] != rows[0]
    assert '<th scope="col">rouge_l</th>' in (out / "report.html").read_text()
