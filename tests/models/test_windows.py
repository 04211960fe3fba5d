"""Windows of tokens where virtual tokens, packing, padding or long sequences meet them.

Distance is one of positions: PEFT's of a sequence alone, wherever it lies in a row.
"""

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from jaxpeft import hf, models
from jaxpeft.generate.continuation import Continuation
from jaxpeft.generate.generation import generate
from jaxpeft.models.sampling import Sampling

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
# model_type -> a window in all of its layers, or in some.
FAMILIES = {
    "mistral": {"sliding_window": 7},
    "gemma3_text": {"sliding_window": 6, "sliding_window_pattern": 2},
    "gemma2": {"sliding_window": 9},
    "qwen2": {
        "sliding_window": 5,
        "use_sliding_window": True,
        "max_window_layers": 1,
    },
}
TOKENS = np.random.default_rng(0).integers(1, 61, (1, 40)).astype(np.int32)
SPANS = [(0, 5), (5, 21), (21, 38)]
NEW = 12


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """make(model_type): a random model there, its config and its params here."""

    def make(kind):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **SIZES, **FAMILIES[kind])
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        folder = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        cfg = models.config(folder)
        return model, cfg, hf.load(folder, cfg)

    return make


@pytest.fixture(scope="module", params=["mistral", "gemma3_text"])
def base(request, make):
    return make(request.param)


@pytest.fixture(scope="module", params=["PromptTuning", "PrefixTuning"])
def virtual(request, base, tmp_path_factory):
    """The model with four virtual tokens, in PEFT and here."""
    model, cfg, params = base
    torch.manual_seed(1)
    rules = {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
    if request.param == "PrefixTuning":
        heads = {"num_attention_heads": 2, "token_dim": 16}
        rules |= heads
    there = peft.get_peft_model(model, getattr(peft, request.param + "Config")(**rules))
    folder = tmp_path_factory.mktemp("adapter")
    there.save_pretrained(folder)
    return there.eval(), cfg, hf.load_adapter(params, folder, cfg)


def logits_of(model, tokens):
    with torch.no_grad():
        logits = model(torch.from_numpy(np.asarray(tokens)[None]).long()).logits
    return logits[0, -len(tokens) :].numpy()  # PEFT's of a prompt come first


@pytest.mark.slow
def test_packed_examples_are_as_alone_behind_virtual_tokens(virtual):
    there, cfg, params = virtual
    segments, positions = np.zeros((2, *TOKENS.shape), np.int32)
    for number, (start, end) in enumerate(SPANS, 1):
        segments[0, start:end] = number
        positions[0, start:end] = np.arange(end - start)
    found = models.forward(params, TOKENS, cfg, segments=segments, positions=positions)
    for start, end in SPANS:
        alone = logits_of(there, TOKENS[0, start:end])
        np.testing.assert_allclose(found[0, start:end], alone, atol=1e-4)


@pytest.mark.slow
def test_answers_are_what_sequences_alone_say(virtual):
    there, cfg, params = virtual

    def check(prompt, answer):
        logits = logits_of(there, prompt + answer)[len(prompt) - 1 : -1]
        assert answer == np.argmax(logits, axis=-1).tolist()

    prompts = [TOKENS[0, :3].tolist(), TOKENS[0, 3:20].tolist()]
    found = generate(params, cfg, prompts, max_new_tokens=NEW, stop=[])
    for prompt, answer in zip(prompts, found, strict=True):
        check(prompt, answer)
    # Streamed, and a second turn that reads what is new alone.
    sequence = Continuation(params, cfg, [], Sampling())
    assert list(sequence.answer(prompts[0], NEW)) == found[0]
    second = [*prompts[0], *found[0], *TOKENS[0, 30:35].tolist()]
    check(second, list(sequence.answer(second, NEW)))
    assert sequence.reused == len(prompts[0]) + NEW - 1


@pytest.mark.parametrize("kind", ["gemma2", "qwen2"])
def test_beyond_the_context_layers_without_a_window_have_none(kind, make):
    there, cfg, params = make(kind)
    assert TOKENS.shape[1] > cfg.max_position_embeddings and None in cfg.windows
    found = jax.jit(models.forward, static_argnums=2)(params, TOKENS, cfg)
    np.testing.assert_allclose(found[0], logits_of(there, TOKENS[0]), atol=1e-4)
