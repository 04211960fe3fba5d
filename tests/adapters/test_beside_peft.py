"""Every method that PEFT has beside PEFT: ten steps on one batch, and both formats.

The differences are logged: `pytest --log-cli-level INFO`.
"""

import logging

import jax
import numpy as np
import optax
import peft
import pytest
import torch
import transformers

from jaxpeft import adapters, hf, models, tree
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step

pytestmark = pytest.mark.slow

LOG = logging.getLogger(__name__)
STEPS, RATE = 10, 5e-3
ATTENTION = ["q_proj", "v_proj"]
Q1 = r"model\.layers\.1\.self_attn\.q_proj"


def lora(**settings):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, **settings}
    return peft.LoraConfig(task_type="CAUSAL_LM", **settings)


# name -> (PEFT's config, what `adapter` of a configuration says for the same).
ROWS = {
    "lora": (lora(), {}),
    "rslora": (lora(use_rslora=True), {"use_rslora": True}),
    "dora": (lora(use_dora=True), {"method": "dora"}),
    "patterns": (
        lora(rank_pattern={Q1: 2, "v_proj": 6}, alpha_pattern={"q_proj": 3}),
        {"rank_pattern": {Q1: 2, "v_proj": 6}, "alpha_pattern": {"q_proj": 3}},
    ),
    "one layer": (lora(layers_to_transform=[1]), {"layers_to_transform": 1}),
    "excluded": (
        lora(target_modules="all-linear", exclude_modules=["down_proj", "q_proj"]),
        {"target_modules": "all-linear", "exclude_modules": ["down_proj", "q_proj"]},
    ),
    "embedding and head": (
        lora(target_modules=["embed_tokens", "lm_head"]),
        {"target_modules": ["embed_tokens", "lm_head"]},
    ),
    "modules_to_save": (
        lora(modules_to_save=["lm_head", "input_layernorm", "embed_tokens"]),
        {"modules_to_save": ["lm_head", "input_layernorm", "embed_tokens"]},
    ),
    "a linear module saved": (
        lora(modules_to_save=["o_proj"]),
        {"modules_to_save": ["o_proj"]},
    ),
    "bias all": (lora(bias="all"), {"bias": "all"}),
    "bias lora_only": (lora(bias="lora_only"), {"bias": "lora_only"}),
    "pissa": (lora(init_lora_weights="pissa"), {"init_lora_weights": "pissa"}),
    "olora": (lora(init_lora_weights="olora"), {"init_lora_weights": "olora"}),
    "prompt tuning": (
        peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
        {"method": "prompt_tuning", "num_virtual_tokens": 5},
    ),
    "prefix tuning": (
        peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
        {"method": "prefix_tuning", "num_virtual_tokens": 5},
    ),
    "ia3 and a norm": (
        peft.IA3Config(task_type="CAUSAL_LM", modules_to_save=["model.norm"]),
        {"method": "ia3", "modules_to_save": ["model.norm"]},
    ),
    "ia3": (peft.IA3Config(task_type="CAUSAL_LM"), {"method": "ia3"}),
    "oft": (
        peft.OFTConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
        {"method": "oft", "target_modules": "all-linear"},
    ),
    "oft, exact and of four blocks": (
        peft.OFTConfig(
            r=4,
            oft_block_size=0,
            use_cayley_neumann=False,
            task_type="CAUSAL_LM",
            target_modules=ATTENTION,
        ),
        {
            "method": "oft",
            "r": 4,
            "use_cayley_neumann": False,
            "target_modules": ATTENTION,
        },
    ),
    "oft, one block for all": (
        peft.OFTConfig(
            oft_block_size=8,
            block_share=True,
            num_cayley_neumann_terms=7,
            task_type="CAUSAL_LM",
            target_modules=ATTENTION,
            modules_to_save=["model.norm"],
        ),
        {
            "method": "oft",
            "oft_block_size": 8,
            "block_share": True,
            "num_cayley_neumann_terms": 7,
            "target_modules": ATTENTION,
            "modules_to_save": ["model.norm"],
        },
    ),
    "vera": (
        peft.VeraConfig(r=8, task_type="CAUSAL_LM", target_modules="all-linear"),
        {"method": "vera", "r": 8, "target_modules": "all-linear"},
    ),
}
USUAL = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}
# Their start is a part of the base, so that PEFT's files alone do not say it.
FROM_BASE = {"pissa", "olora"}
TOKENS = np.random.default_rng(0).integers(1, 61, (3, 14)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_torch):
    """A model with biases and a head of its own, in Hugging Face's format."""
    folder = tmp_path_factory.mktemp("model")
    make_torch(attention_bias=True, mlp_bias=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def here(folder):
    """The config and the params of the same model."""
    cfg = models.config(folder)
    return cfg, hf.load(folder, cfg)


forward = jax.jit(models.forward, static_argnums=2)


def open_there(folder):
    return transformers.LlamaForCausalLM.from_pretrained(folder)


def train_there(model):
    """The loss before each step of torch's AdamW."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    losses = []
    tokens = torch.from_numpy(TOKENS).long()
    labels = tokens.clone()
    labels[:, 0] = -100  # which a prompt before it would predict
    for _ in range(STEPS):
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def train_here(params, cfg):
    """The loss before each step, and the params after the last one."""
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    tx = optax.adamw(RATE, weight_decay=0.0)
    step = jax.jit(make_train_step(cfg, tx))
    state = TrainState.create(trainable, tx, jax.random.key(0))
    rows, length = TOKENS.shape
    supervised = np.ones((1, rows, length), bool)
    supervised[..., -1] = False
    batch = {
        "tokens": TOKENS[None],
        "targets": np.roll(TOKENS, -1, axis=1)[None],
        "supervised": supervised,
        "positions": np.broadcast_to(
            np.arange(length, dtype=np.int32), supervised.shape
        ),
    }
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, Frozen(frozen), batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses), tree.combine(state.params, frozen)


def logits_there(model):
    with torch.no_grad():
        logits = model(torch.from_numpy(TOKENS).long()).logits.numpy()
    return logits[:, -TOKENS.shape[1] :]  # a prompt's tokens have some too


# What peft remarks about heads and embeddings saved along.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
# A block of 32 does not divide the MLP's 40, and becomes 40 in both.
@pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`:UserWarning")
@pytest.mark.parametrize("name", ROWS)
def test_ten_steps_beside_peft(name, folder, here, tmp_path):
    config, rules = ROWS[name]
    cfg, base = here
    torch.manual_seed(1)
    there = peft.get_peft_model(open_there(folder), config)
    usual = USUAL if rules.get("method") in (None, "dora") else {}
    params = adapters.inject(base, {**usual, **rules}, jax.random.key(0))
    if name not in FROM_BASE:
        there.save_pretrained(tmp_path / "start")
        params = hf.load_adapter(params, tmp_path / "start", cfg)
    count = sum(p.numel() for p in there.parameters() if p.requires_grad)
    trainable, _ = tree.partition(params, adapters.trainable_mask(params))
    if "rank_pattern" not in rules and "layers_to_transform" not in rules:
        assert tree.count(trainable) == count
    expected = train_there(there)
    losses, params = train_here(params, cfg)
    difference = np.max(np.abs(losses / expected - 1))
    LOG.info("%s: largest relative difference of a loss: %.1e", name, difference)
    assert expected[-1] < expected[0] and difference < 1e-3
    # The trained adapter, as PEFT reads it over the bare base.
    hf.save_adapter(params, tmp_path / "here", cfg, base=str(folder))
    again = peft.PeftModel.from_pretrained(open_there(folder), tmp_path / "here")
    found = np.asarray(forward(params, TOKENS, cfg))
    np.testing.assert_allclose(logits_there(again.eval()), found, atol=1e-4)
    # And as it is read here: nothing is lost.
    read = hf.load_adapter(base, tmp_path / "here", cfg)
    np.testing.assert_allclose(forward(read, TOKENS, cfg), found, atol=1e-5, rtol=1e-5)
