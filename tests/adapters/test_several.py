"""Several LoRAs over one base: each row gets what its adapter gives alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import adapters, models, tree
from jaxpeft.errors import InputError
from jaxpeft.generate.generation import generate
from jaxpeft.kernel import axes_of
from jaxpeft.quant import int8

RULES = {
    "small": {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "large": {"r": 6, "lora_alpha": 6, "use_rslora": True},
    "partly": {"r": 4, "target_modules": r"model\.layers\.1\..*(k|up)_proj"},
}
NAMES = ["large", "base", "small", "partly", "small"]
TOKENS = np.random.default_rng(3).integers(1, 61, (5, 9)).astype(np.int32)
forward = jax.jit(models.forward, static_argnums=2)


def adapted(params):
    found = {"base": params}
    for number, (name, rules) in enumerate(RULES.items()):
        random = {**rules, "init_lora_weights": False}
        found[name] = adapters.inject(params, random, jax.random.key(number))
    return found


def together(alone):
    named = {name: alone[name] for name in RULES}
    return adapters.several(alone["base"], named)


@pytest.fixture(scope="module")
def alone(llama):
    """{name: params}, "base" the ones without an adapter."""
    return adapted(llama.params)


@pytest.fixture(scope="module")
def shared(alone):
    return together(alone)


def expected(llama, alone):
    logits = {name: forward(alone[name], TOKENS, llama.cfg) for name in set(NAMES)}
    return np.stack([logits[name][row] for row, name in enumerate(NAMES)])


@pytest.mark.slow
def test_every_row_has_the_logits_of_its_adapter_alone(llama, alone, shared):
    found = forward(adapters.choose(shared, NAMES), TOKENS, llama.cfg)
    there = expected(llama, alone)
    np.testing.assert_allclose(found, there, atol=1e-5)
    base = forward(alone["base"], TOKENS, llama.cfg)
    other = [row for row, name in enumerate(NAMES) if name != "base"]
    assert np.abs(there - base)[other].max(axis=(1, 2)).min() > 0.1


@pytest.mark.slow
def test_a_quantized_base_is_shared_as_it_is(llama):
    stack = jax.vmap(lambda matrix: int8(matrix, "float32"))
    changes = {
        name: stack(value)
        for name, value in tree.walk(llama.params)
        if name.endswith("_proj.kernel")
    }
    alone = adapted(tree.replace(llama.params, changes))
    shared = together(alone)
    path = "model.layers.self_attn.q_proj.kernel"
    assert dict(tree.walk(shared))[path].base is changes[path]
    found = forward(adapters.choose(shared, NAMES), TOKENS, llama.cfg)
    np.testing.assert_allclose(found, expected(llama, alone), atol=1e-5)


@pytest.mark.slow
def test_the_answers_of_a_batch_are_those_of_each_adapter_alone(llama, alone, shared):
    prompts = [[10, 11, 12], [20], [3, 1, 4, 1, 5], [7, 7], [10, 11, 12]]
    settings = {"max_new_tokens": 12, "stop": [5]}
    chosen = adapters.choose(shared, NAMES)
    found = generate(chosen, llama.cfg, prompts, **settings)
    for name in set(NAMES):
        there = generate(alone[name], llama.cfg, prompts, **settings)
        rows = [row for row, other in enumerate(NAMES) if other == name]
        assert [found[row] for row in rows] == [there[row] for row in rows]
    assert found[0] != found[4]


def test_another_choice_needs_no_other_program(llama, shared):
    traced = []

    @jax.jit
    def last(params):
        traced.append(1)
        return models.forward(params, TOKENS[:2], llama.cfg)[:, -1]

    one = last(adapters.choose(shared, ["small", "large"]))
    other = last(adapters.choose(shared, ["base", "large"]))
    assert len(traced) == 1
    assert not np.allclose(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_axes_have_the_structure_of_the_node(shared):
    path = "model.layers.self_attn.q_proj.kernel"
    for params in (shared, adapters.choose(shared, ["base"])):
        node = dict(tree.walk(params))[path]
        axes = axes_of(node, ("layers", "embed", "heads"))
        pairs = jax.tree.map(lambda x, names: x.ndim == len(names), node, axes)
        assert all(jax.tree.leaves(pairs))
        assert axes.a == ("layers", None, "embed", None)
        assert axes.b == ("layers", None, None, "heads")


def test_nothing_chosen_or_too_few_is_an_error(llama, shared):
    for params, words in (
        (shared, "none chosen for a batch of 5 rows"),
        (adapters.choose(shared, ["small"]), "1 chosen for a batch of 5 rows"),
    ):
        with pytest.raises(InputError, match=words):
            models.forward(params, TOKENS, llama.cfg)


def test_an_unknown_name_is_answered_with_the_known(shared):
    with pytest.raises(InputError, match="'smal' is none.*did you mean 'small'"):
        adapters.choose(shared, ["base", "smal"])


def test_they_cannot_be_merged(shared):
    with pytest.raises(InputError, match="small, large, partly stand over one base"):
        adapters.merge(shared)


@pytest.mark.parametrize(
    ("rules", "kind"),
    [
        ({"method": "dora"}, "DoRA"),
        ({"method": "ia3"}, "IA3"),
        ({"method": "bottleneck"}, "Bottleneck"),
    ],
    ids=["dora", "ia3", "bottleneck"],
)
def test_other_methods_are_refused_by_name(rules, kind, llama, alone):
    other = adapters.inject(llama.params, rules, jax.random.key(0))
    with pytest.raises(InputError, match=f"'other' is a {kind}; only LoRAs.*alone"):
        adapters.several(llama.params, {"small": alone["small"], "other": other})


def test_a_lora_of_another_base_is_refused(llama, alone):
    path = "model.layers.mlp.up_proj.kernel"
    node = dict(tree.walk(alone["large"]))[path]
    changed = dataclasses.replace(node, base=node.base + 1)
    other = tree.replace(alone["large"], {path: changed})
    with pytest.raises(InputError, match=f"'other' differs from the base in {path}"):
        adapters.several(llama.params, {"other": other})
    equal = dataclasses.replace(node, base=jnp.array(node.base))
    other = tree.replace(alone["large"], {path: equal})
    adapters.several(llama.params, {"other": other})


def test_names_that_cannot_be_chosen_are_refused(llama, alone):
    with pytest.raises(InputError, match="the name 'base', which stands for"):
        adapters.several(llama.params, {"base": alone["small"]})
    with pytest.raises(InputError, match="none given"):
        adapters.several(llama.params, {})
