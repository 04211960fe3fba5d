"""The shipped model and data: made as they say, whole, and fit for evaluation."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "jaxpeft" / "assets"
MODEL = ASSETS / "tiny-llama"
WEATHER = ASSETS / "weather"
PAIRS = WEATHER.parent / "weather_pairs"


def facts(row: dict[str, str]) -> dict[str, str]:
    return dict(fact.split(": ") for fact in row["input"].split(", "))


def rows(name: str) -> list[dict[str, str]]:
    return json.loads((WEATHER / name).read_text())


def test_the_generator_writes_the_committed_files(tmp_path, monkeypatch):
    script = ROOT / "scripts" / "make_assets.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    for folder in (WEATHER, PAIRS):
        for name in ("train.json", "eval.json"):
            made = tmp_path / folder.name / name
            assert made.read_bytes() == (folder / name).read_bytes()


def test_evaluation_facts_are_unseen_in_training():
    train, evaluation = rows("train.json"), rows("eval.json")
    assert (len(train), len(evaluation)) == (1500, 150)
    inputs = [row["input"] for row in train + evaluation]
    assert len(set(inputs)) == len(inputs)

    def pairs(rows):
        return {(facts(row)["place"], facts(row)["sky"]) for row in rows}

    assert pairs(train).isdisjoint(pairs(evaluation))


def test_evaluation_values_are_all_seen_in_training():
    def values(rows, name):
        return {facts(row)[name] for row in rows if name in facts(row)}

    train, evaluation = rows("train.json"), rows("eval.json")
    for name in ("place", "time", "sky", "high", "wind", "tip"):
        assert values(evaluation, name) <= values(train, name)


@pytest.mark.parametrize("name", ["train.json", "eval.json"])
def test_reports_tell_the_given_facts_and_no_others(name):
    for row in rows(name):
        given, report = facts(row), row["output"]
        assert given["place"] in report and given["time"] in report
        assert ("degrees" in report) == ("high" in given)
        assert (re.search(r"\bwind\b", report) is not None) == ("wind" in given)
        if "high" in given:
            assert f" {given['high']} degrees" in report
        if "wind" in given:
            strength, direction = given["wind"].split(" from the ")
            assert strength in report and f"from the {direction}" in report


@pytest.mark.parametrize("name", ["train", "eval"])
def test_a_rejected_report_tells_one_fact_wrongly(name):
    reports = {row["input"]: row["output"] for row in rows(f"{name}.json")}
    pairs = json.loads((PAIRS / f"{name}.json").read_text())
    skies = "clear|sun|cloud|light rain|little wet|heavy rain|very wet|snow|fog|storm"
    told_wrongly = set()
    for pair in pairs:
        given, chosen, rejected = facts(pair), pair["chosen"], pair["rejected"]
        assert chosen == reports[pair["input"]]
        wrong = {
            "place": given["place"] not in rejected,
            "time": given["time"] not in rejected,
            "sky": re.findall(skies, chosen) != re.findall(skies, rejected),
        }
        (fact,) = (fact for fact, is_wrong in wrong.items() if is_wrong)
        told_wrongly.add(fact)
    assert told_wrongly == {"place", "time", "sky"}


def expected_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes (out, in) of a Llama with tied embeddings, from its config."""
    d, mlp = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "self_attn.q_proj": (q, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, q),
        "mlp.gate_proj": (mlp, d),
        "mlp.up_proj": (mlp, d),
        "mlp.down_proj": (d, mlp),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
    }
    shapes = {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    shapes["model.embed_tokens.weight"] = (config["vocab_size"], d)
    shapes["model.norm.weight"] = (d,)
    return shapes


def test_the_model_has_the_shapes_of_its_config():
    config = json.loads((MODEL / "config.json").read_text())
    with safe_open(MODEL / "model.safetensors", framework="numpy") as weights:
        names = weights.keys()
        found = {name: tuple(weights.get_slice(name).get_shape()) for name in names}
    assert found == expected_shapes(config)
    assert sum(int(np.prod(shape)) for shape in found.values()) == 3_148_224


def test_the_model_comes_with_its_tokenizer_template_and_card():
    config = json.loads((MODEL / "config.json").read_text())
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) <= config["vocab_size"]
    assert "<|im_start|>" in (MODEL / "chat_template.jinja").read_text()
    assert "Apache-2.0" in (MODEL / "README.md").read_text()
