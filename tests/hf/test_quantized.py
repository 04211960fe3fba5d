"""Bases in few bits: loaded a layer at a time, trained over, merged, exported."""

import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jaxpeft import adapters, hf, kernel, models, quant, tree
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step
from jaxpeft.errors import InputError
from jaxpeft.models import is_spec, param_specs

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 16)).astype(np.int32)
KINDS = sorted(quant.KERNELS)
PRODUCTS = ("int8", "fp8", "nf4")  # nf4_single has the product of nf4


@pytest.fixture(scope="module")
def base(make_torch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_torch(**SIZES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cfg(base):
    return models.config(base)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_of_the_layers_is_quantized(kind, base, cfg):
    params, whole = hf.load(base, cfg, quantization=kind), hf.load(base, cfg)
    nodes, plain = kernel.nodes(params), dict(tree.walk(whole))
    assert len(nodes) == 7 and "lm_head.kernel" not in nodes
    for name, node in nodes.items():
        assert node.shape == plain[name].shape
        one = quant.KERNELS[kind](plain[name][1], "float32")
        for found, expected in zip(
            jax.tree.leaves(jax.tree.map(lambda x: x[1], node)), jax.tree.leaves(one)
        ):
            np.testing.assert_array_equal(found, expected)
    rest = {n: x for n, x in tree.walk(params) if n not in nodes}
    for name, leaf in rest.items():
        np.testing.assert_array_equal(leaf, plain[name])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_skipped_stays_whole(kind, base, cfg):
    skip = ("down_proj", "self_attn.k_proj")
    params = hf.load(base, cfg, quantization=kind, skip=skip)
    nodes = {name.split(".")[-2] for name in kernel.nodes(params)}
    assert nodes == {"q_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_computes_with_the_stored_values(kind, base, cfg):
    params = hf.load(base, cfg, quantization=kind)
    dense = adapters.merge(params)
    assert not kernel.nodes(dense)
    found = models.forward(params, TOKENS, cfg)
    expected = models.forward(dense, TOKENS, cfg)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_lora_over_it_trains_and_merges(kind, base, cfg):
    params = hf.load(base, cfg, quantization=kind)
    before = jax.tree.map(np.asarray, params)
    params = adapters.inject(params, {"r": 4}, jax.random.key(0))
    mask = adapters.trainable_mask(params)
    trainable, frozen = tree.partition(params, mask)
    assert {n.rsplit(".", 1)[1] for n, _ in tree.named_leaves(trainable)} == {"a", "b"}
    tx = optax.adam(1e-2)
    step = jax.jit(make_train_step(cfg, tx))
    batch = {
        "tokens": TOKENS[None],
        "targets": np.roll(TOKENS, -1, axis=1)[None],
        "supervised": np.ones((1, 2, 16), bool),
        "positions": np.broadcast_to(np.arange(16, dtype=np.int32), (1, 2, 16)),
    }
    state, losses = TrainState.create(trainable, tx, jax.random.key(1)), []
    for _ in range(8):
        state, metrics = step(state, Frozen(frozen), batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    params = tree.combine(state.params, frozen)
    for name, node in kernel.nodes(params).items():
        jax.tree.map(
            np.testing.assert_array_equal, node.base, kernel.nodes(before)[name]
        )
    merged = adapters.merge(params)
    np.testing.assert_allclose(
        models.forward(merged, TOKENS, cfg),
        models.forward(params, TOKENS, cfg),
        atol=5e-4,
    )


def step_bytes(kind, layers):
    """(temporary bytes of a compiled step, those of the kernels in 16 bits)."""
    content = {**make_sizes(layers), "model_type": "llama", "vocab_size": 61}
    cfg = models.config(content, remat="full")
    specs = dict(tree.named_leaves(param_specs(cfg), is_leaf=is_spec))
    stacks = {n: s.shape for n, s in specs.items() if hf.is_quantized(n, s, ())}
    nodes = {n: quant.shapes(kind, shape, "float32") for n, shape in stacks.items()}
    params = tree.replace(models.shapes(cfg, "float32"), nodes)
    params = jax.eval_shape(
        lambda params, key: adapters.inject(params, {"r": 2}, key),
        params,
        jax.random.key(0),
    )
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    tx, key = optax.adam(1e-3), jax.random.key(1)
    state = jax.eval_shape(lambda t: TrainState.create(t, tx, key), trainable)
    kinds = {"tokens": "int32", "targets": "int32", "positions": "int32"}
    kinds |= {"supervised": "bool"}
    batch = {
        name: jax.ShapeDtypeStruct((1, 1, 8), kind) for name, kind in kinds.items()
    }
    step = jax.jit(make_train_step(cfg, tx), donate_argnums=0)
    compiled = step.lower(state, Frozen(frozen), batch).compile()
    size = 2 * sum(math.prod(shape) for shape in stacks.values())
    return compiled.memory_analysis().temp_size_in_bytes, size


def make_sizes(layers):
    return {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    }


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.slow
def test_a_step_keeps_no_dequantized_stack(kind):
    """Not even of some of the modules, in 16 bits."""
    temporary, whole = step_bytes(kind, 64)
    assert temporary < 0.4 * whole


def test_unknown_storage_is_refused(base, cfg):
    with pytest.raises(InputError, match="model.quantization: found 'nf5'; did you"):
        hf.load(base, cfg, quantization="nf5")


ON_A_MESH = """
import sys, jax, numpy as np
from jaxpeft import hf, models
from jaxpeft.devices import sharding

mesh = sharding.make_mesh(data=1, fsdp=2, tensor=2)
cfg = models.config(sys.argv[1])
for kind in ("nf4", "nf4_single", "int8"):
    whole = hf.load(sys.argv[1], cfg, quantization=kind)
    parts = hf.load(sys.argv[1], cfg, quantization=kind, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    node = parts["model"]["layers"]["mlp"]["down_proj"]["kernel"]
    print(kind, node.codes.addressable_shards[0].data.shape)
    if kind != "int8":
        hf.save(parts, f"{sys.argv[2]}/{kind}", cfg, dtype="float32")
        stored = models.config(f"{sys.argv[2]}/{kind}")
        again = hf.load(f"{sys.argv[2]}/{kind}", stored, mesh=mesh)
        same = jax.tree.map(lambda x, y: x.sharding == y.sharding, again, parts)
        assert all(jax.tree.leaves(same))
        jax.tree.map(np.testing.assert_array_equal, whole, again)
"""


@pytest.mark.slow
def test_codes_are_split_like_the_matrix(base, of_devices, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH, str(base), str(tmp_path)],
        env=of_devices(4),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # down_proj is 128 x 64: its input over tensor, its output over fsdp.
    assert done.stdout.splitlines() == [
        "nf4 (3, 32, 32)",
        "nf4_single (3, 32, 32)",
        "int8 (3, 64, 32)",
    ]
