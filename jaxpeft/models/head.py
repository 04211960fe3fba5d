"""The head: the kernel that turns hidden states into logits, or into scores."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpeft import hardware, kernel
from jaxpeft.models.spec import ModelConfig


@struct.dataclass
class Logits:
    """The kernel whose product is `cap * tanh(scale * (x @ kernel) / cap)`.

    Attributes:
        kernel: (hidden, vocab), of any kind.
        scale: what the product is multiplied by; None: by nothing.
        cap: where the result is capped; None: nowhere.
    """

    kernel: Any
    scale: float | None = struct.field(pytree_node=False)
    cap: float | None = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel, (hidden, vocab)."""
        return self.kernel.shape

    def __rmatmul__(self, x: Array) -> Array:
        logits = x @ self.kernel
        if self.scale is not None:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * jnp.tanh(logits / self.cap)


@struct.dataclass
class Turned:
    """The kernel (hidden, vocab) that an embedding is to the head that shares it.

    Where products take either side of a matrix, it is read as it lies: a TPU's compiler
    copies what is transposed outside of the loop in which it is read.

    Attributes:
        table: the embedding, (vocab, hidden).
    """

    table: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel, (hidden, vocab)."""
        return self.table.shape[::-1]

    def __rmatmul__(self, x: Array) -> Array:
        return jax.lax.dot_general(x, self.table, (((x.ndim - 1,), (1,)), ((), ())))


def head(params: Mapping[str, Any], cfg: ModelConfig) -> Any:
    """The kernel that turns hidden states into logits, (hidden, vocab), of any kind.

    Of a model that gives sequences scores it is (hidden, labels).

    Args:
        params: the model's, with or without adapters.
        cfg: the model's hyperparameters.
    """
    if cfg.num_labels:
        return params["score"]["kernel"]
    if "lm_head" in params:
        matrix = params["lm_head"]["kernel"]
    else:
        # Beneath an adapter of the embedding that the head has no part in.
        table = params["model"]["embed_tokens"]["embedding"]
        table = kernel.of_head(table)
        lies = isinstance(table, Array) and hardware.current().platform != "cpu"
        matrix = Turned(table) if lies else table.T
    if cfg.logit_scale is None and cfg.logit_softcap is None:
        return matrix
    return Logits(matrix, cfg.logit_scale, cfg.logit_softcap)
