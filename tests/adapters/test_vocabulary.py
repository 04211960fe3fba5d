"""Embedding and head that train, as one or apart, and single tokens, beside PEFT."""

import json
from typing import Any

import jax
import numpy as np
import optax
import peft
import pytest
import torch
import transformers

from jaxpeft import adapters, hf, models, tree
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step
from jaxpeft.errors import InputError

STEPS, RATE = 5, 5e-3
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "eos_token_id": None,
    "bos_token_id": None,
}
FAMILIES = {
    "tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "untied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=False),
    # Its embedding is scaled and its logits are not.
    "gemma": lambda: transformers.Gemma3TextConfig(
        **SIZES, sliding_window=8, query_pre_attn_scalar=8
    ),
    # Its embedding has another name, and a neighbour for places.
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=128
    ),
}
BOTH = ["embed_tokens", "lm_head"]
APART = {"embed_tokens": [3, 5], "lm_head": [3, 7]}
# name -> (family, the settings of both, what merging leaves: one table or two).
ROWS = {
    "embedding": ("tied", {"modules_to_save": ["embed_tokens"]}, 2),
    "head": ("tied", {"modules_to_save": ["lm_head"]}, 2),
    "both": ("tied", {"modules_to_save": BOTH}, 2),
    "embedding, one": (
        "tied",
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        1,
    ),
    "head and norm, one": (
        "tied",
        {"modules_to_save": ["lm_head", "model.norm"], "ensure_weight_tying": True},
        1,
    ),
    "tokens": ("tied", {"trainable_token_indices": [60, 3, 5]}, 1),
    "tokens of both": (
        "tied",
        {"trainable_token_indices": {"lm_head": [5, 3], "embed_tokens": [5, 3]}},
        1,
    ),
    "tokens apart": ("tied", {"trainable_token_indices": APART}, 2),
    "lora of both": ("tied", {"target_modules": BOTH}, 2),
    "dora, tokens": ("tied", {"use_dora": True, "trainable_token_indices": [3]}, 1),
    "untied, tokens apart": ("untied", {"trainable_token_indices": APART}, 2),
    "gemma, one": (
        "gemma",
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        1,
    ),
    "gemma, tokens": ("gemma", {"trainable_token_indices": [60, 3]}, 1),
    "gpt2, embedding": (
        "gpt2",
        {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
        2,
    ),
    "gpt2, tokens": (
        "gpt2",
        {"target_modules": ["c_attn"], "trainable_token_indices": [60, 3]},
        1,
    ),
}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
TOKENS = np.random.default_rng(0).integers(1, 61, (3, 14)).astype(np.int32)
# What peft remarks about ends that part, and about embeddings that it saves along.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]
forward = jax.jit(models.forward, static_argnums=2)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """opened(family): (its folder, config and params)."""
    made = {}

    def open_(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            config = FAMILIES[family]()
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(
                folder
            )
            cfg = models.config(folder)
            made[family] = folder, cfg, hf.load(folder, cfg)
        return made[family]

    return open_


def open_there(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def train_there(model):
    """The loss before each step of torch's AdamW, and the logits after the last."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    tokens, losses = torch.from_numpy(TOKENS).long(), []
    for _ in range(STEPS):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses), logits_there(model)


def logits_there(model):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS).long()).logits.numpy()


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def train_here(params, cfg):
    """The loss before each step, and the params after the last one."""
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    tx = optax.adamw(RATE, weight_decay=0.0)
    step = jax.jit(make_train_step(cfg, tx))
    state = TrainState.create(trainable, tx, jax.random.key(0))
    supervised = np.ones((1, *TOKENS.shape), bool)
    supervised[..., -1] = False
    places = np.arange(TOKENS.shape[1], dtype=np.int32)
    batch = {
        "tokens": TOKENS[None],
        "targets": np.roll(TOKENS, -1, axis=1)[None],
        "supervised": supervised,
        "positions": np.broadcast_to(places, supervised.shape),
    }
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, Frozen(frozen), batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses), tree.combine(state.params, frozen)


def names_of(params):
    trainable, _ = tree.partition(params, adapters.trainable_mask(params))
    return {name: x.shape for name, x in tree.named_leaves(trainable)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_five_steps_beside_peft(name, opened, tmp_path):
    family, settings, tables = ROWS[name]
    folder, cfg, base = opened(family)
    torch.manual_seed(1)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", fan_in_fan_out=cfg.conv1d, **{**LORA, **settings}
    )
    there = peft.get_peft_model(open_there(folder), config)
    there.save_pretrained(tmp_path / "start")
    rules = {**LORA, **settings}
    rules["method"] = "dora" if rules.pop("use_dora", False) else "lora"
    named = models.module_names(cfg)
    fresh = adapters.inject(base, rules, jax.random.key(0), named)
    params = hf.load_adapter(base, tmp_path / "start", cfg)
    assert names_of(fresh) == names_of(params)
    # What a run continues from is put into what its configuration asks for.
    over = hf.load_adapter(fresh, tmp_path / "start", cfg)
    assert jax.tree.structure(over) == jax.tree.structure(fresh)
    assert tree.digest(over) == tree.digest(params)
    expected, trained_there = train_there(there)
    losses, params = train_here(over, cfg)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert expected[-1] < expected[0]
    # The trained adapter, as PEFT reads it over the bare base, and as it is read here.
    hf.check_writable(params, cfg)
    hf.save_adapter(params, tmp_path / "here", cfg, base=str(folder))
    again = peft.PeftModel.from_pretrained(open_there(folder), tmp_path / "here")
    found = np.asarray(forward(params, TOKENS, cfg))
    assert_close(logits_there(again.eval()), found)
    read = hf.load_adapter(base, tmp_path / "here", cfg)
    assert tree.digest(read) == tree.digest(
        hf.load_adapter(over, tmp_path / "here", cfg)
    )
    assert_close(forward(read, TOKENS, cfg), found)
    # PEFT's own result of the same steps, read here.
    there.save_pretrained(tmp_path / "there")
    theirs = hf.load_adapter(base, tmp_path / "there", cfg)
    assert_close(forward(theirs, TOKENS, cfg), trained_there)
    # Merged, the two ends are one table only where they are the same.
    hf.save(adapters.merge(params), tmp_path / "merged", cfg)
    stored = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert stored.get("tie_word_embeddings", True) is (tables == 1)
    merged = open_there(tmp_path / "merged")
    assert_close(logits_there(merged), found)


# What cannot be, as the message says.
REFUSED = {
    "nothing tied": (
        "untied",
        {"modules_to_save": BOTH, "ensure_weight_tying": True},
        "ensure_weight_tying: .*a head of its own.*leave it out",
    ),
    "nothing named": (
        "tied",
        {"modules_to_save": ["o_proj"], "ensure_weight_tying": True},
        "ensure_weight_tying: .*names the embedding or the head",
    ),
    "a lora for both": (
        "tied",
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        "ensure_weight_tying: .*modules_to_save.*trainable_token_indices",
    ),
    "other tokens": (
        "tied",
        {"trainable_token_indices": APART, "ensure_weight_tying": True},
        "ensure_weight_tying: .*other tokens",
    ),
    "whole and by tokens": (
        "tied",
        {"trainable_token_indices": [3], "modules_to_save": ["lm_head"]},
        "trainable_token_indices: 'lm_head' is trained as a whole",
    ),
    "a lora and tokens": (
        "untied",
        {"trainable_token_indices": [3], "target_modules": ["embed_tokens"]},
        r"trainable_token_indices: 'model\.embed_tokens' .*adapter",
    ),
    "beyond the rows": (
        "tied",
        {"trainable_token_indices": [3, 61]},
        "found 61; .*61 rows.*vocab_size.*Adding tokens",
    ),
    "twice": ("tied", {"trainable_token_indices": [3, 5, 3]}, "found 3 twice"),
    "none": ("tied", {"trainable_token_indices": []}, "found no token"),
    "no end": (
        "tied",
        {"trainable_token_indices": {"norm": [3]}},
        "'norm' is neither the embedding",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name, opened):
    family, settings, said = REFUSED[name]
    _, _, base = opened(family)
    with pytest.raises(InputError, match=said):
        adapters.inject(base, {**LORA, **settings}, jax.random.key(0))


# Over a base whose embedding was resized for three more tokens.
BESIDE = {
    "nothing": {},
    "both": {"modules_to_save": BOTH},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "one": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [63, 61, 62]},
    "tokens of the head": {"trainable_token_indices": {"lm_head": [61, 63]}},
    "lora": {"target_modules": ["embed_tokens", "q_proj"]},
    "lora of both": {"target_modules": BOTH},
}


def resized(folder, rows) -> Any:
    torch.manual_seed(rows)
    model = open_there(folder)
    model.resize_token_embeddings(rows)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"),
    [*((name, "tied") for name in BESIDE), ("nothing", "untied"), ("tokens", "untied")],
)
def test_an_embedding_saved_beside_an_adapter_is_loaded(name, family, opened, tmp_path):
    folder, small, _ = opened(family)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{**LORA, **BESIDE[name]})
    there = peft.get_peft_model(resized(folder, 64), config)
    train_there(there)
    there.save_pretrained(tmp_path / "there")  # says vocab_size beside the base's own
    # The same base resized by somebody else, whose new rows are others.
    other = resized(folder, 64)
    with torch.no_grad():
        for table in (other.get_input_embeddings(), other.get_output_embeddings()):
            table.weight[61:] += 1.0
    other.save_pretrained(tmp_path / "base")
    cfg = models.config(tmp_path / "base")
    base = hf.load(tmp_path / "base", cfg)
    params = hf.load_adapter(base, tmp_path / "there", cfg)
    in_peft = peft.PeftModel.from_pretrained(other, tmp_path / "there")
    expected = logits_there(in_peft.eval())
    assert_close(forward(params, TOKENS, cfg), expected)
    assert np.abs(forward(base, TOKENS, cfg) - expected).max() > 0.1
    hf.check_writable(params, cfg)
    hf.save_adapter(params, tmp_path / "here", cfg)
    again = hf.load_adapter(base, tmp_path / "here", cfg)
    assert tree.digest(again) == tree.digest(params)
    in_peft = peft.PeftModel.from_pretrained(
        open_there(tmp_path / "base"), tmp_path / "here"
    )
    assert_close(logits_there(in_peft), expected)
    hf.save(adapters.merge(params), tmp_path / "merged", cfg)
    merged = open_there(tmp_path / "merged")
    assert_close(logits_there(merged), expected)
    # Over the base as it was published: why not, both sizes, and what to do.
    with pytest.raises(InputError, match=r"6[34]\b.* 61 rows .*vocab_size.*resize"):
        hf.load_adapter(opened(family)[2], tmp_path / "there", small)
