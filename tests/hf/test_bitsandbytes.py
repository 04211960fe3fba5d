"""Checkpoints of bitsandbytes in 4 bits, beside transformers and bitsandbytes."""

import json

import bitsandbytes
import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from jaxpeft import adapters, hf, kernel, models, quant, tree
from jaxpeft.errors import InputError
from jaxpeft.models import param_specs
from jaxpeft.quant import NF4

SIZES = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 16))
NF4_64 = {"bnb_4bit_quant_type": "nf4"}
STORED = {
    "nf4": {**NF4_64, "bnb_4bit_use_double_quant": True},
    "nf4_single": NF4_64,
    # Codes in a dtype that FSDP can split.
    "nf4 in bfloat16": {
        **NF4_64,
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_storage": torch.bfloat16,
    },
    "nf4 but for o_proj": {
        **NF4_64,
        "bnb_4bit_use_double_quant": True,
        "llm_int8_skip_modules": ["o_proj", "lm_head"],
    },
}
QUERY = "model.layers.1.self_attn.q_proj.weight"
STATE = f"{QUERY}.quant_state.bitsandbytes__nf4"


@pytest.fixture(scope="module")
def plain(make_torch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    make_torch(**SIZES).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def write(plain, tmp_path_factory):
    """write(name of STORED) -> (its folder, the torch model), each made once."""
    made = {}

    def make(name):
        if name not in made:
            config = BitsAndBytesConfig(load_in_4bit=True, **STORED[name])
            model = AutoModelForCausalLM.from_pretrained(
                plain, quantization_config=config, dtype=torch.bfloat16
            )
            folder = tmp_path_factory.mktemp("stored")
            model.save_pretrained(folder)
            made[name] = folder, model
        return made[name]

    return make


def matrices(model, cfg):
    """{dotted name: the stack of dequantized matrices}, as bitsandbytes has them."""
    modules, found = dict(model.named_modules()), {}
    for path, spec in tree.walk(param_specs(cfg)):
        if not (spec.stacked and path.endswith(".kernel")):
            continue
        weights = [modules[n.removesuffix(".weight")].weight for n in spec.hf_names()]
        if not hasattr(weights[0], "quant_state"):
            continue
        dense = [
            bitsandbytes.functional.dequantize_4bit(w.data, w.quant_state)
            for w in weights
        ]
        found[path] = np.stack([d.float().numpy().T for d in dense])
    return found


@pytest.mark.parametrize("name", STORED)
@pytest.mark.slow
def test_what_bitsandbytes_wrote_loads_bit_for_bit(name, write):
    folder, there = write(name)
    cfg = models.config(folder)
    params = hf.load(folder, cfg, dtype="bfloat16")
    expected, found = matrices(there, cfg), kernel.nodes(params)
    assert set(found) == set(expected)
    assert len(found) == (6 if "o_proj" in name else 7)
    for path, dense in expected.items():
        np.testing.assert_array_equal(found[path].dense(), dense)


def test_names_of_wrappers_are_passed_over(write, tmp_path):
    folder, _ = write("nf4")
    cfg = models.config(folder)
    tensors = load_file(folder / "model.safetensors")
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}
    save_file(wrapped, tmp_path / "model.safetensors")
    found, expected = (hf.load(path, cfg) for path in (tmp_path, folder))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nf4", "nf4_single"])
def test_it_computes_what_the_torch_model_does(name, write):
    folder, _ = write(name)
    cfg = models.config(folder, activation_dtype="float32")
    found = models.forward(hf.load(folder, cfg, dtype="bfloat16"), TOKENS, cfg)
    there = AutoModelForCausalLM.from_pretrained(folder).dequantize().float()
    with torch.no_grad():
        expected = there(torch.from_numpy(TOKENS)).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nf4", "nf4_single", "nf4 but for o_proj"])
def test_what_is_written_here_loads_there(name, write, tmp_path):
    folder, there = write(name)
    cfg = models.config(folder)
    params = hf.load(folder, cfg, dtype="bfloat16")
    hf.save(params, tmp_path, cfg, max_shard_bytes=50_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected, found = matrices(there, cfg), matrices(again, cfg)
    assert set(found) == set(expected) != set()
    for path, dense in expected.items():
        np.testing.assert_array_equal(found[path], dense)
    for key, value in there.state_dict().items():
        same = again.state_dict()[key]
        assert same.dtype == value.dtype and torch.equal(same, value), key
    jax.tree.map(
        np.testing.assert_array_equal, hf.load(tmp_path, cfg, dtype="bfloat16"), params
    )


def test_what_is_quantized_here_is_what_bitsandbytes_quantizes(plain, write, tmp_path):
    """Without double quantization every bit is the same; see test_kernels for it."""
    folder, _ = write("nf4_single")
    cfg = models.config(plain)
    params = hf.load(plain, cfg, dtype="bfloat16", quantization="nf4_single")
    hf.save(params, tmp_path, cfg)
    found = load_file(tmp_path / "model.safetensors")
    expected = load_file(folder / "model.safetensors")
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    ours, theirs = (
        json.loads((f / "config.json").read_text())["quantization_config"]
        for f in (tmp_path, folder)
    )
    assert ours.items() <= {**theirs, "bnb_4bit_compute_dtype": "bfloat16"}.items()


@pytest.mark.slow
def test_a_lora_over_it_is_merged_into_16_bits(write, tmp_path):
    folder, _ = write("nf4")
    cfg = models.config(folder)
    params = hf.load(folder, cfg)
    rules = {"r": 2, "init_lora_weights": False}
    params = adapters.inject(params, rules, jax.random.key(0))
    hf.save(adapters.merge(params), tmp_path, cfg, dtype="float32")
    content = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in content
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        expected = model(torch.from_numpy(TOKENS)).logits.numpy()
    found = models.forward(params, TOKENS, cfg)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_it_agrees_with_its_shapes(write):
    folder, _ = write("nf4_single")
    cfg = models.config(folder)
    node = hf.load(folder, cfg)["model"]["layers"]["mlp"]["down_proj"]["kernel"]
    assert isinstance(node, NF4) and node.dtype == "float32"
    shapes = quant.shapes("nf4_single", node.shape, "float32")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), node) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )


def state(content):
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def changed_state(tensors, **changes):
    content = {**json.loads(bytes(tensors[STATE])), **changes}
    return {STATE: state(json.dumps(content).encode())}


ODD_BOOK = torch.linspace(-1, 1, 16)
DAMAGED = {
    "no json": (lambda t: {STATE: state(b"{")}, "not valid JSON"),
    "a list": (lambda t: {STATE: state(b"[]")}, "holds no JSON object"),
    "deep": (lambda t: {STATE: state(b"[" * 9000)}, "not valid JSON"),
    "long": (lambda t: {STATE: state(b" " * 20_000)}, "not a JSON object as bytes"),
    "type": (lambda t: changed_state(t, quant_type="fp4"), "quant_type: found 'fp4'"),
    "blocks": (lambda t: changed_state(t, blocksize=128), "blocksize: found 128"),
    "shape": (lambda t: changed_state(t, shape=[64, 32]), r"shape: found \[64, 32\]"),
    "offset": (
        lambda t: changed_state(t, nested_offset="x"),
        "nested_offset: found 'x'; it must be a float32 number",
    ),
    "no mean": (lambda t: changed_state(t, nested_offset=float("nan")), "found nan"),
    "huge mean": (lambda t: changed_state(t, nested_offset=1e300), "found 1e\\+300"),
    "vast mean": (lambda t: changed_state(t, nested_offset=10**400), "found 1000"),
    "book": (lambda t: {f"{QUERY}.quant_map": ODD_BOOK}, "not the code book"),
    "missing": (lambda t: {f"{QUERY}.absmax": None}, "absmax' is missing"),
    "scales": (
        lambda t: {f"{QUERY}.absmax": torch.ones(64)},
        r"absmax' is F32 \(64,\), expected U8 \(64,\)",
    ),
    "short": (lambda t: {QUERY: t[QUERY][:-1]}, "has 2047 bytes; .* implies 2048"),
    "half": (
        lambda t: {key: None for key in t if key.startswith(f"{QUERY}.")},
        "is stored in 4 bits and .*q_proj.weight' is not",
    ),
    "head": (
        lambda t: {"lm_head.weight.quant_state.bitsandbytes__nf4": state(b"{}")},
        "lm_head.* the layers' kernels in nf4 alone",
    ),
    "infinite": (
        lambda t: {f"{QUERY}.nested_absmax": torch.tensor([torch.inf])},
        "nested_absmax': holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_checkpoints_are_refused(name, write, tmp_path):
    change, message = DAMAGED[name]
    folder, _ = write("nf4")
    tensors = load_file(folder / "model.safetensors")
    tensors |= change(tensors)
    kept = {key: value for key, value in tensors.items() if value is not None}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(InputError, match=message):
        hf.load(tmp_path, models.config(tmp_path))


def test_other_bits_than_the_stored_ones_are_refused(write):
    folder, _ = write("nf4")
    cfg = models.config(folder)
    with pytest.raises(InputError, match="found 'int8', but .* is stored in nf4; use"):
        hf.load(folder, cfg, quantization="int8")
    with pytest.raises(InputError, match="quantization_skip: .*o_proj in nf4; leave"):
        hf.load(folder, cfg, quantization="nf4", skip=["o_proj"])


def test_blocks_over_two_outputs_are_refused(make_torch, tmp_path):
    sizes = {**SIZES, "intermediate_size": 96}
    make_torch(**sizes).to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    config = BitsAndBytesConfig(load_in_4bit=True, **NF4_64)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=config
    )
    model.save_pretrained(tmp_path / "stored")
    cfg = models.config(tmp_path / "stored")
    with pytest.raises(InputError, match="down_proj.* has an input of 96, of which 64"):
        hf.load(tmp_path / "stored", cfg)
