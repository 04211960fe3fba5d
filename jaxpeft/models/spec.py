"""What a model is made of: its hyperparameters and the declaration of each weight."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
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
}


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base frequency and the scaling of long contexts.

    `kind` and the fields carry Hugging Face's names and meanings (`rope_parameters`);
    a kind reads only the fields that it has there.
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


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of every layer's MLP.

    count: of MLPs, each `intermediate_size` wide; per_token: how many a token goes to,
    those of the largest probabilities. normalized: whether the probabilities that
    weigh these sum to 1. block: what checkpoints call the whole in a layer, and
    tensors: an expert's gate, up and down.
    """

    count: int
    per_token: int
    normalized: bool
    block: str = "mlp"
    tensors: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ModelConfig:
    """The hyperparameters of a decoder-only transformer, under Hugging Face's names."""

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
    # Where families differ. Whether attention's output has a bias, if not as the rest.
    output_bias: bool | None = None
    # One kernel for q, k and v, and one for gate and up.
    fused_projections: bool = False
    # An activation function between two linear modules is all of the MLP.
    gated_mlp: bool = True
    experts: Experts | None = None
    # Linear modules are stored (in, out): the `Conv1D` of GPT-2.
    conv1d: bool = False
    # How a token knows its place: q and k turn, or an embedding is added to its own.
    position_embedding: Literal["rotary", "learned"] = "rotary"
    # Root-mean-square norms, or LayerNorms with means and biases, of `rms_norm_eps`.
    norm_kind: Literal["rms", "layer"] = "rms"
    # RMS norms of q and k: over each head, or over all of them at once.
    qk_norm: Literal["none", "head", "whole"] = "none"
    # Norms of what attention and MLP read, of what they give, or of both.
    norms: Literal["before", "after", "both"] = "before"
    norm_offset: float = 0.0  # is added to the scale of every norm
    attention_scale: float | None = None  # None: 1 / sqrt(head_dim)
    attention_softcap: float | None = None  # c * tanh(logit / c)
    logit_softcap: float | None = None
    embedding_scale: float | None = None
    rotary_dim: int | None = None  # of a head, the first ones; None: all
    # For each layer, how many tokens back it sees, itself among them (None: all), and
    # how it rotates: 0 as `rope`, 1 as `local_rope`, -1 not at all. Empty: all alike.
    windows: tuple[int | None, ...] = ()
    rotations: tuple[int, ...] = ()
    local_rope: Rope | None = None
    # (our name, Hugging Face's) of the modules whose names differ; `{}`: the layer.
    names: tuple[tuple[str, str], ...] = ()
    # How to run it, not what it is: set by the caller, absent from config.json.
    activation_dtype: str | None = None  # None: that of the embedding
    remat: Literal["none", "full", "dots"] = "none"
    # config.json as read, for writing the model back.
    hf: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


# Leading axes that count what Hugging Face keeps in tensors of their own.
STACKED = ("layers", "experts")


@dataclass(frozen=True)
class Piece:
    """A Hugging Face tensor's place in a weight.

    at: its index on the stacked axes; columns: its part of the last axis.
    """

    name: str
    at: tuple[int, ...]
    columns: slice


@dataclass(frozen=True)
class ParamSpec:
    """One weight, declared once.

    shape, axes: as stored here, with a leading "layers" axis where layers are stacked,
    and an "experts" axis after it where experts are.
    init: the name of the initializer for random models: "normal", "ones" or "zeros".
    hf: Hugging Face's tensor name; `{}` stands for the layer's index, then the
    expert's, then the part.
    transposed: Hugging Face stores it (out, in), we store (in, out).
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
        """The names of `pieces`."""
        return [piece.name for piece in self.pieces()]

    def module_names(self) -> list[str]:
        """Of a linear module's weight, the module's name in transformers, by layer."""
        name = (self.parameter or self.hf).removesuffix(".weight")
        return (
            [name.format(i) for i in range(self.shape[0])] if self.stacked else [name]
        )
