"""`evaluate --tasks`: EleutherAI's harness asks our model, beside its own."""

import json
import shutil

import harness_check
import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, hash_args

from jaxpeft.errors import InputError
from jaxpeft.evaluate import loading
from jaxpeft.generate.likelihood import batches

LONG = " ".join(
    f"The sky over hill {number} is clear and cold." for number in range(40)
)


@pytest.fixture(scope="module")
def models(tiny):
    """The same weights asked by us, and by the harness's own model."""
    return harness_check.ours(str(tiny), 4), harness_check.theirs(str(tiny), 1)


def test_an_adapter_is_asked_as_peft_has_it(tiny, finished, models):
    adapter, given = finished / "adapter", (("It is", " cold"), ("Snow", " falls here"))
    asked = requests("loglikelihood", *given)
    ours = harness_check.ours(str(tiny), 2, adapter=adapter).loglikelihood(asked)
    theirs = harness_check.theirs(str(tiny), 2, adapter).loglikelihood(asked)
    for own, other in zip(ours, theirs, strict=True):
        assert own[0] == pytest.approx(other[0], abs=1e-4)
    base = models[0].loglikelihood(asked)
    assert all(abs(own[0] - one[0]) > 1e-2 for own, one in zip(ours, base))


def requests(kind, *given):
    return [
        Instance(kind, {}, one, number, (f"a {kind} task", number, 1))
        for number, one in enumerate(given)
    ]


def test_log_likelihoods_are_those_of_the_harness_s_own_model(models):
    context = "Question: Is it cold on the hill?\nAnswer:"
    given = [
        (context, " yes"),
        (context, " no"),
        (context, " maybe, since the wind is strong"),
        (context + " ", "yes"),  # the space goes to the continuation
        (context, "yes"),
        ("", "Snow falls."),
        ("", "<|bos|> Snow falls."),
        ("<|bos|>Snow", " falls"),
        (LONG, " yes"),  # longer than the model's context
        (LONG, " yes, and so it is on every other hill"),
        ("Snow ", " "),
    ]
    asked = requests("loglikelihood", *given)
    ours, theirs = (model.loglikelihood(asked) for model in models)
    for own, other, one in zip(ours, theirs, given, strict=True):
        assert own[0] == pytest.approx(other[0], abs=1e-4), one
        assert own[1] == other[1], one
    assert len({round(value, 3) for value, _ in ours}) > 8


def test_whole_texts_and_answers_are_those_of_the_harness_s_own_model(models):
    texts = requests("loglikelihood_rolling", ("Snow falls.",), (LONG,), ("",))
    ours, theirs = (model.loglikelihood_rolling(texts) for model in models)
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-4)
    assert ours[1] < ours[0] < ours[2] < 0
    settings = [
        {"until": ["\n"], "max_gen_toks": 24},
        {"until": "e", "max_gen_toks": 24, "do_sample": False, "temperature": 0.0},
        {"max_new_tokens": 7, "num_beams": 1},
        {"until": ["<|im_start|>"], "max_gen_toks": 24, "repetition_penalty": 1.5},
    ]
    given = [(text, one) for one in settings for text in ("Snow", "Is it cold?", LONG)]
    asked = requests("generate_until", *given)
    ours, theirs = (model.generate_until(asked) for model in models)
    assert ours == theirs and len(set(ours)) > 6


def test_what_is_found_goes_to_the_harness_s_cache(models):
    ours, kept = models[0], {}
    ours.set_cache_hook(CacheHook(None))
    ours.cache_hook.dbdict = kept
    for kind, given in {
        "loglikelihood": ("Snow", " falls"),
        "loglikelihood_rolling": ("Snow falls.",),
        "generate_until": ("Snow", {"until": ["."], "max_gen_toks": 4}),
    }.items():
        (found,) = getattr(ours, kind)(requests(kind, given))
        assert kept[hash_args(kind, given)] == found
    ours.set_cache_hook(CacheHook(None))


def test_what_cannot_be_asked_is_said(models):
    ours = models[0]
    with pytest.raises(InputError, match='document 0: the continuation "" adds no tok'):
        ours.loglikelihood(requests("loglikelihood", ("Snow", "")))
    with pytest.raises(InputError, match="tokens, the model's context 256"):
        ours.loglikelihood(requests("loglikelihood", ("Snow", LONG)))
    for settings, text in (
        ({"typical_p": 0.5}, "found typical_p, which are not handled"),
        ({"max_gen_toks": 256}, "fit into the model's context of 256 tokens"),
        ({"temperature": 1.0, "top_p": 2.0}, "top-p: found 2.0"),
        ({"temperature": 1.0, "top_p": "half"}, "top_p: found 'half', which is no nu"),
        ({"max_gen_toks": "many"}, "max_gen_toks: found 'many', which is no number"),
    ):
        with pytest.raises(InputError, match=text):
            ours.generate_until(requests("generate_until", ("Snow", settings)))


def test_what_is_drawn_differs_between_repeats_and_not_between_batch_sizes(
    models, tiny
):
    asked = requests(
        "generate_until",
        *[("Snow falls on", {"max_gen_toks": 6, "do_sample": True, "temperature": 1.0})]
        * 5,
    )
    once = models[0].generate_until(asked)
    assert len(set(once)) == 5
    assert harness_check.ours(str(tiny), 2).generate_until(asked) == once


def test_conversations_are_written_as_the_harness_s_own_model_does(models):
    system = {"role": "system", "content": "Be brief."}
    talk = [system, {"role": "user", "content": "Is it cold?"}]
    begun = [*talk, {"role": "assistant", "content": "It is"}]
    for messages, more in ((talk, True), (begun, False)):
        ours, theirs = (m.apply_chat_template(messages, more) for m in models)
        assert ours == theirs and "Is it cold?" in ours
    assert models[0].tokenizer_name == models[1].tokenizer_name
    assert models[0].chat_template(True) == models[1].chat_template(True)


def test_batches_have_few_widths_and_hold_all():
    lengths = [3 * number % 101 + 1 for number in range(101)]
    found = list(batches(lengths, 4, 90 + 12))
    assert sorted(n for part, _ in found for n in part) == list(range(101))
    assert all(lengths[n] <= width for part, width in found for n in part)
    assert len({width for _, width in found}) == 4
    assert found[0][1] == 102


@pytest.fixture
def folder(tmp_path, records):
    """A folder with two tasks of a few documents."""
    asked = [
        {"question": one["input"] or one["instruction"], "answer": one["output"]}
        for one in records[:6]
    ]
    choice = [
        {"question": one["question"], "choices": ["yes", "no", "cold"], "gold": n % 3}
        for n, one in enumerate(asked)
    ]
    path = tmp_path / "tasks"
    path.mkdir()
    found = {harness_check.CHOICE: choice, harness_check.ANSWER: asked}
    harness_check.write(path, found)
    return path


def own(folder, key):
    """A task `own`, in which a function of the file own.py stands."""
    about = yaml.safe_load((folder / "our_answer.yaml").read_text()) | {"task": "own"}
    text = yaml.safe_dump(about) + f"{key}: !function own.function\n"
    (folder / "own.yaml").write_text(text)


def test_a_run_is_asked_and_its_answers_are_kept(
    finished, tiny, command, folder, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    names = f"{harness_check.CHOICE},{harness_check.ANSWER}"
    given = ["--run", str(run), "--tasks", names, "--include_path", str(folder)]
    table = tmp_path / "rows.jsonl"
    limits = ["--limit", "4", "--num_fewshot", "1", "--predictions", str(table)]
    done = command("evaluate", *given, *limits, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    (path,) = (run / "harness").iterdir()
    kept = json.loads(path.read_text())
    assert kept["results"] == said["results"] and kept["n-shot"] == {
        harness_check.CHOICE: 1,
        harness_check.ANSWER: 1,
    }
    answers = kept["samples"][harness_check.ANSWER]
    assert len(answers) == 4 and all(isinstance(a["resps"][0][0], str) for a in answers)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert len(rows) == 8 and {row["task"] for row in rows} == set(names.split(","))
    figures = said["results"][harness_check.CHOICE]
    own = [row["acc"] for row in kept["samples"][harness_check.CHOICE]]
    assert figures["acc,none"] == pytest.approx(sum(own) / 4)
    # The same weights by another name; the table has the same figures.
    given = ["--model", str(tiny), "--adapter", str(run / "adapter"), *given[2:]]
    done = command("evaluate", *given, *limits[:4])
    lines = {tuple(line.split()[:3]) for line in done.out.splitlines()}
    line = harness_check.CHOICE, "acc", f"{figures['acc,none']:.4f}"
    assert line in lines and len(lines) == 3
    # And as a configuration says, of the first four by their share.
    given = ["--config", str(run / "config.yaml"), "--tasks", harness_check.CHOICE]
    given += ["--include_path", str(folder), "--limit", "0.6", *limits[2:4]]
    done = command("evaluate", *given, f"adapter.init_from={run / 'adapter'}")
    assert line in {tuple(line.split()[:3]) for line in done.out.splitlines()}


def test_what_is_wrong_with_tasks_is_said_at_once(command, tiny, folder, monkeypatch):
    model, ours = ["--model", str(tiny)], ["--include_path", str(folder)]
    (folder / "away.yaml").write_text(
        yaml.safe_dump(
            {
                "task": "away",
                "dataset_path": "nobody/nothing",
                "output_type": "generate_until",
                "test_split": "test",
                "doc_to_text": "{{a}}",
                "doc_to_target": "{{b}}",
            }
        )
    )
    script = yaml.safe_load((folder / "our_answer.yaml").read_text())
    script |= {"task": "script", "metric_list": [{"metric": "code_eval"}]}
    (folder / "script.yaml").write_text(yaml.safe_dump(script))
    (folder / "own.py").write_text("raise RuntimeError('in my file')\n")
    own(folder, "process_docs")
    done = command("evaluate", *model, *ours, "--tasks", "away,script,own")
    assert done.code == 2 and "Traceback" not in done.err
    assert "away cannot be loaded" in done.err and "HF_HUB_OFFLINE" in done.err
    assert "the metric 'code_eval' is a program of the hub's" in done.err
    assert "own cannot be loaded (RuntimeError: in my file)" in done.err
    for given, text in (
        (["--limit", "3"], "--limit: belongs to --tasks"),
        ([*model, "--tasks", "our_choice", *ours, "--limit", "0"], "1 or more"),
        ([*model, "--tasks", "our_choice", *ours, "--limit", "2.5"], "below 1"),
        (["--tasks", "our_choice"], "one of --run DIR, --config FILE and --model PATH"),
        ([*model, "--tasks", "x", "--metric", "bleu"], "which score themselves"),
        ([*model, "--tasks", "x", "--include_path", "no/folder"], "is no folder"),
    ):
        done = command("evaluate", *given)
        assert done.code == 2 and text in done.err
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    done = command("evaluate", *model, "--tasks", "our_choice")
    assert done.code == 2 and "pip install 'jaxpeft[eval]'" in done.err


def test_answers_that_cannot_be_scored_are_kept(finished, command, folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (folder / "own.py").write_text("def function(doc, results):\n    return 1 / 0\n")
    own(folder, "process_results")
    done = command(
        *("evaluate", "--run", str(run), "--include_path", str(folder)),
        *("--tasks", "own", "--limit", "2"),
    )
    assert done.code == 2 and "ZeroDivisionError" in done.err
    (path,) = (run / "harness").iterdir()
    assert str(path) in done.err
    kept = json.loads(path.read_text())["samples"]["own"]
    assert [isinstance(one["resps"][0], str) for one in kept] == [True, True]


def test_names_are_matched_and_the_nearest_is_told(folder, monkeypatch):
    module = loading.importlib.import_module("lm_eval.tasks")
    every = module.TaskManager

    def few(include_path, include_defaults=False):  # the harness has 14,000, in 14 s
        return every(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(module, "TaskManager", few)
    loaded = loading.load(loading.Choice(["our_*"], str(folder), num_fewshot=3))
    assert sorted(loaded["tasks"]) == ["our_answer", "our_choice"]
    assert [t.config.num_fewshot for t in loaded["tasks"].values()] == [3, 3]
    with pytest.raises(InputError) as told:
        loading.load(loading.Choice(["our_choise", "nothing*"], str(folder)))
    first, second = told.value.problems
    assert "'our_choise' is no task" in first and "did you mean 'our_choice'" in first
    assert "'nothing*' is no task of the harness" in second
