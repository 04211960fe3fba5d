"""LongRoPE: each sequence has the factors of its own length, as transformers alone."""

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from jaxpeft import adapters, hf, models
from jaxpeft.generate.continuation import Continuation
from jaxpeft.generate.generation import generate
from jaxpeft.models.sampling import Sampling

ORIGINAL = 16  # tokens, beyond which the long factors hold
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "max_position_embeddings": 128,
    "original_max_position_embeddings": ORIGINAL,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 4.0, 8.0, 16.0],
    },
}
TOKENS = np.random.default_rng(0).integers(1, 61, (3, 40)).astype(np.int32)
forward = jax.jit(models.forward, static_argnums=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**SIZES))
    folder = tmp_path_factory.mktemp("phi3")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def there(folder):
    return transformers.Phi3ForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def here(folder):
    cfg = models.config(folder)
    return hf.load(folder, cfg), cfg


def logits_of(model, tokens):
    with torch.no_grad():
        logits = model(torch.from_numpy(np.asarray(tokens)[None]).long()).logits
    return logits[0, -len(tokens) :].numpy()  # PEFT's of a prompt come first


def packed(spans, rows=1):
    """Segments and positions of examples that lie in `spans` of a row, then padding."""
    segments, positions = np.zeros((2, rows, 40), np.int32)
    for number, (start, end) in enumerate(spans, 1):
        segments[:, start:end], positions[:, start:end] = number, np.arange(end - start)
    return segments, positions


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(5, 40, 16), (17, 16, 1)])
def test_rows_of_a_batch_are_as_alone(lengths, here, there):
    rows = [packed([(0, length)]) for length in lengths]
    segments, positions = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    found = models.forward(
        here[0], TOKENS, here[1], segments=segments, positions=positions
    )
    bare = models.forward(here[0], TOKENS, here[1], positions=positions)
    for row, length in enumerate(lengths):
        alone = logits_of(there, TOKENS[row, :length])
        np.testing.assert_allclose(found[row, :length], alone, atol=1e-4)
        np.testing.assert_allclose(bare[row, :length], alone, atol=1e-4)


@pytest.mark.parametrize("spans", [[(0, 17), (17, 33), (33, 38)], [(0, 9), (9, 40)]])
def test_packed_examples_are_as_alone(spans, here, there):
    segments, positions = packed(spans)
    found = models.forward(
        here[0], TOKENS[:1], here[1], segments=segments, positions=positions
    )
    for start, end in spans:
        alone = logits_of(there, TOKENS[0, start:end])
        np.testing.assert_allclose(found[0, start:end], alone, atol=1e-4)


# Short, at the end, one beyond, long; the first three cross while they are answered.
PROMPTS = [
    TOKENS[0, :7],
    TOKENS[1, :16],
    TOKENS[2, :15],
    TOKENS[1, :17],
    TOKENS[0, :30],
]
PROMPTS = [prompt.tolist() for prompt in PROMPTS]
NEW = 14


@pytest.fixture(scope="module")
def expected(there):
    def answer(prompt):
        whole = there.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=NEW,
            do_sample=False,
        )
        return whole[0, len(prompt) :].tolist()

    return [answer(prompt) for prompt in PROMPTS]


@pytest.mark.slow
def test_answers_in_a_batch_are_transformers_alone(here, expected):
    found = generate(*here, PROMPTS, max_new_tokens=NEW, stop=[])
    assert found == expected
    # The short factors all the way would say something else.
    assert generate(*here, PROMPTS[:1], max_new_tokens=NEW, stop=[]) == expected[:1]


def test_rows_that_have_ended_are_not_read_anew(here, expected):
    stop = [expected[0][2], expected[2][0]]
    found = generate(*here, PROMPTS, max_new_tokens=NEW, stop=stop)
    for answer, whole in zip(found, expected, strict=True):
        ends = [i for i, token in enumerate(whole) if token in stop]
        assert answer == whole[: ends[0] if ends else None]


def test_streamed_answers_and_turns_are_the_same(here, there, expected):
    sequence = Continuation(*here, [], Sampling())
    for prompt, answer in zip(PROMPTS, expected, strict=True):
        assert list(sequence.answer(prompt, NEW)) == answer
    # A second turn beyond the end after a first one within it, and back again.
    first = list(sequence.answer(PROMPTS[0], 3))
    second = [*PROMPTS[0], *first, *range(1, 10)]
    answer = list(sequence.answer(second, NEW))
    logits = logits_of(there, [*second, *answer])[len(second) - 1 : -1]
    assert answer == np.argmax(logits, axis=-1).tolist()
    assert sequence.reused == 0
    assert list(sequence.answer(PROMPTS[0], NEW)) == expected[0]


@pytest.mark.slow
def test_each_row_is_read_anew_with_its_own_adapter(here, expected):
    params, cfg = here
    rules = {"r": 4, "lora_alpha": 64, "target_modules": "all-linear"}
    own = adapters.inject(
        params, {**rules, "init_lora_weights": False}, jax.random.key(1)
    )
    both = adapters.several(params, {"own": own})
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    chosen = adapters.choose(both, ["own", "base", "own"])
    found = generate(chosen, cfg, prompts, max_new_tokens=NEW, stop=[])
    alone = generate(own, cfg, prompts, max_new_tokens=NEW, stop=[])
    assert found == [alone[0], expected[0], alone[2]]
    assert alone[1] != expected[0]


@pytest.fixture(scope="module", params=["PromptTuning", "PrefixTuning"])
def virtual(request, folder, here, tmp_path_factory):
    """A model with four virtual tokens, in PEFT and here."""
    model = transformers.Phi3ForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    config = getattr(peft, request.param + "Config")(
        num_virtual_tokens=4, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, config).eval()
    saved = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(saved)
    return model, hf.load_adapter(here[0], saved, here[1])


@pytest.mark.slow
def test_virtual_tokens_count_and_have_the_factors_of_what_follows(virtual, here):
    there, params = virtual
    for spans in ([(0, 13), (13, 25), (25, 38)], [(0, 40)]):
        segments, positions = packed(spans)
        found = models.forward(
            params, TOKENS[:1], here[1], segments=segments, positions=positions
        )
        for start, end in spans:
            alone = logits_of(there, TOKENS[0, start:end])
            np.testing.assert_allclose(found[0, start:end], alone, atol=1e-4)


@pytest.mark.slow
def test_answers_behind_virtual_tokens_are_what_whole_sequences_say(virtual, here):
    there, params = virtual
    prompts = [PROMPTS[0], PROMPTS[2], PROMPTS[4]]
    found = generate(params, here[1], prompts, max_new_tokens=NEW, stop=[])
    kept = Continuation(params, here[1], [], Sampling())
    for prompt, answer in zip(prompts, found, strict=True):
        assert list(kept.answer(prompt, NEW)) == answer
        for end in range(len(prompt), len(prompt) + NEW):
            whole = [*prompt, *answer][:end]
            assert answer[end - len(prompt)] == np.argmax(logits_of(there, whole)[-1])


def test_dynamic_scaling_is_a_row_s_own(make_llama):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    llama = make_llama(max_position_embeddings=16, rope_parameters=rope)
    segments, positions = packed([(0, 24), (24, 33)])
    found = models.forward(
        llama.params, TOKENS[:1], llama.cfg, segments=segments, positions=positions
    )
    for start, end in [(24, 33), (0, 24)]:
        alone = logits_of(llama.torch, TOKENS[0, start:end])
        np.testing.assert_allclose(found[0, start:end], alone, atol=1e-4)
