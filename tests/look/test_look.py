"""The command `data`: what a person reads of examples, in a terminal and as a page."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxpeft import cli, hf, look
from jaxpeft.data import Batches, EvalBatches
from jaxpeft.data.examples import gather
from jaxpeft.data.render import Example
from jaxpeft.look import terminal
from jaxpeft.look.facts import facts
from jaxpeft.look.first import first

ASSET = Path(look.__file__).parents[1] / "assets" / "tiny-llama"
ALPACA = [
    {"instruction": "Say it.", "output": "It <b>is</b> \x1b[31m."},
    {"instruction": "Say it.", "output": "It <b>is</b> \x1b[31m."},
    {"instruction": "word " * 90, "output": "lost"},
]


@pytest.fixture
def config(tmp_path):
    """A configuration whose model is a config.json and a tokenizer, without weights."""
    model = tmp_path / "model"
    model.mkdir()
    for path in ASSET.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, model / path.name)
    (tmp_path / "train.json").write_text(json.dumps(ALPACA))
    (tmp_path / "eval.json").write_text(json.dumps(ALPACA[:1]))
    settings = {
        "output_dir": str(tmp_path / "run"),
        "model": {"path": str(model), "dtype": "float32"},
        "adapter": {"method": "lora", "r": 4},
        "data": {
            "train": {"path": str(tmp_path / "train.json")},
            "eval": {"path": str(tmp_path / "eval.json")},
            "max_length": 60,
        },
        "optimizer": {"learning_rate": 1e-3},
        "training": {"max_steps": 1, "batch_size": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.slow
def test_the_command_needs_neither_weights_nor_devices(config, tmp_path):
    target = tmp_path / "data.html"
    command = [sys.executable, "-m", "jaxpeft.data", "--config", str(config)]
    done = subprocess.run(
        [*command, "--show", "3", "--html", str(target)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "JAX_PLATFORMS": "none_such"},  # to open one is an error
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = "user↵\n  Say it.<|im_end|>↵\n  <|im_start|>assistant↵\n"
    assert f"{shown}  ⟦It <b>is</b> ␛[31m.<|im_end|>⟧↵\n" in done.stdout
    assert "\x1b" not in done.stdout
    assert "60 tokens, 0 learned; cut at data.max_length 60" in done.stdout
    assert "1 of 3 examples repeat an earlier one" in done.stdout
    assert "1 of 1 examples, and the prompts of 1" in done.stdout
    assert not (tmp_path / "run").exists()
    html = target.read_text(encoding="utf-8")
    assert "<b>is" not in html and "\x1b" not in html and "␛" in html
    assert 'class="stretch learned special"' in html


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--show", "-1"], "--show: found -1; give a number from 0 on"),
        (["--html", "no/such/data.html"], "'no/such' is no directory"),
    ],
)
def test_wrong_arguments_are_told(config, arguments, words, capsys):
    assert cli.main(["data", "--config", str(config), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_color_where_it_is_wanted(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert terminal.has_color({})
    assert not terminal.has_color({"NO_COLOR": "1", "FORCE_COLOR": "1"})
    assert not terminal.has_color({"TERM": "dumb"})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert not terminal.has_color({})
    assert terminal.has_color({"FORCE_COLOR": "1", "NO_COLOR": ""})


@pytest.fixture(scope="module")
def tokenizer():
    return hf.load_tokenizer(ASSET)


def example(text, learned, tokenizer, left_out=0):
    """An example of which the last `learned` tokens are."""
    ids = np.array(tokenizer(text, add_special_tokens=False).input_ids, np.int32)
    return Example(ids, np.arange(len(ids)) >= len(ids) - learned, left_out)


def test_the_facts_of_a_mixture(tokenizer):
    one = example("one two three<|im_end|>", 2, tokenizer)
    lost = example("all lost", 0, tokenizer, left_out=30)
    sources = [("small.json", 3.0, [one]), ("large.json", 1.0, [one, one, lost])]
    batches = Batches(gather(sources), batch_size=2, seed=0, max_length=64)
    evaluation = EvalBatches(
        gather([("eval.json", 1.0, [one, lost])]), batch_size=2, max_length=64
    )
    training, evaluated = facts(batches, evaluation, tokenizer, 64)
    drawn = training.columns.index("drawn an epoch")
    assert [row[drawn : drawn + 2] for row in training.sources] == [
        ("3", "3"),  # of 4 draws, so 3 times the only one
        ("1", "0.333"),
    ]
    assert "drawn an epoch" not in evaluated.columns
    figures = dict(training.figures)
    assert figures["cut"].startswith("1 example (25 %) at data.max_length 64, 30 ")
    size = len(lost.tokens) + 30
    assert figures["cut"].endswith(
        f"90 % would be whole at {size}, 99 % at {size}, all at {size}"
    )
    assert figures["nothing to learn"] == "1 example (25 %)"
    assert figures["special tokens"] == "<|im_end|> 3 times, 3 learned"
    assert figures["duplicates"].startswith("2 of 4 examples repeat")
    assert dict(evaluated.figures)["also trained on"].startswith("2 of 2 examples")
    lines = list(terminal.overview(training, color=False))
    assert lines[3].split() == [*"133", "4", "50", "%", *"000", "small.json"]


def test_a_model_that_is_not_taught_to_stop_is_remarked_on(tokenizer):
    def remarks(*examples):
        batches = Batches(
            gather([("a.json", 1.0, examples)]), batch_size=1, seed=0, max_length=64
        )
        return facts(batches, None, tokenizer, 64)[0].remarks

    good = example("an answer<|im_end|>", 2, tokenizer)
    mute = Example(good.tokens, good.supervised & (np.arange(len(good.tokens)) == 1), 0)
    assert remarks(good) == []
    (line,) = remarks(mute)
    assert line.startswith("<|im_end|>, which ends an answer, stands 1 times")
    (line,) = remarks(good, mute, mute)
    assert line.startswith("2 examples (number 1 is the first), though whole")


def test_a_pair_stands_side_by_side_with_its_columns(tokenizer):
    texts = ("q good<|im_end|>", "q bad<|im_end|>") * 2
    data = gather([("a", 1.0, [example(text, 2, tokenizer) for text in texts])])
    fields = {name: getattr(data, name) for name in ("tokens", "supervised", "sources")}
    pairs: Any = SimpleNamespace(
        **fields,
        starts=data.starts,
        lengths=data.lengths,
        left_out=data.left_out,
        source_starts=data.source_starts,
        together=2,
        columns={"margin": np.array([0.5, 0.5, 2, 2], np.float32)},
    )
    ((_, records),) = first(pairs, 5, tokenizer, 64)
    assert [record.title for record in records] == [
        "pair 0, margin 0.5",
        "pair 1, margin 2",
    ]
    chosen, rejected = records[0].parts
    assert (chosen.name, rejected.name) == ("chosen", "rejected")
    lines = list(terminal.shown("a.json", records, color=True))
    green, stop = "\x1b[1;32m", "\x1b[0m"
    assert lines[2] == f"  q{green} good{stop}\x1b[1;32;4m<|im_end|>{stop}"


@pytest.mark.parametrize(
    ("text", "learned", "words"),
    [
        ("an answer<|im_end|>", 2, "the answers left are whole"),
        ("an answer", 1, "what is learned is cut off"),
        ("a question", 0, "nothing is left to learn"),
    ],
)
def test_what_is_lost_by_a_cut_is_said(text, learned, words, tokenizer):
    data = gather([("a", 1.0, [example(text, learned, tokenizer, left_out=7)])])
    ((_, [record]),) = first(data, 1, tokenizer, 9)
    about = f"; cut at data.max_length 9, 7 tokens are left out: {words}"
    assert record.parts[0].about.endswith(about)


def test_of_a_long_example_the_beginning_and_the_end_are_shown(tokenizer, monkeypatch):
    monkeypatch.setattr("jaxpeft.look.first._MOST", 5)
    monkeypatch.setattr("jaxpeft.look.first._END", 2)
    long = example("a b c d e f g h", 8, tokenizer)
    ((_, [record]),) = first(gather([("a", 1.0, [long])]), 1, tokenizer, 64)
    (part,) = record.parts
    assert part.hidden == len(long.tokens) - 5
    lines = list(terminal.shown("a", [record], color=False))
    assert lines[2:] == ["  ⟦a b c⟧", f"  ... {part.hidden} tokens ...", "  ⟦ g h⟧"]
