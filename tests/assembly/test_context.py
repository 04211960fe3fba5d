"""Steps whose sequences are split over devices, beside those of one device."""

import json
import subprocess
import sys

import numpy as np
import pytest

# One process compiles thirteen steps for eight devices: minutes where others work too.
pytestmark = pytest.mark.timeout(900)

CHILD = """
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import adapters, models, optim, tree
from jaxpeft.assembly.places import make_places
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step
from jaxpeft.devices import sharding
from jaxpeft.devices.compiled import build
from jaxpeft.generate import likelihood
from jaxpeft.plan.collectives import collectives

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
MODELS = {
    "six heads": {**SMALL, "model_type": "llama", "num_attention_heads": 6},
    "windows, caps": {
        **SMALL,
        "model_type": "gemma2",
        "sliding_window": 12,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 8,
    },
    "experts": {
        **SMALL,
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}
RULES = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "full": {"method": "full"},
    "prefix": {"method": "prefix_tuning", "num_virtual_tokens": 5},
}
CASES = {
    "windows, caps; lora; rows; 60": [
        {"data": 2, "context": 2, "tensor": 2},
        {"context": 8},
    ],
    "windows, caps; full; packed, tiles; 64": [{"fsdp": 2, "context": 4}],
    "six heads; full; packed; 64": [{"data": 2, "fsdp": 2, "context": 2}],
    "six heads; lora; packed; 64": [{"context": 8}],
    "windows, caps; prefix; packed; 64": [{"context": 8}],
    "experts; lora; rows, offloaded; 64": [{"fsdp": 2, "context": 4}],
}


def batch_of(seed, packed, seq):
    rng, shape = np.random.default_rng(seed), (2, 4, seq)
    tokens = rng.integers(1, 96, shape).astype(np.int32)
    supervised = rng.random(shape) < 0.7
    places = np.arange(seq, dtype=np.int32)
    if not packed:
        rows = {"positions": np.broadcast_to(places, shape)}
    else:  # three examples and padding
        starts = np.sort(rng.integers(4, seq - 2, (*shape[:2], 3)))
        segments = np.sum(places >= starts[..., None], axis=2, dtype=np.int32)
        first = np.argmax(segments[..., None] == segments[..., None, :], axis=-1)
        segments = (segments + 1) % 4
        positions = np.where(segments > 0, places - first, 0).astype(np.int32)
        supervised &= segments > 0
        rows = {"positions": positions, "segments": segments.astype(np.int32)}
    targets = np.roll(tokens, -1, -1)
    return {"tokens": tokens, "targets": targets, "supervised": supervised, **rows}


def params_of(cfg):
    leaves, treedef = jax.tree.flatten(models.shapes(cfg, "float32"))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return treedef.unflatten(
        [
            jnp.ones(x.shape) if x.ndim < 2 else 0.2 * jax.random.normal(key, x.shape)
            for x, key in zip(leaves, keys, strict=True)
        ]
    )


def run(case, sizes):
    model, method, rows, seq = case.split("; ")
    devices = jax.devices() if sizes else jax.devices()[:1]
    mesh = sharding.make_mesh(**{"data": 1, **sizes}, devices=devices)
    cfg = models.config(MODELS[model], remat="full")
    cfg = dataclasses.replace(
        cfg,
        tile=5 if "tiles" in rows else None,
        offload="both" if sizes and "offloaded" in rows else "none",
    )
    settings = {"name": "adamw", "learning_rate": 3e-3, "max_grad_norm": 1.0}
    tx = optim.make(settings, {"name": "constant"}, 100)
    params = adapters.inject(params_of(cfg), RULES[method], jax.random.key(1))
    places = make_places(params, cfg, mesh, tx)
    trainable, frozen = tree.partition(params, places.mask)
    state = TrainState.create(trainable, tx, jax.random.key(2))
    state = sharding.put(state, places.state)
    frozen, losses, step = Frozen(sharding.put(frozen, places.frozen)), [], None
    for seed in range(10):
        batch = batch_of(seed, rows.startswith("packed"), int(seq))
        batch = sharding.put_batch(sharding.filled_up(batch, mesh), mesh)
        if step is None:
            arguments, how = (state, frozen, batch), {"carries": True, "mesh": mesh}
            step = build(make_train_step(cfg, tx), arguments, **how)[1]
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    sent = collectives(step)
    return {"losses": losses, "sizes": sizes, "sent": [x._asdict() for x in sent]}


def of_pairs(sizes):
    # Texts that end in unlike places, two of them after the same.
    cfg = models.config(MODELS["six heads"])
    params, rng = params_of(cfg), np.random.default_rng(5)
    long, short = rng.integers(1, 96, 30).tolist(), rng.integers(1, 96, 3).tolist()
    pairs = [(long, [7, 8]), (long, [7, 9]), (short, [4]), (short, long[:20])]
    mesh = sharding.make_mesh(**sizes) if sizes else None
    found = likelihood.likelihoods(
        params, cfg, pairs, batch_size=2, mesh=mesh, told=lambda new: None
    )
    return [one.log_probability for one in found]


steps = {c: [run(c, s) for s in ({}, *CASES[c])] for c in CASES}
pairs = [of_pairs(s) for s in (None, {"data": 2, "context": 4}, {"context": 8})]
print(json.dumps([steps, pairs]))
"""


@pytest.fixture(scope="module")
def found(of_devices):
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=of_devices(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_losses_are_those_of_one_device(found):
    assert len(found[0]) == 6
    for case, (one, *others) in found[0].items():
        assert one["losses"][0] > 4 and len(set(one["losses"])) == 10
        for other in others:
            np.testing.assert_allclose(
                other["losses"], one["losses"], rtol=1e-5, err_msg=f"{case}, {other}"
            )


@pytest.mark.slow
def test_likelihoods_of_whole_texts_are_those_of_one_device(found):
    one, *others = found[1]
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-5)


@pytest.mark.slow
def test_attention_alone_sends_activations_and_as_much_as_it_must(found):
    last = found[0]["six heads; lora; packed; 64"][-1]
    sent = [one for one in last["sent"] if one["nbytes"] > 2**13]
    # Nothing brings a sequence together: kernels of one layer are the largest.
    assert max(x["nbytes"] for x in sent if x["kind"] == "all-gather") == 4 * 64 * 96
    exchanged = [
        x
        for x in last["sent"]
        if "all_to_all" in x["name"] and x["kind"] == "all-to-all"
    ]
    # The two heads of keys are repeated to eight, and the three queries' heads of each
    # filled up to four: q, k, v and the output go forwards twice and back once, of 4
    # rows of 8 places on a device and heads of 8 numbers.
    part = 4 * 8 * 8 * 4
    heads = 8 + 8 + 8 + 8
    total = sum(x["nbytes"] * x["times"] for x in exchanged)
    assert total == 2 * 2 * 3 * heads * part  # parts of the batch, layers, passes
