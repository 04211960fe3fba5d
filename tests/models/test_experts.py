"""Mixtures of experts: the product by blocks, and adapters of experts as PEFT's."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from jax.extend.core import jaxprs_in_params

from jaxpeft import adapters, hf, kernel, models, quant, tree
from jaxpeft.errors import InputError
from jaxpeft.models import experts

COUNT, D_IN, D_OUT = 5, 64, 24
KEY = jax.random.key(0)


def normal(*shape):
    values = np.random.default_rng(sum(shape)).normal(size=shape)
    return jnp.asarray(values / 8, jnp.float32)


def few_bits(kind):
    make = functools.partial(quant.KERNELS[kind], dtype="float32")
    return jax.vmap(make)(normal(COUNT, D_IN, D_OUT))


def lora(base):
    return adapters.lora(base, KEY, r=4, init_lora_weights=False)


KERNELS = {
    "array": lambda: normal(COUNT, D_IN, D_OUT),
    "lora": lambda: lora(normal(COUNT, D_IN, D_OUT)),
    "nf4": lambda: few_bits("nf4"),
    "int8": lambda: few_bits("int8"),
    "qlora": lambda: lora(few_bits("nf4")),
}
# How tokens choose among five experts, two each.
CHOICES = {
    "spread": np.random.default_rng(1).permuted([[0, 1, 2, 3, 4]] * 37, axis=1)[:, :2],
    "all alike": np.tile([[3, 1]], (37, 1)),
    "one token": np.array([[4, 0]]),
}


def by_blocks(x, kernels, groups, shares):
    rows = experts.product(experts.dispatch(x, groups), kernels, groups.experts)
    return experts.collect(rows, shares, groups)


def one_by_one(x, kernels, chosen, shares):
    dense = kernel.dense(kernels)
    return jnp.einsum("tk,td,tkdo->to", shares, x, dense[chosen])


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("kind", KERNELS)
def test_product_is_that_of_each_tokens_own_experts(kind, choice):
    kernels, chosen = KERNELS[kind](), jnp.asarray(CHOICES[choice])
    x, shares = normal(len(chosen), D_IN), normal(*chosen.shape)
    mask = adapters.trainable_mask({"kernel": kernels})["kernel"]
    if kind in ("nf4", "int8"):
        mask = jax.tree.map(lambda _: False, mask)
    trained, frozen = tree.partition(kernels, mask)

    def loss(product, trained, x, shares):
        y = product(x, tree.combine(trained, frozen), shares=shares)
        return jnp.sum(jnp.sin(y)), y

    found, wanted = (
        jax.jit(jax.value_and_grad(functools.partial(loss, f), (0, 1, 2), has_aux=True))
        for f in (
            functools.partial(by_blocks, groups=experts.group(chosen, COUNT)),
            functools.partial(one_by_one, chosen=chosen),
        )
    )
    found, wanted = (jax.tree.leaves(f(trained, x, shares)) for f in (found, wanted))
    assert len(found) == len(wanted) >= 4
    for mine, other in zip(found, wanted):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


def test_every_pair_has_a_row_of_its_own_expert():
    chosen = CHOICES["spread"]
    groups = experts.group(jnp.asarray(chosen), COUNT)
    rows = len(groups.pairs) // len(groups.experts)
    slots = np.asarray(groups.slots)
    assert len(set(slots.flat)) == chosen.size
    np.testing.assert_array_equal(np.asarray(groups.experts)[slots // rows], chosen)
    np.testing.assert_array_equal(np.asarray(groups.pairs)[slots.flat], range(74))
    # What is computed beyond the pairs themselves is less than a block an expert.
    assert len(groups.pairs) < chosen.size + COUNT * rows


def test_blocks_of_one_expert_drop_by_different_keys():
    node = adapters.lora(jnp.zeros((1, D_IN, D_OUT)), KEY, r=4, lora_dropout=0.5)
    node = node.replace(b=jnp.ones_like(node.b)).with_key(jax.random.key(3))
    x = jnp.ones((2, 1, D_IN))
    first, second = experts.product(x, node, jnp.zeros(2, jnp.int32))
    assert not np.allclose(first, second)


SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "num_experts_per_tok": 2,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES = {
    "mixtral": {"num_local_experts": 4, "intermediate_size": 40},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24},
}
TOKENS = np.random.default_rng(0).integers(1, 61, (2, 19))
forward = jax.jit(models.forward, static_argnums=2)


class Mixture:
    """A small random model's folder, config and params."""

    def __init__(self, kind, folder):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **SIZES, **FAMILIES[kind])
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder)
        self.folder, self.cfg = folder, models.config(folder)
        self.params = hf.load(folder, self.cfg)

    def torch(self):
        return transformers.AutoModelForCausalLM.from_pretrained(self.folder).eval()

    def adapted(self, **rules):
        names = models.module_names(self.cfg)
        return adapters.inject(self.params, rules, jax.random.key(1), names)

    def with_peft(self, folder):
        model = peft.PeftModel.from_pretrained(self.torch(), folder).eval()
        with torch.no_grad():
            return model(torch.from_numpy(TOKENS)).logits.numpy()


@pytest.fixture(scope="module", params=FAMILIES)
def mixture(request, tmp_path_factory):
    return Mixture(request.param, tmp_path_factory.mktemp("mixture") / "model")


TARGETS = {
    "all-linear": ("all-linear", {"gate_up_proj", "down_proj"}),
    "one parameter": (["down_proj", "q_proj"], {"down_proj"}),
    "router": (["gate", "gate_up_proj"], {"gate.weight", "gate_up_proj"}),
    "a layer": (
        r"model\.layers\.1\.mlp\.experts\..*",
        {f"model.layers.1.mlp.experts.{n}" for n in ("gate_up_proj", "down_proj")},
    ),
    "attention": (["q_proj", "v_proj"], set()),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.slow
def test_peft_loads_what_is_written_here(name, mixture, tmp_path):
    pattern, parameters = TARGETS[name]
    rules = {"r": 4, "lora_dropout": 0.1, "init_lora_weights": False}
    params = mixture.adapted(target_modules=pattern, **rules)
    hf.save_adapter(params, tmp_path, mixture.cfg)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(written.get("target_parameters", ())) == parameters
    found = forward(params, TOKENS, mixture.cfg)
    assert np.abs(found - forward(mixture.params, TOKENS, mixture.cfg)).max() > 1e-2
    np.testing.assert_allclose(found, mixture.with_peft(tmp_path), atol=1e-4)
    again = hf.load_adapter(mixture.params, tmp_path, mixture.cfg)
    np.testing.assert_allclose(forward(again, TOKENS, mixture.cfg), found, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters", [["experts.down_proj"], ["mlp.experts.gate_up_proj", "gate.weight"]]
)
def test_what_peft_writes_is_loaded(parameters, mixture, tmp_path):
    config = peft.LoraConfig(
        r=3,
        use_rslora=True,
        target_modules=["k_proj"],
        target_parameters=parameters,
        init_lora_weights=False,
    )
    torch.manual_seed(1)
    peft.get_peft_model(mixture.torch(), config).save_pretrained(tmp_path)
    params = hf.load_adapter(mixture.params, tmp_path, mixture.cfg)
    assert len(kernel.nodes(params)) == 1 + len(parameters)
    found = forward(params, TOKENS, mixture.cfg)
    np.testing.assert_allclose(found, mixture.with_peft(tmp_path), atol=1e-4)


@pytest.mark.slow
def test_a_merge_computes_the_same(mixture, tmp_path):
    params = mixture.adapted(r=4, init_lora_weights=False)
    expected = forward(params, TOKENS, mixture.cfg)
    hf.save(adapters.merge(params), tmp_path, mixture.cfg)
    merged = hf.load(tmp_path, mixture.cfg)
    found = forward(merged, TOKENS, mixture.cfg)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("method", ["dora", "ia3", "bottleneck"])
def test_experts_take_a_lora_alone(method, mixture, tmp_path):
    params = mixture.adapted(method=method, target_modules=["down_proj", "q_proj"])
    with pytest.raises(InputError, match=r"experts\.down_proj; .* lora"):
        hf.save_adapter(params, tmp_path / "adapter", mixture.cfg)
    attention = mixture.adapted(method=method, target_modules=["q_proj"])
    hf.save_adapter(attention, tmp_path / "adapter", mixture.cfg)


def test_adapters_of_single_experts_are_refused_with_a_way_out(mixture, tmp_path):
    params = mixture.adapted(r=4, target_modules=["q_proj"])
    hf.save_adapter(params, tmp_path, mixture.cfg)
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    key = "base_model.model.model.layers.0.mlp.experts.0.w1.lora_A.weight"
    tensors[key] = torch.zeros(4, 32)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match="transformers 5 and save it again"):
        hf.load_adapter(mixture.params, tmp_path, mixture.cfg)


REFUSED = {
    "output_router_logits": True,
    "router_jitter_noise": 0.1,
    "num_experts_per_tok": 9,
    "mlp_only_layers": [1],
    "decoder_sparse_step": 2,
    "new_field": 3,
}


@pytest.mark.parametrize("field", REFUSED)
def test_fields_that_are_not_handled_are_refused(field, mixture):
    value = REFUSED[field]
    with pytest.raises(InputError, match=f"{field}: found {re.escape(repr(value))}"):
        models.config({**mixture.cfg.hf, field: value})


def made_by(jaxpr):
    """The shapes of all that a program makes, inner programs included."""
    shapes = set()
    for equation in jaxpr.eqns:
        shapes |= {v.aval.shape for v in equation.outvars}
        shapes |= set().union(*map(made_by, jaxprs_in_params(equation.params)))
    return shapes


@pytest.mark.slow
def test_frozen_experts_cost_no_gradients(mixture):
    params, cfg = mixture.adapted(r=2), mixture.cfg
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))

    def loss(trainable, frozen):
        return jnp.sum(models.forward(tree.combine(trainable, frozen), TOKENS, cfg))

    def made(*parts):
        return made_by(jax.make_jaxpr(jax.grad(loss))(*parts).jaxpr)

    nothing = jax.tree.map(lambda _: None, mixture.params)
    experts = params["model"]["layers"]["mlp"]["experts"]["down_proj"]["kernel"]
    adapted, full = made(trainable, frozen), made(mixture.params, nothing)
    assert experts.a.shape[1:] in adapted  # of a layer's experts together
    assert experts.shape[1:] in full and experts.shape[1:] not in adapted
