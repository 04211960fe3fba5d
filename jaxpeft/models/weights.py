"""The weights of a decoder: the declaration of each, shapes and random values."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft.models.spec import NORMS, ModelConfig, ParamSpec


def param_specs(cfg: ModelConfig) -> dict:
    """The declaration of every weight, in the structure of the params mapping."""
    hidden, inner, layer = cfg.hidden_size, cfg.intermediate_size, "model.layers.{}."
    queries = cfg.num_attention_heads * cfg.head_dim
    keys = cfg.num_key_value_heads * cfg.head_dim

    def linear(path: str, d_in: int, d_out: int, axes: tuple, bias: bool) -> dict:
        return _linear(
            layer + path, (cfg.num_hidden_layers, d_in, d_out), axes, bias=bias
        )

    def norm(path: str, width: int = hidden, axis: str | None = "embed") -> dict:
        shape, axes = (cfg.num_hidden_layers, width), ("layers", axis)
        # With an offset a scale of zero leaves the norm as it is.
        init = "zeros" if cfg.norm_offset else "ones"
        return {"scale": ParamSpec(shape, axes, init, f"{layer}{path}.weight")}

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
        wide = {
            "gate_up_proj": mlp("gate_up_proj", hidden, 2 * inner, ("embed", "mlp"))
        }
    else:
        self_attn = {
            "q_proj": attention("q_proj", hidden, queries, into),
            "k_proj": attention("k_proj", hidden, keys, into),
            "v_proj": attention("v_proj", hidden, keys, into),
        }
        wide = {
            "gate_proj": mlp("gate_proj", hidden, inner, ("embed", "mlp")),
            "up_proj": mlp("up_proj", hidden, inner, ("embed", "mlp")),
        }
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
    specs = {
        "model": {
            "embed_tokens": {
                "embedding": ParamSpec(
                    vocab, ("vocab", "embed"), "normal", "model.embed_tokens.weight"
                )
            },
            "layers": layers,
            "norm": {
                "scale": ParamSpec(
                    (hidden,),
                    ("embed",),
                    "zeros" if cfg.norm_offset else "ones",
                    "model.norm.weight",
                )
            },
        }
    }
    if not cfg.tie_word_embeddings:
        head = ParamSpec(
            vocab[::-1], ("embed", "vocab"), "normal", "lm_head.weight", transposed=True
        )
        specs["lm_head"] = {"kernel": head}
    return specs


def _linear(path: str, shape: tuple[int, ...], axes: tuple, *, bias: bool) -> dict:
    """A stacked linear layer: `kernel` (layers, in, out) and perhaps `bias`."""
    layers, _, d_out = shape
    kernel = ParamSpec(
        shape, ("layers", *axes), "normal", f"{path}.weight", transposed=True
    )
    if not bias:
        return {"kernel": kernel}
    spec = ParamSpec((layers, d_out), ("layers", axes[1]), "zeros", f"{path}.bias")
    return {"kernel": kernel, "bias": spec}


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
