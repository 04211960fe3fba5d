"""What a model is made of: its hyperparameters and the declaration of each weight."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

Axes = tuple[str | None, ...]

# A layer's norms by `ModelConfig.norms`, under Hugging Face's names: before and after
# attention, before and after the MLP.
NORMS: dict[str, tuple[str | None, ...]] = {
    "before": ("input_layernorm", None, "post_attention_layernorm", None),
    "after": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    "parallel": ("input_layernorm", None, None, None),
}


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base frequency and the scaling of long contexts.

    The fields have Hugging Face's names and meanings (`rope_parameters`), and a kind
    reads only those that it has there.

    Attributes:
        theta: the base of the frequencies, `rope_theta`.
        kind: the scaling, `rope_type`; each is explained in `jaxpeft.models.rope`.
        factor: how far the context is stretched.
        original_max_position_embeddings: the context, in tokens, before it was
            stretched.
        low_freq_factor: "llama3": wavelengths above the original context over this are
            divided by `factor`.
        high_freq_factor: "llama3": wavelengths below the original context over this
            are kept.
        beta_fast: "yarn": what turns more often within the original context is kept.
        beta_slow: "yarn": what turns less often there is divided by `factor`.
        mscale: "yarn": the weight in the attention factor's numerator; 0: none.
        mscale_all_dim: "yarn": the weight in its denominator; 0: none.
        truncate: "yarn": whether the ends of the ramp are rounded to whole numbers.
        attention_factor: "yarn" and "longrope": what cosines and sines are multiplied
            by; None: it follows from `factor`.
        short_factor: "longrope": the divisors of the frequencies up to the original
            context, one for each.
        long_factor: "longrope": the divisors beyond it.
        llama_4_scaling_beta: b of what queries are multiplied by, `1 + b * log(1 +
            floor(position / original context))`; 0: by nothing.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"] = (
        "default"
    )
    factor: float = 1.0
    original_max_position_embeddings: int = 2048
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    attention_factor: float | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    llama_4_scaling_beta: float = 0.0


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of every layer's MLP.

    Attributes:
        count: of MLPs, each `intermediate_size` wide.
        per_token: how many a token goes to, those of the largest probabilities.
        normalized: whether the probabilities that weigh these sum to 1.
        block: what checkpoints call the whole in a layer.
        tensors: what they call an expert's gate, up and down.
    """

    count: int
    per_token: int
    normalized: bool
    block: str = "mlp"
    tensors: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ModelConfig:
    """The hyperparameters of a decoder-only transformer, under Hugging Face's names.

    Attributes:
        model_type: the family, a key of `jaxpeft.models.FAMILIES`.
        vocab_size: rows of the embedding, and logits of a token.
        hidden_size: the width of what goes from layer to layer.
        intermediate_size: the inner width of an MLP, or of one expert.
        num_hidden_layers: how many layers there are.
        num_attention_heads: heads of the queries.
        num_key_value_heads: heads of the keys and values; it divides that of queries.
        head_dim: the width of a head.
        max_position_embeddings: the longest context, in tokens.
        rms_norm_eps: what every norm adds to the variance, of either kind.
        rope: the rotary position embedding.
        tie_word_embeddings: the embedding's transpose is the head.
        attention_bias: q, k, v and the output have biases.
        mlp_bias: the linear modules of the MLP have biases.
        hidden_act: the name of the MLP's activation function.
        initializer_range: the standard deviation of random weights.
        output_bias: whether attention's output has a bias; None: as `attention_bias`.
        fused_qkv: one kernel for q, k and v.
        fused_gate_up: one kernel for gate and up.
        gated_mlp: the MLP has a gate; false: an activation function between two linear
            modules is all of it.
        experts: the mixture in the place of every MLP; None: there are no experts.
        conv1d: linear modules are stored (in, out): the `Conv1D` of GPT-2.
        position_embedding: how a token knows its place: q and k turn ("rotary"), or an
            embedding of places is added to its own ("learned").
        norm_kind: root-mean-square norms ("rms"), or LayerNorms with biases ("layer")
            or without ("centered").
        qk_norm: RMS norms of q and k: none, over each head, or over the whole of them.
        norms: of what attention and MLP read ("before"), of what they give ("after"),
            of both, or one for what they read side by side ("parallel").
        norm_offset: what is added to the scale of every norm.
        attention_scale: what products of queries and keys are multiplied by; None:
            1 / sqrt(head_dim).
        attention_softcap: c of `c * tanh(logit / c)` in attention; None: no cap.
        logit_scale: what the head's logits are multiplied by, before any cap; None: by
            nothing.
        logit_softcap: the same cap of the head's logits.
        residual_scale: what attention and MLP give is multiplied by before it is added;
            None: by nothing.
        embedding_scale: what embeddings are multiplied by; None: by nothing.
        prompt_scale: the same of virtual tokens, which are embeddings that train.
        rotary_dim: how many elements of a head rotate, its first ones; None: all.
        rope_interleave: what rotates together are neighbours in a head, not an element
            of its first half and one of its second.
        windows: for each layer, how many tokens back it sees, itself among them (None:
            all); empty: every layer sees all.
        rotations: for each layer, how it rotates: 0 as `rope`, 1 as `local_rope`, -1
            not at all; empty: all as `rope`.
        local_rope: the rotary embedding of the layers whose `rotations` are 1.
        names: (our name, Hugging Face's) of the modules whose names differ; `{}` stands
            for the layer's number.
        decoder: what transformers calls the module that holds embedding and layers; in
            a model that sees, too, it lies deeper than "model".
        num_labels: how many scores a sequence gets from the head that stands in the
            place of the one of tokens; 0: there is no head; None: that of tokens.
        pad_token_id: where there are such scores, the token of padding, at which none
            is read; None: there is no such token.
        activation_dtype: how to run it, not what it is, set by the caller: the dtype of
            the activations; None: that of the embedding.
        remat: likewise set by the caller: what the backward pass computes once more
            (see `jaxpeft.models.kept`).
        offload: likewise: what lies in the host's memory while it is not needed, the
            activations that a layer keeps for the backward pass, the layers' frozen
            weights, both or nothing.
        tile: likewise: how many tokens of a sequence go through an MLP at a time; None:
            all of them.
        hf: `config.json` as read, for writing the model back.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope = field(default_factory=Rope)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    output_bias: bool | None = None
    fused_qkv: bool = False
    fused_gate_up: bool = False
    gated_mlp: bool = True
    experts: Experts | None = None
    conv1d: bool = False
    position_embedding: Literal["rotary", "learned"] = "rotary"
    norm_kind: Literal["rms", "layer", "centered"] = "rms"
    qk_norm: Literal["none", "head", "whole"] = "none"
    norms: Literal["before", "after", "both", "parallel"] = "before"
    norm_offset: float = 0.0
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_scale: float | None = None
    logit_softcap: float | None = None
    residual_scale: float | None = None
    embedding_scale: float | None = None
    prompt_scale: float | None = None
    rotary_dim: int | None = None
    rope_interleave: bool = False
    windows: tuple[int | None, ...] = ()
    rotations: tuple[int, ...] = ()
    local_rope: Rope | None = None
    names: tuple[tuple[str, str], ...] = ()
    decoder: str = "model"
    num_labels: int | None = None
    pad_token_id: int | None = None
    activation_dtype: str | None = None
    remat: Literal["none", "full", "dots"] = "none"
    offload: Literal["none", "activations", "weights", "both"] = "none"
    tile: int | None = None
    hf: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def sees(self) -> bool:
        """Whether it is the language model in one that sees, too."""
        return "." in self.decoder

    @property
    def context(self) -> int:
        """The longest sequence, in tokens, that its positions are made for.

        A file whose `rope_scaling` is yarn or dynamic may leave its
        `max_position_embeddings` as it was before (Qwen's pages say to do so).
        """
        trained, rope = self.max_position_embeddings, self.rope
        if rope.kind == "yarn":
            trained = rope.original_max_position_embeddings
        stretched = rope.factor if rope.kind in ("yarn", "dynamic") else 1.0
        return max(self.max_position_embeddings, int(stretched * trained))

    @property
    def offloads_activations(self) -> bool:
        """Whether the host holds what layers keep for the backward pass."""
        return self.offload in ("activations", "both")

    @property
    def offloads_weights(self) -> bool:
        """Whether the host holds the layers' frozen weights."""
        return self.offload in ("weights", "both")

    def untied(self) -> "ModelConfig":
        """The same model with a head of its own, in its config.json as well."""
        return self._restated("tie_word_embeddings", False)

    def with_rows(self, rows: int) -> "ModelConfig":
        """The same model with so many tokens, in its config.json as well."""
        return self._restated("vocab_size", rows)

    def _restated(self, key: str, value: Any) -> "ModelConfig":
        hf, text = dict(self.hf), self.hf.get("text_config")
        if isinstance(text, Mapping):  # a model that sees, too
            hf["text_config"] = {**text, key: value}
        if hf and (not isinstance(text, Mapping) or key in hf or value is False):
            hf[key] = value
        return replace(self, **{key: value}, hf=hf)


# Leading axes that count what Hugging Face keeps in tensors of their own.
STACKED = ("layers", "experts")


@dataclass(frozen=True)
class Piece:
    """A Hugging Face tensor's place in a weight.

    Attributes:
        name: the tensor's.
        at: its index on the stacked axes.
        columns: its part of the last axis.
    """

    name: str
    at: tuple[int, ...]
    columns: slice


@dataclass(frozen=True)
class ParamSpec:
    """One weight, declared once.

    Attributes:
        shape: as stored here, with a leading "layers" axis where layers are stacked,
            and an "experts" axis after it where experts are.
        axes: the logical name of each of its axes; None: one that is never split.
        init: the name of the initializer for random models.
        hf: Hugging Face's tensor name; `{}` stands for the layer's index, then the
            expert's, then the part.
        transposed: Hugging Face stores it (out, in), here it is (in, out).
        parts: of tensors that stand side by side along the last axis, equally wide.
        parameter: the name of what in transformers' model is a bare parameter, and no
            linear module.
    """

    shape: tuple[int, ...]
    axes: Axes
    init: Literal["normal", "ones", "zeros"]
    hf: str
    transposed: bool = False
    parts: tuple[str, ...] = ()
    parameter: str | None = None

    @property
    def stacked(self) -> bool:
        """Whether the first axis counts layers."""
        return self.axes[:1] == ("layers",)

    @property
    def stack(self) -> tuple[int, ...]:
        """How many layers and experts the leading axes count."""
        pairs = zip(self.axes, self.shape, strict=True)
        counted = itertools.takewhile(lambda pair: pair[0] in STACKED, pairs)
        return tuple(size for _, size in counted)

    def hf_shape(self) -> tuple[int, ...]:
        """The shape of one Hugging Face tensor."""
        *shape, width = self.shape[len(self.stack) :]
        shape = (*shape, width // max(len(self.parts), 1))
        return shape[::-1] if self.transposed else shape

    def pieces(self) -> list[Piece]:
        """The Hugging Face tensors behind this weight, in the order of the stack."""
        parts = [(part,) for part in self.parts] or [()]
        width = self.shape[-1] // len(parts)
        return [
            Piece(self.hf.format(*at, *part), at, slice(i * width, (i + 1) * width))
            for at in np.ndindex(*self.stack)
            for i, part in enumerate(parts)
        ]

    def hf_names(self) -> list[str]:
        """The names of the tensors behind this weight, in the order of `pieces`."""
        return [piece.name for piece in self.pieces()]

    def module_names(self) -> list[str]:
        """The name in transformers of the weight's module, one for each layer."""
        name = (self.parameter or self.hf).removesuffix(".weight")
        return (
            [name.format(i) for i in range(self.shape[0])] if self.stacked else [name]
        )
