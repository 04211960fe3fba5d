"""Virtual tokens before every sequence: prompt tuning and prefix tuning.

Prompt tuning (Lester et al., 2021) trains what the first layer reads of them, prefix
tuning (Li & Liang, 2021) the keys and values that each layer keeps of them. They come
first, see themselves alone, and all else sees them: so they are computed once for a
whole batch, and packed examples share them.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.kernel import Axes

PROMPT = "model.prompt.tokens"
PREFIX = ("model.layers.self_attn.prefix.k", "model.layers.self_attn.prefix.v")


@struct.dataclass
class Virtual:
    """Trained values of virtual tokens, float32, which the model reads and no matrix.

    Attributes:
        weight: (n, hidden) of a prompt, (layers, n, kv_heads * head_dim) of a prefix.
    """

    weight: Array

    TRAINABLE = ("weight",)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""
        return self.weight.shape

    def __rmatmul__(self, x: Array) -> Array:
        raise TypeError("virtual tokens are no kernel")

    def dense(self) -> Array:
        """Never returns, since virtual tokens are no weights.

        Raises:
            InputError: always.
        """
        raise InputError(
            "adapter.method: found virtual tokens, which cannot be merged into "
            "weights: keep the adapter beside its base"
        )

    def axes(self, base: Axes) -> "Virtual":
        """The logical axes: those of the values.

        Args:
            base: the logical axes of the kernel, one name for each dimension.

        Returns:
            This node with axes in the place of its arrays.
        """
        return Virtual(weight=base)  # type: ignore[arg-type]


def prompt_tuning(
    params: Mapping[str, Any],
    key: Array,
    *,
    num_virtual_tokens: int = 20,
    prompt_tuning_init: Literal["SAMPLE_VOCAB", "RANDOM"] = "SAMPLE_VOCAB",
) -> dict[str, Any]:
    """The params with a prompt of virtual tokens (Lester et al., 2021).

    The model computes something else at once.

    Args:
        params: of a base.
        key: of the draw.
        num_virtual_tokens: how many there are; their values are (n, hidden) float32.
        prompt_tuning_init: "SAMPLE_VOCAB" begins with rows of the embedding, drawn at
            random; "RANDOM", PEFT's default, with standard normal values, which lie
            far from any token.

    Raises:
        InputError: the count is below 1.
    """
    _check(num_virtual_tokens)
    table = params["model"]["embed_tokens"]["embedding"]
    vocab, width = table.shape
    if prompt_tuning_init == "RANDOM":
        values = jax.random.normal(key, (num_virtual_tokens, width))
    else:
        tokens = jax.random.randint(key, (num_virtual_tokens,), 0, vocab)
        values = table[tokens].astype(jnp.float32)
    return added(params, {PROMPT: Virtual(values)})


def prefix_tuning(
    params: Mapping[str, Any], key: Array, *, num_virtual_tokens: int = 20
) -> dict[str, Any]:
    """The params with keys and values of virtual tokens in every layer.

    No position is in the keys. The model computes something else at once (Li & Liang,
    2021).

    Args:
        params: of a base.
        key: of the draw, standard normal as in PEFT.
        num_virtual_tokens: how many there are; their keys and their values are each
            (layers, n, kv_heads * head_dim) float32.

    Raises:
        InputError: the count is below 1.
    """
    _check(num_virtual_tokens)
    attention = params["model"]["layers"]["self_attn"]
    layers, queries, _ = attention["o_proj"]["kernel"].shape
    if "qkv_proj" in attention:
        width = (attention["qkv_proj"]["kernel"].shape[-1] - queries) // 2
    else:
        width = attention["k_proj"]["kernel"].shape[-1]
    shape = (layers, num_virtual_tokens, width)
    keys = jax.random.split(key)
    return added(
        params,
        {
            name: Virtual(jax.random.normal(k, shape))
            for name, k in zip(PREFIX, keys, strict=True)
        },
    )


def added(params: Mapping[str, Any], nodes: Mapping[str, Virtual]) -> dict[str, Any]:
    """The params with virtual tokens in their places; those there were are gone.

    Args:
        params: of a base, which may have virtual tokens.
        nodes: {dotted name: the virtual tokens to stand there}.
    """

    def place(branch: Mapping[str, Any], path: list[str], node: Virtual) -> dict:
        head, *rest = path
        if not rest:
            return {**branch, head: node}
        return {**branch, head: place(branch.get(head, {}), rest, node)}

    for name, node in nodes.items():
        params = place(params, name.split("."), node)
    return dict(params)


def virtual(params: Mapping[str, Any]) -> dict[str, Virtual]:
    """The virtual tokens in the params, {dotted name: node}."""
    return {n: v for n, v in tree.walk(params) if isinstance(v, Virtual)}


def _check(count: int) -> None:
    if count < 1:
        raise InputError(
            f"adapter.num_virtual_tokens: found {count}; it must be 1 or more"
        )
