"""Every model family beside transformers: one row a family, one table of tests.

The differences are logged: `pytest --log-cli-level INFO`.
"""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxpeft import adapters, hf, models, tree
from jaxpeft.generate.generation import generate
from jaxpeft.objectives.token_loss import nll_sum

LOG = logging.getLogger(__name__)
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
LOCAL_AND_NOT = ["sliding_attention", "full_attention"] * 2
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 7}
GPT2 = {"num_key_value_heads": 4, "n_inner": None, "n_positions": 128}
GPT2 |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
# PEFT wraps the parameters of experts one around the other.
WRAPPED = {
    ".experts.base_layer": ".experts.gate_up_proj",
    ".experts": ".experts.down_proj",
}
MIXTURE = {"num_experts": 5, "num_experts_per_tok": 2}
QWEN3_MOE = {**MIXTURE, "moe_intermediate_size": 24, "head_dim": 16}
GRANITE = {"embedding_multiplier": 6.0, "logits_scaling": 2.0}
GRANITE |= {"attention_multiplier": 0.3, "residual_multiplier": 0.4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
QWEN_VISION = {"depth": 1, "num_heads": 2, "hidden_size": 16, "intermediate_size": 16}
MROPE = {"rope_type": "default", "mrope_section": [1, 2, 1]}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1],
    "long_factor": [1.5, 2.0],
}
# model_type -> settings of small variants that between them use what it has.
ROWS = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": 9}),
    "mistral, no window": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "phi3": ("phi3", {"sliding_window": 11}),
    "phi3, part of a head": (
        "phi3",
        {"rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5}}
        | {"original_max_position_embeddings": 64},
    ),
    "mixtral": ("mixtral", MIXTURE),
    "mixtral, window": (
        "mixtral",
        {**MIXTURE, "sliding_window": 9, "num_experts_per_tok": 3},
    ),
    "qwen3_moe": ("qwen3_moe", QWEN3_MOE),
    "qwen3_moe, normalized": (
        "qwen3_moe",
        {**QWEN3_MOE, "norm_topk_prob": True, "num_experts_per_tok": 1},
    ),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", GPT2),
    "gpt2, unscaled": (
        "gpt2",
        {**GPT2, "scale_attn_weights": False, "tie_word_embeddings": False}
        | {"n_inner": 40, "activation_function": "relu"},
    ),
    "granite": ("granite", {**GRANITE, "tie_word_embeddings": True}),
    "granite 4": (
        "granitemoehybrid",
        {
            **GRANITE,
            "layer_types": ["full_attention"] * 4,
            "num_local_experts": 0,
            "shared_intermediate_size": 40,
            "position_embedding_type": "rope",
            "mamba_n_heads": 4,
        },
    ),
    "granite 4, no rotation": (
        "granitemoehybrid",
        {
            "layer_types": ["full_attention"] * 4,
            "num_local_experts": 0,
            "shared_intermediate_size": 24,
            "mamba_n_heads": 4,
        },
    ),
    "olmo3": (
        "olmo3",
        {"sliding_window": 7, "rope_theta": 500000.0, "rope_scaling": YARN},
    ),
    "olmoe": ("olmoe", MIXTURE),
    "exaone4": ("exaone4", {"sliding_window": 7, "sliding_window_pattern": 4}),
    "exaone4, no window": (
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    ),
    "ministral": (
        "ministral",
        {"head_dim": 16, "sliding_window": 7, "layer_types": LOCAL_AND_NOT},
    ),
    "ministral3": (
        "ministral3",
        {
            "head_dim": 16,
            "rope_parameters": {
                **YARN,
                "rope_theta": 1e6,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 8,
                "llama_4_scaling_beta": 0.3,
            },
        },
    ),
    "ministral3, no scaling": (
        "ministral3",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 8,
                "llama_4_scaling_beta": 0.3,
            },
        },
    ),
    "mistral3 of ministral3, sees": (
        "mistral3",
        {
            "text_config": {
                **SIZES,
                "model_type": "ministral3",
                "head_dim": 16,
                "tie_word_embeddings": True,
            },
            "vision_config": {"model_type": "pixtral", "head_dim": 8, **VISION},
            "tie_word_embeddings": True,
        },
    ),
    "glm4": ("glm4", {"head_dim": 16, "intermediate_size": 24}),
    "cohere": ("cohere", {"logit_scale": 0.5}),
    "cohere2": ("cohere2", {"sliding_window": 7, "logit_scale": 0.5}),
    "nemotron": ("nemotron", {"head_dim": 16}),
    "starcoder2": ("starcoder2", {"sliding_window": 9}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", {**GEMMA, "sliding_window_pattern": 3}),
    "gemma3 that sees": (
        "gemma3",
        {
            "text_config": {**SIZES, **GEMMA, "layer_types": LOCAL_AND_NOT},
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "mm_tokens_per_image": 4,
        },
    ),
    "mistral3": (
        "mistral3",
        {
            "text_config": {**SIZES, "model_type": "mistral", "sliding_window": None},
            "vision_config": {"model_type": "pixtral", "head_dim": 8, **VISION},
            "tie_word_embeddings": False,
        },
    ),
    "qwen2_vl, sees": (
        "qwen2_vl",
        {
            "text_config": {**SIZES, "rope_scaling": MROPE},
            "vision_config": {**QWEN_VISION, "embed_dim": 16, "hidden_size": 32},
        },
    ),
    "qwen2_5_vl, sees": (
        "qwen2_5_vl",
        {
            "text_config": {**SIZES, "rope_scaling": MROPE},
            "vision_config": {**QWEN_VISION, "out_hidden_size": 32},
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_vl, sees": (
        "qwen3_vl",
        {
            "text_config": {**SIZES, "head_dim": 8, "rope_scaling": MROPE},
            "vision_config": {
                **QWEN_VISION,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
        },
    ),
    "gemma3, rope scaled": (
        "gemma3_text",
        {
            **GEMMA,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
                "full_attention": {
                    "rope_type": "linear",
                    "rope_theta": 1e6,
                    "factor": 8.0,
                },
            },
        },
    ),
}
# The variants of a family go through the cheaper tests alone.
MAIN = [name for name in ROWS if "," not in name]
# What these are made of is that of other rows: the longer tests are of the whole suite.
MADE_OF_OTHERS = ("ministral", "olmo3", "olmoe", "exaone4", "granite 4", "gemma")
MADE_OF_OTHERS += ("mistral3", "starcoder2", "nemotron")
SEEING = [name for name in ROWS if name.endswith(", sees")]
LONGER = [
    pytest.param(name, marks=pytest.mark.slow)
    if name in (*MADE_OF_OTHERS, "cohere", *SEEING)
    else name
    for name in MAIN + SEEING
]
TOKENS = np.random.default_rng(0).integers(1, 61, (2, 29))
forward = jax.jit(models.forward, static_argnums=2)


class Family:
    """One small random model, in transformers and here."""

    def __init__(self, name, folder):
        kind, settings = ROWS[name]
        sees = "vision_config" in settings
        torch.manual_seed(0)
        settings = settings if sees else {**SIZES, **settings}
        config = transformers.AutoConfig.for_model(kind, **settings)
        config._attn_implementation = "eager"
        whole = transformers.AutoModelForImageTextToText
        auto = whole if sees else transformers.AutoModelForCausalLM
        model = auto.from_config(config).eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if path.endswith("bias") or "norm" in path or ".ln_" in path:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        self.torch, self.folder = model.float(), folder
        model.save_pretrained(folder)
        self.cfg = models.config(folder)
        self.params = hf.load(folder, self.cfg)

    def logits(self, tokens):
        with torch.no_grad():
            return self.torch(torch.from_numpy(tokens)).logits.numpy()


@pytest.fixture(scope="module", params=ROWS)
def family(request, tmp_path_factory):
    return Family(request.param, tmp_path_factory.mktemp("family") / "model")


def test_every_family_has_a_row():
    assert {kind for kind, _ in ROWS.values()} == set(models.FAMILIES)


def test_logits(family):
    expected, found = family.logits(TOKENS), forward(family.params, TOKENS, family.cfg)
    assert np.std(expected) > 0.5  # else a small difference says nothing
    difference = float(np.max(np.abs(expected - found)))
    LOG.info("largest difference of a logit: %.1e", difference)
    assert difference < 1e-4


# PEFT looks for these patterns among modules alone, and applies them to parameters.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern:RuntimeWarning")
@pytest.mark.parametrize("family", LONGER, indirect=True)
@pytest.mark.slow
def test_gradients_of_a_lora(family):
    import peft

    sees = "vision_config" in family.cfg.hf
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=r".*language_model.*_proj" if sees else "all-linear",
        init_lora_weights=False,
        fan_in_fan_out=family.cfg.conv1d,
    )
    torch.manual_seed(1)
    there = peft.get_peft_model(family.torch, config)
    try:
        there.save_pretrained(family.folder.parent / "adapter")
        params = hf.load_adapter(
            family.params, family.folder.parent / "adapter", family.cfg
        )
        mask = adapters.trainable_mask(params)
        trainable, frozen = tree.partition(params, mask)
        targets = np.roll(TOKENS, -1, axis=1)
        everywhere = np.ones(TOKENS.shape, bool)

        def loss(trainable):
            params = tree.combine(trainable, frozen)
            hidden = models.hidden_states(params, TOKENS, family.cfg)
            head = models.head(params, family.cfg)
            return nll_sum(hidden, head, targets, everywhere) / TOKENS.size

        value, grads = jax.jit(jax.value_and_grad(loss))(trainable)
        logits = there(torch.from_numpy(TOKENS)).logits.flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(targets).flatten()
        )
        expected.backward()
        assert abs(float(value) - expected.item()) < 1e-5 * expected.item()
        checked = 0
        for path, parameter in there.named_parameters():
            if parameter.grad is None:
                continue
            module, kind = path.split(".lora_")[0], path.split(".lora_")[1][0].lower()
            module = module.removeprefix("base_model.model.")
            found = gradient(grads, module, kind, family.cfg)
            wanted = by_expert(parameter.grad.numpy(), kind, found.shape)
            scale = np.abs(wanted).max()
            assert np.abs(found - wanted).max() < 1e-4 * max(scale, 1e-3), path
            checked += 1
        assert checked == len(jax.tree.leaves(trainable)) * 4  # layers
    finally:
        there.unload()


def by_expert(gradient, kind, shape):
    """PEFT's A (experts * r, in) or B (out, r * experts), as our nodes have them."""
    if len(shape) == 2:
        return gradient.T
    experts, *matrix = shape
    if kind == "a":
        return gradient.reshape(experts, *matrix[::-1]).swapaxes(1, 2)
    return gradient.reshape(*matrix[::-1], experts).T


def gradient(grads, module, kind, cfg):
    """A layer's gradient of A or B by its Hugging Face name."""
    for wrapper, parameter in WRAPPED.items():
        if module.endswith(wrapper):
            module = module.removesuffix(wrapper) + parameter
    [(path, names)] = [
        (path, names)
        for path, names in models.module_names(cfg).items()
        if module in names
    ]
    node = dict(tree.walk(grads))[f"{path}.kernel"]
    return np.asarray(getattr(node, kind)[names.index(module)])


@pytest.mark.parametrize("family", MAIN + SEEING, indirect=True)
def test_saved_and_loaded_bit_for_bit(family, tmp_path):
    hf.save(family.params, tmp_path, family.cfg, base=family.folder)
    again = hf.load(tmp_path, models.config(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, again, family.params)
    there = type(family.torch).from_pretrained(tmp_path).state_dict()
    for name, tensor in family.torch.state_dict().items():
        np.testing.assert_array_equal(there[name].numpy(), tensor.numpy(), name)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == family.cfg.model_type


@pytest.mark.slow
@pytest.mark.parametrize("family", LONGER, indirect=True)
def test_generation_is_transformers_greedy(family):
    prompts = [TOKENS[0, :5].tolist(), TOKENS[1, :17].tolist()]
    found = generate(family.params, family.cfg, prompts, max_new_tokens=20, stop=[])
    for prompt, answer in zip(prompts, found, strict=True):
        expected = family.torch.generate(
            torch.tensor([prompt]),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert answer == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["granite", "gemma"], indirect=True)
def test_virtual_tokens_are_scaled_where_the_model_scales_what_it_reads(
    family, tmp_path
):
    import peft

    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    there = peft.get_peft_model(family.torch, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        there.prompt_encoder["default"].embedding.weight.normal_()
        expected = there(torch.from_numpy(TOKENS)).logits[:, 3:].numpy()
    there.save_pretrained(tmp_path)
    params = hf.load_adapter(family.params, tmp_path, family.cfg)
    found = forward(params, TOKENS, family.cfg)
    assert np.max(np.abs(expected - found)) < 1e-4


def test_packed_examples_see_themselves_alone(family):
    spans = np.split(np.arange(29), [5, 14])
    packed = TOKENS[:1].astype(np.int32)
    segments, positions = np.zeros_like(packed), np.zeros_like(packed)
    for number, span in enumerate(spans, 1):
        segments[0, span], positions[0, span] = number, np.arange(len(span))
    found = models.forward(
        family.params, packed, family.cfg, segments=segments, positions=positions
    )
    for span in spans:
        alone = family.logits(packed[:, span].astype(np.int64))
        np.testing.assert_allclose(found[:, span], alone, atol=1e-4)


@pytest.mark.parametrize("family", LONGER, indirect=True)
def test_random_weights_have_the_scale_of_transformers(family):
    params = models.random(family.cfg, jax.random.key(0))
    logits = forward(params, TOKENS, family.cfg)
    assert jnp.all(jnp.isfinite(logits)) and jnp.std(logits) > 0.1


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "smollm3"])
def test_fields_that_are_not_handled_are_refused(name):
    kind, settings = ROWS[name]
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **settings})
    content = {**json.loads(config.to_json_string(use_diff=False)), "new_field": 3}
    with pytest.raises(ValueError, match="new_field: found 3"):
        models.config(content)
    del content["new_field"]
    content["layer_types"] = ["full_attention"]
    with pytest.raises(ValueError, match="layer_types"):
        models.config(content)
