"""`generate`: answers that are transformers' own, text for text."""

import json
import shutil

import jax
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxpeft import adapters, hf, models

PROMPTS = ["place: Hamburg, time: Thursday morning, sky: snow", "Hello"]


@pytest.fixture(scope="module")
def reference(finished, tiny):
    """reference(texts): transformers' greedy answers with the run's adapter."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, finished / "adapter").eval()

    def answer(text):
        encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        out = model.generate(**encoded, max_new_tokens=24, do_sample=False)
        new = out[0, encoded["input_ids"].shape[1] :]
        return tokenizer.decode(new, skip_special_tokens=True)

    def chat(prompt, system):
        turns = [{"role": "system", "content": system}] if system else []
        turns += [{"role": "user", "content": prompt}]
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )

    return lambda prompt, system=None: answer(chat(prompt, system))


def test_greedy_answers_are_those_of_transformers(finished, command, reference):
    asked = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    shared = ["--run", str(finished), "--max-new-tokens", "24"]
    done = command("generate", *shared, *asked)
    assert done.code == 0
    assert done.out == "".join(f"{reference(prompt)}\n" for prompt in PROMPTS)
    done = command("generate", *shared, *asked, "--system", "Be brief.")
    assert done.out == "".join(f"{reference(p, 'Be brief.')}\n" for p in PROMPTS)


def test_a_model_and_an_adapter_answer_like_the_run(finished, tiny, command):
    asked = ["--prompt", PROMPTS[0], "--max-new-tokens", "24"]
    run = command("generate", "--run", str(finished), *asked)
    parts = ["--model", str(tiny), "--adapter", str(finished / "adapter")]
    assert command("generate", *parts, *asked).out == run.out
    bare = command("generate", "--model", str(tiny), *asked)
    assert bare.code == 0 and bare.out != run.out


def test_a_seed_draws_the_same_answer_again(finished, command):
    asked = ["--run", str(finished), "--prompt", "Hello", "--max-new-tokens", "24"]
    asked += ["--temperature", "1.5", "--top-p", "0.95"]
    outs = [command("generate", *asked, "--seed", seed).out for seed in "001"]
    assert outs[0] == outs[1] != outs[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny):
    """{name: folder} of two random adapters for the tiny model, of unlike ranks."""
    cfg = models.config(tiny)
    params, found = hf.load(tiny, cfg, dtype="float32"), {}
    for number, name in enumerate(["one", "two"]):
        rules = {"r": 2 + 3 * number, "init_lora_weights": False}
        adapted = adapters.inject(params, rules, jax.random.key(number))
        found[name] = tmp_path_factory.mktemp("adapters") / name
        hf.save_adapter(adapted, found[name], cfg)
    return found


@pytest.fixture
def written(tmp_path):
    """written(*records): the path of a jsonl file with them."""

    def write(*records):
        path = tmp_path / "requests.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


def test_streamed_answers_are_the_same(finished, command):
    asked = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    shared = ["--run", str(finished), "--max-new-tokens", "24", *asked]
    for more in ([], ["--temperature", "1.5", "--top-k", "30", "--seed", "3"]):
        streamed = command("generate", *shared, *more, "--stream")
        assert streamed.code == 0
        assert streamed.out == command("generate", *shared, *more).out


def test_an_answer_ends_before_a_stop_text(finished, tiny, command):
    """One that spans two tokens, streamed or not."""
    asked = ["--run", str(finished), "--prompt", PROMPTS[0], "--max-new-tokens", "24"]
    whole = command("generate", *asked).out.removesuffix("\n")
    middle = len(whole) // 2
    stop = whole[middle : middle + 6]
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert len(tokenizer.tokenize(stop)) > 1
    expected = whole.split(stop)[0] + "\n"
    stops = ["--stop", "never said", "--stop", stop]
    assert command("generate", *asked, *stops).out == expected
    assert command("generate", *asked, *stops, "--stream").out == expected
    done = command("generate", *asked, "--stop", "")
    assert done.code == 2 and "--stop: found an empty text" in done.err


def test_requests_of_a_file_are_written_again_with_their_answers(
    finished, command, written, reference, tmp_path
):
    talk = [{"role": "user", "content": "Hello"}]
    path = written(
        {"id": 7, "prompt": PROMPTS[0]},
        {"messages": talk},
        {"prompt": PROMPTS[0], "system": "Be brief."},
    )
    shared = ["--run", str(finished), "--max-new-tokens", "24", "--prompts", path]
    done = command("generate", *shared, "--batch-size", "2")
    assert done.code == 0
    assert [json.loads(line) for line in done.out.splitlines()] == [
        {"id": 7, "prompt": PROMPTS[0], "answer": reference(PROMPTS[0])},
        {"messages": talk, "answer": reference("Hello")},
        {
            "prompt": PROMPTS[0],
            "system": "Be brief.",
            "answer": reference(PROMPTS[0], "Be brief."),
        },
    ]
    out = tmp_path / "answers.jsonl"
    again = command("generate", *shared, "--out", str(out))
    assert again.out == "" and out.read_text() == done.out
    again = command("generate", *shared, "--out", str(out))
    assert again.code == 2 and "exists; name a new file" in again.err


def test_each_request_has_the_adapter_that_it_names(folders, tiny, command, written):
    shared = ["--model", str(tiny), "--max-new-tokens", "12"]
    asked = [*shared, "--prompt", PROMPTS[0]]
    alone = {"base": command("generate", *asked).out.strip("\n")}
    for name, folder in folders.items():
        done = command("generate", *asked, "--adapter", str(folder))
        alone[name] = done.out.strip("\n")
    assert len(set(alone.values())) == 3
    named = [f"--adapter={name}={folder}" for name, folder in folders.items()]
    names = ["two", "base", "one", None]
    records = [{"prompt": PROMPTS[0]} | ({"adapter": n} if n else {}) for n in names]
    path = written(*records)
    done = command("generate", *shared, *named, "--prompts", path, "--use", "one")
    found = [json.loads(line)["answer"] for line in done.out.splitlines()]
    assert found == [alone[name or "one"] for name in names]
    done = command("generate", *shared, *named, "--prompts", path)
    assert done.code == 2
    assert "jsonl:4 (row 4): adapter: missing; name one of one, two, base" in done.err
    for use, more in (("two", ["--stream"]), ("base", [])):
        done = command("generate", *asked, *named, "--use", use, *more)
        assert done.out == f"{alone[use]}\n"


def test_the_generation_config_is_followed_where_it_is_asked_for(
    tiny, tmp_path, command
):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    content = {"do_sample": True, "temperature": 2.0, "top_k": 40, "eos_token_id": 4}
    (folder / "generation_config.json").write_text(json.dumps(content))
    asked = ["--model", str(folder), "--prompt", "Hello", "--max-new-tokens", "12"]
    greedy = command("generate", *asked).out
    said = ["--temperature", "2", "--top-k", "40"]
    drawn = command("generate", *asked, *said).out
    assert drawn != greedy
    assert command("generate", *asked, "--generation-config").out == drawn
    done = command("generate", *asked, "--generation-config", "--top-k", "1")
    assert done.out == greedy


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"promt": "x"}, "'promt' is no key of a request; did you mean 'prompt'?"),
        ({"id": 1}, "give one of 'prompt' and 'messages'"),
        ({"prompt": 3}, "prompt: found 3; write a text"),
        ({"messages": []}, "messages: found []; write a list"),
        ({"messages": [{"role": "user"}]}, "number 1 has no text as its 'content'"),
        (
            {"messages": [{"role": "human", "content": "x"}]},
            "role: found 'human'; choose from system, user, assistant",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            "the last is 'assistant'; end with the user's",
        ),
        ({"prompt": "x", "adapter": "y"}, "adapter: 'y' is none of them"),
        ({"prompt": "rain " * 300}, "exceed the model's context of 256"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_request_that_cannot_be_answered_is_named(
    record, words, tiny, command, written
):
    path = written({"prompt": "fine"}, record)
    done = command("generate", "--model", str(tiny), "--prompts", path)
    assert done.code == 2 and done.out == ""
    assert "requests.jsonl:2 (row 2): " in done.err and words in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "x"], "give one of --run DIR and --model PATH"),
        (["--run", "x"], "--prompt: missing"),
        (
            ["--run", "x", "--prompt", "caf\udce9"],
            "--prompt: found byte 0xe9, which is not UTF-8; send text in the encoding",
        ),
        (
            ["--run", "x", "--prompt", "y", "--stop", "\ud83c"],
            "--stop: found d83c, half",
        ),
        (["--run", "x", "--adapter", "y", "--prompt", "z"], "belongs to --model"),
        (["--model", "absent/", "--prompt", "z"], "'absent/' does not exist"),
        (["--run", "x", "--prompt", "y", "--top-k", "-2"], "top-k: found -2"),
        (
            ["--run", "x", "--prompt", "y", "--repetition-penalty", "0"],
            "repetition-penalty: found 0.0; it must be above 0",
        ),
        (
            ["--run", "x", "--prompts", "no.jsonl"],
            "no.jsonl: there is no such data file",
        ),
        (["--run", "x", "--prompt", "y", "--prompts", "z"], "found beside --prompt"),
        (["--run", "x", "--prompts", "z", "--stream"], "--stream belongs to --prompt"),
        (["--run", "x", "--prompt", "y", "--out", "z"], "--out belongs to --prompts"),
        (
            ["--run", "x", "--prompt", "y", "--batch-size", "0"],
            "--batch-size: found 0; it must be 1 or more",
        ),
        (["--run", "x", "--prompt", "y", "--raw", "--system", "z"], "or --raw"),
        (
            ["--model", "x", "--prompt", "y", "--adapter", "a=b", "--adapter", "c"],
            "--adapter: found 'c' among several; write NAME=DIR",
        ),
        (
            ["--model", "x", "--prompt", "y", "--adapter", "a=b", "--adapter", "a=c"],
            "two have the same name",
        ),
        (
            ["--model", "x", "--prompt", "y", "--adapter", "base=b"],
            "'base' is the model alone; choose another name",
        ),
        (
            ["--model", "x", "--prompt", "y", "--adapter", "a=b", "--use", "c"],
            "--use: found 'c'; choose from a, base",
        ),
        (
            ["--model", "x", "--prompt", "y", "--adapter", "a", "--use", "c"],
            "--use: found 'c' without named adapters",
        ),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_what_is_missing_is_said(command, arguments, words):
    done = command("generate", *arguments)
    assert done.code == 2 and words in done.err
