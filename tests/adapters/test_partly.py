"""Full fine-tuning of a part of the model, beside torch with the rest frozen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxpeft import adapters, hf, models, optim, tree
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step
from jaxpeft.devices.compiled import build
from jaxpeft.errors import InputError
from jaxpeft.models import cache as caches

pytestmark = pytest.mark.slow

STEPS, RATE, DECAY = 10, 5e-3, 0.1
KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(1, 61, (3, 14)).astype(np.int32)
ATTENTION = r"model\.layers\.\d\.self_attn\..*"

# name -> (what `adapter` of a configuration says, which torch parameters train).
ROWS = {
    "last layers": ({"trainable_layers": 2}, r"model\.layers\.[23]\..*"),
    "first layer": ({"trainable_layers": -1}, r"model\.layers\.0\..*"),
    "layers apart": ({"layers_to_transform": [0, 2]}, r"model\.layers\.[02]\..*"),
    "a layer's attention": (
        {"layers_to_transform": 1, "target_modules": ["self_attn"]},
        r"model\.layers\.1\.self_attn\..*",
    ),
    "a module in all layers": (
        {"target_modules": ["down_proj"]},
        r".*down_proj\..*",
    ),
    "head alone": ({"target_modules": ["lm_head"]}, r"lm_head\..*"),
    "norm alone": ({"target_modules": ["norm"]}, r"model\.norm\..*"),
    "embedding": ({"target_modules": ["embed_tokens"]}, r".*embed_tokens\..*"),
    "layers and what they lead to": (
        {"layers_to_transform": [3], "modules_to_save": ["norm", "lm_head"]},
        r"model\.layers\.3\..*|model\.norm\..*|lm_head\..*",
    ),
    "norms left out": (
        {"layers_to_transform": [3], "exclude_modules": r".*norm"},
        r"model\.layers\.3\.(mlp|self_attn)\..*",
    ),
    "an expression": (
        {"target_modules": r"model\.layers\.[12]\.mlp\..*|.*\.q_proj"},
        r"model\.layers\.[12]\.mlp\..*|.*q_proj\..*",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_torch):
    """A model of 4 layers with biases, in Hugging Face's format."""
    folder = tmp_path_factory.mktemp("model")
    make_torch(attention_bias=True, num_hidden_layers=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def here(folder):
    """The config and the params of the same model."""
    cfg = models.config(folder)
    return cfg, hf.load(folder, cfg)


def train_there(model, trains):
    """The loss before each step of torch's AdamW; what it leaves frozen is `trains`'s
    complement."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(re.fullmatch(trains, name)))
        plain = name.endswith("bias") or "norm" in name
        if parameter.requires_grad:
            (others if plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    losses, tokens = [], torch.from_numpy(TOKENS).long()
    for _ in range(STEPS):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def batch():
    shape = (1, *TOKENS.shape)
    supervised = np.ones(shape, bool)
    supervised[..., -1] = False
    positions = np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)
    return {
        "tokens": TOKENS[None],
        "targets": np.roll(TOKENS, -1, axis=1)[None],
        "supervised": supervised,
        "positions": positions,
    }


def begin(params, cfg):
    """(step, state, frozen) of AdamW as a configuration makes it."""
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    settings = {"name": "adamw", "learning_rate": RATE, "weight_decay": DECAY}
    tx = optim.make({**settings, "max_grad_norm": None}, {"name": "constant"}, STEPS)
    step = jax.jit(make_train_step(cfg, tx))
    return step, TrainState.create(trainable, tx, KEY), frozen


def train_here(params, cfg):
    """The loss before each step, the last state and what is frozen."""
    step, state, frozen = begin(params, cfg)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, Frozen(frozen), batch())
        losses.append(float(metrics["loss"]))
    return np.array(losses), state, frozen


def inject(rules, here):
    cfg, params = here
    rules = {"method": "full", **rules}
    return adapters.inject(params, rules, KEY, models.module_names(cfg))


@pytest.mark.parametrize("name", ROWS)
def test_ten_steps_beside_torch(name, here, folder, tmp_path):
    rules, trains = ROWS[name]
    cfg, base = here
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder)
    before = {k: v.clone() for k, v in theirs.state_dict().items()}
    expected = train_there(theirs, trains)
    losses, state, frozen = train_here(inject(rules, here), cfg)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert losses[-1] < losses[0] - 0.01
    trained = {k: p for k, p in theirs.named_parameters() if p.requires_grad}
    count = sum(p.numel() for p in trained.values())
    assert tree.count(state.params) == count
    sizes = [tree.count(x) for x in jax.tree.leaves(state.opt_state)]
    assert sum(sizes) < 2 * count + 8  # two moments, and counters
    # Written as a whole model; what is frozen, bit for bit.
    hf.save(tree.combine(state.params, frozen), tmp_path, cfg)
    ours = transformers.LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    assert ours.keys() == before.keys()
    for key, value in ours.items():
        if key in trained:
            wanted = trained[key].detach()
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-4)
            assert not torch.equal(value, before[key]), key
        else:
            assert torch.equal(value, before[key]), key


def test_both_ends_of_a_tied_embedding_train(make_llama):
    tied = make_llama(tie_word_embeddings=True)
    rules = {"target_modules": ["embed_tokens"]}
    losses, *_ = train_here(inject(rules, (tied.cfg, tied.params)), tied.cfg)
    theirs = transformers.LlamaForCausalLM(tied.torch.config)
    theirs.load_state_dict(tied.torch.state_dict())
    expected = train_there(theirs, r".*embed_tokens\..*")
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


def test_frozen_layers_cost_no_gradient_and_no_copy(here):
    """A step works on as many bytes as train, in whichever layers they are."""
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    cfg = models.config({**here[0].hf, **sizes, "head_dim": 32})
    whole = models.random(cfg, KEY)

    def temporaries(rules):
        step, state, frozen = begin(inject(rules, (cfg, whole)), cfg)
        arguments = (state, Frozen(frozen), batch())
        _, program = build(step, arguments, carries=True, mesh=None)
        trained = tree.nbytes(state.params)
        return program.memory_analysis().temp_size_in_bytes / trained, trained

    everything, size = temporaries({})
    for number in (0, 3):
        one, part = temporaries({"layers_to_transform": [number]})
        assert part < 0.3 * size
        assert one < 1.5 * everything


def test_merged_it_is_a_plain_model(here):
    cfg, base = here
    params = inject({"layers_to_transform": [1, 3]}, here)
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    moved = tree.combine(jax.tree.map(lambda x: x + 0.1, trainable), frozen)
    merged = adapters.merge(moved)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    forward = jax.jit(models.forward, static_argnums=2)
    np.testing.assert_allclose(
        forward(merged, TOKENS, cfg), forward(moved, TOKENS, cfg), atol=1e-5
    )
    up = "model.layers.mlp.up_proj.kernel"
    new, old = dict(tree.walk(merged))[up], dict(tree.walk(base))[up]
    assert np.array_equal(new[::2], old[::2]) and np.allclose(
        new[1::2], old[1::2] + 0.1
    )


def test_decoding_reads_the_layers_that_trained(here):
    cfg, _ = here
    params = inject({"layers_to_transform": [1]}, here)
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    params = tree.combine(jax.tree.map(lambda x: x * 1.5, trainable), frozen)
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    cache = caches.init_cache(cfg, *TOKENS.shape, jnp.float32)
    logits, _ = jax.jit(caches.decode, static_argnums=2)(
        params,
        TOKENS,
        cfg,
        cache,
        positions=positions,
        valid=jnp.ones(TOKENS.shape, bool),
    )
    whole = models.forward(adapters.merge(params), TOKENS, cfg)
    np.testing.assert_allclose(logits, whole, atol=1e-4)


def test_optimizers_know_a_weight_by_its_own_name(here):
    group = {"pattern": r".*\.q_proj\.kernel", "learning_rate_factor": 0.0}
    tx = optim.make(
        {"name": "adamw", "learning_rate": 0.1, "groups": [group]},
        {"name": "constant"},
        5,
    )
    params = inject({"layers_to_transform": [2]}, here)
    trainable, _ = tree.partition(params, adapters.trainable_mask(params))
    ones = jax.tree.map(jnp.ones_like, trainable)
    updates, _ = jax.jit(tx.update)(ones, tx.init(trainable), trainable)
    still = [n for n, x in tree.named_weights(updates) if not np.any(x)]
    assert still == ["model.layers.self_attn.q_proj.kernel"]


REFUSED = {
    "a name for nothing": ({"target_modules": ["q_prj"]}, "'q_prj' means no.*q_proj"),
    "an expression for nothing": ({"target_modules": "lm"}, "'lm' means no module"),
    "no expression": ({"exclude_modules": "("}, "exclude_modules: '\\(' is no regular"),
    "a layer beyond": ({"layers_to_transform": [4]}, "found 4; .* are 0 to 3"),
    "more layers than there are": ({"trainable_layers": 5}, "found 5; .* has 4 layers"),
    "no layers": ({"trainable_layers": 0}, "trainable_layers: found 0"),
    "layers twice": (
        {"trainable_layers": 1, "layers_to_transform": [1]},
        "trainable_layers: found 1 beside layers_to_transform",
    ),
    "layers beside an expression": (
        {"trainable_layers": 1, "target_modules": ATTENTION},
        "beside an expression",
    ),
    "more than everything": ({"modules_to_save": ["norm"]}, "every module trains"),
    "nothing": (
        {"target_modules": ["norm"], "exclude_modules": ["norm"]},
        "leaves nothing that trains",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name, here):
    rules, said = REFUSED[name]
    with pytest.raises(InputError, match=said):
        inject(rules, here)
