"""The weights of a decoder: the declaration of each, shapes and random values."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import tree
from jaxpeft.models.spec import NORMS, Experts, ModelConfig, ParamSpec

LAYER = "model.layers.{}."


def param_specs(cfg: ModelConfig) -> dict:
    """The declaration of every weight, in the structure of the params mapping.

    That structure is the same for all families; what Hugging Face calls a module
    differs (`ModelConfig.names`).

    Args:
        cfg: the model's hyperparameters.

    Returns:
        Nested mappings with a `ParamSpec` as every leaf.
    """
    layers = {name: _layer_norm(name, cfg) for name in NORMS[cfg.norms] if name}
    layers["self_attn"] = _attention(cfg)
    layers["mlp"] = _mlp(cfg) if cfg.experts is None else _mixture(cfg, cfg.experts)
    vocab, last = (cfg.vocab_size, cfg.hidden_size), _name("model.norm", cfg)
    specs = {
        "model": {
            "embed_tokens": _embeddings(vocab, cfg),
            "layers": layers,
            "norm": _norm(last, (cfg.hidden_size,), ("embed",), cfg),
        }
    }
    if cfg.num_labels:
        shape, axes = (cfg.hidden_size, cfg.num_labels), ("embed", None)
        score = ParamSpec(shape, axes, "normal", "score.weight", transposed=True)
        specs["score"] = {"kernel": score}
    elif cfg.num_labels is None and not cfg.tie_word_embeddings:
        head = ParamSpec(
            vocab[::-1], ("embed", "vocab"), "normal", "lm_head.weight", transposed=True
        )
        specs["lm_head"] = {"kernel": head}
    return specs


def specs_with_head(cfg: ModelConfig) -> dict:
    """`param_specs` with a head also where the embedding is the head.

    What trains apart from the embedding then has a place of its own.

    Args:
        cfg: the model's hyperparameters.
    """
    return param_specs(cfg.untied())


def _attention(cfg: ModelConfig) -> dict:
    hidden = cfg.hidden_size
    queries = cfg.num_attention_heads * cfg.head_dim
    keys = cfg.num_key_value_heads * cfg.head_dim
    if cfg.fused_qkv:
        widths = {"qkv_proj": queries + 2 * keys}
    else:
        widths = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    weights = {}
    for name, width in widths.items():
        shape, bias = (hidden, width), cfg.attention_bias
        weights[name] = _linear(
            f"self_attn.{name}", shape, ("embed", "heads"), bias, cfg
        )
    bias = cfg.attention_bias if cfg.output_bias is None else cfg.output_bias
    shape, axes = (queries, hidden), ("heads", "embed")
    weights["o_proj"] = _linear("self_attn.o_proj", shape, axes, bias, cfg)
    if cfg.qk_norm != "none":
        for name, width in (("q_norm", queries), ("k_norm", keys)):
            whole = cfg.qk_norm == "whole"
            size = (width, "heads") if whole else (cfg.head_dim, None)
            weights[name] = _layer_norm(f"self_attn.{name}", cfg, *size)
    return weights


def _mlp(cfg: ModelConfig) -> dict:
    hidden, inner = cfg.hidden_size, cfg.intermediate_size
    if not cfg.gated_mlp:
        widths = {"up_proj": inner}
    elif cfg.fused_gate_up:
        widths = {"gate_up_proj": 2 * inner}
    else:
        widths = {"gate_proj": inner, "up_proj": inner}
    weights = {}
    for name, width in widths.items():
        shape, axes = (hidden, width), ("embed", "mlp")
        weights[name] = _linear(f"mlp.{name}", shape, axes, cfg.mlp_bias, cfg)
    shape, axes = (inner, hidden), ("mlp", "embed")
    weights["down_proj"] = _linear("mlp.down_proj", shape, axes, cfg.mlp_bias, cfg)
    return weights


def _mixture(cfg: ModelConfig, experts: Experts) -> dict:
    """The router and the experts, gate and up of each as one kernel.

    So they are in transformers' memory, whose bare parameters PEFT adapts; its files
    have tensors for each expert.
    """
    hidden, inner = cfg.hidden_size, cfg.intermediate_size
    lead, counted = (cfg.num_hidden_layers, experts.count), ("layers", "experts")
    stored, module = f"{LAYER}{experts.block}.", f"{LAYER}mlp."
    gate, up, down = experts.tensors
    router = ParamSpec(
        (lead[0], hidden, experts.count),
        ("layers", "embed", None),
        "normal",
        f"{stored}gate.weight",
        transposed=True,
        parameter=f"{module}gate.weight",
    )
    into = ParamSpec(
        (*lead, hidden, 2 * inner),
        (*counted, "embed", "mlp"),
        "normal",
        stored + "experts.{}.{}.weight",
        transposed=True,
        parts=(gate, up),
        parameter=f"{module}experts.gate_up_proj",
    )
    out_of = ParamSpec(
        (*lead, inner, hidden),
        (*counted, "mlp", "embed"),
        "normal",
        stored + f"experts.{{}}.{down}.weight",
        transposed=True,
        parameter=f"{module}experts.down_proj",
    )
    return {
        "gate": {"kernel": router},
        "experts": {"gate_up_proj": {"kernel": into}, "down_proj": {"kernel": out_of}},
    }


def _embeddings(vocab: tuple[int, int], cfg: ModelConfig) -> dict:
    """The embedding of the tokens and, where places are learned, of the `positions`."""
    name = _name("model.embed_tokens", cfg)
    tokens = ParamSpec(vocab, ("vocab", "embed"), "normal", f"{name}.weight")
    if cfg.position_embedding == "rotary":
        return {"embedding": tokens}
    shape = (cfg.max_position_embeddings, vocab[1])
    name = _name("model.embed_positions", cfg)
    positions = ParamSpec(shape, (None, "embed"), "normal", f"{name}.weight")
    return {"embedding": tokens, "positions": positions}


def _name(module: str, cfg: ModelConfig) -> str:
    """What Hugging Face calls a module."""
    name = dict(cfg.names).get(module, module)
    return name.replace("model.", f"{cfg.decoder}.", 1) if name == module else name


def _layer_norm(
    path: str, cfg: ModelConfig, width: int | None = None, axis: str | None = "embed"
) -> dict:
    shape = (cfg.num_hidden_layers, width or cfg.hidden_size)
    return _norm(_name(LAYER + path, cfg), shape, ("layers", axis), cfg)


def _norm(name: str, shape: tuple[int, ...], axes: tuple, cfg: ModelConfig) -> dict:
    # With an offset a scale of zero leaves the norm as it is.
    init = "zeros" if cfg.norm_offset else "ones"
    scale = ParamSpec(shape, axes, init, f"{name}.weight")
    if cfg.norm_kind != "layer":
        return {"scale": scale}
    return {"scale": scale, "bias": ParamSpec(shape, axes, "zeros", f"{name}.bias")}


def _linear(
    path: str, shape: tuple[int, int], axes: tuple, bias: bool, cfg: ModelConfig
) -> dict:
    """A stacked linear layer: `kernel` (layers, in, out) and perhaps `bias`."""
    name, layers = _name(LAYER + path, cfg), cfg.num_hidden_layers
    kernel = ParamSpec(
        (layers, *shape),
        ("layers", *axes),
        "normal",
        f"{name}.weight",
        transposed=not cfg.conv1d,
    )
    if not bias:
        return {"kernel": kernel}
    spec = ParamSpec((layers, shape[1]), ("layers", axes[1]), "zeros", f"{name}.bias")
    return {"kernel": kernel, "bias": spec}


def module_names(cfg: ModelConfig) -> dict[str, list[str]]:
    """Hugging Face's names of every module, one for each of its layers.

    Args:
        cfg: the model's hyperparameters.

    Returns:
        {dotted path of a module in the params: its names}. A weight that Hugging Face
        keeps in a module of its own, such as the places beside an embedding, stands
        under its whole name.
    """
    named: dict[str, list[str]] = {}
    for path, spec in tree.walk(param_specs(cfg)):
        names = [name.removesuffix(".bias") for name in spec.module_names()]
        if named.setdefault(path.rpartition(".")[0], names) != names:
            named[path] = names
    return named


def is_spec(x: object) -> bool:
    """Whether `x` is a leaf of a tree of declarations."""
    return isinstance(x, ParamSpec)


def shapes(cfg: ModelConfig, dtype: str) -> dict:
    """The params mapping as `jax.ShapeDtypeStruct`s: nothing is allocated.

    Args:
        cfg: the model's hyperparameters.
        dtype: of every weight.
    """
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(dtype)),
        param_specs(cfg),
        is_leaf=is_spec,
    )


def random(cfg: ModelConfig, key: Array, dtype: str = "float32") -> dict:
    """Random weights as Hugging Face initialises them: normal(initializer_range).

    Args:
        cfg: the model's hyperparameters.
        key: of the draw; every weight has one of its own.
        dtype: of every weight.

    Returns:
        The params mapping.
    """
    specs, treedef = jax.tree.flatten(param_specs(cfg), is_leaf=is_spec)

    def make(spec: ParamSpec, key: Array) -> Array:
        if spec.init == "normal":
            values = jax.random.normal(key, spec.shape) * cfg.initializer_range
            return values.astype(dtype)
        return (jnp.ones if spec.init == "ones" else jnp.zeros)(spec.shape, dtype)

    keys = jax.random.split(key, len(specs))
    return treedef.unflatten([make(s, k) for s, k in zip(specs, keys, strict=True)])
