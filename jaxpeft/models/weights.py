"""The weights of a decoder: the declaration of each, shapes and random values."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import tree
from jaxpeft.models.spec import NORMS, ModelConfig, ParamSpec


def param_specs(cfg: ModelConfig) -> dict:
    """The declaration of every weight, in the structure of the params mapping.

    That structure is the same for all families; what Hugging Face calls a module
    differs (`ModelConfig.names`).
    """
    hidden, inner, layer = cfg.hidden_size, cfg.intermediate_size, "model.layers.{}."
    queries = cfg.num_attention_heads * cfg.head_dim
    keys = cfg.num_key_value_heads * cfg.head_dim
    renamed = dict(cfg.names)

    def linear(path: str, d_in: int, d_out: int, axes: tuple, bias: bool) -> dict:
        name = renamed.get(layer + path, layer + path)
        shape = (cfg.num_hidden_layers, d_in, d_out)
        return _linear(name, shape, axes, bias=bias, transposed=not cfg.conv1d)

    def norm(path: str, width: int = hidden, axis: str | None = "embed") -> dict:
        shape, axes = (cfg.num_hidden_layers, width), ("layers", axis)
        return _norm(renamed.get(layer + path, layer + path), shape, axes, cfg)

    def attention(
        name: str, d_in: int, d_out: int, axes: tuple, bias: bool = cfg.attention_bias
    ) -> dict:
        return linear(f"self_attn.{name}", d_in, d_out, axes, bias)

    def mlp(name: str, d_in: int, d_out: int, axes: tuple) -> dict:
        return linear(f"mlp.{name}", d_in, d_out, axes, cfg.mlp_bias)

    into, out_of = ("embed", "heads"), ("heads", "embed")
    o_bias = cfg.attention_bias if cfg.output_bias is None else cfg.output_bias
    if cfg.fused_projections:
        self_attn = {
            "qkv_proj": attention("qkv_proj", hidden, queries + 2 * keys, into)
        }
    else:
        self_attn = {
            "q_proj": attention("q_proj", hidden, queries, into),
            "k_proj": attention("k_proj", hidden, keys, into),
            "v_proj": attention("v_proj", hidden, keys, into),
        }
    wide = {}
    if cfg.gated_mlp and cfg.fused_projections:
        wide["gate_up_proj"] = mlp("gate_up_proj", hidden, 2 * inner, ("embed", "mlp"))
    else:
        for name in ("gate_proj", "up_proj") if cfg.gated_mlp else ("up_proj",):
            wide[name] = mlp(name, hidden, inner, ("embed", "mlp"))
    self_attn["o_proj"] = attention("o_proj", queries, hidden, out_of, o_bias)
    if cfg.qk_norm != "none":
        for name, width in (("q_norm", queries), ("k_norm", keys)):
            of_head = cfg.qk_norm == "head"
            self_attn[name] = norm(
                f"self_attn.{name}",
                cfg.head_dim if of_head else width,
                None if of_head else "heads",
            )
    layers = {name: norm(name) for name in NORMS[cfg.norms] if name}
    layers["self_attn"] = self_attn
    layers["mlp"] = {
        **wide,
        "down_proj": mlp("down_proj", inner, hidden, ("mlp", "embed")),
    }
    vocab = (cfg.vocab_size, hidden)
    last = renamed.get("model.norm", "model.norm")
    specs = {
        "model": {
            "embed_tokens": _embeddings(vocab, cfg),
            "layers": layers,
            "norm": _norm(last, (hidden,), ("embed",), cfg),
        }
    }
    if not cfg.tie_word_embeddings:
        head = ParamSpec(
            vocab[::-1], ("embed", "vocab"), "normal", "lm_head.weight", transposed=True
        )
        specs["lm_head"] = {"kernel": head}
    return specs


def _embeddings(vocab: tuple[int, int], cfg: ModelConfig) -> dict:
    """That of the tokens and, where places are learned, that of the `positions`."""
    renamed = dict(cfg.names)
    name = renamed.get("model.embed_tokens", "model.embed_tokens")
    tokens = ParamSpec(vocab, ("vocab", "embed"), "normal", f"{name}.weight")
    if cfg.position_embedding == "rotary":
        return {"embedding": tokens}
    shape = (cfg.max_position_embeddings, vocab[1])
    name = renamed.get("model.embed_positions", "model.embed_positions")
    positions = ParamSpec(shape, (None, "embed"), "normal", f"{name}.weight")
    return {"embedding": tokens, "positions": positions}


def _norm(name: str, shape: tuple[int, ...], axes: tuple, cfg: ModelConfig) -> dict:
    # With an offset a scale of zero leaves the norm as it is.
    init = "zeros" if cfg.norm_offset else "ones"
    scale = ParamSpec(shape, axes, init, f"{name}.weight")
    if cfg.norm_kind == "rms":
        return {"scale": scale}
    return {"scale": scale, "bias": ParamSpec(shape, axes, "zeros", f"{name}.bias")}


def _linear(
    path: str, shape: tuple[int, ...], axes: tuple, *, bias: bool, transposed: bool
) -> dict:
    """A stacked linear layer: `kernel` (layers, in, out) and perhaps `bias`."""
    layers, _, d_out = shape
    kernel = ParamSpec(
        shape, ("layers", *axes), "normal", f"{path}.weight", transposed=transposed
    )
    if not bias:
        return {"kernel": kernel}
    spec = ParamSpec((layers, d_out), ("layers", axes[1]), "zeros", f"{path}.bias")
    return {"kernel": kernel, "bias": spec}


def module_names(cfg: ModelConfig) -> dict[str, list[str]]:
    """{path of a linear module in the params: Hugging Face's names of its layers}."""
    return {
        path.removesuffix(".kernel"): [
            name.removesuffix(".weight") for name in spec.hf_names()
        ]
        for path, spec in tree.walk(param_specs(cfg))
        if path.endswith(".kernel")
    }


def is_spec(x: object) -> bool:
    """Whether `x` is a leaf of a tree of declarations."""
    return isinstance(x, ParamSpec)


def shapes(cfg: ModelConfig, dtype: str) -> dict:
    """The params mapping as `jax.ShapeDtypeStruct`s: nothing is allocated."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(dtype)),
        param_specs(cfg),
        is_leaf=is_spec,
    )


def random(cfg: ModelConfig, key: Array, dtype: str = "float32") -> dict:
    """Random weights as Hugging Face initialises them: normal(initializer_range)."""
    specs, treedef = jax.tree.flatten(param_specs(cfg), is_leaf=is_spec)

    def make(spec: ParamSpec, key: Array) -> Array:
        if spec.init == "normal":
            values = jax.random.normal(key, spec.shape) * cfg.initializer_range
            return values.astype(dtype)
        return (jnp.ones if spec.init == "ones" else jnp.zeros)(spec.shape, dtype)

    keys = jax.random.split(key, len(specs))
    return treedef.unflatten([make(s, k) for s, k in zip(specs, keys, strict=True)])
