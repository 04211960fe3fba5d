"""Sums of adapters, beside peft's own and beside the matrices that they stand for."""

import jax
import numpy as np
import peft
import pytest
import torch

from jaxpeft import adapters, hf, kernel, models, tree
from jaxpeft.errors import InputError

TOKENS = np.random.default_rng(0).integers(0, 61, (2, 9))
# Other modules, ranks, scales and layers; two of them meet in q_proj.
RULES = (
    {"target_modules": ["q_proj", "up_proj"], "r": 3, "lora_alpha": 5},
    {"target_modules": ["q_proj"], "r": 5, "lora_alpha": 4, "use_rslora": True},
    {"target_modules": r".*\.1\.(self_attn\.q_proj|mlp\.down_proj)", "r": 2},
)
WEIGHTS = (0.7, -1.3, 2.0)


@pytest.fixture(scope="module")
def adapted(llama):
    return [
        adapters.inject(
            llama.params, {**rules, "init_lora_weights": False}, jax.random.key(i)
        )
        for i, rules in enumerate(RULES)
    ]


def updates(params):
    """{name: the matrix that an adapter adds, in float64}."""
    return {
        name: np.asarray(node.a, np.float64)
        @ np.asarray(node.b, np.float64)
        * np.asarray(node.scale, np.float64)[..., None, None]
        for name, node in kernel.nodes(params).items()
    }


def weighted_sum(adapted):
    total = {}
    for params, weight in zip(adapted, WEIGHTS, strict=True):
        for name, update in updates(params).items():
            total[name] = total.get(name, 0) + weight * update
    return total


@pytest.mark.slow
def test_concatenated_ranks_are_the_exact_sum(adapted):
    found = adapters.combine(adapted, WEIGHTS)
    expected = weighted_sum(adapted)
    assert set(kernel.nodes(found)) == set(expected)
    for name, update in updates(found).items():
        np.testing.assert_allclose(update, expected[name], atol=1e-6)
    ranks = {n.split(".")[-2]: k.rank for n, k in kernel.nodes(found).items()}
    assert ranks == {"q_proj": 10, "up_proj": 3, "down_proj": 2}
    down = kernel.nodes(found)["model.layers.mlp.down_proj.kernel"]
    np.testing.assert_array_equal(down.scale, [0, 1])  # nobody adapts layer 0


def test_rslora_first_is_the_exact_sum_too(llama):
    """PEFT marks its sum as rsLoRA then, and is off by the root of the rank."""
    adapted, expected = [], {}
    for seed, (r, alpha) in enumerate([(4, 6), (9, 5)]):
        rules = {"r": r, "lora_alpha": alpha, "use_rslora": True}
        rules |= {"target_modules": ["q_proj"], "init_lora_weights": False}
        adapted.append(adapters.inject(llama.params, rules, jax.random.key(seed)))
        for name, node in kernel.nodes(adapted[-1]).items():
            a, b = np.asarray(node.a, np.float64), np.asarray(node.b, np.float64)
            update = WEIGHTS[seed] * alpha / np.sqrt(r) * (a @ b)
            expected[name] = expected.get(name, 0) + update
    for method in ("cat", "svd"):
        r = None if method == "cat" else 13  # as many as they have together
        found = adapters.combine(adapted, WEIGHTS[:2], method=method, r=r)
        for name, update in updates(found).items():
            np.testing.assert_allclose(update, expected[name], atol=1e-6)


@pytest.mark.parametrize("r", [1, 2, 4, 40])
def test_the_svd_is_the_nearest_of_its_rank(r, adapted):
    found = updates(adapters.combine(adapted, WEIGHTS, method="svd", r=r))
    for name, expected in weighted_sum(adapted).items():
        for one, whole in zip(found[name], expected, strict=True):
            left = np.linalg.svd(whole, compute_uv=False)[r:]
            distance = np.linalg.norm(one - whole)
            np.testing.assert_allclose(distance, np.linalg.norm(left), atol=1e-5)
            assert np.linalg.matrix_rank(one, tol=1e-5) <= r


def test_the_base_stays(adapted, llama):
    found = adapters.combine(adapted[1:], WEIGHTS[1:])
    bare = {name: node.base for name, node in kernel.nodes(found).items()}
    same = tree.replace(found, bare)
    jax.tree.map(np.testing.assert_array_equal, same, llama.params)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cat", "svd"])
def test_peft_computes_the_same(method, adapted, llama, make_torch, tmp_path):
    for i, params in enumerate(adapted[:2]):
        hf.save_adapter(params, tmp_path / str(i), llama.cfg)
    model = peft.PeftModel.from_pretrained(make_torch(), tmp_path / "0", "0")
    model.load_adapter(tmp_path / "1", "1")
    settings = {"svd_rank": 4} if method == "svd" else {}
    model.add_weighted_adapter(
        ["0", "1"], list(WEIGHTS[:2]), "sum", combination_type=method, **settings
    )
    model.set_adapter("sum")
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(TOKENS)).logits.numpy()
    r = settings.get("svd_rank")
    found = adapters.combine(adapted[:2], WEIGHTS[:2], method=method, r=r)
    logits = models.forward(found, TOKENS, llama.cfg)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    plain = models.forward(llama.params, TOKENS, llama.cfg)
    assert np.abs(logits - plain).max() > 0.1


def test_without_a_rank_the_svd_keeps_the_largest(adapted):
    found = adapters.combine(adapted, WEIGHTS, method="svd")
    node = kernel.nodes(found)["model.layers.self_attn.q_proj.kernel"]
    assert node.rank == 5


@pytest.mark.parametrize(
    ("weights", "settings", "message"),
    [
        ((1.0, 2.0), {"method": "svt"}, "method: found 'svt'; did you mean 'svd'"),
        ((1.0, 2.0), {"method": "svd", "r": 0}, "r: found 0; give 1 or more"),
        ((1.0, 2.0), {"r": 8}, "r: found 8; give nothing but with method svd"),
        ((1.0,), {}, "weights: found 1 for 2 adapters; give one each"),
        ((1.0, float("nan")), {}, "weights: found nan; give finite numbers"),
    ],
)
def test_bad_settings(weights, settings, message, adapted):
    with pytest.raises(InputError, match=message):
        adapters.combine(adapted[:2], weights, **settings)


def test_only_loras_over_one_base_have_a_sum(adapted, llama, make_llama):
    dora = adapters.inject(llama.params, {"method": "dora"}, jax.random.key(0))
    with pytest.raises(InputError, match=r"adapter 2: .* is a DoRA; only LoRAs"):
        adapters.combine([adapted[0], dora], [1.0, 1.0])
    with pytest.raises(InputError, match="adapter 1: the params hold no LoRA"):
        adapters.combine([llama.params], [1.0])
    other = make_llama(hidden_size=16, intermediate_size=8).params
    other = adapters.inject(other, {"r": 2}, jax.random.key(0))
    with pytest.raises(InputError, match="adapter 2: .*combine adapters of one base"):
        adapters.combine([adapted[0], other], [1.0, 1.0])
