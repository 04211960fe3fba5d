"""`generate`: answers that are transformers' own, text for text."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "x"], "give one of --run DIR and --model PATH"),
        (["--run", "x"], "--prompt: missing"),
        (["--run", "x", "--adapter", "y", "--prompt", "z"], "belongs to --model"),
        (["--model", "absent/", "--prompt", "z"], "'absent/' does not exist"),
    ],
    ids=["neither", "no_prompt", "both", "absent"],
)
def test_what_is_missing_is_said(command, arguments, words):
    done = command("generate", *arguments)
    assert done.code == 2 and words in done.err
